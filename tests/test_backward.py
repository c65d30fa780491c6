"""The gradient of a 4-bit product in panels of float32, on CPUs whose torch has no fast 16-bit product."""

from __future__ import annotations

import bitsandbytes as bnb
import bitsandbytes.functional as F
import pytest
import torch
from bitsandbytes.autograd._functions import MatMul4Bit

from bitsandbytes_intel import backward, ops


@pytest.fixture
def slow(monkeypatch):
    """As on a CPU where torch is slow in either 16-bit dtype."""
    monkeypatch.setattr(backward, "_slow", frozenset({torch.float16, torch.bfloat16}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("n", "k"), [(96, 128), (128, 80), (33, 100), (7, 64), (50, 33)])
@pytest.mark.parametrize("panel", [1, 16 << 20])
def test_it_is_the_product_with_the_dequantised_weight(monkeypatch, dtype, nested, n, k, panel) -> None:
    monkeypatch.setattr(backward, "_PANEL_BYTES", panel)
    torch.manual_seed(0)
    packed, state = F.quantize_4bit(torch.randn(n, k), blocksize=64, compress_statistics=nested, quant_type="nf4")
    grad = torch.randn(2, 9, n).to(dtype)
    exact = grad.double() @ F.dequantize_4bit(packed, state).double()
    actual = backward.grad_input(grad, packed, state)
    assert (actual.shape, actual.dtype) == ((2, 9, k), dtype)
    rounding = torch.finfo(dtype).eps / 2
    bound = rounding * exact.abs() + 1e-5 * (grad.double().abs() @ F.dequantize_4bit(packed, state).double().abs())
    assert bool(((actual.double() - exact).abs() <= bound + 1e-6).all())


def test_a_layer_takes_it_and_agrees_with_bitsandbytes(slow, monkeypatch) -> None:
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(128, 96, compute_dtype=torch.bfloat16, quant_type="nf4").to("cpu")
    x = torch.randn(4, 8, 128, dtype=torch.bfloat16, requires_grad=True)
    calls = []
    ours = backward.grad_input
    monkeypatch.setattr(backward, "grad_input", lambda *a: calls.append(1) or ours(*a))
    grads = []
    for registered in (True, False):
        ops.register() if registered else ops.unregister()
        try:
            (grad,) = torch.autograd.grad(layer(x).sum(), x)
        finally:
            ops.register()
        grads.append(grad)
    assert len(calls) == 1
    torch.testing.assert_close(grads[0], grads[1], rtol=2e-2, atol=2e-2)


def test_few_rows_and_other_dtypes_stay_with_bitsandbytes(slow, monkeypatch) -> None:
    monkeypatch.setattr(backward, "grad_input", lambda *a: pytest.fail("ours was called"))
    for rows, dtype in ((backward._FROM_ROWS - 1, torch.bfloat16), (64, torch.float32)):
        layer = bnb.nn.Linear4bit(64, 32, compute_dtype=dtype, quant_type="nf4").to("cpu")
        x = torch.randn(rows, 64, dtype=dtype, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad is not None


def test_unregistering_restores_bitsandbytes_own() -> None:
    assert vars(MatMul4Bit)["backward"].__func__ is backward._backward
    ops.unregister()
    try:
        assert vars(MatMul4Bit)["backward"].__func__.__module__ == MatMul4Bit.__module__
    finally:
        ops.register()
    assert vars(MatMul4Bit)["backward"].__func__ is backward._backward


@pytest.mark.parametrize(("isa", "slow"), [("avx512_vnni", True), ("scalar", True)])
def test_the_environment_variable_holds_it_too(monkeypatch, isa, slow) -> None:
    monkeypatch.setenv("BNB_INTEL_ISA", isa)
    assert (torch.bfloat16 in backward.slow_dtypes()) == slow
