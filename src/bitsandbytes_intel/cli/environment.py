"""Makes a process in which our operators can be checked, and says what is in it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import pathlib
import platform
import sys
from dataclasses import dataclass
from typing import Any

from .. import __version__, env, sycl
from .console import Output, Unusable

_NO_GPU = (
    "there is no Intel GPU here, and {why}. On a machine with one, install its driver and torch's XPU build "
    "(pip install torch --index-url https://download.pytorch.org/whl/xpu)"
)

_NO_ACCESS = (
    "torch's XPU build finds no Intel GPU: check the driver (with clinfo), and that this user may open "
    "/dev/dri/renderD* (group render)"
)


_AFFINITY = "DPCPP_CPU_CU_AFFINITY"  # of Intel's OpenCL CPU device


@dataclass(frozen=True)
class Setup:
    """The process: whether xpu:0 is the virtual XPU, and why there is no XPU at all if there is none.

    `caller_processors` are those that SYCL on a CPU gives the thread that calls it; empty for any.
    """

    virtual: bool
    no_xpu: str | None = None
    caller_processors: frozenset[int] = frozenset()


def check_variables() -> None:
    """Raise Unusable for a variable of ours with a value that it does not know."""
    for variable in env.VARIABLES:
        try:
            variable.get()
        except ValueError as error:
            raise Unusable(str(error)) from None


def variables() -> list[dict[str, Any]]:
    """Our environment variables, as they are set."""
    rows = []
    for variable in env.VARIABLES:
        value = os.environ.get(variable.name)
        rows.append(
            {
                "name": variable.name,
                "set": value is not None,
                "value": value,
                "default": variable.default,
                "help": variable.help,
            }
        )
    return rows


def prepare(out: Output, *, xpu: bool = True) -> Setup:
    """Import torch and bitsandbytes, with the virtual XPU between the two where there is no Intel GPU.

    Args:
        out: where to say what takes time.
        xpu: whether the XPU is wanted; if not, the virtual one is not started.

    Raises:
        Unusable: the environment is at fault.
    """
    check_variables()
    if not env.AUTOLOAD.get():
        raise Unusable("BNB_INTEL_AUTOLOAD=0 turns our operators off, so there is nothing to check: unset it")
    wish = os.environ.pop(env.VIRTUAL_XPU.name, None)  # so that torch does not start it where nobody sees the progress
    try:
        with out.waiting("importing torch"):
            import torch
    except Exception as error:
        raise Unusable(f"torch cannot be imported: {error}") from error
    finally:
        if wish is not None:
            os.environ[env.VIRTUAL_XPU.name] = wish
    setup = _xpu(out, wish) if xpu else Setup(virtual=False, no_xpu="no XPU was asked for")
    try:
        with out.waiting("importing bitsandbytes"):
            import bitsandbytes  # noqa: F401
    except Exception as error:
        raise Unusable(f"bitsandbytes cannot be imported: {error}") from error
    with contextlib.suppress(ImportError):  # only newer torch has it; it would warn of tuned shapes in the report
        torch.set_warn_always(False)
    return setup


def let_upstream_run() -> None:
    """What bitsandbytes' XPU library needs to load, and to run on a device that is a CPU; before torch is imported."""
    if "torch" in sys.modules:
        return
    os.environ.setdefault("SYCL_PROGRAM_COMPILE_OPTIONS", "-cl-std=CL3.0")
    for name in ("libintlc.so.5", "libirng.so", "libimf.so", "libsvml.so"):
        path = pathlib.Path(sys.prefix) / "lib" / name
        if path.exists():
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def tie_threads() -> None:
    """Let SYCL on a CPU tie the thread that calls it to a processor, as it ties its own; before torch is imported.

    Else Linux leaves the caller on the processor of another thread for calls that are shorter than its tick.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault(_AFFINITY, "spread")
        os.environ.setdefault("DPCPP_CPU_PLACES", "threads")


def _start_sycl() -> frozenset[int]:
    """Start SYCL; the processors that it ties the caller to, which is freed: others' threads would inherit them."""
    import torch

    if _AFFINITY not in os.environ:
        return frozenset()
    anywhere = os.sched_getaffinity(0)
    torch.xpu.init()
    tied = os.sched_getaffinity(0)
    os.sched_setaffinity(0, anywhere)
    return frozenset(tied) if tied != anywhere else frozenset()


