"""Every operator with random shapes, dtypes, layouts and values against the reference.

HYPOTHESIS_PROFILE=nightly tries 1,000 examples of each test and device, above 10,000 in all.
"""

import hypothesis.strategies as st
import torch
from helpers import (
    BLOCKSIZES,
    FLOATS,
    QUANT_TYPES,
    STORAGES,
    Weight,
    check_product,
    exactly_equal,
    generator,
    on,
    on_cpus,
    ops,
)
from hypothesis import given
from optimizers import NAMES, Problem, check, gradient

from bitsandbytes_intel import reference

seeds = st.integers(0, 2**31 - 1)
floats = st.sampled_from(FLOATS)
offsets = st.integers(0, 17)
scales = st.sampled_from([1.0, 1e-30, 1e-6, 300.0, 1e20])
layouts = st.sampled_from(["plain", "plain", "transposed", "gaps", "cut"])
shapes = st.one_of(
    st.lists(st.integers(0, 60), min_size=0, max_size=3), st.tuples(st.integers(0, 9), st.integers(1, 5000))
)
kinds = st.sampled_from(["normal", "normal", "zeros", "denormal", "huge", "ties", "special"])
code_blocksizes = st.one_of(st.integers(1, 5000), st.sampled_from([2**i for i in range(14)]))


def laid_out(device, tensor, layout, offset):
    """The same values on the device: at an offset, transposed in memory, with a gap between elements or rows."""
    if layout == "plain" or tensor.dim() == 0:
        return on(device, tensor, offset)
    if layout == "transposed":
        return on(device, tensor.mT.contiguous(), offset).mT if tensor.dim() > 1 else on(device, tensor, offset)
    n = tensor.shape[-1]
    if layout == "cut":
        return on(device, torch.cat([tensor, tensor], dim=-1), offset)[..., :n]
    wide = torch.stack([tensor, tensor], dim=-1).reshape(*tensor.shape[:-1], 2 * n)
    return on(device, wide, offset)[..., ::2]


def moved(device, layout, offset, *tensors):
    """Each of them laid out so on the device; None for None."""
    return [None if t is None else laid_out(device, t, layout, offset) for t in tensors]


