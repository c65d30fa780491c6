"""A test for each fault that bitsandbytes' own kernels for XPU and CPU were found to have, and ours must not.

Those of the optimizers alone are beside their operators: the weight decay of Lion and Adagrad, the rows of AdEMAMix and
the drift of parameters without gradient in test_optimizer_8bit_blockwise.py, the length of LAMB's first step in
test_optimizer_32bit.py.
"""

import bitsandbytes.functional as F
import pytest
import torch
from helpers import FLOATS, QUANT_TYPES, Weight, check_product, exactly_equal, generator, ops, short

from bitsandbytes_intel import reference


def activation(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(1)).to(dtype)


@pytest.mark.parametrize("k", [33, 40, 48, 63, 100, 1000, 4100])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_gemv_where_k_is_no_multiple_of_32(dtype, k, device):
    """It was wrong."""
    w = Weight.random(16, k)
    A = activation(1, k, dtype=dtype)
    check_product(w.to(device).gemv(A.to(device)), A, w.exact())
    check_product(w.to(device).gemm(A.to(device)), A, w.exact())


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 1023])
def test_gemv_where_n_is_no_multiple_of_4(n, device):
    """It read absmax beyond the last row: here NaN lies there. test_bounds.py puts a forbidden page there."""
    w = Weight.random(n, 128)
    A = activation(1, 128)
    moved = w.to(device)
    poisoned = torch.full((w.absmax.numel() + 64,), float("nan"), device=device)
    poisoned[: w.absmax.numel()] = moved.absmax
    code = reference.codebook("nf4").to(device)
    absmax = poisoned[: w.absmax.numel()]
    check_product(ops.gemv_4bit(A.to(device), moved.packed, [n, 128], absmax, code, 64), A, w.exact())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=short)
def test_products_are_not_rounded_to_16_bit(dtype, device):
    """Table, scale and product were: here the sum is then off by far more than a rounding of the result."""
    k = 4096
    w = Weight.random(16, k, blocksize=32)
    A = activation(1, k, dtype=dtype)
    check_product(w.to(device).gemv(A.to(device)), A, w.exact())
    # Products that cancel in fp32 and do not when the table is rounded: each pair of neighbours is w - w.
    w.packed[:] = (w.packed & 15) | (w.packed & 15) << 4
    w.absmax[:] = 0.7
    ones = torch.ones(1, k)
    ones[:, 1::2] = -1
    assert float(w.to(device).gemv(ones.to(dtype).to(device)).abs().max()) < 1e-3


