"""What ``doctor`` tries in a process of its own, since a broken import may end it: imports, libraries, devices.

``python -m bitsandbytes_intel.cli.probe [LIBRARY…]`` prints a line of JSON before each step ({"step": …}) and one with
what came of it. It imports torch and bitsandbytes as a program of the user's would, with the environment as it is.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from .. import env


def _say(**found: Any) -> None:
    print("\n" + json.dumps(found), flush=True)


def _try(name: str, step: Callable[[], Any]) -> bool:
    """Run a step; say its result under its name, or its error; whether there was none."""
    _say(step=name)
    try:
        _say(**{name: step()})
        return True
    except Exception as error:  # whatever a foreign package raises is a finding
        _say(**{f"{name}_error": f"{type(error).__name__}: {error}"})
        return False


def _torch() -> str:
    wish = os.environ.pop(env.VIRTUAL_XPU.name, None)  # its failure is a finding of its own, not one of torch's
    try:
        import torch
    finally:
        if wish is not None:
            os.environ[env.VIRTUAL_XPU.name] = wish
    return str(torch.__version__)


def _xpu_build() -> bool:
    import torch

    return bool(torch._C._has_xpu)


def _virtual_xpu() -> bool:
    from .. import virtual_xpu

    virtual_xpu.enable()
    return True


def _bitsandbytes() -> str:
    import bitsandbytes

    return str(bitsandbytes.__version__)


def _xpus() -> list[str]:
    import torch

    return [torch.xpu.get_device_properties(i).name for i in range(torch.xpu.device_count())]


def _torch_library() -> None:
    from .. import ops

    ops._load()


def _cpu_library() -> dict[str, str]:
    from .. import cpu

    return cpu.isas()


def _xpu_library() -> None:
    from .. import runtime

    runtime.library()


def _operators() -> dict[str, Any]:
    from .. import ops

    return {
        "failures": ops.failures(),
        "registered": {device: [each.name for each in ours] for device, ours in ops.registered().items()},
        "replaced": {device: ops.replaced(device) for device in ops.registered()},
    }


def _switched_on(variable: env.Variable) -> bool:
    try:
        return bool(variable.get())
    except ValueError:
        return False


def _load(library: str) -> bool:
    ctypes.CDLL(library)
    return True


def main() -> None:
    """Run every step, the rest also where one fails."""
    if _try("torch", _torch):
        _try("xpu_build", _xpu_build)
        if _switched_on(env.VIRTUAL_XPU):
            _try("virtual_xpu", _virtual_xpu)
        imported = _try("bitsandbytes", _bitsandbytes)
        _try("xpus", _xpus)
        _try("torch_library", _torch_library)
        if imported:
            _try("operators", _operators)
    _try("cpu_library", _cpu_library)
    _try("xpu_library", _xpu_library)
    for library in sys.argv[1:]:
        _try(library, lambda library=library: _load(library))  # type: ignore[misc]
    _say(step=None)
    os._exit(0)  # past the ends of foreign libraries, of which some never come


if __name__ == "__main__":
    main()
