"""How the package enters torch and bitsandbytes: silent, idempotent, reversible, and never in the way."""

import subprocess
import sys

import pytest
import torch
from helpers import Weight, exactly_equal

import bitsandbytes_intel
from bitsandbytes_intel import backward, env, ops

OURS = "from bitsandbytes_intel import ops; "
REGISTERED = OURS + "print(sorted(ops.registered()), ops.failures())"


def test_importing_bitsandbytes_registers_every_operator(python):
    code = "import bitsandbytes; from bitsandbytes_intel import ops; print(len(ops.registered()['xpu']))"
    assert python(code).stdout.strip() == str(len(ops.OPERATORS))


def test_importing_bitsandbytes_says_nothing_of_ours(python):
    """Upstream itself may log that it has no native library; nothing else, and no warning of torch's."""
    done = python("import bitsandbytes", BNB_INTEL_AUTOLOAD="1")
    theirs = python("import bitsandbytes", BNB_INTEL_AUTOLOAD="0")
    assert done.stdout == theirs.stdout
    assert "verrid" not in done.stderr
    assert "Warning" not in done.stderr
    assert _without_clock(done.stderr) == _without_clock(theirs.stderr)


def _without_clock(text):
    return [line.split("]", 1)[-1] for line in text.splitlines()]


def test_no_warning_becomes_an_error(python):
    code = """
import warnings
import torch
warnings.simplefilter("error")
from bitsandbytes_intel import _autoload
import bitsandbytes
_autoload()
assert torch.ops.bitsandbytes
from bitsandbytes_intel import ops
assert "xpu" in ops.registered(), ops.failures()
"""
    python(code)


def test_registering_again_changes_nothing(device):
    before = ops.registered()
    bitsandbytes_intel._autoload()
    ops.register()
    assert ops.registered() == before


@pytest.mark.parametrize("value", ["0", "False"])
def test_autoload_can_be_turned_off(python, value):
    code = "import bitsandbytes; " + REGISTERED
    assert python(code, BNB_INTEL_AUTOLOAD=value).stdout.strip().endswith("[] {}")


def test_an_unknown_value_is_an_error_that_names_the_allowed_ones(python):
    done = python("from bitsandbytes_intel import _autoload; _autoload()", check=False, BNB_INTEL_AUTOLOAD="maybe")
    assert done.returncode == 1
    assert "ValueError: BNB_INTEL_AUTOLOAD='maybe'" in done.stderr
    assert "expected one of 1, true, on, yes, 0" in done.stderr


def test_without_hardware_there_is_no_error(python):
    code = "import bitsandbytes, torch; assert not torch.xpu.is_available(); " + REGISTERED
    done = python(code, BNB_INTEL_VIRTUAL_XPU=None)
    assert done.stdout.strip().endswith("['cpu'] {}")


def test_the_hook_of_torch_costs_nothing(python):
    """Under a millisecond, when the virtual XPU is not asked for: the import of the package, and the call."""
    code = """
import sys, time
import filelock  # of the same folder, which Python has then listed, as it has in torch
start = time.process_time()
import bitsandbytes_intel
bitsandbytes_intel._torch_backend()
print((time.process_time() - start) * 1e3)
assert "torch" not in sys.modules and "platformdirs" not in sys.modules
assert not [name for name in sys.modules if name.startswith("bitsandbytes_intel.")]
"""
    milliseconds = min(float(python(code, BNB_INTEL_VIRTUAL_XPU=None).stdout) for _ in range(5))
    print(f"hook: {milliseconds:.2f} ms")
    assert milliseconds < 1


@pytest.mark.parametrize("value", ["0"])
def test_the_virtual_xpu_can_be_declined(python, value):
    code = "import torch; print(torch.xpu.is_available())"
    assert python(code, BNB_INTEL_VIRTUAL_XPU=value).stdout.strip() == "False"


def test_unregister_restores_upstreams_kernels(python):
    """Upstream's has no kernel for gemv_4bit.out on this device; its default answers for dequantize_4bit."""
    code = (
        OURS
        + """
import torch, bitsandbytes
name, has = "bitsandbytes::dequantize_blockwise.out", torch._C._dispatch_has_kernel_for_dispatch_key
ours = has(name, "XPU")
A, s, c = torch.zeros(64, dtype=torch.uint8, device="xpu"), torch.ones(1, device="xpu"), torch.rand(256, device="xpu")
before = torch.ops.bitsandbytes.dequantize_blockwise(A, s, c, 64, torch.float32).cpu()
for _ in range(3):
    ops.unregister()
    assert ops.registered() == {}
    theirs = has(name, "XPU")
    ops.register()
    assert "xpu" in ops.registered(), ops.failures()
    after = torch.ops.bitsandbytes.dequantize_blockwise(A, s, c, 64, torch.float32).cpu()
    assert torch.equal(before, after)
print(ours, theirs, has(name, "XPU"))
"""
    )
    without = "import torch, bitsandbytes; print(torch._C._dispatch_has_kernel_for_dispatch_key("
    without += "'bitsandbytes::dequantize_blockwise.out', 'XPU'))"
    upstreams = python(without, BNB_INTEL_AUTOLOAD="0").stdout.strip()
    done = python(code)
    assert done.stdout.split() == ["True", upstreams, "True"]
    assert "verrid" not in done.stderr


