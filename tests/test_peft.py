"""QLoRA and LLM.int8() LoRA with PEFT: 8-bit and paged optimizers, against the same steps in full precision."""

from __future__ import annotations

import bitsandbytes as bnb
import peft
import programs
import pytest
import torch
from helpers import exactly_equal
from programs import DEVICES, four_bit, ids, load, logits, relative_error

BITS = {4: four_bit(), 8: {"load_in_8bit": True}}
STEPS, RATE = 5, 1e-2

pytestmark = pytest.mark.usefixtures("quiet")


def with_adapter(model, checkpointing=True):
    kwargs = {"gradient_checkpointing_kwargs": {"use_reentrant": False}} if checkpointing else {}
    model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing, **kwargs)
    torch.manual_seed(0)
    return peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules="all-linear")).train()


def trained(model):
    return [value for value in model.parameters() if value.requires_grad]


def train(model, optimizer):
    """The losses of a few steps on one batch."""
    losses = []
    batch = ids(4, 16).to(model.device)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def optimizer_of(kind, model):
    small = {} if "32" in kind else {"min_8bit_size": 256}  # of adapters so small
    return getattr(bnb.optim, kind)(trained(model), lr=RATE, weight_decay=0, **small)


@pytest.fixture(scope="module")
def in_full_precision(folder):
    """The losses with torch's AdamW and fp32 layers of the dequantised weights, by bits.

    Without weight decay, which torch applies before the update, and bitsandbytes after it.
    """
    losses = {}
    with programs.quiet():
        for bits, how in BITS.items():
            model = with_adapter(programs.plain(folder, load(folder, "cpu", **how)), checkpointing=False)
            losses[bits] = train(model, torch.optim.AdamW(trained(model), lr=RATE, weight_decay=0))
    return losses


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("kind", ["AdamW8bit", "PagedAdamW8bit", "PagedAdamW32bit"])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("device", DEVICES)
def test_a_fine_tune_agrees_with_full_precision(folder, in_full_precision, device, bits, kind):
    """On the CPU, bitsandbytes keeps the states of a paged optimizer in plain memory."""
    model = with_adapter(load(folder, device, **BITS[bits]))
    optimizer = optimizer_of(kind, model)
    losses = train(model, optimizer)
    assert losses[-1] < losses[0] - 0.2
    # The first loss knows no optimizer. Eight bits of Adam's states cost a little of each later step.
    tolerance = 1e-5 if "32" in kind else 5e-3
    torch.testing.assert_close(losses[:1], in_full_precision[bits][:1], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses, in_full_precision[bits], rtol=tolerance, atol=0)
    states = [state["state1"] for state in optimizer.state.values()]
    assert {state.dtype for state in states} == {torch.float32 if "32" in kind else torch.uint8}
    for layer in model.modules():
        if isinstance(layer, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)):
            assert layer.weight.grad is None


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("device", DEVICES)
def test_gradient_checkpointing_changes_no_gradient(folder, device, bits):
    gradients = []
    for checkpointing in (False, True):
        model = with_adapter(load(folder, device, **BITS[bits]), checkpointing)
        batch = ids(2, 16).to(device)
        model(input_ids=batch, labels=batch).loss.backward()
        gradients.append([value.grad for value in trained(model)])
    for without, with_it in zip(*gradients, strict=True):
        exactly_equal(with_it, without)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("device", DEVICES)
def test_merging_the_adapter(folder, tmp_path, device, bits):
    """The merged weight is the sum, quantised anew: as far from the adapted model as that rounding, and it saves."""
    model = with_adapter(load(folder, device, **BITS[bits]))
    train(model, optimizer_of("AdamW8bit", model))
    model.eval()
    adapted = logits(model, ids())
    base = dict(model.get_base_model().named_modules())
    layer = base["model.layers.0.mlp.up_proj"]
    wanted = programs.weight_of(layer.base_layer) + layer.get_delta_weight("default").float().cpu()
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load(folder, device, **BITS[bits]), tmp_path / "adapter").eval()
    assert relative_error(logits(again, ids()), adapted) < 1e-6
    merged = model.merge_and_unload()
    weight = programs.weight_of(merged.model.layers[0].mlp.up_proj)
    assert relative_error(weight, wanted) < (0.11 if bits == 4 else 0.01)
    result = logits(merged, ids())
    expected = logits(programs.plain(folder, merged), ids())
    assert relative_error(result, expected) < (1e-5 if bits == 4 else 0.03)
    merged.save_pretrained(tmp_path / "merged")
    exactly_equal(logits(load(tmp_path / "merged", device), ids()), result)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("device", DEVICES)
def test_int8_lora_without_nan(folder, device, dtype):
    """In 16 bits, with outliers: losses and gradients were NaN on XPU."""
    model = load(folder, device, dtype, load_in_8bit=True, llm_int8_threshold=2.0)
    torch.manual_seed(0)
    model = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules="all-linear")).train()
    losses = train(model, optimizer_of("AdamW8bit", model))
    assert losses[-1] < losses[0]
    assert all(bool(value.isfinite().all()) and bool(value.grad.isfinite().all()) for value in trained(model))
    assert bool(logits(model.eval(), ids()).isfinite().all())
