"""gemv_4bit, and gemm_4bit of one row: the same product from the same kernel, for every size, layout and dtype."""

import pytest
import torch
from helpers import (
    BLOCKSIZES,
    FLOATS,
    QUANT_TYPES,
    STORAGES,
    Weight,
    check_operator,
    check_product,
    exactly_equal,
    generator,
    on,
    ops,
    short,
    strided,
)

from bitsandbytes_intel import reference

# K around the edges of a byte, a lane's share, a sub-group's step; N around the rows that a work-group owns.
KS = (
    0,
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    17,
    31,
    32,
    33,
    40,
    63,
    64,
    65,
    96,
    127,
    128,
    136,
    200,
    256,
    264,
    1000,
    1001,
    1024,
    4128,
)
NS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 17, 31, 32, 33, 65, 130)


def activation(*shape, dtype=torch.float32, seed=1):
    return torch.randn(*shape, generator=generator(seed)).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("k", KS)
def test_any_k(k, dtype, device):
    for n in (1, 5, 33):
        w = Weight.random(n, k, blocksize=32, seed=k)
        A = activation(1, k, dtype=dtype)
        check_product(w.to(device).gemv(A.to(device)), A, w.exact())


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("n", NS)
def test_any_n(n, dtype, device):
    for k in (64, 100):
        w = Weight.random(n, k, quant_type="fp4", seed=n)
        A = activation(1, k, dtype=dtype)
        check_product(w.to(device).gemv(A.to(device)), A, w.exact())


@pytest.mark.parametrize("shape", [(0, 64), (0, 0), (3, 0)], ids=str)
def test_empty_weight(shape, device):
    w = Weight.random(*shape).to(device)
    A = activation(1, shape[1]).to(device)
    for result in (w.gemv(A), w.gemm(A)):
        exactly_equal(result, torch.zeros(1, shape[0]))


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("k", [32, 96, 4096, 5000])
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_any_blocksize(blocksize, k, quant_type, device):
    """Also where a row is no whole number of blocks, or a block holds several rows."""
    w = Weight.random(11, k, blocksize=blocksize, quant_type=quant_type)
    A = activation(1, k, dtype=torch.bfloat16)
    moved = w.to(device)
    check_product(moved.gemv(A.to(device)), A, w.exact())
    check_product(moved.gemm(A.to(device)), A, w.exact())


@pytest.mark.parametrize("storage", STORAGES, ids=short)
@pytest.mark.parametrize("shape", [(5, 64), (3, 37)], ids=str)
def test_any_storage(shape, storage, device):
    w = Weight.random(*shape, storage=storage)
    A = activation(1, shape[1])
    check_product(w.to(device).gemv(A.to(device)), A, w.exact())


@pytest.mark.parametrize("offset", range(1, 10))
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_any_alignment(dtype, offset, device):
    w = Weight.random(19, 256, seed=offset)
    A = activation(1, 256, dtype=dtype)
    code = on(device, reference.codebook("nf4"), offset)
    for a_offset, w_offset in ((offset, 0), (0, offset), (offset, offset)):
        moved = w.to(device, w_offset)
        out = torch.full((19 + offset,), 7.0, dtype=dtype, device=device)
        x = on(device, A, a_offset)
        ops.gemv_4bit.out(x, moved.packed, [19, 256], moved.absmax, code, 64, out=out[offset:].view(1, 19))
        check_product(out[offset:].view(1, 19), A, w.exact())
        assert bool((out[:offset] == 7).all())


@pytest.mark.parametrize("shape", [(64,), (1, 64), (1, 1, 64), (2, 64), (3, 5, 64), (0, 64), (2, 0, 64)], ids=str)
def test_any_batch(shape, device):
    w = Weight.random(10, 64)
    A = activation(*shape, dtype=torch.float16)
    check_product(w.to(device).gemv(A.to(device)), A, w.exact())


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_inputs_that_are_not_contiguous(layout, device):
    w = Weight.random(10, 64)
    A = activation(3, 64)
    moved = w.to(device)
    x = {
        "transposed": A.t().contiguous().to(device).t(),
        "strided": strided(A.to(device)),
        "expanded": A[:1].to(device).expand(3, 64),
    }[layout]
    packed = {
        "transposed": moved.packed.view(20, 16).t().contiguous().t(),
        "strided": strided(moved.packed.view(20, 16)),
        "expanded": moved.packed.t(),
    }[layout]
    code = strided(reference.codebook("nf4").to(device))
    result = ops.gemv_4bit(x, packed, [10, 64], strided(moved.absmax), code, 64)
    check_product(result, x.cpu(), w.exact())


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_the_table_is_the_callers(dtype, device):
    """gemv_4bit multiplies with the values that it is given, whatever they are."""
    w = Weight.random(9, 128)
    A = activation(1, 128, dtype=dtype)
    code = torch.randn(16, generator=generator(3)) * 9
    result = ops.gemv_4bit(A.to(device), w.packed.to(device), [9, 128], w.absmax.to(device), code.to(device), 64)
    codes = torch.cat([w.packed >> 4, w.packed & 15], dim=1).view(9, 128)
    check_product(result, A, code[codes.long()] * w.absmax.repeat_interleave(64).view(9, 128))


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("k", [64, 70])
def test_special_values_stay_in_their_row_and_block(k, dtype, device):
    w = Weight.random(12, k, blocksize=32)
    w.absmax[7] = float("nan")
    w.absmax[-1] = float("inf")
    A = activation(1, k, dtype=dtype)
    result = w.to(device).gemv(A.to(device)).cpu()
    clean = w.exact().isfinite().all(dim=1)
    assert not clean.all()
    assert bool(result[:, ~clean].isfinite().logical_not().all())
    check_product(result[:, clean], A, w.exact()[clean])


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_special_activation_reaches_every_row(value, dtype, device):
    w = Weight.random(12, 64, quant_type="nf4")
    w.packed[:] = torch.where(w.packed & 15 == 7, 0, w.packed)
    w.packed[:] = torch.where(w.packed >> 4 == 7, 0, w.packed)  # no weight of zero: inf * 0 is NaN
    A = activation(1, 64, dtype=dtype)
    A[0, 33] = value
    result = w.to(device).gemv(A.to(device)).cpu().float()
    expected = A.float() @ w.exact().T
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.equal(result.nan_to_num(), expected.nan_to_num()) or bool(expected.isnan().all())


