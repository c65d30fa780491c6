"""Linear4bit in eval mode on a CPU with AVX512-BF16, or said to have it: nothing is lost, whatever the shape."""

from __future__ import annotations

import copy

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.nn import modules
from helpers import FLOATS, exactly_equal, generator, ops, short

from bitsandbytes_intel import ops as plugin
from bitsandbytes_intel import reference

ATTRIBUTE = "support_avx512bf16_for_cpu"


@pytest.fixture(autouse=True)
def a_cpu_with_avx512_bf16(monkeypatch):
    """Every layer believes that its CPU has AVX512-BF16."""
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)


def layer(n, k, dtype=torch.float32, nested=True, quant_type="nf4"):
    made = bnb.nn.Linear4bit(k, n, compute_dtype=dtype, compress_statistics=nested, quant_type=quant_type)
    with torch.no_grad():
        made.weight.data = torch.randn(n, k, generator=generator(n + k))
        made.bias.data = torch.randn(n, generator=generator(3)).to(dtype)  # which forward() would make of it
    return made.to("cpu").eval()


def state(of):
    return {name: tensor.clone() for name, tensor in of.state_dict().items()}


def same_state(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        exactly_equal(other[name], tensor)


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("shape", [(64, 128), (33, 64), (3, 64), (70, 100), (5, 37)], ids=str)
def test_eval_changes_nothing(shape, nested, dtype):
    n, k = shape
    linear = layer(n, k, dtype, nested)
    before = state(linear)
    weight = bnb.functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state).float()
    for rows in (1, 3, 40):
        x = torch.randn(rows, k, generator=generator(rows)).to(dtype)
        with torch.inference_mode():
            result = linear(x)
        exact = x.double() @ weight.double().T + linear.bias.double()
        tolerance = reference.product_tolerance(x, weight, exact.to(dtype))
        tolerance += 2 * torch.finfo(dtype).eps * exact.abs() + torch.finfo(dtype).eps * linear.bias.double().abs()
        tolerance += torch.finfo(dtype).eps / 2 * (x.double().abs() @ weight.double().abs().T)  # the weight, rounded
        assert bool(((result.double() - exact).abs() <= tolerance).all())
    assert not getattr(linear.weight.quant_state, "packing_format_for_cpu", False)
    same_state(before, state(linear))


def test_saved_and_loaded_again():
    linear = layer(33, 64)
    x = torch.randn(2, 64, generator=generator(0))
    with torch.inference_mode():
        result = linear(x)
        exactly_equal(copy.deepcopy(linear)(x), result)
    saved = state(linear)
    statistics = {name.removeprefix("weight."): v for name, v in saved.items() if name.startswith("weight.")}
    again = bnb.nn.Linear4bit(64, 33, compute_dtype=torch.float32).eval()
    again.weight = bnb.nn.Params4bit.from_prequantized(saved["weight"], statistics, device="cpu", module=again)
    again.bias.data = saved["bias"]
    with torch.inference_mode():
        exactly_equal(again(x), result)
    same_state(saved, state(again))


def test_a_layer_sees_its_own_value_again_without_us():
    before = layer(32, 64)
    try:
        plugin.unregister()
        assert getattr(before, ATTRIBUTE) is True
        theirs = layer(32, 64)
        assert getattr(theirs, ATTRIBUTE) is True
        plugin.register()
        assert getattr(before, ATTRIBUTE) is getattr(theirs, ATTRIBUTE) is False
    finally:
        plugin.register()


def test_training_is_as_before():
    linear = layer(33, 64).train()
    x = torch.randn(2, 64, requires_grad=True)
    linear(x).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize("shape", [(32, 64), (96, 128), (64, 256), (32, 0)], ids=str)
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16], ids=short)
def test_a_repacked_weight_is_read(shape, storage):
    """As by bitsandbytes' own kernel, with absmax rounded to bfloat16: of a layer from before we were registered."""
    n, k = shape
    A, W = torch.randn(3, k, generator=generator(1)), torch.randn(n, k, generator=generator(2))
    B, absmax = ops.quantize_4bit(W, 64, "fp4", storage)
    code = bnb.functional.get_4bit_type("fp4", device="cpu", blocksize=64)
    quantised = bnb.functional.QuantState(
        absmax, shape=torch.Size(shape), dtype=A.dtype, blocksize=64, code=code, quant_type="fp4"
    )
    packed, quantised = bnb.functional._convert_weight_packed_for_cpu(B.clone(), quantised)
    assert quantised.absmax.dtype == torch.bfloat16
    expected = ops.gemv_4bit(A, B, shape, absmax.bfloat16().float(), code, 64)
    exactly_equal(ops.gemv_4bit(A, packed, shape, quantised.absmax, code, 64), expected)
    out = torch.ones(3, n)
    ops.gemv_4bit.out(A, packed, shape, quantised.absmax, code, 64, out=out)
    exactly_equal(out, expected)


@pytest.mark.parametrize("absmax", [(32, 1), (1, 31), (2, 32), (32,)], ids=str)
def test_bfloat16_statistics_of_another_shape_are_refused(absmax, capfd):
    args = (torch.randn(1, 64), torch.zeros(1024, 1, dtype=torch.uint8), [32, 64], torch.ones(absmax).bfloat16())
    with pytest.raises(RuntimeError, match=r"absmax must be float32, or \[K / blocksize, N\] of a weight"):
        ops.gemv_4bit(*args, reference.codebook("nf4"), 64)
    assert capfd.readouterr().out == ""
