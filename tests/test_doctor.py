"""``doctor``: each of its lines, by breaking what the line is about in an environment made for that.

A machine is a virtual environment of links to this one's packages, with torch and bitsandbytes replaced by small
stand-ins where a test is not about them: their imports take seconds.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import shutil
import subprocess
import sysconfig
import venv

import pytest

import bitsandbytes_intel
from bitsandbytes_intel import cpu, env, runtime, sycl
from bitsandbytes_intel.cli import doctor

PACKAGE = pathlib.Path(bitsandbytes_intel.__file__).parent
SITE = pathlib.Path(sysconfig.get_paths()["purelib"])
ENTRY_POINTS = """[bitsandbytes.backends]
intel = bitsandbytes_intel:_autoload
[torch.backends]
bitsandbytes_intel = bitsandbytes_intel:_torch_backend
"""
TORCH = """
import types
__version__ = "2.13.0"
XPU_BUILD, GPUS = False, []
_C = types.SimpleNamespace(_has_xpu=XPU_BUILD)
xpu = types.SimpleNamespace(device_count=lambda: len(GPUS), is_available=lambda: bool(GPUS),
                            get_device_properties=lambda i: types.SimpleNamespace(name=GPUS[i]))
"""
TORCH_XPU = TORCH.replace("XPU_BUILD, GPUS = False", "XPU_BUILD, GPUS = True")
BITSANDBYTES = '__version__ = "0.50.2"\n'


class Machine:
    """A virtual environment, healthy until a test breaks it, with an empty cache and no variables of ours."""

    def __init__(self, folder: pathlib.Path, real: bool = False) -> None:
        self.folder = folder
        venv.create(folder, symlinks=True)
        (self.site,) = folder.glob("lib/python*/site-packages")
        kept = ("bitsandbytes_intel", "bitsandbytes-intel", "__editable__", "__pycache__", "pip", "setuptools")
        for path in SITE.iterdir():
            stub = not real and path.name.split("-")[0] in ("torch", "bitsandbytes")
            if not path.name.startswith(kept) and not stub and path.suffix != ".pth":
                (self.site / path.name).symlink_to(path)
        for library in (SITE.parents[1]).glob("lib*.so*"):
            (folder / "lib" / library.name).symlink_to(library)
        shutil.rmtree(folder / "include", ignore_errors=True)
        (folder / "include").symlink_to(SITE.parents[2] / "include")
        self.package = self.site / "bitsandbytes_intel"
        shutil.copytree(PACKAGE, self.package, copy_function=os.symlink, ignore=shutil.ignore_patterns("__pycache__"))
        self.distribution("bitsandbytes_intel", bitsandbytes_intel.__version__, ENTRY_POINTS)
        if not real:
            self.module("torch", TORCH, "2.13.0")
            self.module("bitsandbytes", BITSANDBYTES, "0.50.2")
        self.cache = folder / "cache"
        ours = ("BNB_", "SYCL_", "ONE", "OCL_", "ZE_", "DNNL_", "TORCH_", "CXX", "PYTHONPATH", "VIRTUAL_ENV")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.environment["BNB_INTEL_CACHE_DIR"] = str(self.cache)
        self.file_size: int | None = None

    def distribution(self, name: str, version: str, entry_points: str = "") -> None:
        folder = self.site / f"{name}-{version}.dist-info"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (folder / "entry_points.txt").write_text(entry_points)

    def module(self, name: str, text: str, version: str | None = None) -> None:
        (self.site / f"{name}.py").write_text(text)
        if version is not None:
            self.remove(f"{name}-*.dist-info")
            self.distribution(name, version)

    def remove(self, pattern: str) -> None:
        for path in self.site.glob(pattern):
            path.unlink() if path.is_symlink() or path.is_file() else shutil.rmtree(path)

    def replace(self, library: str, content: bytes) -> None:
        """Another content of one of our libraries."""
        (self.package / library).unlink()
        (self.package / library).write_bytes(content)

    def gpu(self, *, node: bool = True, **constants: object) -> None:
        """An Intel GPU, by the kernel's account, and with its device node or without."""
        vendor = self.folder / "drm" / "renderD128" / "device" / "vendor"
        vendor.parent.mkdir(parents=True)
        vendor.write_text("0x8086\n")
        (self.folder / "dri").mkdir()
        if node:
            (self.folder / "dri" / "renderD128").write_text("")
        text = "import pathlib\nfrom bitsandbytes_intel.cli import doctor\n"
        text += f"doctor._DRM = pathlib.Path({str(self.folder / 'drm')!r})\n"
        text += f"doctor._NODES = pathlib.Path({str(self.folder / 'dri')!r})\n"
        text += "".join(f"doctor.{name} = {value!r}\n" for name, value in constants.items())
        (self.site / "sitecustomize.py").write_text(text)

    def emulate(self, cpu: str) -> None:
        """Another CPU, for the process that looks at it."""
        python = self.folder / "bin" / "emulated"
        python.write_text(f'#!/bin/sh\nexec qemu-x86_64 -cpu {cpu} "{self.folder}/bin/python" "$@"\n')
        python.chmod(0o755)
        (self.site / "sitecustomize.py").write_text(f"import sys\nsys.executable = {str(python)!r}\n")

    def lines(self, **variables: str) -> dict[str, doctor.Line]:
        """What doctor says here, by check; its exit status must agree."""
        limit = self.file_size
        done = subprocess.run(
            [self.folder / "bin" / "python", "-m", "bitsandbytes_intel", "doctor", "--json"],
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=240,
            cwd=self.folder,
            preexec_fn=None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        assert done.stdout, done.stderr
        data = json.loads(done.stdout)
        found = [doctor.Line(**line) for line in data["checks"]]
        faults = [line for line in found if line.verdict == doctor.FAULT]
        assert (done.returncode, data["ok"]) == ((1, False) if faults else (0, True)), done.stderr
        assert all(line.do for line in faults), faults
        return {line.check: line for line in found}


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path / "machine")


