"""More than 2^31 elements: every index that a kernel computes is of 64 bits.

Operands are mapped so that they take little memory: inputs repeat a pattern, and of a result only the first and the
last part, and what lies around element 2^31, have pages of their own.
"""

import pathlib

import pytest
import torch
from helpers import Weight, check_product, generator

HERE = str(pathlib.Path(__file__).parent)
N = 2**31 + 3 * 8192 + 5
START = f"""
import faulthandler, sys; faulthandler.enable(); sys.path.insert(0, {HERE!r})
import torch, guarded, helpers
from bitsandbytes_intel import reference
MiB = 2**20
pattern = torch.randint(0, 256, (2 * MiB,), dtype=torch.uint8, generator=helpers.generator(0))
"""


def run(python, code):
    done = python(START + code, check=False, timeout=300, BNB_INTEL_AUTOLOAD="0", BNB_INTEL_VIRTUAL_XPU=None)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize(
    ("kind", "data_type", "path"),
    [("cpu", "nf4", "vectorised"), ("gpu16", "nf4", "vectorised"), ("cpu", "general8bit", "any")],
)
def test_dequantize(kind, data_type, path, python):
    run(
        python,
        f"""
n, data_type, blocksize = {N}, {data_type!r}, 4096
kernels = guarded.Kernels({kind!r})
per_byte = 1 if data_type == "general8bit" else 2
size = -(-n // per_byte)
shift = 0 if {path!r} == "vectorised" else 1   # a pointer that is not aligned
A = guarded.map_periodic(size + shift, pattern) + shift
absmax = torch.rand(-(-n // blocksize), generator=helpers.generator(1))
code = torch.randn(256, generator=helpers.generator(2))
out = guarded.map_periodic(2 * n, torch.zeros(32 * MiB, dtype=torch.uint8))
# Elements of which the result has memory of its own, from multiples of the blocksize on.
windows = [(0, MiB), (2**31 - MiB, 2**31), (2**31, n)]
for first, last in windows:
    guarded.map_memory(-(-2 * (last - first) // guarded.PAGE) * guarded.PAGE, at=out + 2 * first)
kernels.dequantize(torch.float16, data_type, code.data_ptr(), A, absmax.data_ptr(), out, blocksize, n)
for first, last in windows:
    result = guarded.tensor_at(out + 2 * first, last - first, torch.float16)
    codes = guarded.tensor_at(A + first // per_byte, -(-(last - first) // per_byte), torch.uint8)
    scales = absmax[first // blocksize :]
    if data_type == "nf4":
        expected = reference.dequantize_4bit(codes, scales, blocksize, "nf4", [last - first], torch.float16)
    else:
        expected = reference.dequantize_blockwise(codes, scales, code, blocksize, torch.float16)
    helpers.exactly_equal(result.clone(), expected)
""",
    )


@pytest.mark.parametrize(
    ("kind", "name", "k"),
    [("cpu", "gemv_4bit", 4096), ("gpu16", "gemm_4bit", 4096), ("cpu", "gemm_4bit", 4096)],
)
def test_product(kind, name, k, python):
    run(
        python,
        f"""
k, m, blocksize = {k}, {1 if name == "gemv_4bit" else 5}, 4096
n = 2**31 // k + 70
kernels = guarded.Kernels({kind!r})
B = guarded.map_periodic(-(-n * k // 2), pattern)
absmax = torch.rand(-(-n * k // blocksize), generator=helpers.generator(1))
A = torch.randn(m, k, generator=helpers.generator(2))
out = torch.full((m, n), float("nan"))
scratch = torch.empty(kernels.scratch_bytes(m, k) // 4)
kernels.product({name!r}, torch.float32, m, n, k, A.data_ptr(), B, [absmax.data_ptr()], None, "nf4",
                out.data_ptr(), blocksize, None, scratch.data_ptr())
assert not out.isnan().any()
codes = torch.stack([pattern >> 4, pattern & 15], 1).reshape(-1)
table = reference.codebook("nf4")
for row in (0, 1, n // 2, 2**31 // k - 1, 2**31 // k, 2**31 // k + 1, n - 3, n - 2, n - 1):
    at = row * k + torch.arange(k)
    weight = table[codes[at % codes.numel()].long()] * absmax[at // blocksize]
    helpers.check_product(out[:, row : row + 1], A, weight[None])
""",
    )


def test_operator_with_more_than_2_to_the_31_weights(device):
    """gemm_4bit itself, of one row and of many (dequantised in panels), its last rows alone not zero."""
    k = 2**20
    n = 2**31 // k + 3
    packed = torch.full((n * k // 2, 1), 0x77, dtype=torch.uint8, device=device)  # NF4's 7 is zero
    absmax = torch.ones(n * k // 4096, device=device)
    last = Weight.random(4, k, blocksize=4096)
    packed[-2 * k :] = last.packed.to(device)
    absmax[-4 * k // 4096 :] = last.absmax.to(device)
    for m in (1, 17):
        A = torch.randn(m, k, generator=generator(m)).bfloat16()
        result = Weight((n, k), packed, absmax, 4096, "nf4", {}).gemm(A.to(device)).cpu()
        assert not result[:, :-4].any()
        check_product(result[:, -4:], A, last.exact())
