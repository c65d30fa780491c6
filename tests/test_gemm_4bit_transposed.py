"""The gradient of a 4-bit product on CPUs: an operator of our own, and the backward pass that takes it."""

from __future__ import annotations

import itertools

import bitsandbytes as bnb
import bitsandbytes.functional as F
import pytest
import torch
from bitsandbytes.autograd._functions import MatMul4Bit
from helpers import FLOATS, Weight, check_error, check_operator, check_product, exactly_equal, generator, on_cpus

from bitsandbytes_intel import backward, ops

# N (rows of the weight) and K: whole panels and not, more than one part of N, K in the middle of a byte or of a block,
# groups of columns that are whole or not
SHAPES = ((96, 128), (33, 100), (50, 33), (7, 64), (600, 48), (1, 16), (513, 32), (1100, 176), (3, 1))
SHAPES += ((35, 608), (64, 4096))


def transposed(w: Weight, grad: torch.Tensor) -> torch.Tensor:
    return torch.ops.bitsandbytes_intel.gemm_4bit_transposed(
        grad, w.packed, w.shape, w.absmax, w.blocksize, w.quant_type, **w.nested
    )


@on_cpus
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("nested", [False, True])
def test_it_is_the_product_with_the_weight(device, dtype, nested) -> None:
    turns = itertools.cycle(itertools.product((32, 64, 4096), ("nf4", "fp4")))
    for (n, k), m in itertools.product(SHAPES, (1, 2, 5, 15, 33, 70, 129)):
        blocksize, quant_type = next(turns)
        w = Weight.random(n, k, blocksize=blocksize, quant_type=quant_type, nested=nested, seed=n + m)
        grad = torch.randn(m, n, generator=generator(m)).to(dtype)
        check_product(transposed(w, grad), grad, w.exact().T.contiguous())


@on_cpus
def test_the_number_of_threads_changes_nothing(device) -> None:
    w = Weight.random(1100, 400, nested=True)
    grad = torch.randn(70, 1100, generator=generator(1))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(transposed(w, grad))
    finally:
        torch.set_num_threads(before)
    exactly_equal(results[0], results[1])
    exactly_equal(results[0], results[2])


def test_batches_strides_and_nothing() -> None:
    w = Weight.random(64, 48)
    weight = w.exact().T.contiguous()
    grad = torch.randn(3, 64, 5, generator=generator(0)).transpose(1, 2)
    check_product(transposed(w, grad), grad, weight)
    assert transposed(w, torch.zeros(2, 0, 64)).shape == (2, 0, 48)
    exactly_equal(transposed(Weight.random(0, 48), torch.zeros(5, 0)), torch.zeros(5, 48))


@pytest.mark.parametrize(
    ("argument", "wrong", "got"),
    [
        ("A", lambda a: {"A": a["A"].double()}, "float64"),
        ("A", lambda a: {"A": a["A"][:, :-1]}, "19"),
        ("B", lambda a: {"B": a["B"][:-1]}, "639"),
        ("shapeB", lambda a: {"shapeB": [20]}, "20"),
        ("absmax", lambda a: {"absmax": a["absmax"][:0]}, "0"),
        ("absmax", lambda a: {"absmax": a["absmax"].half()}, "float16"),
        ("blocksize", lambda a: {"blocksize": 48}, "48"),
        ("quant_type", lambda a: {"quant_type": "int4"}, "int4"),
        ("absmax_8bit", lambda a: {"absmax_8bit": None}, "None"),
        ("absmax_8bit", lambda a: {"absmax_8bit": a["absmax_8bit"][:-1]}, "19"),
        ("absmax_code", lambda a: {"absmax_code": None}, "None"),
        ("absmax_code", lambda a: {"absmax_code": a["absmax_code"][:255]}, "255"),
        ("absmax_offset", lambda a: {"absmax_offset": None}, "None"),
        ("absmax_offset", lambda a: {"absmax_offset": torch.ones(2)}, "2"),
    ],
)
def test_wrong_arguments(argument, wrong, got, capfd) -> None:
    w = Weight.random(20, 64, nested=True)
    given = {"A": torch.ones(3, 20), "B": w.packed, "shapeB": w.shape, "absmax": w.absmax, "blocksize": 64,
             "quant_type": "nf4", **w.nested}  # fmt: skip
    torch.ops.bitsandbytes_intel.gemm_4bit_transposed(**given)
    call = torch.ops.bitsandbytes_intel.gemm_4bit_transposed
    check_error(lambda: call(**{**given, **wrong(given)}), argument, got, capfd)


def test_opcheck() -> None:
    w = Weight.random(20, 64, nested=True)
    args = (torch.ones(2, 3, 20), w.packed, w.shape, w.absmax, 64, "nf4")
    check_operator(torch.ops.bitsandbytes_intel.gemm_4bit_transposed.default, args, w.nested)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_layer_takes_it_and_agrees_with_bitsandbytes(monkeypatch, dtype, nested) -> None:
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(128, 96, compute_dtype=dtype, compress_statistics=nested, quant_type="nf4").to("cpu")
    x = torch.randn(4, 8, 128, dtype=dtype, requires_grad=True)
    calls = []
    ours = backward.grad_input
    monkeypatch.setattr(backward, "grad_input", lambda *a: calls.append(1) or ours(*a))
    grads = []
    for registered in (True, False):
        ops.register() if registered else ops.unregister()
        try:
            grads.append(torch.autograd.grad(layer(x).square().sum(), (x, layer.bias)))
        finally:
            ops.register()
    assert len(calls) == 1
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2 * float(theirs.abs().max()))


def test_second_derivatives_stay_with_bitsandbytes(monkeypatch) -> None:
    monkeypatch.setattr(backward, "grad_input", lambda *a: pytest.fail("ours was called"))
    packed, state = F.quantize_4bit(torch.randn(32, 64), quant_type="nf4")
    x = torch.randn(20, 64, requires_grad=True)
    y = bnb.matmul_4bit(x, packed, quant_state=state)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    assert grad.requires_grad


def test_unregistering_restores_bitsandbytes_own() -> None:
    assert vars(MatMul4Bit)["backward"].__func__ is backward._backward
    ops.unregister()
    try:
        assert vars(MatMul4Bit)["backward"].__func__.__module__ == MatMul4Bit.__module__
    finally:
        ops.register()
    assert vars(MatMul4Bit)["backward"].__func__ is backward._backward
