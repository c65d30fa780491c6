"""``python -m bitsandbytes_intel doctor``: why an operator is not ours on this machine, and what to do about it.

What may end a process (imports of torch and bitsandbytes, libraries) is tried in another one, see ``probe.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.metadata
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from .. import __version__, cache, env, runtime, sycl
from .console import Output

OK, NOTE, FAULT = "ok", "note", "FAULT"
_OLDEST = {"torch": (2, 10), "bitsandbytes": (0, 50)}
_ENTRY_POINTS = {
    "bitsandbytes.backends": "bitsandbytes_intel:_autoload",
    "torch.backends": "bitsandbytes_intel:_torch_backend",
}
_DRM, _NODES = pathlib.Path("/sys/class/drm"), pathlib.Path("/dev/dri")
_INTEL = "0x8086"
_DRIVER = ("libze_loader.so.1", "libze_intel_gpu.so.1")
_PROBE_SECONDS = 300
_TRIAL_BYTES = 1 << 20  # about a compiled kernel's size
_AGAIN = "pip install --force-reinstall --no-deps bitsandbytes-intel (from a clone: pip install .)"
_TORCH_XPU = "pip install torch --index-url https://download.pytorch.org/whl/xpu"


@dataclasses.dataclass(frozen=True)
class Line:
    """One check: its name, the verdict (OK, NOTE: worth knowing, FAULT), what was found, and what to do about it."""

    check: str
    verdict: str
    found: str
    do: str = ""


def run(out: Output) -> bool:
    """Print a line for each check; True if there is no fault."""
    with out.waiting("importing torch and bitsandbytes in a process of its own"):
        probe = probed()
    lines = list(checks(probe))
    out.data["checks"] = [dataclasses.asdict(line) for line in lines]
    table = out.table("Why an operator is not ours, if one is not", "check", "verdict", "found", "what to do")
    for line in lines:
        table.add_row(line.check, line.verdict, line.found, line.do)
    out.show(table)
    faults = sum(line.verdict == FAULT for line in lines)
    out.show(f"{faults} faults." if faults != 1 else "1 fault.")
    return faults == 0


def checks(probe: dict[str, Any]) -> Iterator[Line]:
    """Every check, those first whose faults explain later ones."""
    yield package()
    yield from entry_points()
    yield from variables(probe)
    yield from imports(probe)
    yield from libraries(probe)
    yield sycl_runtime(probe)
    yield from gpus(probe)
    yield from virtual_xpu(probe)
    yield kernel_cache()
    yield from operators(probe)


# ---- the other process ----------------------------------------------------------------------------------------------
def probed() -> dict[str, Any]:
    """What ``probe.py`` found; ``crash`` says how it ended if that was not by itself."""
    device = sycl.find_opencl()
    libraries = [*(_DRIVER if intel_nodes() else ()), *([str(device)] if device else [])]
    command = [sys.executable, "-m", f"{__package__}.probe", *libraries]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_PROBE_SECONDS)
        output, status, last = done.stdout, done.returncode, (done.stderr.strip().splitlines() or [""])[-1]
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else ""
        status, last = None, f"nothing came for {_PROBE_SECONDS} seconds"
    found: dict[str, Any] = {"step": "start"}
    for line in output.splitlines():
        with contextlib.suppress(ValueError):
            said = json.loads(line)
            found.update(said if isinstance(said, dict) else {})
    if found["step"] is not None:
        how = "does not end" if status is None else f"ends the process ({_ending(status)})"
        found["crash"] = f"{found['step']} {how}: {last}".rstrip(": ")
    return found


def _ending(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


# ---- what is installed ----------------------------------------------------------------------------------------------
def package() -> Line:
    """The package's metadata, without which nobody finds its entry points."""
    name = "package bitsandbytes-intel"
    where = pathlib.Path(__file__).parents[1]
    try:
        version = importlib.metadata.version("bitsandbytes-intel")
    except importlib.metadata.PackageNotFoundError:
        return Line(name, FAULT, f"run from {where}, and not installed in {sys.prefix}", "pip install it there")
    if version != __version__:
        return Line(name, FAULT, f"installed is {version}, and the code in {where} is {__version__}", _AGAIN)
    return Line(name, OK, f"{version} in {where}")


