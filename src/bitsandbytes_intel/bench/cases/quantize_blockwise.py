"""quantize_4bit and quantize_blockwise against upstream's default path (PyTorch) and the copy bandwidth.

The limit is memory: an element in, half a byte or one out, and four bytes a block.
"""

from __future__ import annotations

import torch
from bitsandbytes.functional import create_dynamic_map

from ..common import BNB, DTYPES, Report

OPERATORS = ("quantize_4bit", "quantize_blockwise")
SHAPE = (4096, 4096)


def add_rows(report: Report) -> None:
    """NF4 and FP4 at blocksize 64, NF4 at the largest, and 8-bit with the dynamic map at the default blocksize."""
    n, k = SHAPE
    code = create_dynamic_map().to(report.device)
    for dtype in report.some(DTYPES, torch.bfloat16):
        inputs = report.rotation(lambda dtype=dtype: torch.randn(n, k).to(dtype).to(report.device))

        def time(operator: str, what: str, blocksize: int, out_bytes: float, run, goal: float, dtype=dtype) -> None:
            case = f"{what} {n} x {k} {dtype}, {blocksize}".replace("torch.", "")
            moved = n * k * (dtype.itemsize + out_bytes + 4 / blocksize)
            report.time(operator, case, run, rounds=5, repeats=2, moved=moved, ratio=goal)

        for quant_type, blocksize in report.some((("nf4", 64), ("fp4", 64), ("nf4", 4096))):

            def run4(i: int, inputs=inputs, blocksize=blocksize, quant_type=quant_type) -> None:
                BNB.quantize_4bit(inputs[i % len(inputs)], blocksize, quant_type, torch.uint8)

            time("quantize_4bit", quant_type, blocksize, 0.5, run4, 35 if report.on_cpu else 20)

        for blocksize in report.some((256, 4096)):

            def run8(i: int, inputs=inputs, blocksize=blocksize) -> None:
                BNB.quantize_blockwise(inputs[i % len(inputs)], code, blocksize)

            time("quantize_blockwise", "dynamic map", blocksize, 1, run8, 5 if report.on_cpu else 1)
