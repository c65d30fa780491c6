"""dequantize_4bit and dequantize_blockwise, against upstream's and the copy bandwidth.

The limit is memory: half a byte or one in, an element out, and four bytes a block. The `.out` variants write into
memory that is in use; upstream has none on a CPU.
"""

from __future__ import annotations

import torch

from ..common import BNB, DTYPES, Report, has_upstream, name_of

OPERATORS = ("dequantize_4bit", "dequantize_4bit.out", "dequantize_blockwise", "dequantize_blockwise.out")
SHAPES = ((4096, 4096), (14336, 4096))


def add_rows(report: Report) -> None:
    """NF4 and FP4 against the goals; 8-bit for information on an XPU: upstream's is wrong on a CPU device."""
    on_cpu = report.on_cpu
    with_upstream = has_upstream()
    for n, k in report.some(SHAPES):
        weights = report.packed(n, k)
        for quant_type in report.some(("nf4", "fp4")):
            for dtype in report.some(DTYPES if quant_type == "nf4" else DTYPES[:1], torch.bfloat16):
                moved = n * k * (dtype.itemsize + 0.5 + 4 / 64)

                def run(i: int, weights=weights, quant_type=quant_type, dtype=dtype, shape=(n, k)) -> None:
                    codes, absmax = weights[i % len(weights)]
                    BNB.dequantize_4bit(codes, absmax, 64, quant_type, shape, dtype)

                case = f"{quant_type} {n} x {k} {name_of(dtype)}"
                wide = dtype == torch.float32
                if on_cpu:
                    goals: dict[str, float | None] = {"ratio": 2 if dtype == torch.float16 else 3, "share": None}
                else:
                    goals = {"ratio": 2.5 if wide else 4, "share": None if wide else 0.75}
                report.time("dequantize_4bit", case, run, upstream=with_upstream, moved=moved, **goals)
                if not on_cpu:
                    continue
                out = report.rotation(lambda n=n, k=k, dtype=dtype: torch.ones(n, k, dtype=dtype))

                def run_out(i: int, weights=weights, quant_type=quant_type, dtype=dtype, shape=(n, k), out=out) -> None:
                    codes, absmax = weights[i % len(weights)]
                    BNB.dequantize_4bit.out(codes, absmax, 64, quant_type, shape, dtype, out=out[i % len(out)])

                report.time("dequantize_4bit.out", case, run_out, upstream=False, moved=moved, share=0.8)
        del weights
        code = torch.linspace(-1, 1, 256).to(report.device)
        bytes8 = report.rotation(lambda n=n, k=k: torch.randint(0, 256, (n, k), dtype=torch.uint8).to(report.device))
        absmax8 = torch.rand(n * k // 256).to(report.device)
        for dtype in report.some(DTYPES, torch.bfloat16):

            def run8(i: int, dtype=dtype, bytes8=bytes8, absmax8=absmax8, code=code) -> None:
                BNB.dequantize_blockwise(bytes8[i % len(bytes8)], absmax8, code, 256, dtype)

            case, moved = f"{n} x {k} {name_of(dtype)}", n * k * (1 + dtype.itemsize + 4 / 256)
            report.time(
                "dequantize_blockwise", case, run8, upstream=with_upstream, moved=moved, ratio=2.5 if on_cpu else None
            )
            if not on_cpu:
                continue
            out = report.rotation(lambda n=n, k=k, dtype=dtype: torch.ones(n, k, dtype=dtype))

            def run8_out(i: int, dtype=dtype, bytes8=bytes8, absmax8=absmax8, code=code, out=out) -> None:
                BNB.dequantize_blockwise.out(bytes8[i % len(bytes8)], absmax8, code, 256, dtype, out=out[i % len(out)])

            report.time("dequantize_blockwise.out", case, run8_out, upstream=False, moved=moved)
