"""int8_linear_matmul: the exact product, for every size and layout."""

import pytest
import torch
from helpers import check_operator, exactly_equal, generator, on, ops, strided

from bitsandbytes_intel import reference


def codes(*shape, seed=0):
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator(seed))


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4, 7, 16, 31, 32, 33, 64, 100, 129])
@pytest.mark.parametrize("m", [0, 1, 2, 3, 5, 17, 65])
def test_any_size(m, k, device):
    for n in (0, 1, 3, 8, 33):
        A, B = codes(m, k), codes(n, k, seed=1)
        exactly_equal(ops.int8_linear_matmul(A.to(device), B.to(device)), reference.int8_linear_matmul(A, B))


@pytest.mark.parametrize("shape", [(64,), (1, 64), (2, 3, 64), (4, 1, 5, 64), (0, 64), (2, 0, 64), (32, 64)], ids=str)
def test_any_batch(shape, device):
    A, B = codes(*shape), codes(24, 64, seed=1)
    exactly_equal(ops.int8_linear_matmul(A.to(device), B.to(device)), reference.int8_linear_matmul(A, B))


@pytest.mark.parametrize("k", [2048, 4100, 8256])
@pytest.mark.parametrize("m", [2, 4, 7, 8, 9, 12, 16, 33])
def test_blocks_of_rows_and_parts_along_k(m, k, device):
    for n in (7, 64):
        A, B = codes(m, k), codes(n, k, seed=1)
        exactly_equal(ops.int8_linear_matmul(A.to(device), B.to(device)), reference.int8_linear_matmul(A, B))


def test_extremes(device):
    A, B = torch.full((3, 4096), -128, dtype=torch.int8), torch.full((5, 4096), -128, dtype=torch.int8)
    exactly_equal(ops.int8_linear_matmul(A.to(device), B.to(device)), torch.full((3, 5), 4096 * 2**14).int())


@pytest.mark.parametrize("layout", ["transposed", "strided", "offset", "expanded"])
def test_inputs_that_are_not_contiguous(layout, device):
    A, B = codes(20, 64).to(device), codes(24, 64, seed=1).to(device)
    change = {
        "transposed": lambda t: t.t().contiguous().t(),
        "strided": strided,
        "offset": lambda t: on(device, t.cpu(), 3),
        "expanded": lambda t: t[:1].expand_as(t),
    }[layout]
    for a, b in ((change(A), B), (A, change(B)), (change(A), change(B))):
        exactly_equal(ops.int8_linear_matmul(a, b), reference.int8_linear_matmul(a, b))


@pytest.mark.parametrize("k", [2, 7, 64])
@pytest.mark.parametrize("n", [1, 3])
def test_one_row_of_any_stride(n, k, device):
    """A single row is contiguous whatever its stride is; torch's own product is wrong for a stride of 1."""
    A, B = codes(1, k).to(device), codes(n, k, seed=1).to(device)
    row = A.as_strided((1, k), (1, 1))
    out = torch.zeros(1, n, dtype=torch.int32, device=device).as_strided((1, n), (1, 1))
    exactly_equal(ops.int8_linear_matmul(row, B), reference.int8_linear_matmul(A, B))
    ops.int8_linear_matmul.out(row, B, out)
    exactly_equal(out, reference.int8_linear_matmul(A, B))
    statistics = torch.ones(1, device=device), torch.ones(n, device=device)
    exactly_equal(ops.int8_scaled_mm(row, B, *statistics), ops.int8_scaled_mm(A, B, *statistics))


@pytest.mark.parametrize("layout", ["contiguous", "strided", "transposed"])
@pytest.mark.parametrize("shape", [(6, 64), (2, 3, 64), (0, 64), (6, 0)], ids=str)
def test_out(shape, layout, device):
    A, B = codes(*shape).to(device), codes(10, shape[-1], seed=1).to(device)
    plain = torch.full((*shape[:-1], 10), 7, dtype=torch.int32, device=device)
    out = {"contiguous": plain, "strided": strided(plain), "transposed": plain.mT.contiguous().mT}[layout]
    assert ops.int8_linear_matmul.out(A, B, out=out) is None
    exactly_equal(out, reference.int8_linear_matmul(A, B))


def test_opcheck(device):
    A, B = codes(20, 64).to(device), codes(24, 64).to(device)
    check_operator(ops.int8_linear_matmul.default, (A, B), {})
    check_operator(ops.int8_linear_matmul.out, (A, B), {"out": torch.empty(20, 24, dtype=torch.int32, device=device)})


def test_compile(device):
    A, B = codes(20, 64).to(device), codes(24, 64).to(device)
    compiled = torch.compile(lambda a, b: ops.int8_linear_matmul(a, b) + 1, fullgraph=True, backend="aot_eager")
    exactly_equal(compiled(A, B), reference.int8_linear_matmul(A, B) + 1)
