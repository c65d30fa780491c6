"""Random problems for the optimizers, on any device, and the one way in which their results are compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import bitsandbytes.functional as F
import torch
from helpers import generator, ops
from torch import Tensor

from bitsandbytes_intel import reference

NAMES = reference.OPTIMIZERS
_QUANTIZE_STATES, _UPDATE = reference._quantize_states, reference._update
SIZES = (0, 1, 15, 255, 256, 257, 2148, 65_537)
HYPERPARAMETERS = {"beta1": 0.9, "beta2": 0.99, "beta3": 0.999, "alpha": 5.0, "eps": 1e-8, "lr": 0.01}


def has_two_states(name: str) -> bool:
    """Whether the optimizer has state2."""
    return name in ("adam", "lamb", "ademamix")


@dataclass
class Problem:
    """Parameter and states that every step changes."""

    name: str
    p: Tensor
    state1: Tensor
    state2: Tensor | None
    extra: dict[str, Tensor | None] = field(default_factory=dict)
    # What an exact step with 8-bit states has quantised, over the largest of its block.
    quantized: dict[str, Tensor] = field(default_factory=dict)
    # Where an exact step with lion was the sign of what fp32 may take for zero, or not.
    either_sign: Tensor | None = None

    @staticmethod
    def random(name: str, shape: tuple[int, ...], dtype: torch.dtype, bits: int, seed: int = 0) -> Problem:
        """A parameter and states of zeros, on the CPU."""
        p = torch.randn(shape, generator=generator(seed)).to(dtype)
        rows = (2, *shape) if name == "ademamix" else shape
        state = torch.float32 if bits == 32 else torch.uint8
        two = has_two_states(name)
        state2 = torch.zeros(shape, dtype=state) if two else None
        extra: dict[str, Tensor | None] = {}
        if bits == 8:
            blocks = -(-p.numel() // 256)
            extra = {
                "qmap1": F.create_dynamic_map(signed=True),
                "qmap2": F.create_dynamic_map(signed=False) if two else None,
                "absmax1": torch.zeros((2, blocks) if name == "ademamix" else (blocks,)),
                "absmax2": torch.zeros(blocks) if two else None,
            }
        return Problem(name, p, torch.zeros(rows, dtype=state), state2, extra)

    def to(self, device: str) -> Problem:
        """A copy on a device."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.clone().to(device)

        extra = {key: moved(tensor) for key, tensor in self.extra.items()}
        return Problem(self.name, self.p.clone().to(device), self.state1.clone().to(device), moved(self.state2), extra)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that a step changes."""
        named = {"p": self.p, "state1": self.state1, "state2": self.state2, **self.extra}
        return {key: tensor for key, tensor in named.items() if tensor is not None and not key.startswith("qmap")}

    def arguments(self, g: Tensor, step: int, **options: Any) -> dict[str, Any]:
        """The arguments of the operator, by name."""
        o = {**HYPERPARAMETERS, "weight_decay": 0.0, "gnorm_scale": 1.0, "skip_zeros": False, **options}
        given = {
            "optimizer_name": self.name,
            "g": g,
            "p": self.p,
            "state1": self.state1,
            "state2": self.state2,
            "step": step,
        }
        if not self.extra:
            given |= {"unorm_vec": None, "max_unorm": 0.0, "param_norm": 0.0}
        return {**given, **self.extra, **o}

    def step(self, g: Tensor, step: int, *, exact: bool = False, **options: Any) -> None:
        """One step by the operator, or by the reference."""
        bits = "8bit_blockwise" if self.extra else "32bit"
        module = reference if exact else ops
        with mock.patch.multiple(reference, _quantize_states=self._quantize_states, _update=self._update):
            getattr(module, f"optimizer_update_{bits}")(**self.arguments(g, step, **options))

    def _quantize_states(self, state: Tensor, codes: Tensor, absmax: Tensor, qmap: Tensor, signed: bool) -> None:
        _QUANTIZE_STATES(state, codes, absmax, qmap, signed)
        largest = absmax.double().reshape(len(state), -1).repeat_interleave(256, dim=1)[:, : state.shape[1]]
        self.quantized["state1" if signed else "state2"] = state / largest

    def _update(
        self, name: str, h: Any, g: Tensor, raw: Tensor, p: Tensor, s1: Tensor, *more: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if name == "lion":
            of_state, of_gradient = h.beta1 * s1[0], (1 - h.beta1) * g
            rounding = 4e-7 * (of_state.abs() + of_gradient.abs())
            close_to_zero = ((of_state + of_gradient).abs() <= rounding) & (rounding > 0)
            self.either_sign = close_to_zero.reshape(self.p.shape)
        return _UPDATE(name, h, g, raw, p, s1, *more)


def gradient(shape: tuple[int, ...], dtype: torch.dtype, seed: int, zeros: float = 0.1) -> Tensor:
    """A gradient, a share of which is zero."""
    g = torch.randn(shape, generator=generator(seed))
    return g.masked_fill(torch.rand(shape, generator=generator(seed + 1)) < zeros, 0.0).to(dtype)


def _finite(x: Tensor) -> Tensor:
    """In fp64; an infinity as the largest number of x's dtype, of which it is one rounding away, and NaN as 0."""
    info = torch.finfo(x.dtype)
    return x.double().clamp(info.min, info.max).nan_to_num(0.0)


