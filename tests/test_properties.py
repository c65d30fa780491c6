"""Random operands of every shape, dtype and layout against the reference; HYPOTHESIS_PROFILE=nightly tries 10,000."""

import hypothesis.strategies as st
import torch
from helpers import BLOCKSIZES, FLOATS, QUANT_TYPES, STORAGES, Weight, check_product, exactly_equal, generator, on, ops
from hypothesis import given

from bitsandbytes_intel import reference

seeds = st.integers(0, 2**31 - 1)
floats = st.sampled_from(FLOATS)
offsets = st.integers(0, 17)
scales = st.sampled_from([1.0, 1e-30, 1e-6, 300.0, 1e20])


def laid_out(tensor, layout, offset):
    """The same values on the device: at an offset, transposed in memory, or with a gap between elements."""
    if layout == "plain" or tensor.dim() == 0:
        return on("xpu", tensor, offset)
    if layout == "transposed":
        return on("xpu", tensor.mT.contiguous(), offset).mT if tensor.dim() > 1 else on("xpu", tensor, offset)
    wide = torch.stack([tensor, tensor], dim=-1).reshape(*tensor.shape[:-1], 2 * tensor.shape[-1])
    return on("xpu", wide, offset)[..., ::2]


layouts = st.sampled_from(["plain", "plain", "transposed", "gaps"])


@given(
    n=st.integers(0, 30_000),
    blocksize=st.sampled_from(BLOCKSIZES),
    quant_type=st.sampled_from(QUANT_TYPES),
    storage=st.sampled_from(STORAGES),
    dtype=floats,
    offset=offsets,
    scale=scales,
    seed=seeds,
)
def test_dequantize_4bit(n, blocksize, quant_type, storage, dtype, offset, scale, seed):
    w = Weight.random(n, blocksize=blocksize, quant_type=quant_type, storage=storage, seed=seed)
    w.absmax.mul_(scale)
    exactly_equal(w.to("xpu", offset).dequantize(dtype), w.exact().to(dtype))


@given(
    shape=st.lists(st.integers(0, 60), min_size=0, max_size=3),
    blocksize=st.one_of(st.integers(1, 5000), st.sampled_from([2**i for i in range(14)])),
    dtype=floats,
    layout=layouts,
    offset=offsets,
    seed=seeds,
)
def test_dequantize_blockwise(shape, blocksize, dtype, layout, offset, seed):
    g = generator(seed)
    A = torch.randint(0, 256, shape, dtype=torch.uint8, generator=g)
    absmax, code = torch.rand(-(-A.numel() // blocksize), generator=g), torch.randn(256, generator=g)
    moved = laid_out(A, layout, offset)
    result = ops.dequantize_blockwise(moved, absmax.to("xpu"), code.to("xpu"), blocksize, dtype)
    exactly_equal(result, reference.dequantize_blockwise(A, absmax, code, blocksize, dtype))
    assert A.numel() < 2 or result.stride() == torch.empty_like(moved).stride()


@given(
    m=st.one_of(st.integers(0, 20), st.integers(0, 100)),
    n=st.integers(1, 150),
    k=st.one_of(st.integers(1, 300), st.integers(1, 40).map(lambda i: 32 * i)),
    blocksize=st.sampled_from(BLOCKSIZES),
    quant_type=st.sampled_from(QUANT_TYPES),
    storage=st.sampled_from(STORAGES),
    nested=st.booleans(),
    bias=st.booleans(),
    dtype=floats,
    layout=layouts,
    offset=offsets,
    seed=seeds,
)
def test_gemm_4bit(m, n, k, blocksize, quant_type, storage, nested, bias, dtype, layout, offset, seed):
    w = Weight.random(n, k, blocksize=blocksize, quant_type=quant_type, storage=storage, nested=nested, seed=seed)
    A = torch.randn(m, k, generator=generator(seed)).to(dtype)
    b = torch.randn(n, generator=generator(seed + 1)).to(dtype) if bias else None
    moved = w.to("xpu", offset)
    result = moved.gemm(laid_out(A, layout, offset), None if b is None else on("xpu", b, offset))
    check_product(result, A, w.exact(), b)
    if not nested and not bias:
        check_product(moved.gemv(laid_out(A, layout, offset)), A, w.exact())


@given(
    m=st.integers(0, 70),
    n=st.integers(0, 70),
    k=st.integers(0, 300),
    layout=layouts,
    offset=offsets,
    seed=seeds,
)
def test_int8_linear_matmul(m, n, k, layout, offset, seed):
    g = generator(seed)
    A = torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=g)
    B = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=g)
    result = ops.int8_linear_matmul(laid_out(A, layout, offset), laid_out(B, layout, offset))
    exactly_equal(result, reference.int8_linear_matmul(A, B))
