"""dequantize_4bit and dequantize_blockwise: bit for bit the reference, for every size, layout and dtype."""

import pytest
import torch
from helpers import (
    BLOCKSIZES,
    FLOATS,
    QUANT_TYPES,
    STORAGES,
    Weight,
    check_operator,
    exactly_equal,
    generator,
    on,
    ops,
    short,
    strided,
)

from bitsandbytes_intel import reference

# Around the edges of a byte, a lane's share, a sub-group's, a tile's.
SIZES = (
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    31,
    33,
    64,
    127,
    128,
    129,
    255,
    257,
    1000,
    2047,
    2049,
    4095,
    4097,
    8191,
    8192,
    8193,
    20001,
)
ODD_BLOCKSIZES = (1, 3, 7, 100, 1000)


def expected_4bit(w, dtype, shape=None):
    return reference.dequantize_4bit(w.packed, w.absmax, w.blocksize, w.quant_type, shape or w.shape, dtype)


def random_8bit(*shape, blocksize=64, seed=0):
    """Codes, absmax, code."""
    g = generator(seed)
    A = torch.randint(0, 256, shape, dtype=torch.uint8, generator=g)
    absmax = torch.rand(-(-A.numel() // blocksize), generator=g) + 0.1
    return A, absmax, torch.randn(256, generator=g)


# ---- dequantize_4bit ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("n", SIZES)
def test_4bit_of_any_size(n, dtype, quant_type, device):
    w = Weight.random(n, quant_type=quant_type, seed=n)
    exactly_equal(w.to(device).dequantize(dtype), expected_4bit(w, dtype))


@pytest.mark.parametrize("n", [1, 4096 * 3 + 5, 4096 * 4])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_4bit_of_any_blocksize(blocksize, dtype, n, device):
    w = Weight.random(n, blocksize=blocksize, quant_type="fp4")
    exactly_equal(w.to(device).dequantize(dtype), expected_4bit(w, dtype))


@pytest.mark.parametrize("offset", range(1, 17))
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_4bit_of_any_alignment(dtype, offset, device):
    w = Weight.random(3000, seed=offset)
    out = torch.full((3000 + offset,), 7.0, dtype=dtype, device=device)
    moved = w.to(device, offset)
    exactly_equal(moved.dequantize(dtype), expected_4bit(w, dtype))
    ops.dequantize_4bit.out(moved.packed, moved.absmax, 64, "nf4", [3000], dtype, out=out[offset:])
    exactly_equal(out[offset:], expected_4bit(w, dtype))
    assert bool((out[:offset] == 7).all())


@pytest.mark.parametrize("storage", STORAGES, ids=short)
@pytest.mark.parametrize("n", [1, 15, 4096, 4101])
def test_4bit_of_any_storage(n, storage, device):
    w = Weight.random(n, storage=storage, seed=n)
    exactly_equal(w.to(device).dequantize(torch.bfloat16), expected_4bit(w, torch.bfloat16))


@pytest.mark.parametrize("shape", [(), (1,), (5, 0), (3, 5, 7), (1, 77), (48, 96), (2, 3, 4, 5)], ids=str)
def test_4bit_has_the_shape_that_is_asked_for(shape, device):
    w = Weight.random(*shape)
    result = w.to(device).dequantize(torch.float32)
    exactly_equal(result, expected_4bit(w, torch.float32))
    assert result.is_contiguous()
    assert result.device.type == device


def test_4bit_takes_more_codes_and_statistics_than_it_needs(device):
    w = Weight.random(500)
    result = ops.dequantize_4bit(w.packed.to(device), w.absmax.to(device), 64, "nf4", [99], torch.float32)
    exactly_equal(result, expected_4bit(w, torch.float32).flatten()[:99])


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_4bit_reads_logical_order(layout, device):
    """An input that is not contiguous counts by its elements' order, not by its memory's."""
    w = Weight.random(2 * 60 * 32, seed=5)
    packed = w.packed.reshape(60, 32).to(device)
    if layout == "transposed":
        given = packed.t()
    elif layout == "strided":
        given = strided(packed)
    else:
        given = packed[:1].expand(60, 32)
    absmax = strided(w.absmax.to(device))
    result = ops.dequantize_4bit(given, absmax, 64, "nf4", [3840], torch.float16)
    exactly_equal(result, reference.dequantize_4bit(given, w.absmax, 64, "nf4", [3840], torch.float16))


def test_4bit_of_one_row_and_its_transpose(device):
    """[1, n] and [n, 1] hold the same codes."""
    w = Weight.random(640).to(device)
    row = ops.dequantize_4bit(w.packed.t(), w.absmax, 64, "nf4", [10, 64], torch.float16)
    exactly_equal(row, w.dequantize(torch.float16).reshape(10, 64))


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, -2.5, 3e38, 1e-41, 1e-8, 70000.0]
)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_any_absmax(dtype, value, device):
    """A scale that is special is special for its block alone; overflow and underflow are those of one rounding."""
    w = Weight.random(64 * 40 + 3, quant_type="fp4")
    w.absmax[3] = value
    w.absmax[-1] = value
    exactly_equal(w.to(device).dequantize(dtype), expected_4bit(w, dtype))


@pytest.mark.parametrize("out_dtype", FLOATS, ids=short)
@pytest.mark.parametrize("layout", ["contiguous", "strided", "transposed", "offset"])
def test_4bit_out(layout, out_dtype, device):
    w = Weight.random(24, 50)
    plain = torch.empty(24, 50, dtype=out_dtype, device=device)
    out = {
        "contiguous": plain,
        "strided": strided(plain),
        "transposed": torch.empty(50, 24, dtype=out_dtype, device=device).t(),
        "offset": torch.empty(1203, dtype=out_dtype, device=device)[3:].view(24, 50),
    }[layout]
    strides = out.stride()
    moved = w.to(device)
    assert ops.dequantize_4bit.out(moved.packed, moved.absmax, 64, "nf4", [24, 50], out_dtype, out=out) is None
    exactly_equal(out, expected_4bit(w, out_dtype))
    assert out.stride() == strides


