"""gemm_4bit's kernels for the matrix units of GPUs, on the CPU device, where shuffles emulate the unit lane by lane.

test_bounds.py runs them over awkward sizes; here is what is theirs alone.
"""

import pathlib

import pytest

from bitsandbytes_intel import runtime

START = f"""
import ctypes, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import guarded, torch
from helpers import Weight, check_product, generator

def gemm(kernels, A, w, lda=None, ldc=None, datatype=None):
    m, (n, k) = len(A), w.shape
    lda, ldc = lda or k, ldc or n
    held = torch.full((m, lda), float("nan"), dtype=A.dtype)
    held[:, :k] = A
    out = torch.full((m, ldc), float("nan"), dtype=A.dtype)
    statistics = guarded.Statistics(w.absmax.data_ptr())
    kernels._call(
        "cgemm_4bit_inference", guarded.DTYPES[A.dtype], m, n, k, held.data_ptr(), w.packed.data_ptr(),
        ctypes.byref(statistics), datatype.data_ptr() if datatype is not None else None, guarded.DATA_TYPES["nf4"],
        out.data_ptr(), lda, k, ldc, w.blocksize, None, None,
    )
    assert out[:, n:].isnan().all(), "the space between the rows was written"
    return out[:, :n]

def ran(kernels, family):
    return family not in kernels.not_built()

kernels = guarded.Kernels(sys.argv[1])
"""


@pytest.fixture(params=runtime.MATRIX_KINDS)
def on_unit(request, python):
    """Runs code behind START, where ``kernels`` are those of a kind with a matrix unit."""
    return lambda code: python(START + code, request.param, BNB_INTEL_AUTOLOAD="0", BNB_INTEL_VIRTUAL_XPU=None)


def test_rows_far_apart(on_unit):
    """Strides larger than the rows, for every number of rows of activations that takes another kernel."""
    on_unit("""
for dtype in (torch.float16, torch.bfloat16):
    sizes = [(1, 64, 64), (3, 448, 64), (8, 96, 32), (9, 2176, 64), (16, 32, 32), (17, 640, 4096), (40, 160, 32)]
    for m, k, blocksize in sizes:
        w = Weight.random(21, k, blocksize=blocksize, seed=m)
        A = torch.randn(m, k, generator=generator(k)).to(dtype)
        check_product(gemm(kernels, A, w, lda=k + 8, ldc=24), A, w.exact())
assert ran(kernels, "gemm_4bit_matrix/float16") and ran(kernels, "gemm_4bit_matrix/bfloat16")
""")


def test_what_the_unit_does_not_take(on_unit):
    """Operands that it does not take go to the kernels for any: a K or stride that does not fit, float32."""
    on_unit("""
half, bfloat16 = torch.float16, torch.bfloat16
for dtype, k, lda in ((half, 40, 40), (bfloat16, 33, 33), (half, 64, 65), (torch.float32, 64, 64)):
    w = Weight.random(5, k, blocksize=32)
    A = torch.randn(3, k, generator=generator(k)).to(dtype)
    check_product(gemm(kernels, A, w, lda=lda), A, w.exact())
assert not any(ran(kernels, f"gemm_4bit/{dtype}/along_n") for dtype in ("float16", "bfloat16"))
for dtype, m, k, lda in ((half, 3, 64, 66), (bfloat16, 9, 320, 330), (torch.float32, 5, 96, 99)):
    w = Weight.random(37, k, blocksize=32, seed=m)
    A = torch.randn(m, k, generator=generator(k)).to(dtype)
    check_product(gemm(kernels, A, w, lda=lda, ldc=45), A, w.exact())
assert all(ran(kernels, f"gemm_4bit/{dtype}/along_n") for dtype in ("float16", "bfloat16", "float32"))
assert not ran(kernels, "gemm_4bit_matrix/float16") and not ran(kernels, "gemm_4bit_matrix/bfloat16")
""")


def test_infinities(on_unit):
    """A weight goes in as two numbers of either sign: their products with infinity must not meet. float32: as one."""
    on_unit("""
for dtype in (torch.float16, torch.bfloat16, torch.float32):
    k = 128
    w = Weight.random(32, k)
    A = torch.randn(10, k, generator=generator(1)).to(dtype)
    A[1, 5], A[2, 70], A[3, 9], A[9, 127] = float("inf"), float("-inf"), float("nan"), float("inf")
    expected = A.double() @ w.exact().double().T
    result = gemm(kernels, A, w).double()
    for what in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(what(result), what(expected)), what
    check_product(result[4:9].to(dtype), A[4:9], w.exact())
""")


def test_weights_are_not_rounded(on_unit):
    """Products with a table of the caller's, no value of which is a bfloat16, are those of float32."""
    on_unit("""
k = 1024
w = Weight.random(16, k, blocksize=64)
table = torch.randn(16, generator=generator(5))
codes = torch.stack([w.packed.view(-1) >> 4, w.packed.view(-1) & 15], 1).view(16, k).long()
exact = table.double()[codes] * w.absmax.view(16, -1).repeat_interleave(64, 1).double()
for dtype, unit in ((torch.float16, 2**-11), (torch.bfloat16, 2**-8)):
    A = torch.randn(4, k, generator=generator(6)).to(dtype)
    expected = A.double() @ exact.T
    error = (gemm(kernels, A, w, datatype=table).double() - expected).abs()
    bound = expected.abs() * unit + (A.double().abs() @ exact.abs().T) * 2**-17
    assert (error <= bound).all(), float((error / bound).max())
""")
