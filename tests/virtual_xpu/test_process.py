"""What needs a process of its own: start, build, exit, fork, and upstream's backend."""

import pathlib
import sys
import time

import pytest


def _quiet(done):
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_cached_start_is_quick_and_quiet(python):
    start = time.perf_counter()
    assert _quiet(python("virtual_xpu.enable(); torch.xpu.init(); print(virtual_xpu.is_enabled())")) == "True\n"
    whole = time.perf_counter() - start
    bare = time.perf_counter()
    _quiet(python("", enable=False))
    bare = time.perf_counter() - bare
    assert whole - bare < 3


def test_import_alone_does_nothing(python):
    code = "import sys; print(virtual_xpu.is_enabled(), virtual_xpu.fallback_counts(), torch.xpu.is_available())"
    assert _quiet(python(code, enable=False)) == "False {} False\n"


@pytest.mark.parametrize(
    "code",
    [
        "x = torch.randn(1000, 1000, device='xpu') @ torch.randn(1000, 1000, device='xpu')",
        "x = torch.ones(3, device='xpu', requires_grad=True); (x * 2).sum().backward(); y = x.grad",
        "class Keep: pass\nk = Keep(); k.me = k; k.x = torch.ones(3, device='xpu'); k.s = torch.xpu.Stream()",
        "e = torch.xpu.Event(); e.record(); p = torch.ones(3).pin_memory(); import sys; sys.exit(0)",
        "import threading; threading.Thread(target=lambda: torch.ones(1 << 20, device='xpu').sum()).start()",
    ],
)
def test_exit_is_clean(python, code):
    _quiet(python(code))


def test_exit_is_clean_when_autograd_is_slow(python):
    """Its thread gets the processor last, so that it lets go of a backward pass after the program's last line."""
    slow = """
import os
def backward():
    x = torch.ones(3, device='xpu', requires_grad=True)
    (x * 2).sum().backward()
    return x.grad
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
backward()
for thread in os.listdir('/proc/self/task'):
    with open(f'/proc/self/task/{thread}/comm') as name:
        if name.read().startswith('pt_autograd'):
            os.sched_setscheduler(int(thread), os.SCHED_IDLE, os.sched_param(0))
            found = True
assert found
y = backward()
"""
    for _ in range(3):
        _quiet(python(slow))


def test_exit_code_is_kept(python):
    assert python("torch.ones(3, device='xpu'); import sys; sys.exit(3)").returncode == 3


def test_fork_before_use(python):
    code = """
import os
child = os.fork()
x = torch.ones(3, device="xpu").sum().item()
if child == 0:
    os._exit(0 if x == 3 else 1)
print(os.waitpid(child, 0)[1], x)
"""
    assert _quiet(python(code)) == "0 3.0\n"


def test_fork_after_use_is_refused(python):
    code = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later: of a fork beside threads
x = torch.ones(3, device="xpu")
child = os.fork()
if child == 0:
    try:
        torch.ones(3, device="xpu")
    except RuntimeError as error:
        os._exit(0 if "fork" in str(error) else 1)
    os._exit(2)
print(os.waitpid(child, 0)[1], x.sum().item())
"""
    assert _quiet(python(code)) == "0 3.0\n"


def test_data_loader_workers(python):
    code = """
torch.ones(1, device="xpu")
loader = torch.utils.data.DataLoader(torch.arange(8.0), batch_size=4, num_workers=1, pin_memory=True)
print([batch.to("xpu").sum().item() for batch in loader])
"""
    assert _quiet(python(code)) == "[6.0, 22.0]\n"


def test_seed_set_before_enable(python):
    code = """