def check(
    result: Problem,
    expected: Problem,
    *,
    before: Tensor | None = None,
    steps: int = 1,
    lr: float = HYPERPARAMETERS["lr"],
) -> None:
    """Assert that two problems are at the same point.

    fp32 arithmetic may differ in the last bits, a 16-bit parameter by the one rounding that follows from them; a code
    may be one off where a state lies at the bound between two. `before` is the parameter before the step: a step that
    is long because it divides by next to nothing is as inexact as it is long. Where `expected` knows the states that it
    quantised, every code that is off must lie at a bound; else few may be off.
    """
    for key, wanted in expected.tensors().items():
        got = result.tensors()[key].cpu()
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        if got.numel() == 0:
            continue
        if got.dtype == torch.uint8:
            off = (got.int() - wanted.int()).abs()
            assert off.max() <= 1, f"{key}: a code is off by {off.max()}"
            if key in expected.quantized:
                map_of = expected.extra["qmap" + key[-1]].double()
                bounds = (map_of[got.long()] + map_of[wanted.long()]) / 2
                beyond = (expected.quantized[key].reshape(bounds.shape) - bounds).abs() > 2e-6 * bounds.abs() + 5e-7
                assert not (beyond & (off > 0)).any(), f"{key}: {int((beyond & (off > 0)).sum())} codes are off"
            else:
                few = 1 + 0.005 * steps * off.numel()  # of some dozens, one may lie at a bound
                assert (off > 0).sum() <= few, f"{key}: {(off > 0).sum()} codes of {off.numel()} are off"
        elif key == "p":
            there, aim = _finite(got), _finite(wanted)
            tolerance = steps * (aim.abs() * max(torch.finfo(got.dtype).eps, 2e-6) + lr * 1e-4)
            if before is not None:
                moved = (aim - _finite(before)).abs()
                # moved / lr: how much smaller a divisor is than what it is the difference of
                tolerance = tolerance + moved * (1e-4 + (1e-6 * moved / lr if lr else 0.0))
            if expected.either_sign is not None:
                tolerance = tolerance + 2 * lr * expected.either_sign
            error = (there - aim).abs()
            assert (error <= tolerance).all(), f"p: off by up to {(error / tolerance).max():.2f} times the tolerance"
            assert torch.equal(got.isnan(), wanted.isnan())
        else:
            scale = wanted.double().abs().max()
            torch.testing.assert_close(
                got, wanted, rtol=1e-4, atol=float(scale) * 1e-6, msg=lambda m, key=key: f"{key}: {m}"
            )
