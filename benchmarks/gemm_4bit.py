"""gemm_4bit of one to many rows, bfloat16, nested statistics and bias as in a model, against upstream's path.

The limit is memory for few rows (the weights, read once) and the matrix units for many.
"""

from __future__ import annotations

import torch
from common import BNB, DEVICE, Report, Row, in_turns, name_of, packed


def add_rows(report: Report) -> None:
    """Rows 1 to 512 of 4096 x 4096."""
    n = k = 4096
    weights = packed(n, k, 6)
    blocks = n * k // 64
    nested = {
        "absmax_8bit": torch.randint(0, 256, (blocks,), dtype=torch.uint8).to(DEVICE),
        "absmax_code": torch.linspace(0, 1, 256).to(DEVICE),
        "absmax_offset": torch.tensor(0.5).to(DEVICE),
    }
    outer = torch.rand(blocks // 256).to(DEVICE)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        bias = torch.randn(n).to(dtype).to(DEVICE)
        for m in (1, 2, 4, 8, 16, 32, 64, 128, 512):
            x = torch.randn(m, k).to(dtype).to(DEVICE)

            def run(i: int, x=x, bias=bias) -> None:
                BNB.gemm_4bit(x, weights[i % len(weights)][0], (n, k), outer, 64, "nf4", bias, **nested)

            ours, upstream = in_turns(run, rounds=5, repeats=2)
            share = n * k * (0.5 + 1 / 64) / ours / 1e6 / report.read_gbps
            report.add(Row("gemm_4bit", f"M = {m} {name_of(dtype)}", ours, upstream, share, "read"))