def entry_points() -> Iterator[Line]:
    """Where torch and bitsandbytes find us, and who else they find."""
    for group, value in _ENTRY_POINTS.items():
        found = {entry.value: entry.name for entry in importlib.metadata.entry_points(group=group)}
        name = f"entry point {group}"
        if value not in found:
            yield Line(name, FAULT, f"{value} is not registered, so it is never called", _AGAIN)
            continue
        others = sorted(other for entry, other in found.items() if entry != value)
        if others and group == "bitsandbytes.backends":
            yield Line(name, NOTE, f"ours, and other plugins of bitsandbytes: {', '.join(others)}")
        else:
            yield Line(name, OK, value)


def imports(probe: dict[str, Any]) -> Iterator[Line]:
    """The versions of torch and bitsandbytes, and whether they can be imported."""
    for name, oldest in _OLDEST.items():
        least = ".".join(map(str, oldest))
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Line(name, FAULT, f"not installed in {sys.prefix}", f"pip install '{name}>={least}'")
            continue
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        if numbers < oldest:
            yield Line(name, FAULT, f"{version} is too old", f"pip install --upgrade '{name}>={least}'")
        elif f"{name}_error" in probe:
            yield Line(
                name,
                FAULT,
                f"{version}, and its import fails: {_short(probe[f'{name}_error'])}",
                "the reason is another fault of this list; if there is none, install it again",
            )
        elif probe.get("crash", "").startswith(f"{name} "):
            yield Line(name, FAULT, f"its import {probe['crash'].partition(' ')[2]}", "install it again")
        else:
            yield Line(name, OK, version)
    if probe.get("crash", "").startswith("start "):
        yield Line("python", FAULT, f"our package {probe['crash'].partition(' ')[2]}", _AGAIN)


# ---- environment variables ------------------------------------------------------------------------------------------
def variables(probe: dict[str, Any]) -> Iterator[Line]:
    """Ours that are wrong or switch something off, and those of others that do; nothing for the rest."""
    known = {variable.name: variable for variable in env.VARIABLES}
    faults = []
    for name in sorted(name for name in os.environ if name.startswith("BNB_INTEL_")):
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            faults.append(Line(name, FAULT, "is no variable of ours", f"it is {near[0]}" if near else "unset it"))
            continue
        try:
            value = known[name].get()
        except ValueError as error:
            faults.append(Line(name, FAULT, str(error), "set it so, or unset it"))
            continue
        line = _ours(name, value, probe)
        if line is not None:
            faults.append(line)
    yield from faults or [Line("BNB_INTEL_* variables", OK, "none is wrong, and none switches anything off")]
    for name in sorted(os.environ):
        line = _others(name, os.environ[name], probe)
        if line is not None:
            yield line


def _ours(name: str, value: Any, probe: dict[str, Any]) -> Line | None:
    given = os.environ[name]
    if name == env.AUTOLOAD.name and not value:
        return Line(name, FAULT, f"{given} leaves bitsandbytes' own operators everywhere", "unset it")
    if name == env.VIRTUAL_XPU.name and value and probe.get("xpu_build"):
        return Line(name, FAULT, "the virtual XPU is for a CPU build of torch, and this is one for XPUs", "unset it")
    if name == env.ISA.name and value:
        has = list(probe.get("cpu_library") or ())
        if has and value not in has:
            return Line(name, FAULT, f"{value} is not in this CPU, which has {', '.join(has)}", "unset it, or name one")
        if has and value != has[-1]:
            return Line(name, NOTE, f"holds the CPU kernels to {value}; this CPU has {has[-1]}", "unset it for speed")
        if not has and probe.get("cpu_library_error"):
            return Line(name, FAULT, probe["cpu_library_error"], "unset it, or name one that this CPU has")
    if name == env.INT8_ACTIVATIONS.name and value:
        return Line(name, NOTE, "gemm_4bit of 8 rows and more is less exact with it", "unset it for exact products")
    return None


