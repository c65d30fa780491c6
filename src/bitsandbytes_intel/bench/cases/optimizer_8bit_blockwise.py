"""optimizer_update_8bit_blockwise against upstream's and the copy bandwidth.

The limit is memory: gradient, parameter and codes in, parameter and codes out. Upstream has no 8-bit optimizer on an
XPU without Triton; its CPU operators, on the same values, stand in.
"""

from __future__ import annotations

import bitsandbytes.functional as F
import torch

from ..common import BNB, Report, Run, name_of

OPERATORS = ("optimizer_update_8bit_blockwise",)
NAMES = ("adam", "ademamix", "lion", "momentum")
DTYPES = (torch.float32, torch.bfloat16)
N = 10_000_000


def problem(name: str, dtype: torch.dtype, device: str) -> Run:
    """One step of a tensor of N elements, by its number."""
    rows, two = (2 if name == "ademamix" else 1), name in ("adam", "ademamix")
    blocks = -(-N // 256)
    g, p = (torch.randn(N).mul_(0.1).to(dtype).to(device) for _ in range(2))
    state1 = torch.zeros((2, N) if rows == 2 else (N,), dtype=torch.uint8, device=device)
    absmax1 = torch.zeros((2, blocks) if rows == 2 else (blocks,), device=device)
    state2 = torch.zeros(N, dtype=torch.uint8, device=device) if two else None
    absmax2 = torch.zeros(blocks, device=device) if two else None
    qmap1 = F.create_dynamic_map(signed=True).to(device)
    qmap2 = F.create_dynamic_map(signed=False).to(device) if two else None

    def step(i: int) -> None:
        BNB.optimizer_update_8bit_blockwise(
            name, g, p, state1, state2, 0.9, 0.999, 0.9999, 5.0, 1e-8, i, 1e-4,
            qmap1, qmap2, absmax1, absmax2, 0.01, 1.0, False,
        )  # fmt: skip

    return step


def add_rows(report: Report) -> None:
    """The optimizers that differ in what they move."""
    for name in report.some(NAMES, "adam", "lion"):
        for dtype in report.some(DTYPES, torch.float32):
            states = {"adam": 2, "ademamix": 3}.get(name, 1)
            report.time(
                "optimizer_update_8bit_blockwise", f"{name} {N} {name_of(dtype)}",
                problem(name, dtype, report.device), upstream=problem(name, dtype, "cpu"), rounds=5, repeats=2,
                moved=N * (3 * dtype.itemsize + 2 * states), ratio=8 if report.on_cpu else 5,
            )  # fmt: skip