@pytest.mark.parametrize(("library", "state"), [("TORCH_LIBRARY", "broken"), ("XPU_LIBRARY", "missing")])
def test_a_library_that_does_not_load_is_one_warning(python, tmp_path, library, state):
    path = tmp_path / "libbroken.so"
    if state == "broken":
        path.write_bytes(b"no library")
    code = f"""
import logging, pathlib, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
from bitsandbytes_intel import runtime, ops
if {library!r} == "XPU_LIBRARY":
    runtime._PACKAGE = pathlib.Path({str(tmp_path)!r})
else:
    runtime.{library} = pathlib.Path({str(path)!r})
import bitsandbytes
print(sorted(ops.registered()), ops.failures())
"""
    done = python(code).stdout
    assert done.count("WARNING bitsandbytes keeps its own operators on xpu") == 1
    left = done.splitlines()[-1]
    assert left.startswith("[] {'cpu': " if state == "broken" else "['cpu'] {'xpu': ")
    assert "'xpu': " in left
    assert (path.name if state == "broken" else "libbitsandbytes_intel_xpu_syclN.so was not built") in done


def test_operators_are_all_there(device):
    """Every operator of the list answers from our library, and every operator of the library is on the list."""
    library = ops._load().bnb_torch_operators().decode().split()
    our_own = f"{backward.NAMESPACE}::{backward.NAME}"
    assert sorted(library) == sorted([*(operator.name for operator in ops.OPERATORS), our_own])
    assert torch._C._dispatch_has_kernel_for_dispatch_key(our_own, "CPU")
    for operator in ops.OPERATORS:
        for where in set(operator.devices) & set(ops.present_devices()):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"bitsandbytes::{operator.name}", where.upper())


def test_the_call_reaches_our_kernels_and_not_a_fallback(xpu):
    """On the virtual XPU, no aten operator is borrowed for a dequantisation or a product of few rows."""
    from bitsandbytes_intel import virtual_xpu

    if not virtual_xpu.is_enabled():
        pytest.skip("there is no fallback to count on a real XPU")
    w = Weight.random(64, 256).to(xpu)
    A = torch.randn(3, 256).to(xpu)
    exactly_equal(w.gemm(A), w.gemm(A))
    torch.xpu.synchronize()
    virtual_xpu.reset_fallback_counts()
    w.gemm(A)
    w.gemm(A[:1])
    w.dequantize(torch.float16)
    assert virtual_xpu.fallback_counts() == {}


# ---- environment variables ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("text", "value"), [("1", True), ("TRUE", True), (" on ", True), ("yes", True), ("0", False)])
def test_switches(monkeypatch, text, value):
    monkeypatch.setenv("BNB_INTEL_AUTOLOAD", text)
    assert env.AUTOLOAD.get() is value


def test_defaults(monkeypatch):
    for variable in env.VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)
    assert env.AUTOLOAD.get() is True
    assert env.VIRTUAL_XPU.get() is False
    assert env.cache_dir().name == "bitsandbytes_intel"
    monkeypatch.setenv("BNB_INTEL_AUTOLOAD", "")
    assert env.AUTOLOAD.get() is True


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("BNB_INTEL_CACHE_DIR", str(tmp_path))
    assert env.cache_dir() == tmp_path
    monkeypatch.setenv("BNB_INTEL_CACHE_DIR", "relative/folder")
    with pytest.raises(ValueError, match="BNB_INTEL_CACHE_DIR='relative/folder' is not an absolute path"):
        env.cache_dir()


@pytest.mark.parametrize("variable", env.VARIABLES, ids=lambda variable: variable.name)
def test_every_variable_is_described(variable):
    assert variable.name.startswith("BNB_INTEL_")
    assert variable.help


def test_the_runtime_needs_no_torch():
    code = "import sys, bitsandbytes_intel.env, bitsandbytes_intel.cache, bitsandbytes_intel.runtime; "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)
