"""optimizer_update_32bit against upstream's default path, torch's fused AdamW and the copy bandwidth.

The limit is memory: gradient, parameter and states in, parameter and states out.
"""

from __future__ import annotations

import torch

from ..common import BNB, Report, Run, name_of

OPERATORS = ("optimizer_update_32bit",)
NAMES = ("adam", "ademamix", "lion", "momentum")
DTYPES = (torch.float32, torch.bfloat16)
N = 10_000_000


def fused_adamw() -> Run:
    """A step of torch's, of float32 parameters on the CPU."""
    p = torch.nn.Parameter(torch.randn(N))
    p.grad = torch.randn(N).mul_(0.1)
    optimizer = torch.optim.AdamW([p], fused=True)
    return lambda i: optimizer.step()


def add_rows(report: Report) -> None:
    """The optimizers that differ in what they move; torch's in float32 for all of them."""
    other = ("torch's fused AdamW", fused_adamw()) if report.on_cpu else None
    for name in report.some(NAMES):
        for dtype in report.some(DTYPES, torch.float32):
            g, p = (torch.randn(N).mul_(0.1).to(dtype).to(report.device) for _ in range(2))
            state1 = torch.zeros((2, N) if name == "ademamix" else (N,), device=report.device)
            state2 = torch.zeros(N, device=report.device) if name in ("adam", "ademamix") else None

            def step(i: int, name=name, g=g, p=p, state1=state1, state2=state2) -> None:
                BNB.optimizer_update_32bit(
                    name, g, p, state1, state2, None, 0.0, 0.0, 0.9, 0.999, 0.9999, 5.0, 1e-8, 0.01, i, 1e-4, 1.0, False
                )

            states = {"adam": 2, "ademamix": 3}.get(name, 1)
            report.time(
                "optimizer_update_32bit", f"{name} {N} {name_of(dtype)}", step, other=other, rounds=5, repeats=2,
                moved=N * (3 * dtype.itemsize + 8 * states), ratio=5 if report.on_cpu else 1,
                other_most=1.5 if report.on_cpu else None,
            )  # fmt: skip