@pytest.mark.parametrize("m", [1, 3, 5])
@pytest.mark.parametrize("every", [64, 1024])
@pytest.mark.parametrize("large", [2**exponent for exponent in (4, 8, 11, 13, 15)])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_small_activations_beside_large_ones(quant_type, dtype, large, every, m, device):
    """The large ones meet weights of zero: nothing of the result is theirs."""
    w = Weight.random(64, 1024, quant_type=quant_type)
    zero = int((reference.codebook(quant_type) == 0).nonzero()[0])
    codes = w.packed.view(64, 512)
    small = codes % 2 * 16 + codes // 16 % 2 + 0x11 * (zero if quant_type == "fp4" else 7)  # the least values and zero
    codes[:32] = small[:32]
    codes[:, :: every // 2] = zero << 4 | (codes[:, :: every // 2] & 15)
    A = activation(m, 1024) / 100
    A[:, ::every] = large
    A = A.to(dtype)
    check_product(w.to(device).gemm(A.to(device)), A, w.exact())


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1e-30, 1e-7, 1e4, 1e30, 1e36])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_activations_of_any_magnitude(dtype, scale, m, device):
    w = Weight.random(12, 192)
    A = (activation(m, 192).clamp(-2, 2).double() * scale).to(dtype)
    A = torch.where(A.isfinite(), A, 1.0)  # of float16 many are not
    w.absmax.div_(64)  # no sum is infinite
    check_product(w.to(device).gemm(A.to(device)), A, w.exact())


@pytest.mark.parametrize("layout", ["contiguous", "strided", "transposed"])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_out(dtype, layout, device):
    w = Weight.random(10, 64)
    A = activation(3, 64, dtype=dtype)
    plain = torch.empty(3, 10, dtype=dtype, device=device)
    out = {"contiguous": plain, "strided": strided(plain), "transposed": plain.view(10, 3).t()}[layout]
    moved, code = w.to(device), reference.codebook("nf4").to(device)
    assert ops.gemv_4bit.out(A.to(device), moved.packed, [10, 64], moved.absmax, code, 64, out=out) is None
    check_product(out, A, w.exact())


# ---- gemm_4bit of one row -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (9, 64), (33, 1000), (130, 512), (1, 8193)], ids=str)
def test_gemm_of_one_row(shape, nested, bias, dtype, device):
    w = Weight.random(*shape, blocksize=32, nested=nested, seed=9)
    A = activation(1, shape[1], dtype=dtype)
    b = activation(shape[0], dtype=dtype, seed=2) if bias else None
    result = w.to(device).gemm(A.to(device), None if b is None else b.to(device))
    check_product(result, A, w.exact(), b)


def test_gemm_of_one_row_is_gemv(device):
    w = Weight.random(70, 320).to(device)
    A = activation(1, 320, dtype=torch.bfloat16).to(device)
    exactly_equal(w.gemm(A), w.gemv(A))


# ---- what torch wants of an operator --------------------------------------------------------------------------------
def good(device):
    w = Weight.random(20, 64).to(device)
    return {
        "A": activation(3, 64, dtype=torch.float16).to(device),
        "B": w.packed,
        "shapeB": [20, 64],
        "absmax": w.absmax,
        "code": reference.codebook("nf4").to(device),
        "blocksize": 64,
    }


def test_opcheck(device):
    args = tuple(good(device).values())
    check_operator(ops.gemv_4bit.default, args, {})
    out = torch.empty(3, 20, dtype=torch.float16, device=device)
    check_operator(ops.gemv_4bit.out, args, {"out": out})


def test_compile(device):
    w = Weight.random(20, 64)
    A = activation(3, 64)
    compiled = torch.compile(lambda x, v: v.gemv(x) * 2, fullgraph=True, backend="aot_eager")
    exactly_equal(compiled(A.to(device), w.to(device)), w.to(device).gemv(A.to(device)) * 2)