torch.manual_seed(5)
virtual_xpu.enable()
a = torch.rand(3, device="xpu")
torch.xpu.manual_seed(5)
print(torch.equal(a, torch.rand(3, device="xpu")))
"""
    assert _quiet(python(code, enable=False)) == "True\n"


def test_too_late_is_a_clear_error(python):
    done = python("torch.accelerator.is_available()\nvirtual_xpu.enable()", enable=False)
    assert done.returncode == 1
    assert "RuntimeError: torch has asked for its accelerators before" in done.stderr


@pytest.mark.parametrize(
    ("build", "text"),
    [
        ("torch._C._has_xpu = True", "has real XPU support"),
        ("torch.version.cuda = '13.0'", "is a CUDA build"),
        ("torch.version.hip = '7.1'", "is a ROCm build"),
    ],
)
def test_other_builds_are_refused(build, text, python):
    done = python(f"{build}; virtual_xpu.enable()", enable=False)
    assert done.returncode == 1
    assert "RuntimeError: the virtual XPU is for a CPU build of torch" in done.stderr
    assert text in done.stderr


def test_no_compiler(python, tmp_path):
    for compiler, text in (("/bin/false", "does not work"), ("no-such-compiler", "cannot be found")):
        done = python("", CXX=compiler, BNB_INTEL_CACHE_DIR=str(tmp_path))
        assert done.returncode == 1
        assert "RuntimeError: the virtual XPU needs a C++ compiler" in done.stderr
        assert text in done.stderr
        assert "CXX" in done.stderr


def test_failed_build_leaves_nothing(python, tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\ncase $1 in -dump*) echo 12;; *) echo the last line; exit 1;; esac\n")
    compiler.chmod(0o755)
    cache = tmp_path / "cache"
    done = python("", CXX=str(compiler), BNB_INTEL_CACHE_DIR=str(cache))
    assert done.returncode == 1
    assert "cannot be compiled" in done.stderr
    assert "the last line" in done.stderr
    assert not [path for path in cache.rglob("*") if path.is_file() and path.name != "build.lock"]


def test_users_opencl_choice_is_kept(python):
    done = python("torch.xpu.init()", OCL_ICD_FILENAMES="/nowhere/libnothing.so", OCL_ICD_VENDORS="/nowhere")
    assert done.returncode == 1
    assert "needs an OpenCL CPU device" in done.stderr


_UPSTREAM = """
import ctypes, pathlib, sys
libraries = [path for name in ("libintlc.so.5", "libimf.so", "libirng.so", "libsvml.so")
             for path in [pathlib.Path(sys.prefix) / "lib" / name] if path.exists()]
for path in libraries:
    ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
import bitsandbytes.functional as F
from bitsandbytes.cextension import lib
assert type(lib).__name__ == "XpuBNBNativeLibrary", type(lib)
for dtype in (torch.float32, torch.bfloat16):
    for quant_type in ("nf4", "fp4"):
        packed, state = F.quantize_4bit(torch.randn(64, 256, dtype=dtype), quant_type=quant_type)
        wanted = F.dequantize_4bit(packed, state)
        again = F.quantize_4bit(wanted.to("xpu"), quant_type=quant_type)[0]
        assert again.device.type == "xpu"
        state.to("xpu")
        virtual_xpu.reset_fallback_counts()
        got = F.dequantize_4bit(packed.to("xpu"), state)
        assert virtual_xpu.fallback_counts() == {}, virtual_xpu.fallback_counts()
        assert got.device.type == "xpu" and torch.equal(got.cpu(), wanted)

# A kernel that is still at work: the host waits for it, on its own stream and across streams.
packed, state = F.quantize_4bit(torch.randn(2048, 4096), quant_type="nf4")
wanted = F.dequantize_4bit(packed, state)
packed = packed.to("xpu")
state.to("xpu")
one, two = torch.xpu.Stream(), torch.xpu.Stream()
for _ in range(3):
    assert torch.equal(F.dequantize_4bit(packed, state).cpu(), wanted)
    one.wait_stream(torch.xpu.current_stream())
    with torch.xpu.stream(one):
        got = F.dequantize_4bit(packed, state)
    two.wait_stream(one)
    with torch.xpu.stream(two):
        got.record_stream(two)
        assert torch.equal((got * 1).cpu(), wanted)
    del got
print("done")
"""


def test_upstreams_backend_runs_unmodified(python):
    pytest.importorskip("bitsandbytes")
    if not (pathlib.Path(sys.prefix) / "lib" / "libsvml.so").exists():
        pytest.skip("upstream's XPU library needs libsvml (intel-cmplr-lib-rt)")
    done = python(_UPSTREAM, SYCL_PROGRAM_COMPILE_OPTIONS="-cl-std=CL3.0", timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")
