"""int8_vectorwise_quant, int8_double_quant and int8_vectorwise_dequant: the reference's codes, to the last one."""

import pytest
import torch
from helpers import FLOATS, check_operator, exactly_equal, generator, on, ops, short, strided

from bitsandbytes_intel import reference

THRESHOLDS = (0.0, 2.5, 6.0, 1e-3)
SHAPES = [
    (0, 8), (1, 1), (1, 7), (1, 4096), (2, 1), (3, 8), (5, 24), (7, 33), (4, 127), (4, 128), (3, 129), (2, 1000),
    (33, 64), (67, 100), (2, 2048), (2, 8200), (2, 20000), (3, 8193), (300, 72), (2, 3, 40), (4, 1, 5, 17), (16,),
]  # fmt: skip


def activation(shape, dtype, seed=0, outliers=True):
    """Normal values, some of them large, some halves of the row's largest: ties between codes 63 and 64."""
    A = torch.randn(shape, generator=generator(seed))
    if outliers and A.numel() > 8:
        A[..., A.shape[-1] // 3] *= 5
        A.view(-1)[A.numel() // 2] = 20
    A = A.to(dtype)
    if A.dim() and A.shape[-1] > 2 and A.numel():
        A[..., -1] = A.abs().amax(-1) / 2
    return A


def check_rows(A, threshold, device):
    """Ours against the reference's; A is on the device."""
    before = A.clone()
    codes, stats, columns = ops.int8_vectorwise_quant(A, threshold)
    expected = reference.int8_vectorwise_quant(A, threshold)
    exactly_equal(codes, expected[0])
    exactly_equal(stats, expected[1])
    assert (columns is None) == (threshold == 0)
    if columns is not None:
        exactly_equal(columns, expected[2])
    exactly_equal(A, before)


def check_double(A, threshold, device):
    results = ops.int8_double_quant(A, threshold)
    expected = reference.int8_double_quant(A, threshold)
    for result, wanted in zip(results[:4], expected[:4], strict=True):
        exactly_equal(result, wanted)
    assert (results[4] is None) == (threshold == 0)
    if results[4] is not None:
        exactly_equal(results[4], expected[4])


CHECKS = {"rows": check_rows, "double": check_double}


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("check", CHECKS)
def test_any_size(check, dtype, threshold, device):
    for i, shape in enumerate(SHAPES):
        CHECKS[check](activation(shape, dtype, i).to(device), threshold, device)


@pytest.mark.parametrize("check", CHECKS)
def test_threshold_without_outliers(check, device):
    A = torch.rand(4, 64, dtype=torch.float16).to(device)
    columns = (ops.int8_vectorwise_quant if check == "rows" else ops.int8_double_quant)(A, 6.0)[-1]
    assert columns.shape == (0,)
    assert columns.dtype == torch.int64
    assert columns.device.type == device
    CHECKS[check](A, 6.0, device)


def test_columns_of_outliers_are_zeroed_in_all_rows_of_several(device):
    A = torch.ones(3, 10, dtype=torch.float16, device=device)
    A[1, 4] = 8
    codes, stats, columns = ops.int8_vectorwise_quant(A, 6.0)
    assert columns.tolist() == [4]
    assert stats.tolist() == [1, 1, 1]
    assert (codes[:, 4] == 0).all()
    assert (codes == 127).sum() == 27
    codes, _, columns = ops.int8_vectorwise_quant(A[1:2], 6.0)
    assert columns.tolist() == [4]
    assert codes[0].tolist() == [127] * 4 + [0] + [127] * 5


@pytest.mark.parametrize("threshold", [3.3, 2.1, 6.0], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_the_threshold_itself_is_an_outlier(dtype, threshold, device):
    """It is rounded to A's dtype, as torch compares."""
    A = torch.ones(2, 8, dtype=dtype)
    A[0, 3] = threshold
    A[1, 5] = -threshold
    assert ops.int8_vectorwise_quant(A.to(device), threshold)[2].tolist() == [3, 5]
    check_rows(A.to(device), threshold, device)


def test_every_float16_with_every_mantissa_of_absmax(device):
    """Ties between two codes are decided by the last bit of the scale."""
    top = torch.arange(1024, 2048).half() / 1024
    A = torch.stack([top, top / 2, -top / 2, top / 4, top * 0.75, torch.zeros_like(top), -top, top / 127], dim=1)
    check_rows(A.to(device), 0.0, device)
    check_double(A.to(device), 0.0, device)


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("scale", [1e-37, 1e-30, 6e-5, 6e4, 1e30, 3e38], ids=str)
def test_extreme_magnitudes(scale, dtype, device):
    if scale > torch.finfo(dtype).max or scale < torch.finfo(dtype).smallest_normal:
        scale = 1.0
    A = (torch.rand(4, 40, generator=generator(1)) * 2 - 1) * scale
    check_rows(A.to(dtype).to(device), 0.0, device)
    check_double(A.to(dtype).to(device), 0.0, device)


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_zeros_infinities_and_nan(threshold, dtype, device):
    A = torch.randn(6, 40, generator=generator(2)).to(dtype)
    A[0] = 0
    A[1] = -0.0
    A[2, 5] = torch.nan
    A[3, 7] = torch.inf
    A[4, 9] = -torch.inf
    A[5] = torch.nan
    check_rows(A.to(device), threshold, device)
    check_double(A.to(device), threshold, device)
    A.view({2: torch.int16, 4: torch.int32}[dtype.itemsize])[2, 6] |= -1  # a NaN with every bit set
    check_rows(A.to(device), threshold, device)


@pytest.mark.parametrize("threshold", [0.0, 2.5])
@pytest.mark.parametrize("layout", ["transposed", "strided", "offset", "expanded"])
@pytest.mark.parametrize("check", CHECKS)
def test_inputs_that_are_not_contiguous(check, layout, threshold, device):
    A = activation((20, 64), torch.float16).to(device)
    change = {
        "transposed": lambda t: t.t().contiguous().t(),
        "strided": strided,
        "offset": lambda t: on(device, t.cpu(), 3),
        "expanded": lambda t: t[:1].expand_as(t),
    }[layout]
    CHECKS[check](change(A), threshold, device)


@pytest.mark.parametrize(
    "shape", [(0, 8), (1, 1), (1, 4096), (5, 0), (3, 33), (67, 100), (4, 256), (9, 1000), (2, 3, 40)], ids=str
)
def test_dequantised(shape, device):
    A = torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator(0))
    rows = A.reshape(-1, shape[-1]).shape[0] if A.numel() else shape[0]
    stats = torch.rand(rows, generator=generator(1)) * 7
    expected = (A.reshape(rows, shape[-1]) * stats[:, None] * 7.874015718698502e-3).reshape(shape)
    exactly_equal(ops.int8_vectorwise_dequant(A.to(device), stats.to(device)), expected)
    exactly_equal(ops.int8_vectorwise_dequant(A.to(device), stats[:, None].to(device)), expected)
    exactly_equal(ops.int8_vectorwise_dequant(on(device, A, 1), on(device, stats, 1)), expected)


def test_dequantised_of_other_layouts(device):
    A = torch.randint(-128, 128, (20, 64), dtype=torch.int8, generator=generator(0)).to(device)
    stats = torch.rand(20, generator=generator(1)).to(device)
    for other in (A.t().contiguous().t(), strided(A), A[:1].expand_as(A)):
        exactly_equal(ops.int8_vectorwise_dequant(other, stats), reference.int8_vectorwise_dequant(other, stats))
    one = ops.int8_vectorwise_dequant(A, stats[:1])
    exactly_equal(one, reference.int8_vectorwise_dequant(A, stats[:1]))


def test_opcheck(device):
    A = activation((20, 64), torch.float16).to(device)
    check_operator(ops.int8_vectorwise_quant.default, (A,), {})
    codes, stats, _ = ops.int8_vectorwise_quant(A)
    check_operator(ops.int8_vectorwise_dequant.default, (codes, stats), {})
    check_operator(ops.int8_vectorwise_dequant.default, (codes.t().contiguous().t(), stats), {})


@pytest.mark.parametrize("shape", [(20, 64), (2, 3, 40)], ids=str)
def test_compile(shape, device):
    A = activation(shape, torch.float16).to(device)

    def function(a):
        codes, stats, _ = ops.int8_vectorwise_quant(a)
        return codes + 1, stats * 2

    codes, stats = torch.compile(function, fullgraph=True, backend="aot_eager")(A)
    expected = reference.int8_vectorwise_quant(A)
    exactly_equal(codes, expected[0] + 1)
    exactly_equal(stats, expected[1] * 2)