@pytest.mark.parametrize("blocksize", [1, 3, 5, 48, 100, 1000, 3000])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_dequantize_blockwise_where_blocksize_is_no_power_of_two(dtype, blocksize, device):
    """It was taken for one."""
    A = torch.randint(0, 256, (10_000,), dtype=torch.uint8, generator=generator(2))
    absmax, code = torch.rand(-(-10_000 // blocksize)), torch.randn(256)
    result = ops.dequantize_blockwise(A.to(device), absmax.to(device), code.to(device), blocksize, dtype)
    exactly_equal(result, reference.dequantize_blockwise(A, absmax, code, blocksize, dtype))


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("shape", [(48, 96), (64, 4304), (7, 1152), (3, 16)], ids=str)
@pytest.mark.parametrize("blocksize", [64, 256])
def test_last_dimension_is_no_multiple_of_the_blocksize(blocksize, shape, quant_type, device):
    """Blocks straddle rows."""
    w = Weight.random(*shape, blocksize=blocksize, quant_type=quant_type)
    exactly_equal(w.to(device).dequantize(torch.float32), w.exact())
    A = activation(1, shape[1])
    check_product(w.to(device).gemv(A.to(device)), A, w.exact())
    A = activation(20, shape[1], dtype=torch.bfloat16)
    check_product(w.to(device).gemm(A.to(device)), A, w.exact())


def test_transposed_inputs(device):
    """They were read in the order of their memory."""
    A = torch.randint(0, 256, (60, 40), dtype=torch.uint8, generator=generator(3)).to(device)
    absmax, code = torch.rand(38, device=device), torch.randn(256).to(device)
    result = ops.dequantize_blockwise(A.t(), absmax, code, 64, torch.float16)
    exactly_equal(result, reference.dequantize_blockwise(A.t(), absmax, code, 64, torch.float16))
    packed = Weight.random(60, 80).to(device)
    straight = packed.packed.view(60, 40).t().contiguous()
    result = ops.dequantize_4bit(straight.t(), packed.absmax, 64, "nf4", [60, 80], torch.float16)
    exactly_equal(result, packed.dequantize(torch.float16))
    x = activation(80, 3).to(device).t()
    check_product(packed.gemm(x), x.cpu(), packed.exact().cpu())


@pytest.mark.parametrize("offset", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_pointers_that_are_not_aligned(dtype, offset, device):
    """They were taken to be."""
    w = Weight.random(30, 64)
    result = w.to(device, offset).dequantize(dtype)
    exactly_equal(result, reference.dequantize_4bit(w.packed, w.absmax, 64, "nf4", [30, 64], dtype))


def test_nothing_is_read_beyond_the_last_of_2_to_the_31_weights(device):
    """N * k was an int: test_large.py has every kernel beyond 2^31; here are the sizes that overflowed."""
    n, k = 2**15 + 1, 2**16
    packed = torch.full((n * k // 2, 1), 0x77, dtype=torch.uint8, device=device)
    absmax = torch.ones(n * k // 4096, device=device)
    last = Weight.random(1, k, blocksize=4096, quant_type="nf4")
    packed[-k // 2 :] = last.packed.to(device)
    absmax[-k // 4096 :] = last.absmax.to(device)
    A = activation(1, k)
    code = reference.codebook("nf4").to(device)
    result = ops.gemv_4bit(A.to(device), packed, [n, k], absmax, code, 4096).cpu()
    assert not result[:, :-1].any()
    check_product(result[:, -1:], A, last.exact())


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("blocksize", [64, 256])
def test_rows_of_4304_columns(blocksize, quant_type, device):
    """AVX512 dequantisation was wrong where a row is a multiple of 16 and not of the blocksize."""
    w = Weight.random(1152, 4304, blocksize=blocksize, quant_type=quant_type)
    exactly_equal(w.to(device).dequantize(torch.bfloat16), w.exact().to(torch.bfloat16))


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("n", [1, 2, 31, 33, 63, 65, 100, 1025, 4097])
def test_quantize_4bit_of_a_partial_block(n, quant_type, device):
    """Codes and statistics of whole blocks came back, more than the tensor has."""
    A = activation(n)
    packed, absmax = ops.quantize_4bit(A.to(device), 64, quant_type, torch.uint8)
    assert packed.shape == ((n + 1) // 2, 1)
    assert absmax.shape == (-(-n // 64),)
    expected = reference.quantize_4bit(A, 64, quant_type)
    exactly_equal(packed, expected[0])
    exactly_equal(absmax, expected[1])


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_quantize_blockwise_has_the_code_for_zero(dtype, signed, device):
    """The CPU's could not give it: zero came back as a small number."""
    code = F.create_dynamic_map(signed=signed).to(device)
    A = activation(1000).abs().masked_fill(torch.arange(1000) % 3 == 0, 0.0).to(dtype).to(device)
    codes, absmax = ops.quantize_blockwise(A, code, 256)
    back = ops.dequantize_blockwise(codes, absmax, code, 256, dtype)
    assert torch.equal(codes[A == 0], torch.full_like(codes[A == 0], int((code == 0).nonzero())))
    assert not back[A == 0].any()


@pytest.mark.parametrize("at", [0, 5, 255, 299])
def test_nan_in_a_block_of_8_bit(at, device):
    """The CPU's absmax was undefined: NaN is no maximum, and the rest of its block has the codes it has without."""
    A, code = activation(300), F.create_dynamic_map()
    A[at] = 0.0
    without = ops.quantize_blockwise(A.to(device), code.to(device), 256)
    A[at] = torch.nan
    codes, absmax = ops.quantize_blockwise(A.to(device), code.to(device), 256)
    exactly_equal(absmax, without[1])
    assert (codes != without[0]).sum() <= 1
    exactly_equal(codes, reference.quantize_blockwise(A, code, 256)[0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64], ids=short)
def test_statistics_of_a_wrong_dtype_are_noticed(dtype, device):
    """They were read as fp32, such as nested ones that nobody had dequantised."""
    w = Weight.random(20, 64).to(device)
    wrong = w.absmax.to(dtype)
    with pytest.raises(RuntimeError, match=f"absmax must be float32, got {short(dtype)}"):
        ops.dequantize_4bit(w.packed, wrong, 64, "nf4", [20, 64], torch.float16)
    with pytest.raises(RuntimeError, match=f"absmax must be float32, got {short(dtype)}"):
        ops.gemm_4bit(torch.ones(1, 64, device=device), w.packed, [20, 64], wrong, 64, "nf4")


def test_int8_mm_dequant_divides_by_127_squared(device):
    """The default implementation's constant is off in the fifth digit: 6.200124e-05 for 1 / 127**2."""
    A = torch.full((4, 32), 127**2, dtype=torch.int32, device=device)
    row, col = torch.ones(4, device=device), torch.ones(32, device=device)
    result = ops.int8_mm_dequant(A, row, col, dtype=torch.float32)
    torch.testing.assert_close(result.cpu(), torch.ones(4, 32), rtol=1e-6, atol=0)