# ---- dequantize_blockwise -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("n", SIZES)
def test_8bit_of_any_size(n, dtype, device):
    A, absmax, code = random_8bit(n, seed=n)
    result = ops.dequantize_blockwise(A.to(device), absmax.to(device), code.to(device), 64, dtype)
    exactly_equal(result, reference.dequantize_blockwise(A, absmax, code, 64, dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("blocksize", [*ODD_BLOCKSIZES, 2, 4, 8, 16, *BLOCKSIZES, 2**20, 2**31, 2**40 + 1])
def test_8bit_of_any_blocksize(blocksize, dtype, device):
    A, absmax, code = random_8bit(9001, blocksize=blocksize)
    result = ops.dequantize_blockwise(A.to(device), absmax.to(device), code.to(device), blocksize, dtype)
    exactly_equal(result, reference.dequantize_blockwise(A, absmax, code, blocksize, dtype))


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 5, 8, 12, 16])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_8bit_of_any_alignment(dtype, offset, device):
    A, absmax, code = random_8bit(3000, blocksize=32)
    moved = on(device, A, offset), on(device, absmax, offset), on(device, code, offset)
    exactly_equal(
        ops.dequantize_blockwise(*moved, 32, dtype), reference.dequantize_blockwise(A, absmax, code, 32, dtype)
    )


@pytest.mark.parametrize("layout", ["transposed", "strided", "permuted"])
def test_8bit_keeps_strides_and_logical_order(layout, device):
    A, absmax, code = random_8bit(6, 20, 33, blocksize=100)
    absmax, code = absmax.to(device), code.to(device)
    given = {"transposed": A[0].t(), "strided": A[..., ::2], "permuted": A.permute(2, 0, 1)}[layout]
    given = given.to(device) if layout != "strided" else A.to(device)[..., ::2]
    result = ops.dequantize_blockwise(given, absmax, code, 100, torch.float32)
    exactly_equal(
        result, reference.dequantize_blockwise(given.cpu().contiguous(), absmax.cpu(), code.cpu(), 100, torch.float32)
    )
    assert result.stride() == torch.empty_like(given).stride()


@pytest.mark.parametrize("layout", ["contiguous", "strided", "transposed"])
def test_8bit_out(layout, device):
    A, absmax, code = (t.to(device) for t in random_8bit(30, 70))
    plain = torch.empty(30, 70, dtype=torch.bfloat16, device=device)
    out = {"contiguous": plain, "strided": strided(plain), "transposed": plain.view(70, 30).t()}[layout]
    assert ops.dequantize_blockwise.out(A, absmax, code, 64, torch.bfloat16, out=out) is None
    exactly_equal(out, reference.dequantize_blockwise(A, absmax, code, 64, torch.bfloat16))


def test_8bit_special_values(device):
    A, absmax, code = random_8bit(3000)
    code[7], code[8], code[9] = float("nan"), float("inf"), -0.0
    absmax[0], absmax[1], absmax[2] = 0.0, float("inf"), float("nan")
    for dtype in FLOATS:
        result = ops.dequantize_blockwise(A.to(device), absmax.to(device), code.to(device), 64, dtype)
        exactly_equal(result, reference.dequantize_blockwise(A, absmax, code, 64, dtype))


# ---- both: what torch wants of an operator --------------------------------------------------------------------------
def calls(device):
    """Every operator of this file with arguments for it."""
    w = Weight.random(20, 50).to(device)
    eight = [t.to(device) for t in random_8bit(30, 7)]
    out_4bit = torch.empty(20, 50, dtype=torch.float16, device=device)
    out_8bit = torch.empty(30, 7, dtype=torch.float16, device=device)
    of_4bit = (w.packed, w.absmax, 64, "nf4", [20, 50], torch.float16)
    return {
        "dequantize_4bit.default": (of_4bit, {}),
        "dequantize_4bit.out": (of_4bit, {"out": out_4bit}),
        "dequantize_blockwise.default": ((*eight, 64, torch.float16), {}),
        "dequantize_blockwise.out": ((*eight, 64, torch.float16), {"out": out_8bit}),
    }


@pytest.mark.parametrize("name", calls("cpu"))
def test_opcheck(name, device):
    args, kwargs = calls(device)[name]
    packet, overload = name.split(".")
    check_operator(getattr(getattr(ops, packet), overload), args, kwargs)


def test_compile(device):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(packed, absmax, A, absmax8, code):
        first = ops.dequantize_4bit(packed, absmax, 64, "nf4", [20, 50], torch.float16)
        return first * 2, ops.dequantize_blockwise(A, absmax8, code, 64, torch.float32) + 1

    w = Weight.random(20, 50).to(device)
    eight = [t.to(device) for t in random_8bit(30, 7)]
    first, second = compiled(w.packed, w.absmax, *eight)
    exactly_equal(first, expected_4bit(w, torch.float16) * 2)
    exactly_equal(second, reference.dequantize_blockwise(*eight, 64, torch.float32) + 1)


def test_inference_mode(device):
    w = Weight.random(1000).to(device)
    with torch.inference_mode():
        result = w.dequantize(torch.float16)
    assert result.is_inference()
    exactly_equal(result, expected_4bit(w, torch.float16))
