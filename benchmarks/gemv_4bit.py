"""gemv_4bit and gemm_4bit of one row, against upstream's and the read bandwidth.

The limit is memory: the weights and their statistics are read once.
"""

from __future__ import annotations

import torch
from bitsandbytes.functional import get_4bit_type
from common import BNB, DEVICE, Report, Row, has_upstream, in_turns, name_of, packed

SHAPES = ((4096, 4096), (14336, 4096))


def add_rows(report: Report) -> None:
    """gemv_4bit at each dtype and shape; gemm_4bit of one row, nested or not, at the first."""
    table = get_4bit_type("nf4", device=DEVICE)
    for n, k in SHAPES:
        weights = packed(n, k, 8)
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            x = torch.randn(1, k).to(dtype).to(DEVICE)

            def run(i: int, x=x, weights=weights, shape=(n, k)) -> None:
                codes, absmax = weights[i % len(weights)]
                BNB.gemv_4bit(x, codes, shape, absmax, table, 64)

            ours, upstream = in_turns(run, upstream=has_upstream(), repeats=5)
            share = n * k * (0.5 + 4 / 64) / ours / 1e6 / report.read_gbps
            row = Row("gemv_4bit", f"nf4 {n} x {k} {name_of(dtype)}", ours, upstream, share, "read")
            report.add(row, ratio=12 if dtype == torch.float32 else 30, share=0.3)