def expect(line: doctor.Line, verdict: str, found: str, do: str = "") -> None:
    assert line.verdict == verdict, line
    assert found in line.found, line
    assert do in line.do, line


# ---- as it is -------------------------------------------------------------------------------------------------------
def test_a_healthy_environment_has_no_fault(tmp_path):
    lines = Machine(tmp_path / "m", real=True).lines()
    assert not [line for line in lines.values() if line.verdict == doctor.FAULT], lines
    expect(lines["operators on cpu"], doctor.OK, "all 19 are ours")
    expect(lines["Intel GPU"], lines["Intel GPU"].verdict, "")
    assert next(iter(lines)) == "package bitsandbytes-intel"


def test_the_table_is_readable(python):
    code = "import sys; sys.argv[1:] = ['doctor']; from bitsandbytes_intel.cli import main, doctor; "
    code += "doctor.probed = lambda: {'step': None}; main()"
    done = python(code, check=False)
    assert done.returncode == 1, done.stderr
    assert "| check " in done.stdout
    assert "what to do" in done.stdout
    assert "operators" in done.stdout


# ---- installation ---------------------------------------------------------------------------------------------------
def no_package(m):
    m.remove("bitsandbytes_intel-*")


def another_version(m):
    m.remove("bitsandbytes_intel-*")
    m.distribution("bitsandbytes_intel", "0.0.1", ENTRY_POINTS)


def no_entry_points(m):
    m.distribution("bitsandbytes_intel", bitsandbytes_intel.__version__)


def no_torch(m):
    m.remove("torch*")


def old_torch(m):
    m.module("torch", TORCH, "2.9.1")


def broken_torch(m):
    m.module("torch", "raise OSError('libtorch.so: no such file')")


def fatal_torch(m):
    m.module("torch", "import os; os.abort()")


def old_bitsandbytes(m):
    m.module("bitsandbytes", BITSANDBYTES, "0.49.2")


def no_bitsandbytes(m):
    m.remove("bitsandbytes.py")
    m.remove("bitsandbytes-*")


def broken_bitsandbytes(m):
    m.module("bitsandbytes", "raise RuntimeError('failed to load backend other')")


def no_library(name):
    def spoil(m):
        (m.package / name).unlink()

    return spoil


def broken_library(name):
    def spoil(m):
        m.replace(name, b"\x7fELF and no more")

    return spoil


