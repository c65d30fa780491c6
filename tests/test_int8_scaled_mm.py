"""int8_scaled_mm and int8_mixed_scaled_mm, and the Linear8bitLt that is made of them."""

import bitsandbytes as bnb
import pytest
import torch
from helpers import FLOATS, check_operator, exactly_equal, generator, on, ops, short, strided

from bitsandbytes_intel import reference

SHAPES = [
    (0, 8, 16),
    (1, 1, 1),
    (1, 24, 33),
    (1, 64, 128),
    (3, 5, 7),
    (5, 24, 72),
    (17, 33, 100),
    (32, 64, 320),
    (63, 37, 193),
    (1, 70, 1000),
    (8, 0, 16),
]


def operands(m, n, k, seed=0, batch=()):
    g = generator(seed)
    A = torch.randint(-127, 128, (*batch, m, k), dtype=torch.int8, generator=g)
    B = torch.randint(-127, 128, (n, k), dtype=torch.int8, generator=g)
    rows = A.numel() // k
    return A, B, torch.rand(rows, generator=g) * 3, torch.rand(n, generator=g)


def check(result, expected, dtype, slack=1.0):
    """Within a rounding to dtype, relative to the largest value where terms cancel."""
    assert result.dtype == dtype
    assert result.shape == expected.shape
    if result.numel() == 0:
        return
    assert result.isfinite().all()
    result, expected = result.cpu().double(), expected.cpu().double()
    limit = slack * torch.finfo(dtype).eps * (expected.abs() + expected.abs().max() / 16) + 1e-6
    assert ((result - expected).abs() <= limit).all(), (result - expected).abs().max()


@pytest.mark.parametrize("m", [1, 3, 8, 16, 64, 65])
def test_the_largest_sums_are_exact(m, device):
    """Of products of -128: kernels that multiply in another form, with 128 added, say, must not lose a bit."""
    for k in (16 * 1024, 40_000):
        A, B = (torch.full((rows, k), -128, dtype=torch.int8) for rows in (m, 5))
        A[:, -3:] = 127
        result = ops.int8_linear_matmul(A.to(device), B.to(device)).cpu()
        assert torch.equal(result, reference.int8_linear_matmul(A, B))


@pytest.mark.parametrize("rows", [1, 6, 16, 63, 130])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_many_outlier_columns(dtype, rows, device):
    A, CA, CB, SCA, SCB, _, bias = mixed_operands(rows, 200, 300, dtype, 3.0)
    for columns in (torch.arange(0, 300, 4), torch.arange(1)):
        arguments = (A, CA, CB, SCA, SCB, columns, bias)
        result, outliers = ops.int8_mixed_scaled_mm(*(a.to(device) for a in arguments))
        expected, wanted = reference.int8_mixed_scaled_mm(*arguments)
        check(result, expected, dtype, slack=16 if dtype == torch.float32 else 2)  # a float32 sum of 75 products
        assert torch.equal(outliers.cpu(), wanted)


@pytest.mark.parametrize("dtype", [None, *FLOATS], ids=short)
@pytest.mark.parametrize("bias", [False, True])
def test_scaled(bias, dtype, device):
    for i, (m, n, k) in enumerate(SHAPES):
        A, B, row, col = operands(m, n, k, i)
        more = {"bias": torch.randn(n, generator=generator(i)).to(dtype or torch.float16)} if bias else {}
        result = ops.int8_scaled_mm(
            *(t.to(device) for t in (A, B, row, col)), **{k: v.to(device) for k, v in more.items()}, dtype=dtype
        )
        # To the bit: the sums are whole numbers, and what follows is int8_mm_dequant.
        exactly_equal(result, reference.int8_scaled_mm(A, B, row, col, **more, dtype=dtype))


def test_batch(device):
    A, B, row, col = operands(5, 24, 64, batch=(2, 3))
    result = ops.int8_scaled_mm(*(t.to(device) for t in (A, B, row, col)), dtype=torch.float32)
    check(result, reference.int8_scaled_mm(A, B, row, col, dtype=torch.float32), torch.float32)