def _others(name: str, value: str, probe: dict[str, Any]) -> Line | None:
    virtual = _virtual_wanted()
    if name == "TORCH_DEVICE_BACKEND_AUTOLOAD" and value == "0" and virtual:
        return Line(name, FAULT, "0 keeps torch from starting the virtual XPU", "unset it")
    if name == "OCL_ICD_FILENAMES":
        lacking = [path for path in value.split(":") if path.startswith("/") and not pathlib.Path(path).is_file()]
        if lacking:
            return Line(name, FAULT, f"there is no {', '.join(lacking)}", "unset it: the OpenCL CPU device is found")
        if virtual and "intelocl" not in value:
            return Line(name, FAULT, f"{value} leaves out the OpenCL CPU device of the virtual XPU", "unset it")
        return Line(name, NOTE, f"SYCL sees the OpenCL devices of {value}, beside those of the system")
    if name == "OCL_ICD_VENDORS" and not pathlib.Path(value).exists():
        return Line(name, FAULT, f"there is no {value}, so OpenCL finds no driver", "unset it")
    if name == "ONEAPI_DEVICE_SELECTOR":
        backend, device = ("opencl", "cpu") if virtual else ("level_zero", "gpu")
        needed = virtual or probe.get("xpu_build")
        if needed and not selects(value, backend, device):
            return Line(name, FAULT, f"{value} hides {backend}:{device}, which xpu needs", "unset it, or add that")
        return Line(name, NOTE, f"SYCL sees {value} alone")
    if name == "ZE_AFFINITY_MASK":
        if probe.get("xpu_build") and not probe.get("xpus"):
            return Line(name, FAULT, f"torch sees no GPU, and this shows it {value or 'none'} alone", "unset it")
        return Line(name, NOTE, f"torch sees GPU {value} alone")
    if name in ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE") and value.upper() != "STRICT":
        return Line(name, NOTE, f"{value} makes torch's own float32 products less exact", "unset it for exact products")
    if name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        return Line(name, NOTE, f"{value} is the most that torch's own products may use", "unset it for speed")
    if name.startswith(("SYCL_", "DPCPP_", "ONEDNN_", "DNNL_", "UR_")):
        return Line(name, NOTE, f"{value} changes how SYCL or oneDNN works", "unset it if results or speed are odd")
    return None


def selects(value: str, backend: str, device: str) -> bool:
    """Whether an ONEAPI_DEVICE_SELECTOR lets a backend and kind of device through; a number counts as any."""

    def matches(term: str) -> bool:
        of, _, kinds = term.lower().partition(":")
        names = {kind.split(".")[0] for kind in kinds.split(",")}
        return of in (backend, "*") and bool(names & {device, "*"} or any(name.isdigit() for name in names))

    terms = [term.strip() for term in value.split(";") if term.strip()]
    wanted = [term for term in terms if not term.startswith("!")]
    return (not wanted or any(map(matches, wanted))) and not any(matches(term[1:]) for term in terms if term[0] == "!")


def _virtual_wanted() -> bool:
    try:
        return bool(env.VIRTUAL_XPU.get())
    except ValueError:
        return False


# ---- libraries ------------------------------------------------------------------------------------------------------
def libraries(probe: dict[str, Any]) -> Iterator[Line]:
    """Our three libraries: there, and loading."""
    from .. import cpu

    xpu_is_wanted = bool(probe.get("xpu_build")) or _virtual_wanted()
    for key, path in (
        ("torch_library", runtime.TORCH_LIBRARY),
        ("cpu_library", cpu.LIBRARY),
        ("xpu_library", _xpu_library()),
    ):
        crash = probe.get("crash", "")
        if not path.is_file() and key == "xpu_library":
            found = "was not built with this installation: there were no headers of intel-sycl-rt"
            do = f"pip install intel-sycl-rt, then {_AGAIN}"
            yield Line(path.name, FAULT if xpu_is_wanted else NOTE, found, do)
        elif not path.is_file():
            yield Line(path.name, FAULT, "is missing", _AGAIN)
        elif f"{key}_error" in probe:
            bad = FAULT if key != "xpu_library" or xpu_is_wanted else NOTE
            yield Line(path.name, bad, _short(probe[f"{key}_error"]), _AGAIN)
        elif crash.startswith(f"{key} "):
            yield Line(path.name, FAULT, f"loading it {crash.partition(' ')[2]}", _AGAIN)
        elif key in probe:
            yield Line(path.name, OK, "loads")
        else:
            yield Line(path.name, NOTE, "not tried, since torch cannot be imported")


