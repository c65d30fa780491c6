"""No CPU kernel of the 4-bit products touches a byte outside its operands, whatever the instruction set."""

import pathlib

import pytest

from bitsandbytes_intel import cpu

SWEEP = pathlib.Path(__file__).with_name("cpu_bounds_gemm_4bit.py")


@pytest.mark.parametrize("isa", cpu.isas())
def test_every_kernel_stays_within_its_operands(isa, python):
    code = f"import runpy, sys; sys.path.insert(0, {str(SWEEP.parent)!r}); sys.argv = ['', {isa!r}, '2'];"
    code += f"runpy.run_path({str(SWEEP)!r}, run_name='__main__')"
    done = python(code, check=False, BNB_INTEL_VIRTUAL_XPU=None)
    last = "\n".join(done.stderr.splitlines()[-40:])
    assert done.returncode == 0, f"exit status {done.returncode} after:\n{last}"
    assert "touched no byte outside" in done.stdout
