"""gemv_4bit, against upstream's and the read bandwidth.

The limit is memory: the weights and their statistics are read once.
"""

from __future__ import annotations

import torch
from bitsandbytes.functional import get_4bit_type

from ..common import BNB, DTYPES, Report, has_upstream, name_of

OPERATORS = ("gemv_4bit",)
SHAPES = ((4096, 4096), (14336, 4096))


def add_rows(report: Report) -> None:
    """Each dtype and shape."""
    table = get_4bit_type("nf4", device=report.device)
    for n, k in report.some(SHAPES):
        weights = report.packed(n, k)
        for dtype in report.some(DTYPES, torch.bfloat16):
            goal = 12 if dtype == torch.float32 else 30
            x = torch.randn(1, k).to(dtype).to(report.device)

            def run(i: int, x=x, weights=weights, shape=(n, k)) -> None:
                codes, absmax = weights[i % len(weights)]
                BNB.gemv_4bit(x, codes, shape, absmax, table, 64)

            report.time(
                "gemv_4bit", f"nf4 {n} x {k} {name_of(dtype)}", run, upstream=has_upstream(),
                repeats=5, moved=n * k * (0.5 + 4 / 64), of="read",
                ratio=1 if report.on_cpu else goal, share=0.85 if report.on_cpu else 0.3,
            )  # fmt: skip
