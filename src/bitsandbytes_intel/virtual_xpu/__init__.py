"""The virtual XPU: a device ``xpu:0`` for a CPU build of torch, for tests and trials where no Intel GPU is at hand.

Its memory is SYCL USM on the OpenCL CPU device and its streams are SYCL queues, so that native XPU operators run on
it as on a GPU; every other ``aten`` operator runs torch's CPU kernel on the same memory. Set
``BNB_INTEL_VIRTUAL_XPU=1`` before ``import torch``, or call :func:`enable` before ``import bitsandbytes``.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._device import Library

__all__ = ["enable", "fallback_counts", "is_enabled", "reset_fallback_counts"]

_lock = threading.RLock()
_library: Library | None = None


def enable() -> None:
    """Give torch the device ``xpu:0``. Does nothing where that has been done.

    The first call on a machine compiles the device, which takes up to two minutes; later ones load it from the cache.

    Raises:
        RuntimeError: torch is an XPU, CUDA or ROCm build, the device cannot be built or loaded, or torch has asked for
            its accelerators before. The text says what to do.
    """
    global _library
    with _lock:
        if _library is None:
            from . import _build, _device

            _device.check_torch()
            _library = _device.load(_build.library())


def is_enabled() -> bool:
    """Whether :func:`enable` has succeeded in this process."""
    return _library is not None


def fallback_counts() -> dict[str, int]:
    """How often each operator (``"aten::mm"``) has run a borrowed CPU kernel since the last reset.

    A test asserts with it that an operator of its own was hit, and not a fallback.
    """
    return _library.fallback_counts() if _library is not None else {}


def reset_fallback_counts() -> None:
    """Set every count of :func:`fallback_counts` to zero."""
    if _library is not None:
        _library.reset_fallback_counts()
