"""optimizer_update_32bit: every optimizer, dtype, size and option against the reference; training."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch
from helpers import FLOATS, on, short
from optimizers import HYPERPARAMETERS, NAMES, SIZES, Problem, check, gradient

from bitsandbytes_intel import reference


def run(device, name, shape, dtype, steps=3, **options):
    """Some steps with the operator and with the reference; both problems."""
    expected = Problem.random(name, shape, dtype, 32)
    ours = expected.to(device)
    norms = {}
    for step in range(1, steps + 1):
        g = gradient(shape, dtype, 10 * step)
        for problem, exact in ((expected, True), (ours, False)):
            extra = {}
            if options.get("max_unorm"):
                vec = norms.setdefault(exact, torch.zeros(1, device=problem.p.device))
                extra = {"unorm_vec": vec, "param_norm": float(expected.p.float().norm())}
            problem.step(g.to(problem.p.device), step, exact=exact, **options, **extra)
        if norms:
            torch.testing.assert_close(norms[False].cpu(), norms[True], rtol=1e-3, atol=1e-4)
    return ours, expected


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("name", NAMES)
def test_sizes(device, name, dtype):
    for size in SIZES:
        ours, expected = run(device, name, (size,), dtype, steps=2)
        check(ours, expected, steps=2)


@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.1},
        {"gnorm_scale": 0.3, "weight_decay": 0.01},
        {"skip_zeros": True, "weight_decay": 0.1},
        {"max_unorm": 0.02, "weight_decay": 0.01},
        {"max_unorm": 1e6},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=short)
@pytest.mark.parametrize("name", NAMES)
def test_options(device, name, dtype, options):
    ours, expected = run(device, name, (3001,), dtype, **options)
    check(ours, expected, steps=3)


@pytest.mark.parametrize("name", NAMES)
def test_skipped_elements_stay_as_they_are(device, name):
    problem = Problem.random(name, (1000,), torch.float32, 32).to(device)
    problem.state1 += 0.5
    before = problem.to(device)
    g = gradient((1000,), torch.float32, 3, zeros=0.5).to(device)
    problem.step(g, 2, skip_zeros=True, weight_decay=0.1)
    for key, tensor in problem.tensors().items():
        same = tensor == before.tensors()[key]
        assert same[..., g == 0].all(), key
        assert not same[..., g != 0].all(), key


@pytest.mark.parametrize("name", NAMES)
def test_not_contiguous(device, name):
    plain = Problem.random(name, (30, 40), torch.float32, 32)
    g = gradient((30, 40), torch.float32, 5)
    ours = plain.to(device)
    # The same values with other strides: a transposed parameter and gradient, states off an aligned address.
    ours.p = plain.p.T.contiguous().to(device).T
    ours.state1 = on(device, plain.state1, 1)
    if ours.state2 is not None:
        ours.state2 = plain.state2.T.contiguous().to(device).T
    plain.step(g, 1, exact=True, weight_decay=0.1)
    ours.step(g.T.contiguous().to(device).T, 1, weight_decay=0.1)
    check(ours, plain)


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_offsets(device, dtype, offset):
    plain = Problem.random("ademamix", (5000,), dtype, 32)
    ours = plain.to(device)
    g = gradient((5000,), dtype, 5)
    ours.p = on(device, plain.p, offset)
    ours.state1 = on(device, plain.state1, offset)
    plain.step(g, 1, exact=True)
    ours.step(on(device, g, offset), 1)
    check(ours, plain)


def test_lamb_first_step_has_the_length_of_the_limit(device):
    """Upstream's CPU version makes it sqrt(1 / (1 - beta2)) times too small."""
    p, g = torch.ones(1000), gradient((1000,), torch.float32, 1, zeros=0)
    problem = Problem("lamb", p.clone().to(device), torch.zeros(1000, device=device), torch.zeros(1000, device=device))
    norm = torch.zeros(1, device=device)
    problem.step(g.to(device), 1, max_unorm=0.1, param_norm=float(p.norm()), unorm_vec=norm)
    assert norm.item() == pytest.approx(1000, rel=1e-3)  # every element of Adam's first update is 1 or -1
    assert float((problem.p.cpu() - p).norm()) == pytest.approx(HYPERPARAMETERS["lr"] * 0.1 * float(p.norm()), rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay(device, name):
    """Without a gradient, decoupled decay shrinks the parameter and leaves the state alone; coupled decay is one."""
    problem = Problem.random(name, (300,), torch.float32, 32).to(device)
    before = problem.p.clone()
    problem.step(torch.zeros(300, device=device), 1, weight_decay=0.1)
    if name in ("adam", "lamb", "ademamix", "lion"):
        torch.testing.assert_close(problem.p, before * (1 - HYPERPARAMETERS["lr"] * 0.1))
        assert problem.state1.count_nonzero() == 0
    else:
        assert problem.state1.count_nonzero() == 300


CLASSES = {
    "Adam": lambda p: bnb.optim.Adam(p, lr=0.02),
    "AdamW": lambda p: bnb.optim.AdamW(p, lr=0.02),
    "LAMB": lambda p: bnb.optim.LAMB(p, lr=0.02, max_unorm=1.0),
    "LARS": lambda p: bnb.optim.LARS(p, lr=0.5, momentum=0.9, max_unorm=0.1),
    "SGD": lambda p: bnb.optim.SGD(p, lr=0.02, momentum=0.9),
    "Lion": lambda p: bnb.optim.Lion(p, lr=0.005),
    "RMSprop": lambda p: bnb.optim.RMSprop(p, lr=0.01),
    "Adagrad": lambda p: bnb.optim.Adagrad(p, lr=0.1),
    "AdEMAMix": lambda p: bnb.optim.AdEMAMix(p, lr=0.01),
}


def train(make, device, dtype=torch.float32, steps=20):
    """The losses of a tiny model, and its weights."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 160), torch.nn.ReLU(), torch.nn.Linear(160, 1))
    x = torch.randn(256, 32)
    y = torch.sin(x.sum(1, keepdim=True))
    model, x, y = model.to(device, dtype), x.to(device, dtype), y.to(device, dtype)
    optimizer, losses = make(model.parameters()), []
    for _ in range(steps):
        loss = torch.nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [p.detach().float().cpu() for p in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
@pytest.mark.parametrize("name", CLASSES)
def test_training(device, name, dtype):
    losses, _ = train(CLASSES[name], device, dtype)
    assert losses[-1] < 0.95 * losses[0]
    assert min(losses) == min(losses[5:])


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad", "AdEMAMix"])
def test_training_as_on_the_cpu(device, name):
    """As upstream's CPU operators train in fp32 (those of its optimizers that agree with its CUDA kernels)."""
    losses, weights = train(CLASSES[name], device)
    expected, expected_weights = train(CLASSES[name], "cpu")
    assert losses == pytest.approx(expected, rel=1e-2)
    for got, wanted in zip(weights, expected_weights, strict=True):
        error = (got - wanted).abs()
        assert error.mean() < 1e-3
        assert error.max() < 0.05


def test_reference_is_torch_adamw():
    """The reference itself, held to torch's AdamW; weight decay comes before the update there."""
    problem = Problem.random("adam", (1000,), torch.float32, 32)
    other = problem.p.clone().requires_grad_()
    optimizer = torch.optim.AdamW([other], lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
    for step in range(1, 6):
        g = gradient((1000,), torch.float32, step)
        reference.optimizer_update_32bit(**problem.arguments(g, step))
        other.grad = g
        optimizer.step()
    torch.testing.assert_close(problem.p, other.detach(), rtol=1e-5, atol=1e-6)
