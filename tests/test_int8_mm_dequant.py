"""int8_mm_dequant: the int32 product scaled back and biased, rounded once."""

import pytest
import torch
from helpers import FLOATS, check_operator, exactly_equal, generator, on, ops, short, strided

from bitsandbytes_intel import reference


def operands(*shape, seed=0):
    """A product, statistics of its rows and columns."""
    g = generator(seed)
    A = torch.randint(-(2**20), 2**20, shape, dtype=torch.int32, generator=g)
    rows = A.numel() // shape[-1] if A.numel() else 0
    return A, torch.rand(rows, generator=g) * 3, torch.rand(shape[-1], generator=g)


def check(result, expected, dtype):
    """Within one rounding to dtype, and three of fp32 on the way."""
    assert result.dtype == dtype
    assert result.shape == expected.shape
    result, expected = result.cpu().double(), expected.cpu().double()
    finite = expected.isfinite() & result.isfinite()
    assert (finite | (result == expected)).all()
    limit = expected.abs() * (torch.finfo(dtype).eps + 2**-21) + torch.finfo(dtype).smallest_normal + 2**-18
    assert ((result - expected).abs()[finite] <= limit[finite]).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("bias_dtype", [None, *FLOATS], ids=short)
def test_any_size(dtype, bias_dtype, device):
    shapes = [
        (0, 8),
        (1, 1),
        (1, 7),
        (3, 8),
        (5, 33),
        (8, 64),
        (9, 128),
        (4, 100),
        (7, 129),
        (67, 257),
        (2, 4096),
        (2, 3, 40),
        (64,),
    ]
    for i, shape in enumerate(shapes):
        A, row, col = operands(*shape, seed=i)
        bias = None if bias_dtype is None else torch.randn(shape[-1], generator=generator(i)).to(bias_dtype)
        result = ops.int8_mm_dequant(
            *(t.to(device) for t in (A, row, col)), dtype, None if bias is None else bias.to(device)
        )
        exact = A.double() * (row.double().reshape(*shape[:-1], 1) * col.double() * 6.200012e-05)
        check(result, exact if bias is None else exact + bias.double(), dtype)
        exactly_equal(result, reference.int8_mm_dequant(A, row, col, dtype, bias))


def test_cudas_order_of_products(device):
    """A * row * col, each rounded, then that times 1 / 127² and the bias at once: others differ here and there."""
    A, row, col = operands(64, 4096, seed=1)
    bias = torch.randn(4096, generator=generator(2)).half()
    result = ops.int8_mm_dequant(*(t.to(device) for t in (A, row, col)), torch.float32, bias.to(device))
    constant = torch.tensor(6.200012e-05)
    x = A.float() * row.view(-1, 1) * col
    exactly_equal(result, (x.double() * constant.double() + bias.double()).float())
    other = A.float() * (row.view(-1, 1) * col * constant) + bias
    assert (result.cpu() != other).any()


def test_float16_is_the_default(device):
    A, row, col = (t.to(device) for t in operands(4, 8))
    assert ops.int8_mm_dequant(A, row, col).dtype == torch.float16


@pytest.mark.parametrize("value", [0, 1, -1, 2**31 - 1, -(2**31), 127**2], ids=str)
def test_extremes(value, device):
    A = torch.full((5, 40), value, dtype=torch.int32)
    row, col = torch.ones(5), torch.ones(40)
    result = ops.int8_mm_dequant(*(t.to(device) for t in (A, row, col)), torch.float32)
    check(result, reference.int8_mm_dequant(A, row, col, torch.float32), torch.float32)


def test_nan_of_one_row_and_column_stays_there(device):
    A, row, col = operands(6, 32)
    row[2], col[5] = torch.nan, torch.inf
    A[:, 5] = 7
    result = ops.int8_mm_dequant(*(t.to(device) for t in (A, row, col)), torch.bfloat16).cpu()
    assert result[2].isnan().all()
    assert not result[[0, 1, 3, 4, 5]].isnan().any()
    assert result[[0, 1, 3, 4, 5], 5].isinf().all()
    assert result[0, :5].isfinite().all()


@pytest.mark.parametrize("layout", ["transposed", "strided", "offset", "expanded"])
def test_inputs_that_are_not_contiguous(layout, device):
    A, row, col = (t.to(device) for t in operands(20, 64))
    bias = torch.randn(64, device=device)
    change = {
        "transposed": lambda t: t.t().contiguous().t(),
        "strided": strided,
        "offset": lambda t: on(device, t.cpu(), 1),
        "expanded": lambda t: t[:1].expand_as(t),
    }[layout]
    A = change(A)
    if layout in ("strided", "offset"):
        row, col, bias = change(row), change(col), change(bias)
    result = ops.int8_mm_dequant(A, row, col, torch.float32, bias)
    check(result, reference.int8_mm_dequant(A, row, col, torch.float32, bias), torch.float32)


def test_opcheck(device):
    A, row, col = (t.to(device) for t in operands(20, 64))
    check_operator(ops.int8_mm_dequant.default, (A, row, col, torch.bfloat16, torch.ones(64, device=device)), {})
    check_operator(ops.int8_mm_dequant.default, (A.t().contiguous().t(), row, col), {})


def test_compile(device):
    A, row, col = (t.to(device) for t in operands(2, 10, 64))
    compiled = torch.compile(lambda *a: ops.int8_mm_dequant(*a) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(A, row, col), ops.int8_mm_dequant(A, row, col) + 1)
