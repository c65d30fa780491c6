"""The Intel backend of bitsandbytes: its operators as native kernels on Intel GPUs and CPUs.

Nothing is imported from here in normal use: installing the package is enough, since bitsandbytes and torch
find it through the entry points ``bitsandbytes.backends`` and ``torch.backends``.
"""

from __future__ import annotations

__version__ = "0.1.0"


def _autoload() -> None:
    """Entry point ``bitsandbytes.backends``: register our operators, unless ``BNB_INTEL_AUTOLOAD=0``.

    Idempotent; a missing device or library is no error (``python -m bitsandbytes_intel`` says what is missing).

    Raises:
        ValueError: an environment variable of ours holds a value that it does not know.
    """
    from . import env

    if env.AUTOLOAD.get():
        from . import ops

        ops.register()


def _torch_backend() -> None:
    """Entry point ``torch.backends``: start the virtual XPU if ``BNB_INTEL_VIRTUAL_XPU=1``, else do nothing."""
    import os

    if os.environ.get("BNB_INTEL_VIRTUAL_XPU"):
        from . import env

        if env.VIRTUAL_XPU.get():
            from . import virtual_xpu

            virtual_xpu.enable()