def _xpu(out: Output, wish: str | None) -> Setup:
    import torch

    from .. import virtual_xpu

    wanted = env.VIRTUAL_XPU.get()
    if virtual_xpu.is_enabled():
        return Setup(virtual=True)
    if torch._C._has_xpu:
        if wanted:
            raise Unusable(
                "BNB_INTEL_VIRTUAL_XPU=1 is for a CPU build of torch, and this one has XPU support: unset it"
            )
        if torch.xpu.is_available():
            return Setup(virtual=False)
        return Setup(virtual=False, no_xpu=_NO_ACCESS)
    if wish and not wanted:
        return Setup(virtual=False, no_xpu=_NO_GPU.format(why="BNB_INTEL_VIRTUAL_XPU=0 rules the virtual XPU out"))
    try:
        with out.waiting("starting the virtual XPU (its first start on a machine compiles it: up to two minutes)"):
            virtual_xpu.enable()
            tied = _start_sycl()
    except RuntimeError as error:
        if wanted:
            raise Unusable(str(error)) from error
        return Setup(virtual=False, no_xpu=_NO_GPU.format(why=f"the virtual XPU does not start: {error}"))
    return Setup(virtual=True, caller_processors=tied)


def require_xpu(setup: Setup) -> None:
    """Raise Unusable where there is no XPU, real or virtual, or our operators do not answer on it."""
    from .. import ops

    if setup.no_xpu is not None:
        raise Unusable(setup.no_xpu)
    if "xpu" not in ops.registered():
        raise Unusable(f"our operators are not registered on xpu: {ops.failures().get('xpu', 'unknown reason')}")


def versions() -> dict[str, str]:
    """What is installed, by name."""
    found = {"bitsandbytes-intel": __version__, "python": platform.python_version(), "platform": _platform()}
    for name in ("torch", "bitsandbytes", "transformers", "intel-sycl-rt", "intel-opencl-rt"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    if "torch" in sys.modules:
        found["torch"] = str(sys.modules["torch"].__version__)
    runtime = sycl.find_sycl()
    found["libsycl"] = runtime.library.name if runtime else "not found"
    return found


def _platform() -> str:
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']} ({platform.machine()})"
    except (OSError, KeyError):
        return platform.platform(terse=True)


def cpu_name() -> str:
    """The name of the processor."""
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


def devices(setup: Setup) -> list[dict[str, Any]]:
    """Torch's devices that matter to us, the CPU first."""
    import torch

    from .. import cpu, runtime

    entry: dict[str, Any] = {"device": "cpu", "name": cpu_name(), "driver": None, "virtual": False, "error": None}
    try:
        entry["kind"] = env.ISA.get() or list(cpu.isas())[-1]
    except runtime.KernelError as error:
        entry.update(kind=None, error=str(error))
    found = [entry]
    for index in range(torch.xpu.device_count() if setup.no_xpu is None else 0):
        properties = torch.xpu.get_device_properties(index)
        entry = {
            "device": f"xpu:{index}",
            "name": properties.name,
            "virtual": setup.virtual,
            "driver": properties.driver_version,
            "kind": None,
            "error": None,
        }
        try:
            opened = runtime.open_device(torch.xpu.current_stream(index).sycl_queue)
            entry["kind"] = f"{opened.kind} ({opened.backend})"
        except runtime.KernelError as error:
            entry["error"] = str(error)
        found.append(entry)
    return found


def cache() -> dict[str, Any]:
    """The folder of compiled kernels, and how much is in it. Makes nothing."""
    folder = env.cache_dir() / "kernels"
    sizes = [path.stat().st_size for path in folder.glob("*.bin")] if folder.is_dir() else []
    return {"folder": str(folder), "files": len(sizes), "bytes": sum(sizes)}
