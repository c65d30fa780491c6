"""Training, autocast, compilation and whole models."""

import copy

import pytest
import torch

from bitsandbytes_intel import virtual_xpu


def _mlp():
    return torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.LayerNorm(16), torch.nn.Unflatten(1, (4, 4)),
        torch.nn.GroupNorm(2, 4), torch.nn.Flatten(), torch.nn.Linear(16, 4),
    )  # fmt: skip


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("foreach", [False, True])
def test_training_equals_the_cpu(optimizer, foreach):
    host = _mlp()
    device = copy.deepcopy(host).to("xpu")
    inputs, targets = torch.randn(12, 8), torch.randint(0, 4, (12,))
    for model in (host, device):
        place = next(model.parameters()).device
        steps = getattr(torch.optim, optimizer)(model.parameters(), lr=0.05, foreach=foreach)
        for _ in range(5):
            steps.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs.to(place)), targets.to(place)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            steps.step()
    for a, b in zip(host.parameters(), device.parameters(), strict=True):
        assert b.device.type == b.grad.device.type == "xpu"
        torch.testing.assert_close(b.cpu(), a, rtol=1e-4, atol=1e-5)


def test_gradients_of_a_plain_sum():
    """Autograd's expanded and memoryless gradients reach the kernels."""
    x = torch.randn(2, 6, 3)
    for function in (torch.sgn, lambda t: torch.nn.functional.group_norm(t, 3), torch.nn.functional.silu):
        grads = []
        for device in ("cpu", "xpu"):
            leaf = x.to(device).requires_grad_()
            grads.append(torch.autograd.grad(function(leaf).sum(), leaf)[0].cpu())
        torch.testing.assert_close(*grads)


def test_convolution_backward():
    host = torch.nn.Conv2d(3, 6, 3, groups=3, padding=1)
    device = copy.deepcopy(host).to("xpu")
    image = torch.randn(2, 3, 7, 7)
    for model in (host, device):
        model(image.to(model.weight.device)).square().sum().backward()
    torch.testing.assert_close(device.weight.grad.cpu(), host.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(device.bias.grad.cpu(), host.bias.grad, rtol=1e-4, atol=1e-4)


def test_autocast():
    layer = torch.nn.Linear(8, 8, device="xpu")
    x = torch.randn(2, 8, device="xpu", requires_grad=True)
    with torch.autocast("xpu", dtype=torch.bfloat16):
        y = layer(x)
        assert y.dtype == torch.bfloat16
        assert torch.nn.functional.layer_norm(y, (8,)).dtype == torch.float32
    y.sum().backward()
    assert x.grad.dtype == torch.float32
    assert layer(x).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.float32


def test_checkpoint_keeps_the_random_state():
    x = torch.ones(100, device="xpu", requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(torch.nn.functional.dropout, x, use_reentrant=False)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_fused_optimizer_and_gradient_scaler():
    weight = torch.nn.Parameter(torch.ones(5, device="xpu"))
    optimizer, scaler = torch.optim.AdamW([weight], lr=0.1, fused=True), torch.amp.GradScaler("xpu")
    scaler.scale(weight.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert (weight < 1).all()


def test_functional_transforms():
    x = torch.randn(4, 6, device="xpu")
    assert torch.equal(torch.func.grad(lambda t: t.square().sum())(x), 2 * x)
    torch.testing.assert_close(torch.func.vmap(torch.sum)(x), x.sum(1))
    torch.testing.assert_close(torch.func.jvp(torch.sin, (x,), (x,))[1], x.cos() * x)


def test_compile_aot_eager():
    model = _mlp().to("xpu")
    x = torch.randn(3, 8, device="xpu")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    assert model[0].weight.grad.device.type == "xpu"


def test_fake_tensors():
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(3, 4, device="xpu")
        assert (x @ x.t()).device == torch.device("xpu:0")


def test_tiny_llama_equals_the_cpu():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, pad_token_id=0,
    )  # fmt: skip
    host = transformers.LlamaForCausalLM(config).eval()
    device = copy.deepcopy(host).to("xpu")
    ids = torch.randint(1, 128, (2, 9))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        logits = device(ids.to("xpu"), attention_mask=mask.to("xpu")).logits
        torch.testing.assert_close(logits.cpu(), host(ids, attention_mask=mask).logits, rtol=1e-4, atol=1e-5)
        generate = {"max_new_tokens": 12, "do_sample": False}
        wanted = host.generate(ids, attention_mask=mask, **generate)
        got = device.generate(ids.to("xpu"), attention_mask=mask.to("xpu"), **generate)
        assert got.device.type == "xpu"
        assert torch.equal(got.cpu(), wanted)
        sampled = device.generate(ids.to("xpu"), attention_mask=mask.to("xpu"), max_new_tokens=3, do_sample=True)
        assert sampled.shape == (2, 12)
    assert virtual_xpu.fallback_counts()["aten::mm.out"] > 0