INSTALLATION = [
    (no_package, "package bitsandbytes-intel", "not installed in", "pip install"),
    (another_version, "package bitsandbytes-intel", "installed is 0.0.1", "--force-reinstall"),
    (no_entry_points, "entry point bitsandbytes.backends", "is not registered", "--force-reinstall"),
    (no_entry_points, "entry point torch.backends", "is not registered", "--force-reinstall"),
    (no_torch, "torch", "not installed in", "pip install 'torch>=2.10'"),
    (old_torch, "torch", "2.9.1 is too old", "--upgrade 'torch>=2.10'"),
    (broken_torch, "torch", "libtorch.so: no such file", "install it again"),
    (fatal_torch, "torch", "SIGABRT", "install it again"),
    (old_bitsandbytes, "bitsandbytes", "0.49.2 is too old", "--upgrade 'bitsandbytes>=0.50'"),
    (no_bitsandbytes, "bitsandbytes", "not installed in", "pip install"),
    (broken_bitsandbytes, "bitsandbytes", "failed to load backend other", ""),
    (broken_bitsandbytes, "operators", "none is ours", "see the faults above"),
    (no_library(cpu.LIBRARY.name), cpu.LIBRARY.name, "is missing", "--force-reinstall"),
    (broken_library(cpu.LIBRARY.name), cpu.LIBRARY.name, "does not load", "--force-reinstall"),
    (no_library("libbitsandbytes_intel_torch.so"), "libbitsandbytes_intel_torch.so", "is missing", "--force-reinstall"),
    (broken_library("libbitsandbytes_intel_torch.so"), "libbitsandbytes_intel_torch.so", "too short", ""),
]


def shown(value):
    return getattr(value, "__qualname__", str(value)).removesuffix(".<locals>.spoil")


@pytest.mark.parametrize(("spoil", "check", "found", "do"), INSTALLATION, ids=shown)
def test_what_is_installed(machine, spoil, check, found, do):
    spoil(machine)
    expect(machine.lines()[check], doctor.FAULT, found, do)


def test_another_plugin_is_named_and_no_fault_by_itself(machine):
    machine.distribution("other", "1.0", "[bitsandbytes.backends]\nother = other:start\n")
    expect(machine.lines()["entry point bitsandbytes.backends"], doctor.NOTE, "other plugins of bitsandbytes: other")


def test_a_plugin_that_registers_over_ours(tmp_path):
    machine = Machine(tmp_path / "m", real=True)
    # zother: entry points come in the order of the folder's names, ours first
    machine.module(
        "zother",
        "import torch\ndef start():\n"
        "    global kept\n    kept = torch.library.Library('bitsandbytes', 'IMPL')\n"
        "    kept.impl('gemv_4bit', lambda *a: None, 'CPU', allow_override=True)\n",
    )
    machine.distribution("zother", "1.0", "[bitsandbytes.backends]\nzother = zother:start\n")
    line = machine.lines()["operators on cpu"]
    if line.verdict == doctor.OK:  # the file system gave the folder first: then ours came last
        pytest.skip("this file system lists the other plugin before ours")
    expect(line, doctor.FAULT, "1 of 19 registered over by another plugin", "uninstall")
    assert "zother.py" in line.found


# ---- variables ------------------------------------------------------------------------------------------------------
VARIABLES = [
    ({"BNB_INTEL_AUTOLOD": "1"}, "BNB_INTEL_AUTOLOD", doctor.FAULT, "no variable of ours", "BNB_INTEL_AUTOLOAD"),
    ({"BNB_INTEL_AUTOLOAD": "maybe"}, "BNB_INTEL_AUTOLOAD", doctor.FAULT, "expected one of", "unset"),
    ({"BNB_INTEL_AUTOLOAD": "0"}, "BNB_INTEL_AUTOLOAD", doctor.FAULT, "bitsandbytes' own operators", "unset it"),
    ({"BNB_INTEL_ISA": "scalar"}, "BNB_INTEL_ISA", doctor.NOTE, "holds the CPU kernels to scalar", "unset it"),
    ({"BNB_INTEL_ISA": "sse9"}, "BNB_INTEL_ISA", doctor.FAULT, "expected one of", "unset it"),
    ({"BNB_INTEL_INT8_ACTIVATIONS": "1"}, "BNB_INTEL_INT8_ACTIVATIONS", doctor.NOTE, "less exact", "unset it"),
    ({"BNB_INTEL_CACHE_DIR": "here"}, "BNB_INTEL_CACHE_DIR", doctor.FAULT, "not an absolute path", "unset it"),
    ({"BNB_INTEL_CACHE_DIR": "here"}, "kernel cache", doctor.FAULT, "not an absolute path", "BNB_INTEL_CACHE_DIR"),
    ({"OCL_ICD_FILENAMES": "/no/lib.so"}, "OCL_ICD_FILENAMES", doctor.FAULT, "there is no /no/lib.so", "unset it"),
    ({"OCL_ICD_FILENAMES": "libx.so"}, "OCL_ICD_FILENAMES", doctor.NOTE, "libx.so", ""),
    ({"OCL_ICD_VENDORS": "/no/vendors"}, "OCL_ICD_VENDORS", doctor.FAULT, "there is no /no/vendors", "unset it"),
    ({"ONEAPI_DEVICE_SELECTOR": "cuda:*"}, "ONEAPI_DEVICE_SELECTOR", doctor.NOTE, "cuda:*", ""),
    ({"ZE_AFFINITY_MASK": "1"}, "ZE_AFFINITY_MASK", doctor.NOTE, "GPU 1 alone", ""),
    ({"ONEDNN_MAX_CPU_ISA": "SSE41"}, "ONEDNN_MAX_CPU_ISA", doctor.NOTE, "SSE41", "unset it"),
    ({"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"}, "ONEDNN_DEFAULT_FPMATH_MODE", doctor.NOTE, "less exact", "unset it"),
    ({"SYCL_UR_TRACE": "1"}, "SYCL_UR_TRACE", doctor.NOTE, "changes how SYCL", "unset it"),
]