def needed_sycl() -> set[str]:
    """The libsycl that our XPU libraries are linked to: ``libsycl.so.N``, one for each."""
    return {
        match.decode()
        for path in runtime.xpu_libraries().values()
        for match in re.findall(rb"libsycl\.so\.\d+", path.read_bytes())
    }


def _xpu_library() -> pathlib.Path:
    """The XPU library for the libsycl that is here; where there is none, one that is there, or a name that is not."""
    built, found = runtime.xpu_libraries(), sycl.find_sycl()
    if found and found.major in built:
        return built[found.major]
    return next(iter(built.values()), runtime.TORCH_LIBRARY.with_name("libbitsandbytes_intel_xpu_syclN.so"))


def sycl_runtime(probe: dict[str, Any]) -> Line:
    """The SYCL runtime of this environment, and whether it is the one that we are linked to."""
    name, found, needed = "SYCL runtime", sycl.find_sycl(), needed_sycl()
    wanted = bool(probe.get("xpu_build")) or _virtual_wanted()
    if found is None:
        return Line(
            name,
            FAULT if wanted else NOTE,
            "none with headers is installed; only xpu needs one",
            "pip install intel-sycl-rt",
        )
    if needed and found.library.name not in needed:
        return Line(
            name,
            FAULT if wanted else NOTE,
            f"{found.library} is another major than {', '.join(sorted(needed))}, which our library needs",
            f"install again, against this one: {_AGAIN}",
        )
    return Line(name, OK, str(found.library))


# ---- devices --------------------------------------------------------------------------------------------------------
def intel_nodes() -> list[pathlib.Path]:
    """The device nodes of Intel's GPUs, by the kernel's account."""
    found = []
    for entry in sorted(_DRM.glob("renderD*")):
        with contextlib.suppress(OSError):
            if (entry / "device" / "vendor").read_text().strip() == _INTEL:
                found.append(_NODES / entry.name)
    return found


def gpus(probe: dict[str, Any]) -> Iterator[Line]:
    """An Intel GPU, the right to use it, its driver, and whether torch sees it."""
    name, nodes, build = "Intel GPU", intel_nodes(), bool(probe.get("xpu_build"))
    if not nodes:
        if build:
            yield Line(
                name,
                FAULT,
                f"torch's XPU build, and no Intel GPU in {_DRM}",
                "in a container, pass it in (docker: --device /dev/dri); else install its kernel driver",
            )
        else:
            yield Line(name, NOTE, "there is none: xpu can be the virtual XPU alone")
        return
    shown = ", ".join(map(str, nodes))
    absent = [node for node in nodes if not node.exists()]
    if absent:
        yield Line(
            name,
            FAULT,
            f"there is no {', '.join(map(str, absent))}",
            "in a container, pass the GPU in (docker: --device /dev/dri)",
        )
        return
    closed = [node for node in nodes if not os.access(node, os.R_OK | os.W_OK, effective_ids=True)]
    if closed:
        yield Line(
            name,
            FAULT,
            f"this user may not open {', '.join(map(str, closed))}",
            "sudo usermod -aG render $USER, and log in again (docker: --group-add with the number of render)",
        )
        return
    yield Line(name, OK, shown)
    lacking = [library for library in _DRIVER if not probe.get("xpus") and not probe.get(library)]
    if lacking:
        yield Line(
            "GPU driver", FAULT, f"{', '.join(lacking)} does not load", "apt-get install libze1 libze-intel-gpu1"
        )
    else:
        yield Line("GPU driver", OK, ", ".join(_DRIVER))
    if "xpu_build" in probe and not build:
        yield Line("torch and the GPU", FAULT, "this torch is a build for CPUs", _TORCH_XPU)
    elif probe.get("xpus"):
        yield Line("torch and the GPU", OK, ", ".join(probe["xpus"]))
    elif build:
        why = _short(probe.get("xpus_error", "no error is reported"))
        yield Line("torch and the GPU", FAULT, f"torch sees no GPU: {why}", "update the driver; check it with clinfo")


