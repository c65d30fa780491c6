"""No kernel touches a byte outside its operands: these lie between forbidden pages."""

import itertools
import os
import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from bitsandbytes_intel import cpu, runtime

SWEEP = pathlib.Path(__file__).with_name("bounds_sweep.py")
OPERATORS = ("dequantize_blockwise", "gemv_4bit", "gemm_4bit", "int8", "optimizer")
ELSEWHERE = {"quantize_blockwise"}  # has a sweep of its own
KINDS = (*runtime.KINDS, *cpu.isas())


def sweep(kind, operator):
    """The finished process: of one core's work, so that several run side by side."""
    rounds = 20 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 1 if kind.startswith("gpu") else 2
    given = {name: value for name, value in os.environ.items() if name != "BNB_INTEL_VIRTUAL_XPU"}
    command = [sys.executable, str(SWEEP), kind, operator, str(rounds)]
    return subprocess.run(command, env={**given, "BNB_INTEL_AUTOLOAD": "0"}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def sweeps(request):
    """The processes to come, by kind and operator, of the tests that were asked for."""
    asked = (item.callspec.params for item in request.session.items if "sweeps" in getattr(item, "fixturenames", ()))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {(p["kind"], p["operator"]): pool.submit(sweep, p["kind"], p["operator"]) for p in asked}
        pool.shutdown(cancel_futures=True)


# What the kinds with a matrix unit have beyond the others is a gemm.
@pytest.mark.parametrize(
    ("kind", "operator"),
    [*itertools.product(KINDS, OPERATORS), *((kind, "gemm_4bit") for kind in runtime.MATRIX_KINDS)],
)
def test_every_kernel_stays_within_its_operands(kind, operator, sweeps):
    """Of the SYCL CPU device, of GPUs, compiled for the CPU device, and of each instruction set of this CPU."""
    done = sweeps[kind, operator].result()
    last = "\n".join(done.stderr.splitlines()[-40:])
    assert done.returncode == 0, f"exit status {done.returncode} after:\n{last}"
    assert "touched no byte outside" in done.stdout
    print(done.stdout.strip())


def test_the_sweep_covers_every_family():
    for kind in runtime.KINDS:
        stems = {family.name.split("/")[0] for family in runtime.catalogue(kind)} - ELSEWHERE
        swept = {next((name for name in OPERATORS if stem.startswith(name)), stem) for stem in stems}
        assert swept == set(OPERATORS)


@pytest.mark.parametrize("what", ["behind the codes", "behind the result", "before the result"])
def test_the_guard_catches(what, python):
    """A call that is told a wrong size or place does end the process, or is seen."""
    code = f"""
import sys; sys.path.insert(0, {str(SWEEP.parent)!r})
import torch, guarded
kernels = guarded.Kernels("cpu")
place = "begin" if {what!r} == "before the result" else "end"
with guarded.arena(place) as memory:
    codes = torch.zeros(3000 if {what!r} == "behind the codes" else 2048 * 2, dtype=torch.uint8)
    out = memory.out(8192 if {what!r} != "behind the result" else 8000, torch.float16)
    shift = 2 if {what!r} == "before the result" else 0
    addresses = memory.hold(codes), memory.hold(torch.ones(128))
    kernels.dequantize(torch.float16, "nf4", None, *addresses, out.address - shift, 64, 8192)
print("survived")
"""
    done = python(code, check=False, BNB_INTEL_VIRTUAL_XPU=None)
    assert done.returncode < 0, done.stdout + done.stderr
    assert "survived" not in done.stdout
