"""optimizer_update_8bit_blockwise: every optimizer, dtype, size and option against the reference; training; errors."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch
from helpers import FLOATS, on, short
from optimizers import HYPERPARAMETERS, NAMES, SIZES, Problem, check, gradient
from test_optimizer_32bit import train


def run(device, name, shape, dtype, steps=2, **options):
    """Some steps with the operator and with the reference, each from the reference's last point; compared."""
    expected = Problem.random(name, shape, dtype, 8)
    for step in range(1, steps + 1):
        g = gradient(shape, dtype, 10 * step)
        ours = expected.to(device)
        ours.step(g.to(device), step, **options)
        before = expected.p.clone()
        expected.step(g, step, exact=True, **options)
        check(ours, expected, before=before)
        assert expected.p.isfinite().all()


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("name", NAMES)
def test_sizes(device, name, dtype):
    for size in SIZES:
        run(device, name, (size,), dtype)


@pytest.mark.parametrize(
    "options",
    [{"weight_decay": 0.1}, {"gnorm_scale": 0.3, "weight_decay": 0.01}, {"skip_zeros": True, "weight_decay": 0.1}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=short)
@pytest.mark.parametrize("name", NAMES)
def test_options(device, name, dtype, options):
    run(device, name, (3001,), dtype, steps=3, **options)


@pytest.mark.parametrize("name", NAMES)
def test_not_contiguous(device, name):
    plain = Problem.random(name, (30, 40), torch.float32, 8)
    g = gradient((30, 40), torch.float32, 5)
    ours = plain.to(device)
    ours.p = plain.p.T.contiguous().to(device).T
    ours.state1 = on(device, plain.state1, 1)
    plain.step(g, 1, exact=True, weight_decay=0.1)
    ours.step(g.T.contiguous().to(device).T, 1, weight_decay=0.1)
    check(ours, plain)


@pytest.mark.parametrize("name", ["adam", "lamb", "ademamix"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_gradients_that_are_no_numbers_are_skipped(device, name, value):
    problem = Problem.random(name, (700,), torch.float32, 8)
    g = gradient((700,), torch.float32, 5, zeros=0)
    g[::7] = value
    ours = problem.to(device)
    before = problem.p.clone()
    ours.step(g.to(device), 1, weight_decay=0.1)
    problem.step(g, 1, exact=True, weight_decay=0.1)
    check(ours, problem)
    assert torch.equal(ours.p.cpu()[::7], before[::7])
    assert ours.extra["absmax1"].isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_zero_gradients_leave_zero_states(device, name):
    """Upstream's CPU quantiser has no code for 0: parameters whose gradient is always 0 drift."""
    problem = Problem.random(name, (512,), torch.float32, 8).to(device)
    before = problem.p.clone()
    for step in range(1, 11):
        g = gradient((512,), torch.float32, step, zeros=0)
        g[::2] = 0
        g[256:] = 0  # a whole block of zeros
        problem.step(g.to(device), step)
    assert torch.equal(problem.p[::2], before[::2])
    assert torch.equal(problem.p[256:], before[256:])
    assert not torch.equal(problem.p[1:256:2], before[1:256:2])
    assert problem.p.isfinite().all()


@pytest.mark.parametrize("size", [256, 257, 300, 511, 512])
def test_ademamix_rows_do_not_share_statistics(device, size):
    """Upstream's Triton and CUDA kernels count the second row's blocks from size // 256, inside the first row."""
    problem = Problem.random("ademamix", (size,), torch.float32, 8).to(device)
    g = gradient((size,), torch.float32, 1, zeros=0)
    problem.step(g.to(device), 1)
    blocks = -(-size // 256)
    largest = torch.stack([g[256 * i : 256 * (i + 1)].abs().max() for i in range(blocks)])
    absmax = problem.extra["absmax1"].cpu()
    torch.testing.assert_close(absmax[0], largest * 0.1, rtol=1e-4, atol=0)
    torch.testing.assert_close(absmax[1], largest * 0.001, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["lion", "adagrad"])
def test_weight_decay(device, name):
    """Upstream's Triton kernels have these two the wrong way round."""
    problem = Problem.random(name, (300,), torch.float32, 8).to(device)
    before = problem.p.clone()
    problem.step(torch.zeros(300, device=device), 1, weight_decay=0.1)
    if name == "lion":
        torch.testing.assert_close(problem.p, before * (1 - HYPERPARAMETERS["lr"] * 0.1))
        assert problem.extra["absmax1"].count_nonzero() == 0
    else:
        assert torch.equal(problem.p, before)  # only the state sees the decay: the raw gradient is divided
        assert problem.extra["absmax1"].count_nonzero() == 2


@pytest.mark.parametrize("name", ["adam", "lion"])
def test_tiny_gradients(device, name):
    """Statistics below the smallest number whose reciprocal is one."""
    problem = Problem.random(name, (300,), torch.float32, 8)
    g = gradient((300,), torch.float32, 1) * 1e-18
    ours = problem.to(device)
    ours.step(g.to(device), 1)
    problem.step(g, 1, exact=True)
    check(ours, problem)


def test_nothing_is_written_behind_a_partial_block(device):
    for size in (1, 255, 300):
        problem = Problem.random("adam", (size,), torch.float16, 8).to(device)
        guarded = {
            key: torch.full((size + 512,), 7, dtype=t.dtype, device=device) for key, t in problem.tensors().items()
        }
        for key in ("p", "state1", "state2"):
            guarded[key][:size] = getattr(problem, key)
            setattr(problem, key, guarded[key][:size])
        problem.step(gradient((size,), torch.float16, 1).to(device), 1)
        for key in ("p", "state1", "state2"):
            assert (guarded[key][size:] == 7).all()


CLASSES = {
    "Adam8bit": lambda p: bnb.optim.Adam8bit(p, lr=0.02),
    "AdamW8bit": lambda p: bnb.optim.AdamW8bit(p, lr=0.02),
    "Lion8bit": lambda p: bnb.optim.Lion8bit(p, lr=0.005),
    "RMSprop8bit": lambda p: bnb.optim.RMSprop8bit(p, lr=0.01),
    "Adagrad8bit": lambda p: bnb.optim.Adagrad8bit(p, lr=0.1),
    "SGD8bit": lambda p: bnb.optim.SGD8bit(p, lr=0.02, momentum=0.9),
    "AdEMAMix8bit": lambda p: bnb.optim.AdEMAMix8bit(p, lr=0.01),
    "LAMB8bit": lambda p: bnb.optim.LAMB8bit(p, lr=0.02),
    "LARS8bit": lambda p: bnb.optim.LARS8bit(p, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
@pytest.mark.parametrize("name", CLASSES)
def test_training(device, name, dtype):
    losses, _ = train(CLASSES[name], device, dtype)
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("name", ["Adam", "Lion", "RMSprop", "Adagrad", "SGD", "AdEMAMix"])
def test_training_as_with_32_bits(device, name):
    """8-bit states lead as far down as 32-bit ones."""
    from test_optimizer_32bit import CLASSES as CLASSES_32BIT

    losses, _ = train(CLASSES[f"{name}8bit"], device)
    expected, _ = train(CLASSES_32BIT[name], device)
    assert losses == pytest.approx(expected, rel=0.1)