def virtual_xpu(probe: dict[str, Any]) -> Iterator[Line]:
    """What the virtual XPU needs, where torch is a build for CPUs."""
    if probe.get("xpu_build"):
        return
    wanted = _virtual_wanted()
    bad = FAULT if wanted else NOTE
    device = sycl.find_opencl()
    if device is None:
        yield Line("OpenCL CPU device", bad, "none is installed for the virtual XPU", "pip install intel-opencl-rt")
    elif not probe.get(str(device)):
        yield Line("OpenCL CPU device", bad, f"{device} does not load", "pip install --force-reinstall intel-opencl-rt")
    else:
        yield Line("OpenCL CPU device", OK, str(device))
    name = "virtual XPU"
    if probe.get("virtual_xpu"):
        yield Line(name, OK, "started: xpu:0 runs on this CPU")
    elif "virtual_xpu_error" in probe:
        yield Line(name, FAULT, _short(probe["virtual_xpu_error"]), "as it says; README.md, Limits, has what it needs")
    elif probe.get("crash", "").startswith("virtual_xpu "):
        yield Line(name, FAULT, probe["crash"], "report it with this command's --json")
    else:
        compiler = compiler_fault()
        found = compiler or "not asked for"
        yield Line(name, bad, found, "apt-get install g++" if compiler else "BNB_INTEL_VIRTUAL_XPU=1 starts it")


def compiler_fault() -> str | None:
    """Why the virtual XPU could not be compiled here, None if a compiler answers."""
    command = shlex.split(os.environ.get("CXX") or "g++")
    try:
        subprocess.run([*command, "--version"], capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return f"it is compiled at its first start, and `{shlex.join(command)}` does not work: {error}"
    return None


# ---- the cache, and what all of it comes to -------------------------------------------------------------------------
def kernel_cache() -> Line:
    """Whether compiled kernels can be kept: a trial file is written, read and removed."""
    name, key, payload = "kernel cache", "a trial of doctor's", os.urandom(_TRIAL_BYTES)
    do = "name another folder in BNB_INTEL_CACHE_DIR"
    try:
        folder = cache.folder()
        cache.write(key, payload)
        kept = cache.read(key)
        cache.remove(key)
    except cache.Untrusted as error:
        return Line(name, FAULT, f"{error}: what it holds is not used", f"chown or chmod it; or {do}")
    except (OSError, ValueError) as error:
        return Line(name, FAULT, f"kernels are not kept, and compiled by every process: {error}", f"make room; or {do}")
    if kept != payload:
        return Line(name, FAULT, f"{folder} gives back other bytes than were written", do)
    return Line(name, OK, str(folder))


def operators(probe: dict[str, Any]) -> Iterator[Line]:
    """How many operators are ours on each device, and why the others are not."""
    from .. import ops

    if "operators" not in probe:
        why = _short(probe.get("operators_error") or probe.get("crash") or "torch or bitsandbytes cannot be imported")
        yield Line("operators", FAULT, f"none is ours: {why}", "see the faults above")
        return
    has = probe["operators"]
    for device in ("cpu", "xpu"):
        name = f"operators on {device}"
        all_of_it = [each.name for each in ops.OPERATORS if device in each.devices]
        ours = has["registered"].get(device, [])
        if device == "xpu" and not probe.get("xpus") and not ours:
            yield Line(name, NOTE, "torch has no device xpu in this process")
        elif device in has["failures"]:
            yield Line(
                name, FAULT, _short(has["failures"][device]), "see the faults above; if there is none, " + _AGAIN
            )
        elif has["replaced"].get(device):
            at = has["replaced"][device]
            places = ", ".join(sorted(set(at.values())))
            yield Line(
                name,
                FAULT,
                f"{len(at)} of {len(all_of_it)} registered over by another plugin: {places}",
                "uninstall that plugin",
            )
        elif len(ours) < len(all_of_it):
            yield Line(name, FAULT, f"{len(ours)} of {len(all_of_it)} are ours", "see the faults above")
        else:
            yield Line(name, OK, f"all {len(all_of_it)} are ours")


def _short(text: str) -> str:
    """The first lines of an error, as one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines)[:500]
