"""Inputs and outputs of bitsandbytes' CUDA kernels, from data/cuda-h100.safetensors (see data/README.md)."""

from __future__ import annotations

import collections
import json
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open

from bitsandbytes_intel import reference

PATH = pathlib.Path(__file__).parent / "data" / "cuda-h100.safetensors"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One call of a kernel: its name ("kind/…"), its arguments that are no tensors, and its tensors."""

    name: str
    arguments: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.arguments["dtype"]]

    def to(self, device: str) -> Callable[[str], torch.Tensor | None]:
        """A function from a tensor's name to it on a device, or to None if the case has none of that name."""
        return lambda name: self.tensors[name].to(device) if name in self.tensors else None


@dataclass(frozen=True)
class Vectors:
    """All cases."""

    cases: dict[str, Case]

    def of(self, kind: str) -> Iterator[Case]:
        """The cases of a kind, which is the first part of their names."""
        return (case for case in self.cases.values() if case.name.split("/")[0] == kind)


def names(kind: str) -> list[str]:
    """The names of the cases of a kind, without reading them."""
    with safe_open(PATH, "pt") as file:
        return sorted(name for name in file.metadata() if name.split("/")[0] == kind)


def load(path: pathlib.Path = PATH) -> Vectors:
    """Read all cases of a file."""
    tensors: dict[str, dict[str, torch.Tensor]] = collections.defaultdict(dict)
    with safe_open(path, "pt") as file:
        arguments = {name: json.loads(text) for name, text in file.metadata().items()}
        for key in file.keys():  # noqa: SIM118 — it is no dict
            case, _, name = key.rpartition("/")
            tensors[case][name] = file.get_tensor(key)
    return Vectors({name: Case(name, arguments[name], found) for name, found in sorted(tensors.items())})


def check_against_cuda(result: torch.Tensor, case: Case) -> None:
    """Assert that a product of a 4-bit weight is as close to the exact one as CUDA's is."""
    a, t = case.arguments, case.tensors
    absmax = t["absmax"]
    if a["nested"]:
        code, offset = t["absmax_code"], t["absmax_offset"]
        absmax = reference.dequantize_blockwise(t["absmax_8bit"], absmax, code, 256, torch.float32) + offset
    weight = reference.dequantize_4bit(t["B"], absmax, a["blocksize"], a["quant_type"], [a["N"], a["K"]], case.dtype)
    weight, A, eps = weight.double(), t["A"].double(), torch.finfo(case.dtype).eps
    exact = A @ weight.T + (t["bias"].double() if "bias" in t else 0)
    cuda = (t["out"].double() - exact).abs().max()
    sums = A.abs() @ weight.abs().T * max(eps / 32, 2**-23)
    limit = torch.maximum(cuda * 1.25, sums) + exact.abs() * eps / 2
    error = (result.double() - exact).abs()
    assert bool((error <= limit).all()), f"error {error.max():.3e}, CUDA's own {cuda:.3e}"
