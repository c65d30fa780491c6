"""Paged optimizers: states in memory that host and device share, also without upstream's own library."""

from __future__ import annotations

import bitsandbytes as bnb
import bitsandbytes.functional as F
import pytest
import torch
from helpers import ops, short
from optimizers import Problem, gradient

from bitsandbytes_intel import paged, virtual_xpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=short)
def test_paged_memory(xpu, dtype):
    buffer = F.get_paged(300, 7, dtype=dtype, device=torch.device(xpu, 0))
    F.fill(buffer, 3)
    assert buffer.shape == (300, 7)
    assert buffer.is_paged
    assert (buffer == 3).all()
    F.prefetch_tensor(buffer)
    F.prefetch_tensor(buffer, to_cpu=True)
    torch.xpu.synchronize()
    assert (buffer == 3).all()


@pytest.mark.parametrize("bits", [8, 32])
def test_a_step_on_paged_states(xpu, bits):
    plain = Problem.random("adam", (5000,), torch.float32, bits).to(xpu)
    paged = plain.to(xpu)
    for name in ("state1", "state2"):
        state = F.get_paged(5000, dtype=getattr(plain, name).dtype, device=torch.device(xpu, 0))
        F.fill(state, 0)
        setattr(paged, name, state)
    for step in (1, 2):
        g = gradient((5000,), torch.float32, step).to(xpu)
        plain.step(g, step)
        paged.step(g, step)
    torch.xpu.synchronize()
    for key, tensor in plain.tensors().items():
        assert torch.equal(tensor.cpu(), paged.tensors()[key].cpu()), key


@pytest.mark.parametrize(
    "pair", [("PagedAdamW", "AdamW"), ("PagedAdamW8bit", "AdamW8bit"), ("PagedLion8bit", "Lion8bit")]
)
def test_paged_optimizers_train_as_others(xpu, pair):
    ends = []
    for name in pair:
        torch.manual_seed(0)
        model = torch.nn.Linear(400, 300).to(xpu)  # more than 100,000 elements, from where on states are paged
        x = torch.randn(16, 400, device=xpu)
        optimizer = getattr(bnb.optim, name)(model.parameters(), lr=0.001)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        state = optimizer.state[model.weight]["state1"]
        assert getattr(state, "is_paged", False) == name.startswith("Paged")
        ends.append([p.detach().cpu() for p in model.parameters()])
    for got, wanted in zip(*ends, strict=True):
        assert torch.equal(got, wanted)


def test_memory_of_the_host_alone_is_refused(xpu):
    problem = Problem.random("adam", (300,), torch.float32, 32).to(xpu)
    problem.state1 = torch.zeros(300)
    with pytest.raises(RuntimeError, match="state1 must be on xpu"):
        ops.optimizer_update_32bit(**problem.arguments(torch.zeros(300, device=xpu), 1))


def test_upstreams_library_is_left_alone_on_a_gpu(monkeypatch):
    """Where it loads it works, except on the virtual XPU: there it finds no GPU to allocate for."""
    from bitsandbytes import cextension

    monkeypatch.setattr(cextension, "lib", cextension.BNBNativeLibrary(object()))
    monkeypatch.setattr(virtual_xpu, "is_enabled", lambda: False)
    assert not paged.install()
    assert "cget_managed_ptr" not in vars(cextension.lib)
    monkeypatch.setattr(virtual_xpu, "is_enabled", lambda: True)
    assert paged.install()
    assert cextension.lib.cget_managed_ptr is paged._cget_managed_ptr
    paged.uninstall()
    assert "cget_managed_ptr" not in vars(cextension.lib)
