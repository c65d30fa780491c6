"""Paged optimizers on the XPU where upstream's own library does not load, and on the virtual XPU.

bitsandbytes keeps the states of a paged optimizer in memory that host and device share. It is not an operator: it calls
``cget_managed_ptr``, ``cprefetch`` and ``cfill_*`` of its own library. Where that is missing, bitsandbytes has a
stand-in in its place whose functions only raise; :func:`install` gives the stand-in these four, on our library. Where
it loads, its functions look for a GPU, so that on the virtual XPU ours answer as well.
As in upstream's, the memory stays for the process' life.
"""

from __future__ import annotations

import ctypes

from . import runtime, virtual_xpu

_NAMES = ("cget_managed_ptr", "cprefetch", "cfill_fp32", "cfill_uint8")


def install() -> bool:
    """Supply the functions if upstream's cannot work here; whether they are ours now. Idempotent."""
    from bitsandbytes import cextension

    missing = isinstance(cextension.lib, cextension.ErrorHandlerMockBNBNativeLibrary)
    if not missing and not virtual_xpu.is_enabled():
        return False
    for name in _NAMES:
        setattr(cextension.lib, name, globals()[f"_{name}"])
    return True


def uninstall() -> None:
    """Take the functions back."""
    from bitsandbytes import cextension

    for name in _NAMES:
        vars(cextension.lib).pop(name, None)


def _queue(device: int | None = None) -> int:
    import torch

    return torch.xpu.current_stream(device).sycl_queue


def _value(argument: ctypes._SimpleCData | None) -> int:
    return 0 if argument is None else argument.value or 0


def _cget_managed_ptr(size: ctypes.c_size_t) -> int:
    return runtime.malloc_shared(max(1, size.value), _queue())


def _cprefetch(pointer: ctypes.c_void_p, size: ctypes.c_size_t, device: ctypes.c_int32) -> None:
    if device.value >= 0:  # the host gets its pages as it touches them
        runtime.prefetch(_value(pointer), size.value, _queue(device.value))


def _cfill_fp32(A: ctypes.c_void_p, B: ctypes.c_void_p | None, value: ctypes.c_float, n: ctypes.c_int64) -> None:
    bits = int.from_bytes(bytes(value), "little")
    runtime.fill(_value(A), bits, 4, n.value, _queue())


def _cfill_uint8(A: ctypes.c_void_p, B: ctypes.c_void_p | None, value: ctypes.c_uint8, n: ctypes.c_int64) -> None:
    runtime.fill(_value(A), value.value, 1, n.value, _queue())
