"""dequantize_4bit and dequantize_blockwise into memory that is in use, against upstream's and the copy bandwidth.

The limit is memory: half a byte or one in, an element out, and four bytes a block.
"""

from __future__ import annotations

import torch
from common import BNB, Report, Row, has_upstream, in_turns, name_of, packed

SHAPES = ((4096, 4096), (14336, 4096))
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def add_rows(report: Report) -> None:
    """NF4 and FP4 against the goals; 8-bit for information on an XPU: upstream's is wrong on a CPU device."""
    on_cpu = report.device == "cpu"
    with_upstream = on_cpu or has_upstream()
    for n, k in SHAPES:
        weights = packed(n, k, 3, device=report.device)
        for quant_type in ("nf4", "fp4"):
            for dtype in DTYPES if quant_type == "nf4" else DTYPES[:1]:
                moved = n * k * (dtype.itemsize + 0.5 + 4 / 64)

                def run(i: int, weights=weights, quant_type=quant_type, dtype=dtype, shape=(n, k)) -> None:
                    codes, absmax = weights[i % len(weights)]
                    BNB.dequantize_4bit(codes, absmax, 64, quant_type, shape, dtype)

                ours, upstream = in_turns(run, upstream=with_upstream)
                share = moved / ours / 1e6 / report.copy_gbps
                case = f"{quant_type} {n} x {k} {name_of(dtype)}"
                row = Row("dequantize_4bit", case, ours, upstream, share, "copy")
                wide = dtype == torch.float32
                if on_cpu:
                    report.add(row, ratio=2 if dtype == torch.float16 else 3)
                else:
                    report.add(row, ratio=2.5 if wide else 4, share=None if wide else 0.75)
        code = torch.linspace(-1, 1, 256).to(report.device)
        bytes8 = [torch.randint(0, 256, (n, k), dtype=torch.uint8).to(report.device) for _ in range(2)]
        absmax8 = torch.rand(n * k // 256).to(report.device)
        for dtype in DTYPES:

            def run8(i: int, dtype=dtype, bytes8=bytes8, absmax8=absmax8, code=code) -> None:
                BNB.dequantize_blockwise(bytes8[i % 2], absmax8, code, 256, dtype)

            ours, upstream = in_turns(run8, upstream=with_upstream)
            share = n * k * (1 + dtype.itemsize + 4 / 256) / ours / 1e6 / report.copy_gbps
            row = Row("dequantize_blockwise", f"{n} x {k} {name_of(dtype)}", ours, upstream, share, "copy")
            report.add(row, ratio=2.5 if on_cpu else None)