def values(kind, shape, dtype, seed):
    """Numbers of a kind: as weights are; many zeros of both signs; near the ends of the dtype's range; NaN and Inf."""
    g = generator(seed)
    x, info = torch.randn(shape, generator=g), torch.finfo(dtype)
    some = torch.rand(shape, generator=g)
    if kind == "zeros":
        x = x.masked_fill(some < 0.6, 0.0).masked_fill(some < 0.3, -0.0)
        x = x * (torch.arange(x.numel()).reshape(shape) // 300 % 2)  # long stretches of zeros too
    elif kind == "denormal":
        x = x.double() * info.smallest_normal
    elif kind == "huge":
        x = (x.double() * info.max / 2).clamp(info.min, info.max)
    elif kind == "ties":
        # Halves of the steps between codes, of an absmax that is a power of two or 127 of them.
        nf4 = reference.codebook("nf4")
        halves = torch.cat([(nf4[1:] + nf4[:-1]) / 2, torch.tensor(reference._FP4_BOUNDS), torch.ones(3)])
        x = halves[torch.randint(0, len(halves), shape, generator=g)] * x.sign()
        x = torch.where(some < 0.3, (x * 127).round() + 0.5, x) * 2.0 ** (seed % 9 - 4)
    elif kind == "special":
        for value, share in ((torch.inf, 0.004), (-torch.inf, 0.003), (torch.nan, 0.002)):
            x = x.masked_fill(some < share, value)
    return x.to(dtype)


def close(result, exact, dtype, magnitude):
    """Within one rounding to `dtype`, and some of fp32 of the terms, whose magnitudes sum up to `magnitude`."""
    assert result.dtype == dtype
    result, info = result.cpu().double(), torch.finfo(dtype)
    assert result.shape == exact.shape
    limit = exact.abs() * info.eps + magnitude * 2**-21 + info.smallest_normal
    rounded = exact.to(dtype).double()
    good = ((result - exact).abs() <= limit) | (result == rounded) | (result.isnan() & rounded.isnan())
    # Where rounding decides between the largest number and infinity.
    good |= (exact.abs() >= info.max * (1 - info.eps)) & (result.abs() >= info.max * (1 - info.eps))
    assert good.all(), (result - exact).abs()[~good].max()


# ---- 4 bits and 8 bits in blocks ------------------------------------------------------------------------------------
@given(
    n=st.integers(0, 30_000),
    blocksize=st.sampled_from(BLOCKSIZES),
    quant_type=st.sampled_from(QUANT_TYPES),
    storage=st.sampled_from(STORAGES),
    dtype=floats,
    layout=layouts,
    offset=offsets,
    scale=scales,
    seed=seeds,
)
def test_dequantize_4bit(n, blocksize, quant_type, storage, dtype, layout, offset, scale, seed, device):
    w = Weight.random(n, blocksize=blocksize, quant_type=quant_type, storage=storage, seed=seed)
    w.absmax.mul_(scale)
    expected, there = w.exact().to(dtype), w.to(device, offset)
    exactly_equal(there.dequantize(dtype), expected)
    out = laid_out(device, torch.ones(n, dtype=dtype), layout, offset)
    ops.dequantize_4bit.out(there.packed, there.absmax, blocksize, quant_type, [n], dtype, out=out)
    exactly_equal(out, expected)


@given(shape=shapes, blocksize=code_blocksizes, dtype=floats, layout=layouts, offset=offsets, scale=scales, seed=seeds)
def test_dequantize_blockwise(shape, blocksize, dtype, layout, offset, scale, seed, device):
    g = generator(seed)
    A = torch.randint(0, 256, shape, dtype=torch.uint8, generator=g)
    absmax, code = torch.rand(-(-A.numel() // blocksize), generator=g) * scale, torch.randn(256, generator=g)
    there = moved(device, layout, offset, A, absmax, code)
    result = ops.dequantize_blockwise(*there, blocksize, dtype)
    expected = reference.dequantize_blockwise(A, absmax, code, blocksize, dtype)
    exactly_equal(result, expected)
    # A dimension of size 1 may have any stride.
    assert there[0].is_contiguous() or result.stride() == torch.empty_like(there[0]).stride()
    out = laid_out(device, torch.ones(A.shape, dtype=dtype), layout, offset)
    ops.dequantize_blockwise.out(*there, blocksize, dtype, out=out)
    exactly_equal(out, expected)


@given(
    shape=shapes,
    blocksize=st.sampled_from(BLOCKSIZES),
    quant_type=st.sampled_from(QUANT_TYPES),
    storage=st.sampled_from(STORAGES),
    kind=kinds,
    dtype=floats,
    layout=layouts,
    offset=offsets,
    seed=seeds,
)
def test_quantize_4bit(shape, blocksize, quant_type, storage, kind, dtype, layout, offset, seed, device):
    A = values(kind, shape, dtype, seed)
    if storage != torch.uint8:
        A = A.flatten()[: A.numel() // (2 * storage.itemsize) * 2 * storage.itemsize]
    results = ops.quantize_4bit(laid_out(device, A, layout, offset), blocksize, quant_type, storage)
    packed, absmax = reference.quantize_4bit(A, blocksize, quant_type, storage)
    exactly_equal(results[1], absmax)
    assert results[0].dtype == storage
    exactly_equal(results[0].cpu().view(torch.uint8), packed.view(torch.uint8))


@given(
    shape=shapes,
    blocksize=code_blocksizes,
    table=st.sampled_from(["dynamic", "unsigned", "linear", "random"]),
    kind=kinds,
    dtype=floats,
    layout=layouts,
    offset=offsets,
    seed=seeds,
)
def test_quantize_blockwise(shape, blocksize, table, kind, dtype, layout, offset, seed, device):
    code = {
        "dynamic": reference_map,
        "unsigned": lambda: reference_map(signed=False),
        "linear": lambda: torch.linspace(-1, 1, 256),
        "random": lambda: torch.rand(256, generator=generator(seed)).mul(2).sub(1).sort().values,
    }[table]()
    A = values(kind, shape, dtype, seed)
    results = ops.quantize_blockwise(*moved(device, layout, offset, A, code), blocksize)
    for result, expected in zip(results, reference.quantize_blockwise(A, code, blocksize), strict=True):
        exactly_equal(result, expected)


def reference_map(*, signed=True):
    from bitsandbytes.functional import create_dynamic_map

    return create_dynamic_map(signed=signed)


# ---- products with 4-bit weights ------------------------------------------------------------------------------------
sizes_of_products = {
    "m": st.one_of(st.integers(0, 20), st.integers(0, 100)),
    "n": st.integers(1, 150),
    "k": st.one_of(st.integers(1, 300), st.integers(1, 40).map(lambda i: 32 * i)),
    "blocksize": st.sampled_from(BLOCKSIZES),
    "quant_type": st.sampled_from(QUANT_TYPES),
    "storage": st.sampled_from(STORAGES),
    "dtype": floats,
    "layout": layouts,
    "offset": offsets,
    "seed": seeds,
}


@given(**sizes_of_products, nested=st.booleans(), bias=st.booleans())
def test_gemm_4bit(m, n, k, blocksize, quant_type, storage, nested, bias, dtype, layout, offset, seed, device):
    w = Weight.random(n, k, blocksize=blocksize, quant_type=quant_type, storage=storage, nested=nested, seed=seed)
    A = torch.randn(m, k, generator=generator(seed)).to(dtype)
    b = torch.randn(n, generator=generator(seed + 1)).to(dtype) if bias else None
    result = w.to(device, offset).gemm(*moved(device, layout, offset, A, b))
    check_product(result, A, w.exact(), b)


@on_cpus
@given(**sizes_of_products, nested=st.booleans())
def test_gemm_4bit_transposed(m, n, k, blocksize, quant_type, storage, nested, dtype, layout, offset, seed, device):
    w = Weight.random(n, k, blocksize=blocksize, quant_type=quant_type, storage=storage, nested=nested, seed=seed)
    grad = torch.randn(m, n, generator=generator(seed)).to(dtype)
    there = w.to(device, offset)
    (x,) = moved(device, layout, offset, grad)
    result = torch.ops.bitsandbytes_intel.gemm_4bit_transposed(
        x, there.packed, [n, k], there.absmax, blocksize, quant_type, **there.nested
    )
    check_product(result, grad, w.exact().T.contiguous())


@given(**sizes_of_products)
def test_gemv_4bit(m, n, k, blocksize, quant_type, storage, dtype, layout, offset, seed, device):
    w = Weight.random(n, k, blocksize=blocksize, quant_type=quant_type, storage=storage, seed=seed)
    A, code = torch.randn(m, k, generator=generator(seed)).to(dtype), reference.codebook(quant_type).to(device)
    there, x = w.to(device, offset), laid_out(device, A, layout, offset)
    check_product(there.gemv(x), A, w.exact())
    out = laid_out(device, torch.ones(m, n, dtype=dtype), layout, offset)
    ops.gemv_4bit.out(x, there.packed, [n, k], there.absmax, code, blocksize, out=out)
    check_product(out, A, w.exact())


# ---- int8 -----------------------------------------------------------------------------------------------------------
sizes = {"m": st.integers(0, 70), "n": st.integers(0, 70), "k": st.integers(0, 300)}
places = {"layout": layouts, "offset": offsets, "seed": seeds}
thresholds = st.sampled_from([0.0, 1e-3, 1.0, 2.5, 6.0, 1e30])
rows = st.one_of(
    st.tuples(st.integers(0, 40), st.integers(1, 300)),
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 100)),
    st.tuples(st.integers(1, 2), st.integers(1, 9000)),
    st.tuples(st.integers(1, 500)),
)


def int8_operands(m, n, k, seed):
    """Codes ``[m, k]`` and ``[n, k]`` with statistics of their rows."""
    g = generator(seed)
    A, B = (torch.randint(-128, 128, (size, k), dtype=torch.int8, generator=g) for size in (m, n))
    return A, B, torch.rand(m, generator=g) * 3, torch.rand(n, generator=g)


@given(**sizes, **places)
def test_int8_linear_matmul(m, n, k, layout, offset, seed, device):
    A, B, _, _ = int8_operands(m, n, k, seed)
    there, expected = moved(device, layout, offset, A, B), reference.int8_linear_matmul(A, B)
    exactly_equal(ops.int8_linear_matmul(*there), expected)
    out = laid_out(device, torch.ones(m, n, dtype=torch.int32), layout, offset)
    ops.int8_linear_matmul.out(*there, out)
    exactly_equal(out, expected)


def equal_or_none(result, expected):
    assert (result is None) == (expected is None)
    if expected is not None:
        exactly_equal(result, expected)


@given(shape=rows, threshold=thresholds, kind=kinds, dtype=floats, **places)
def test_int8_vectorwise_quant(shape, threshold, kind, dtype, layout, offset, seed, device):
    A = values(kind, shape, dtype, seed)
    results = ops.int8_vectorwise_quant(laid_out(device, A, layout, offset), threshold)
    for result, expected in zip(results, reference.int8_vectorwise_quant(A, threshold), strict=True):
        equal_or_none(result, expected)


@given(shape=rows, threshold=thresholds, kind=kinds, dtype=floats, **places)
def test_int8_double_quant(shape, threshold, kind, dtype, layout, offset, seed, device):
    A = values(kind, shape, dtype, seed)
    results = ops.int8_double_quant(laid_out(device, A, layout, offset), threshold)
    for result, expected in zip(results, reference.int8_double_quant(A, threshold), strict=True):
        equal_or_none(result, expected)


@given(**sizes, scale=scales, **places)
def test_int8_vectorwise_dequant(m, n, k, scale, layout, offset, seed, device):
    A, _, stats, _ = int8_operands(m, n, k, seed)
    stats *= scale
    result = ops.int8_vectorwise_dequant(*moved(device, layout, offset, A, stats))
    exactly_equal(result, reference.int8_vectorwise_dequant(A, stats))


def scaled_back(product, row_stats, col_stats, bias):
    """What int8_mm_dequant rounds, and the sum of its terms' magnitudes: fp64."""
    terms = product.double() * row_stats.double().unsqueeze(1) * col_stats.double() / 127**2
    b = torch.zeros(1) if bias is None else bias
    return terms + b.double(), terms.abs() + b.double().abs()


biases = st.sampled_from([None, *FLOATS])


@given(**sizes, scale=scales, dtype=st.sampled_from([None, *FLOATS]), bias_dtype=biases, **places)
def test_int8_mm_dequant(m, n, k, scale, dtype, bias_dtype, layout, offset, seed, device):
    _, _, row, col = int8_operands(m, n, 0, seed)
    A = torch.randint(-(2**31), 2**31, (m, n), generator=generator(seed)).int() >> (k % 31)
    row *= scale
    bias = None if bias_dtype is None else torch.randn(n, generator=generator(seed)).to(bias_dtype)
    A_, row_, col_, bias_ = moved(device, layout, offset, A, row, col, bias)
    result = ops.int8_mm_dequant(A_, row_, col_, dtype=dtype, bias=bias_)
    exact, magnitude = scaled_back(A, row, col, bias)
    close(result, exact, dtype or torch.float16, magnitude)


@given(**sizes, dtype=st.sampled_from([None, *FLOATS]), bias_dtype=biases, **places)
def test_int8_scaled_mm(m, n, k, dtype, bias_dtype, layout, offset, seed, device):
    A, B, row, col = int8_operands(m, n, k, seed)
    bias = None if bias_dtype is None else torch.randn(n, generator=generator(seed)).to(bias_dtype)
    *there, bias_ = moved(device, layout, offset, A, B, row, col, bias)
    exact, magnitude = scaled_back(reference.int8_linear_matmul(A, B), row, col, bias)
    close(ops.int8_scaled_mm(*there, bias=bias_, dtype=dtype), exact, dtype or torch.float16, magnitude)


@given(**sizes, dtype=floats, outliers=st.integers(0, 9), bias=st.booleans(), **places)
def test_int8_mixed_scaled_mm(m, n, k, dtype, outliers, bias, layout, offset, seed, device):
    CA, CB, row, col = int8_operands(m, n, k, seed)
    A = torch.randn(m, k, generator=generator(seed)).to(dtype)
    columns = torch.randperm(k, generator=generator(seed))[:outliers].sort().values if outliers < 9 else None
    b = torch.randn(n, generator=generator(seed)).to(dtype) if bias else None
    result, found = ops.int8_mixed_scaled_mm(*moved(device, layout, offset, A, CA, CB, row, col, columns, b))
    _, expected = reference.int8_mixed_scaled_mm(A, CA, CB, row, col, columns, b)
    exactly_equal(found, expected)
    exact, magnitude = scaled_back(reference.int8_linear_matmul(CA, CB), row, col, b)
    if found.numel():
        weight = reference.int8_vectorwise_dequant(CB[:, columns], col).to(dtype).double()
        exact = exact + expected.double() @ weight.T
        # That part is a product of torch's, rounded to dtype with the bias.
        part = expected.double().abs() @ weight.T.abs() + (0 if b is None else b.double().abs())
        magnitude = magnitude + part * (1 + 2**21 * torch.finfo(dtype).eps)
    close(result, exact, dtype, magnitude)


# ---- optimizers -----------------------------------------------------------------------------------------------------
hyperparameters = st.fixed_dictionaries(
    {
        "beta1": st.sampled_from([0.0, 0.5, 0.9, 0.95]),
        "beta2": st.sampled_from([0.9, 0.99, 0.999]),
        "beta3": st.sampled_from([0.9, 0.9999]),
        "alpha": st.sampled_from([0.0, 2.0, 8.0]),
        "eps": st.sampled_from([1e-8, 1e-6, 1e-3]),
        "lr": st.sampled_from([0.0, 1e-4, 0.01, 1.0]),
        "weight_decay": st.sampled_from([0.0, 0.01, 0.5]),
        "gnorm_scale": st.sampled_from([1.0, 0.25, 3.0]),
        "skip_zeros": st.booleans(),
    }
)
steps_of = {
    "name": st.sampled_from(NAMES),
    "shape": st.one_of(st.tuples(st.integers(0, 3000)), st.tuples(st.integers(1, 40), st.integers(1, 90))),
    "dtype": floats,
    "scale": st.sampled_from([1.0, 1e-3, 1e-12, 1e3]),
    "first": st.integers(1, 2000),
    "options": hyperparameters,
    **places,
}


def check_steps(device, bits, name, shape, dtype, scale, first, options, layout, offset, seed, **more):
    """Two steps: the second of states that the reference has made."""
    expected = Problem.random(name, shape, dtype, bits, seed)
    for step in (first, first + 1):
        g = (gradient(shape, torch.float32, seed + step, zeros=0.2) * scale).to(dtype)
        ours = expected.to(device)
        ours.p, ours.state1, ours.state2 = moved(device, layout, offset, expected.p, expected.state1, expected.state2)
        before = expected.p.clone()
        given = [{key: v.clone() if isinstance(v, torch.Tensor) else v for key, v in more.items()} for _ in range(2)]
        if "unorm_vec" in more:
            given[0]["unorm_vec"] = given[0]["unorm_vec"].to(device)
        ours.step(laid_out(device, g, layout, offset), step, **options, **given[0])
        expected.step(g, step, exact=True, **options, **given[1])
        check(ours, expected, before=before, lr=options["lr"])
        if "unorm_vec" in more:
            torch.testing.assert_close(given[0]["unorm_vec"].cpu(), given[1]["unorm_vec"], rtol=1e-3, atol=1e-4)


@given(**steps_of, max_unorm=st.sampled_from([0.0, 0.0, 0.02, 1e6]))
def test_optimizer_update_32bit(name, shape, dtype, scale, first, options, max_unorm, layout, offset, seed, device):
    limit = {"max_unorm": max_unorm, "param_norm": 3.0, "unorm_vec": torch.ones(1)} if max_unorm else {}
    check_steps(device, 32, name, shape, dtype, scale, first, options, layout, offset, seed, **limit)


@given(**steps_of)
def test_optimizer_update_8bit_blockwise(name, shape, dtype, scale, first, options, layout, offset, seed, device):
    check_steps(device, 8, name, shape, dtype, scale, first, options, layout, offset, seed)