@pytest.mark.parametrize(("variables", "check", "verdict", "found", "do"), VARIABLES, ids=shown)
def test_variables(monkeypatch, tmp_path, variables, check, verdict, found, do):
    """In this process: what they say depends on the variable and on what the other process has found, no more."""
    for name in [name for name in os.environ if name.startswith(("BNB_INTEL_", "OCL_", "ONEAPI_", "TORCH_DEV"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BNB_INTEL_CACHE_DIR", str(tmp_path))
    assert check == "kernel cache" or check not in {line.check for line in doctor.variables({})}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    probe = {"cpu_library": {"scalar": "", "avx2": ""}, "xpu_build": False}
    lines = {line.check: line for line in [*doctor.variables(probe), doctor.kernel_cache()]}
    expect(lines[check], verdict, found, do)
    assert "BNB_INTEL_* variables" not in lines or not any(name.startswith("BNB") for name in variables)


def test_variables_that_hide_an_xpu(monkeypatch):
    monkeypatch.setenv("BNB_INTEL_VIRTUAL_XPU", "1")
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    monkeypatch.setenv("ONEAPI_DEVICE_SELECTOR", "level_zero:gpu")
    monkeypatch.setenv("OCL_ICD_FILENAMES", "libigdrcl.so")
    monkeypatch.setenv("ZE_AFFINITY_MASK", "7")
    lines = {line.check: line for line in doctor.variables({"xpu_build": False})}
    expect(lines["TORCH_DEVICE_BACKEND_AUTOLOAD"], doctor.FAULT, "keeps torch from starting", "unset it")
    expect(lines["ONEAPI_DEVICE_SELECTOR"], doctor.FAULT, "hides opencl:cpu", "unset it")
    expect(lines["OCL_ICD_FILENAMES"], doctor.FAULT, "leaves out the OpenCL CPU device", "unset it")
    monkeypatch.setenv("ONEAPI_DEVICE_SELECTOR", "opencl:cpu")
    lines = {line.check: line for line in doctor.variables({"xpu_build": True, "xpus": []})}
    expect(lines["BNB_INTEL_VIRTUAL_XPU"], doctor.FAULT, "for a CPU build of torch", "unset it")
    expect(lines["ZE_AFFINITY_MASK"], doctor.FAULT, "torch sees no GPU", "unset it")
    monkeypatch.setenv("BNB_INTEL_VIRTUAL_XPU", "0")
    lines = {line.check: line for line in doctor.variables({"xpu_build": True, "xpus": []})}
    expect(lines["ONEAPI_DEVICE_SELECTOR"], doctor.FAULT, "hides level_zero:gpu", "unset it")


@pytest.mark.parametrize(
    ("value", "gpu", "cpu_device"),
    [
        ("*:*", True, True),
        ("level_zero:gpu", True, False),
        ("level_zero:0", True, False),
        ("level_zero:*;opencl:cpu", True, True),
        ("opencl:*", False, True),
        ("!level_zero:*", False, True),
        ("*:cpu", False, True),
        ("cuda:*", False, False),
    ],
)
def test_device_selectors(value, gpu, cpu_device):
    assert doctor.selects(value, "level_zero", "gpu") is gpu
    assert doctor.selects(value, "opencl", "cpu") is cpu_device


def test_held_to_what_the_cpu_lacks(machine):
    lacking = [isa for isa in env.ISAS if isa not in cpu.isas()]
    if not lacking:
        if not shutil.which("qemu-x86_64"):
            pytest.skip("this CPU lacks nothing, and there is no qemu-x86_64 (Debian: qemu-user) for one that does")
        machine.emulate("Nehalem")
        lacking = list(env.ISAS[1:])
    lines = machine.lines(BNB_INTEL_ISA=lacking[-1])
    expect(lines["BNB_INTEL_ISA"], doctor.FAULT, lacking[-1], "unset it")


def test_an_instruction_set_that_kept_operators_away():
    failed = {"registered": {}, "failures": {"cpu": "KernelError: BNB_INTEL_ISA: no AMX"}, "replaced": {}}
    (line, _) = doctor.operators({"operators": failed})
    expect(line, doctor.FAULT, "no AMX", "see the faults above")


# ---- the SYCL runtime, the OpenCL CPU device, the virtual XPU ----------------------------------------------------
@pytest.fixture
def libsycl() -> str:
    found = sycl.find_sycl()
    assert found is not None, "there is no SYCL runtime"
    return found.library.name


def test_no_sycl_runtime(machine, libsycl):
    for path in (machine.folder / "lib").glob("libsycl.so*"):
        path.unlink()
    expect(machine.lines()["SYCL runtime"], doctor.NOTE, "none with headers", "pip install intel-sycl-rt")
    machine.module("torch", TORCH_XPU)
    lines = machine.lines()
    expect(lines["SYCL runtime"], doctor.FAULT, "none with headers", "pip install intel-sycl-rt")
    expect(lines[runtime.xpu_library().name], doctor.FAULT, "no SYCL runtime is installed", "")


def test_another_libsycl(machine, libsycl):
    (machine.folder / "lib" / libsycl).rename(machine.folder / "lib" / "libsycl.so.99")
    for path in (machine.folder / "lib").glob(f"{libsycl}.*"):
        path.unlink()
    machine.module("torch", TORCH_XPU)
    lines = machine.lines()
    expect(lines["SYCL runtime"], doctor.FAULT, f"another major than {libsycl}", "install again")


def test_no_xpu_library(machine):
    name = "libbitsandbytes_intel_xpu_syclN.so"
    (machine.package / runtime.xpu_library().name).unlink()
    expect(machine.lines()[name], doctor.NOTE, "was not built", "pip install intel-sycl-rt")
    machine.module("torch", TORCH_XPU)
    expect(machine.lines()[name], doctor.FAULT, "was not built", "pip install intel-sycl-rt")


def test_the_opencl_cpu_device(machine):
    device = machine.folder / "lib" / "libintelocl.so"
    device.unlink()
    expect(machine.lines()["OpenCL CPU device"], doctor.NOTE, "none is installed", "pip install intel-opencl-rt")
    device.write_bytes(b"nothing")
    expect(machine.lines()["OpenCL CPU device"], doctor.NOTE, "does not load", "intel-opencl-rt")


def test_the_virtual_xpu_without_a_compiler(tmp_path, machine):
    expect(machine.lines(CXX="/no/compiler")["virtual XPU"], doctor.NOTE, "/no/compiler", "apt-get install g++")
    real = Machine(tmp_path / "m", real=True)
    lines = real.lines(CXX="/no/compiler", BNB_INTEL_VIRTUAL_XPU="1", BNB_INTEL_AUTOLOAD="0")
    expect(lines["virtual XPU"], doctor.FAULT, "CXX='/no/compiler' cannot be found", "as it says")
    expect(lines["operators on cpu"], doctor.FAULT, "0 of 19 are ours", "see the faults above")


# ---- a GPU ----------------------------------------------------------------------------------------------------------
def test_xpu_torch_without_a_gpu(machine):
    machine.gpu()
    shutil.rmtree(machine.folder / "drm")
    machine.module("torch", TORCH_XPU)
    expect(machine.lines()["Intel GPU"], doctor.FAULT, "no Intel GPU", "--device /dev/dri")


def test_a_gpu_that_is_not_passed_in(machine):
    machine.gpu(node=False)
    expect(machine.lines()["Intel GPU"], doctor.FAULT, "there is no", "--device /dev/dri")


def test_a_gpu_of_another_make_is_none(machine):
    machine.gpu()
    (machine.folder / "drm" / "renderD128" / "device" / "vendor").write_text("0x10de\n")
    expect(machine.lines()["Intel GPU"], doctor.NOTE, "there is none")


def test_cpu_torch_beside_a_gpu_and_no_driver(machine):
    machine.gpu(_DRIVER=("libno_such_driver.so.1",))
    lines = machine.lines()
    expect(lines["Intel GPU"], doctor.OK, "renderD128")
    expect(lines["GPU driver"], doctor.FAULT, "libno_such_driver.so.1 does not load", "apt-get install")
    expect(lines["torch and the GPU"], doctor.FAULT, "a build for CPUs", "download.pytorch.org/whl/xpu")


def test_torch_and_the_gpu(machine):
    machine.gpu(_DRIVER=("libc.so.6",))
    machine.module("torch", TORCH_XPU)
    lines = machine.lines()
    expect(lines["GPU driver"], doctor.OK, "libc.so.6")
    expect(lines["torch and the GPU"], doctor.FAULT, "torch sees no GPU", "clinfo")
    machine.module("torch", TORCH_XPU.replace("GPUS = True, []", "GPUS = True, ['Arc']"))
    expect(machine.lines()["torch and the GPU"], doctor.OK, "Arc")


def test_a_gpu_of_another_group(python, tmp_path_factory):
    """Root may open everything, so root becomes nobody for it."""
    folder = tmp_path_factory.mktemp("gpu")
    code = """
import os, pathlib, tempfile
from bitsandbytes_intel.cli import doctor
folder = pathlib.Path(tempfile.mkdtemp())
folder.chmod(0o755)
vendor = folder / "renderD128" / "device" / "vendor"
vendor.parent.mkdir(parents=True)
vendor.write_text("0x8086")
node = folder / "node" / "renderD128"
node.parent.mkdir()
node.write_text("")
node.chmod(0)
doctor._DRM, doctor._NODES = folder, node.parent
root = os.geteuid() == 0
if root: os.seteuid(65534)
lines = list(doctor.gpus({}))
if root: os.seteuid(0)
import shutil; shutil.rmtree(folder)
print(lines)
"""
    said = python(code, TMPDIR=str(folder) if os.geteuid() else None).stdout
    assert "this user may not open" in said
    assert "usermod -aG render" in said


# ---- the cache ------------------------------------------------------------------------------------------------------
def cache_of_others(m):
    (m.cache / "kernels").mkdir(parents=True)
    (m.cache / "kernels").chmod(0o777)


def cache_is_a_link(m):
    m.cache.mkdir()
    (m.cache / "kernels").symlink_to(m.folder)


def cache_is_a_file(m):
    m.cache.mkdir()
    (m.cache / "kernels").write_text("")


def full_disk(m):
    """No file can grow beyond a kilobyte: to a program, what a full disk is."""
    m.file_size = 1024


def foreign_cache(m):
    (m.cache / "kernels").mkdir(parents=True)
    os.chown(m.cache / "kernels", 12345, -1)


@pytest.mark.parametrize(
    ("spoil", "found", "do"),
    [
        (cache_of_others, "writable by others", "chmod"),
        (cache_is_a_link, "symbolic link", "BNB_INTEL_CACHE_DIR"),
        (cache_is_a_file, "kernels are not kept", "BNB_INTEL_CACHE_DIR"),
        (full_disk, "kernels are not kept", "make room"),
        pytest.param(
            foreign_cache,
            "belongs to user 12345",
            "chown",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away"),
        ),
    ],
)
def test_the_kernel_cache(monkeypatch, tmp_path, spoil, found, do):
    """In this process, but for the full disk, which a limit of the process stands for."""
    machine = Machine(tmp_path / "m") if spoil is full_disk else None
    if machine is not None:
        spoil(machine)
        line = machine.lines()["kernel cache"]
    else:
        folder = type("Folder", (), {"folder": tmp_path, "cache": tmp_path / "cache"})
        spoil(folder)
        monkeypatch.setenv("BNB_INTEL_CACHE_DIR", str(folder.cache))
        line = doctor.kernel_cache()
    expect(line, doctor.FAULT, found, do)


def test_a_healthy_cache_keeps_nothing_of_the_trial(monkeypatch, tmp_path):
    monkeypatch.setenv("BNB_INTEL_CACHE_DIR", str(tmp_path))
    expect(doctor.kernel_cache(), doctor.OK, str(tmp_path))
    assert list((tmp_path / "kernels").iterdir()) == []
