"""quantize_4bit and quantize_blockwise against upstream's default path (PyTorch) and the copy bandwidth.

The limit is memory: an element in, half a byte or one out, and four bytes a block.
"""

from __future__ import annotations

import torch
from common import BNB, Report, Row, in_turns

SHAPE = (4096, 4096)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def add_rows(report: Report) -> None:
    """NF4 and FP4 at blocksize 64, NF4 at the largest, and 8-bit with the dynamic map at the default blocksize."""
    from bitsandbytes.functional import create_dynamic_map

    n, k = SHAPE
    on_cpu = report.device == "cpu"
    code = create_dynamic_map().to(report.device)
    for dtype in DTYPES:
        inputs = [torch.randn(n, k).to(dtype).to(report.device) for _ in range(2)]

        def time(operator: str, what: str, blocksize: int, out_bytes: float, run, goal: float, dtype=dtype) -> None:
            ours, upstream = in_turns(run, rounds=3, repeats=2)
            share = n * k * (dtype.itemsize + out_bytes + 4 / blocksize) / ours / 1e6 / report.copy_gbps
            case = f"{what} {n} x {k} {dtype}, {blocksize}".replace("torch.", "")
            report.add(Row(operator, case, ours, upstream, share, "copy"), ratio=goal)

        for quant_type, blocksize in (("nf4", 64), ("fp4", 64), ("nf4", 4096)):

            def run4(i: int, inputs=inputs, blocksize=blocksize, quant_type=quant_type) -> None:
                BNB.quantize_4bit(inputs[i % 2], blocksize, quant_type, torch.uint8)

            time("quantize_4bit", quant_type, blocksize, 0.5, run4, 35 if on_cpu else 20)

        for blocksize in (256, 4096):

            def run8(i: int, inputs=inputs, blocksize=blocksize) -> None:
                BNB.quantize_blockwise(inputs[i % 2], code, blocksize)

            time("quantize_blockwise", "dynamic map", blocksize, 1, run8, 5 if on_cpu else 1)
