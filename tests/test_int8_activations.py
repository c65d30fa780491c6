"""The opt-in mode in which gemm_4bit on a CPU quantises its activations to int8: its error, and where it stays away."""

from __future__ import annotations

import pytest
import torch
from helpers import FLOATS, QUANT_TYPES, Weight, exactly_equal, generator, short

from bitsandbytes_intel import cpu, reference

# Of the result, as a norm, against the same product in float64: both operands are rounded to about 1 / 127 of the
# largest magnitude of their blocks.
RELATIVE_ERROR = 0.015


def relative_error(result, exact):
    return float((result.double() - exact).norm() / exact.norm())


def has_int8() -> bool:
    return cpu.kernels()["gemm_4bit_int8"] in ("avx_vnni", "avx512_vnni", "amx")


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize(
    "case",
    [(8, 64, 64, 64), (17, 33, 192, 64), (70, 100, 1024, 512), (130, 65, 640, 128), (8, 40, 4096, 4096)],
    ids=str,
)
def test_error(case, nested, quant_type, dtype):
    m, n, k, blocksize = case
    w = Weight.random(n, k, blocksize=blocksize, quant_type=quant_type, nested=nested, seed=m)
    A = torch.randn(m, k, generator=generator(n)).to(dtype)
    bias = torch.randn(n, generator=generator(k)).to(dtype)
    exact = A.double() @ w.exact().double().T + bias.double()
    plain = w.gemm(A, bias)
    with cpu.int8_activations():
        result = w.gemm(A, bias)
    assert relative_error(result, exact) < RELATIVE_ERROR
    assert torch.equal(result, plain) != has_int8()
    exactly_equal(w.gemm(A, bias), plain)
    for isa in cpu.isas():  # the same numbers, to the last bit
        with cpu.using(isa), cpu.int8_activations():
            if has_int8():
                exactly_equal(w.gemm(A, bias), result)


@pytest.mark.parametrize("case", [(7, 128, 64), (1, 128, 64), (8, 128, 32), (8, 100, 64), (8, 33, 64)], ids=str)
def test_where_it_stays_away(case):
    """Few rows, blocks of 32, rows of B that are no whole number of blocks: exact as ever."""
    m, k, blocksize = case
    w = Weight.random(20, k, blocksize=blocksize)
    A = torch.randn(m, k, generator=generator(1))
    plain = w.gemm(A)
    with cpu.int8_activations():
        exactly_equal(w.gemm(A), plain)
        exactly_equal(w.gemv(A), plain)


def test_gemv_is_exact():
    w = Weight.random(20, 128)
    A = torch.randn(9, 128, generator=generator(1))
    plain = w.gemv(A)
    with cpu.int8_activations():
        exactly_equal(w.gemv(A), plain)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_special_activations_stay_in_their_row(value):
    w = Weight.random(20, 128)
    A = torch.randn(9, 128, generator=generator(1))
    A[3, 70] = value
    with cpu.int8_activations():
        result = w.gemm(A)
    finite = result.isfinite().all(dim=1)
    assert finite.tolist() == [row != 3 for row in range(9)]
    assert not bool(result[3].isfinite().any())


def test_a_row_of_zeros_is_zero():
    w = Weight.random(20, 128)
    with cpu.int8_activations():
        exactly_equal(w.gemm(torch.zeros(9, 128)), torch.zeros(9, 20))


@pytest.mark.parametrize("scale", [1e-45, 1e-37, 3e-37, 1e-36, 1e-30])
def test_activations_near_zero(scale):
    """Those whose codes float32 cannot reckon are zeros."""
    w = Weight.random(20, 128)
    A = (torch.rand(9, 128, generator=generator(1)) + 0.5) * scale
    with cpu.int8_activations():
        result = w.gemm(A).double()
    exact = A.double() @ w.exact().double().T
    assert bool(((result - exact).abs() <= exact.abs().max() * 1.1).all())
    assert scale < 1e-35 or relative_error(result, exact) < RELATIVE_ERROR


def test_the_environment_switches_it_on(python):
    code = """
import torch, bitsandbytes
from bitsandbytes_intel import cpu
g = torch.Generator().manual_seed(0)
A, B = torch.randn(16, 64, generator=g), torch.randint(0, 256, (64 * 32, 1), dtype=torch.uint8, generator=g)
run = lambda: torch.ops.bitsandbytes.gemm_4bit(A, B, [64, 64], torch.ones(64), 64, "nf4", None)
first = run()
with cpu.int8_activations():
    print(torch.equal(first, run()))
"""
    for value, same in (("1", True), ("0", not has_int8())):
        done = python(code, BNB_INTEL_INT8_ACTIVATIONS=value, BNB_INTEL_VIRTUAL_XPU=None)
        assert done.stdout.strip() == str(same)
    failed = python(code, BNB_INTEL_INT8_ACTIVATIONS="perhaps", BNB_INTEL_VIRTUAL_XPU=None, check=False)
    assert "BNB_INTEL_INT8_ACTIVATIONS='perhaps' is not a switch" in failed.stderr


def test_reference_of_the_bound():
    """The bound is not idle: weights alone, rounded so, are some way off already."""
    code = reference.codebook("nf4")
    off = ((code * 127).round() / 127 - code).norm() / code.norm()
    assert 0.001 < float(off) < RELATIVE_ERROR