def mixed_operands(m, n, k, dtype, threshold, seed=0):
    g = generator(seed)
    A = torch.randn(m, k, generator=g)
    if m:
        A[:, k // 2] *= 9
        A[m // 2, k - 1] = 12
    A = A.to(dtype)
    W = torch.randn(n, k, generator=g).half() / 8
    CB, SCB, _ = reference.int8_vectorwise_quant(W)
    CA, SCA, columns = reference.int8_vectorwise_quant(A, threshold)
    return A, CA, CB, SCA, SCB, columns, torch.randn(n, generator=g).to(dtype)


@pytest.mark.parametrize("threshold", [0.0, 3.0, 100.0])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("bias", [False, True])
def test_mixed(bias, dtype, threshold, device):
    for i, shape in enumerate([(1, 24, 40), (5, 33, 65), (32, 64, 320), (3, 8, 1)]):
        arguments = mixed_operands(*shape, dtype, threshold, i)[: None if bias else -1]
        result, outliers = ops.int8_mixed_scaled_mm(*(None if a is None else a.to(device) for a in arguments))
        expected, wanted = reference.int8_mixed_scaled_mm(*arguments)
        check(result, expected, dtype, slack=2)
        assert outliers.dtype == dtype
        assert torch.equal(outliers.cpu(), wanted)


def test_mixed_with_a_bias_of_another_dtype(device):
    A, CA, CB, SCA, SCB, columns, bias = mixed_operands(5, 33, 64, torch.bfloat16, 3.0)
    arguments = (A, CA, CB, SCA, SCB, columns, bias.float())
    check(
        ops.int8_mixed_scaled_mm(*(a.to(device) for a in arguments))[0],
        reference.int8_mixed_scaled_mm(*arguments)[0],
        A.dtype,
        2,
    )


def test_mixed_of_a_batch(device):
    A, CA, CB, SCA, SCB, columns, bias = mixed_operands(6, 33, 64, torch.float16, 3.0)
    flat = ops.int8_mixed_scaled_mm(*(a.to(device) for a in (A, CA, CB, SCA, SCB, columns, bias)))[0]
    batch = (A.view(2, 3, 64), CA.view(2, 3, 64), CB, SCA, SCB, columns, bias)
    assert torch.equal(ops.int8_mixed_scaled_mm(*(a.to(device) for a in batch))[0], flat.view(2, 3, 33))


@pytest.mark.parametrize("layout", ["transposed", "strided", "offset", "expanded"])
def test_inputs_that_are_not_contiguous(layout, device):
    A, B, row, col = (t.to(device) for t in operands(20, 24, 64))
    change = {
        "transposed": lambda t: t.t().contiguous().t(),
        "strided": strided,
        "offset": lambda t: on(device, t.cpu(), 3),
        "expanded": lambda t: t[:1].expand_as(t),
    }[layout]
    for a, b in ((change(A), B), (A, change(B)), (change(A), change(B))):
        check(
            ops.int8_scaled_mm(a, b, row, col),
            reference.int8_scaled_mm(a, b, row, col, dtype=torch.float32),
            torch.float16,
        )


def test_opcheck(device):
    A, B, row, col = (t.to(device) for t in operands(20, 24, 64))
    check_operator(ops.int8_scaled_mm.default, (A, B, row, col), {"dtype": torch.bfloat16})


def test_compile(device):
    A, B, row, col = (t.to(device) for t in operands(4, 24, 64, batch=(2,)))
    compiled = torch.compile(lambda *a: ops.int8_scaled_mm(*a) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(A, B, row, col), ops.int8_scaled_mm(A, B, row, col) + 1)


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("has_fp16_weights", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=short)
@pytest.mark.parametrize("shape", [(5, 64), (2, 3, 64), (1, 64)], ids=str)
def test_linear8bitlt(shape, dtype, has_fp16_weights, threshold, device):
    """Forward and backward of the module, close to those of the layer that it stands for."""
    if has_fp16_weights and len(shape) > 2:
        shape = (6, 64)  # bitsandbytes transposes the activation as it is, and fails for more dimensions
    g = generator(0)
    plain = torch.nn.Linear(64, 48)
    with torch.no_grad():
        plain.weight.copy_(torch.randn(48, 64, generator=g) / 8)
        plain.bias.copy_(torch.randn(48, generator=g))
    layer = bnb.nn.Linear8bitLt(64, 48, has_fp16_weights=has_fp16_weights, threshold=threshold)
    layer.load_state_dict(plain.state_dict())
    layer = layer.to(dtype).to(device)
    x = torch.randn(shape, generator=g)
    x[..., 10] = 8  # an outlier column
    theirs = x.clone().requires_grad_()
    ours = x.to(dtype).to(device).requires_grad_()
    expected, result = plain(theirs), layer(ours)
    assert result.dtype == dtype
    assert result.shape == expected.shape

    def error(a, b):
        return ((a.detach().cpu().float() - b.detach().float()).norm() / b.detach().float().norm()).item()

    # An outlier in the quantised row costs precision; kept apart, it does not.
    assert error(result, expected) < (0.02 if threshold else 0.04)
    gradient = torch.randn(result.shape, generator=g)
    expected.backward(gradient)
    result.backward(gradient.to(dtype).to(device))
    assert error(ours.grad, theirs.grad) < 0.02
    if has_fp16_weights:
        assert error(layer.weight.grad, plain.weight.grad) < 0.05
        assert error(layer.bias.grad, plain.bias.grad) < 0.02


def test_matmul_with_fp16_weights_as_cuda_does_it(device):
    """MatMul8bitLt: its backward quantises gradients by columns. bitsandbytes takes it on CUDA alone."""
    from bitsandbytes.autograd._functions import MatMul8bitLt, MatmulLtState

    g = generator(0)
    A, B = torch.randn(32, 64, generator=g), torch.randn(48, 64, generator=g) / 8
    A[:, 10] = 8
    upstream = torch.randn(32, 48, generator=g)
    expected_A = A.clone().requires_grad_()
    (expected_A @ B.T).backward(upstream)
    for threshold in (0.0, 6.0):
        a, b = (t.half().to(device).requires_grad_() for t in (A, B))
        state = MatmulLtState()
        state.threshold, state.has_fp16_weights = threshold, True
        result = MatMul8bitLt.apply(a, b, None, None, state)
        result.backward(upstream.half().to(device))
        # Not the gradient of the weight: bitsandbytes pairs codes by rows with statistics by columns there.
        assert b.grad.isfinite().all()
        for got, wanted, limit in ((result, A @ B.T, 0.03), (a.grad, expected_A.grad, 0.02)):
            error = (got.detach().cpu().float() - wanted).norm() / wanted.norm()
            assert error < limit, (threshold, error)
