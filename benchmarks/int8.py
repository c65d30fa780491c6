"""LLM.int8(): quantisation, dequantisation and the scaled products, against upstream's and the copy bandwidth.

The limit of all but the products is memory: each operand once in, each result once out.
"""

from __future__ import annotations

import bitsandbytes
import torch
from common import BNB, DEVICE, Report, Row, in_turns

SHAPES = ((512, 4096), (4096, 4096))
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def add_rows(report: Report, device: str = DEVICE) -> None:
    """Upstream's default path has no kernel for int8_double_quant: ours alone is timed."""

    def add(operator: str, case: str, run, moved: float | None, *, upstream: bool = True, ratio: float = 1) -> None:
        ours, theirs = in_turns(run, upstream=upstream)
        share = moved / ours / 1e6 / report.copy_gbps if moved else None
        report.add(
            Row(operator, case.replace("torch.", ""), ours, theirs, share, "copy"), ratio=ratio if upstream else None
        )

    for rows, cols in SHAPES:
        n = rows * cols
        case = f"{rows} x {cols}"
        for dtype in DTYPES:
            A = [torch.randn(rows, cols).to(dtype).to(device) for _ in range(3)]
            for threshold in (0.0, 6.0) if dtype == torch.float16 else (0.0,):
                for a in A if threshold else ():
                    a[:, :: cols // 6] = 8  # seven columns of outliers
                add(
                    "int8_vectorwise_quant",
                    f"{case} {dtype}, threshold {threshold:g}",
                    lambda i, A=A, t=threshold: BNB.int8_vectorwise_quant(A[i % 3], t),
                    n * (dtype.itemsize + 1),
                )
            add(
                "int8_double_quant",
                f"{case} {dtype}",
                lambda i, A=A: BNB.int8_double_quant(A[i % 3], 0.0),
                n * (3 * dtype.itemsize + 2),
                upstream=False,
            )
        codes = [torch.randint(-127, 128, (rows, cols), dtype=torch.int8).to(device) for _ in range(3)]
        row, col = torch.rand(rows).to(device), torch.rand(cols).to(device)
        add("int8_vectorwise_dequant", case, lambda i, c=codes, r=row: BNB.int8_vectorwise_dequant(c[i % 3], r), n * 5)
        sums = [torch.randint(-(2**20), 2**20, (rows, cols), dtype=torch.int32).to(device) for _ in range(3)]
        for dtype in DTYPES:
            bias = torch.rand(cols).to(dtype).to(device)
            add("int8_mm_dequant", f"{case} {dtype}",
                lambda i, s=sums, r=row, c=col, b=bias, d=dtype: BNB.int8_mm_dequant(s[i % 3], r, c, d, b),
                n * (4 + dtype.itemsize))  # fmt: skip
    weight = [torch.randint(-127, 128, (4096, 4096), dtype=torch.int8).to(device) for _ in range(2)]
    stats = torch.rand(4096).to(device)
    for m in (1, 16, 128, 512):
        A = torch.randn(m, 4096).half().to(device)
        A[:, ::600] = 8
        codes, row, columns = BNB.int8_vectorwise_quant(A, 6.0)
        add(
            "int8_scaled_mm",
            f"M = {m}, 4096 x 4096",
            lambda i, c=codes, r=row: BNB.int8_scaled_mm(c, weight[i % 2], r, stats),
            None,
            ratio=1.3 if device == "cpu" and m <= 16 else 1,
        )
        add(
            "int8_mixed_scaled_mm",
            f"M = {m}, 4096 x 4096, 7 columns",
            lambda i, a=A, c=codes, r=row, o=columns: BNB.int8_mixed_scaled_mm(a, c, weight[i % 2], r, stats, o),
            None,
        )
    for dtype in DTYPES:
        layers = [torch.nn.Linear(4096, 4096) for _ in range(2)]
        quantised = []
        for plain in layers:
            layer = bitsandbytes.nn.Linear8bitLt(4096, 4096, has_fp16_weights=False, threshold=6.0)
            layer.load_state_dict(plain.state_dict())
            quantised.append(layer.to(dtype).to(device).eval())
        A = torch.randn(512, 4096).to(dtype).to(device)
        A[:, ::600] = 8
        with torch.no_grad():
            add(
                "Linear8bitLt",
                f"M = 512, 4096 x 4096 {dtype}, threshold 6, 7 columns",
                lambda i, q=quantised, a=A: q[i % 2](a),
                None,
                ratio=3 if device == "cpu" else 1,
            )
