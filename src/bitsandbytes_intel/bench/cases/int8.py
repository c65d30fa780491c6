"""LLM.int8(): quantisation, dequantisation and the scaled products, against upstream's and the copy bandwidth.

The limit of all but the products is memory: each operand once in, each result once out.
"""

from __future__ import annotations

import logging

import bitsandbytes
import torch

from ..common import BNB, DTYPES, Report, name_of

OPERATORS = (
    "int8_vectorwise_quant",
    "int8_double_quant",
    "int8_vectorwise_dequant",
    "int8_mm_dequant",
    "int8_linear_matmul",
    "int8_scaled_mm",
    "int8_mixed_scaled_mm",
    "Linear8bitLt",
)
SHAPES = ((512, 4096), (4096, 4096))


def both_ways(a: torch.Tensor) -> None:
    """What int8_double_quant does, of upstream's operators: it has none of that name on a CPU or an XPU."""
    BNB.int8_vectorwise_quant(a, 0.0)
    BNB.int8_vectorwise_quant(a.t().contiguous(), 0.0)


def add_passes(report: Report, rows: int, cols: int) -> None:
    """The operators that pass over a matrix once."""
    n, shape, device = rows * cols, f"{rows} x {cols}", report.device
    for dtype in report.some(DTYPES, torch.bfloat16):
        case = f"{shape} {name_of(dtype)}"
        A = report.rotation(lambda dtype=dtype: torch.randn(rows, cols).to(dtype).to(device))
        for threshold in (0.0, 6.0) if dtype == torch.float16 or report.on_cpu else (0.0,):
            for a in A if threshold else ():
                a[:, :: cols // 6] = 8  # seven columns of outliers
            report.time(
                "int8_vectorwise_quant", f"{case}, threshold {threshold:g}",
                lambda i, A=A, t=threshold: BNB.int8_vectorwise_quant(A[i % len(A)], t),
                moved=n * (dtype.itemsize + 1), ratio=1,
            )  # fmt: skip
        report.time(
            "int8_double_quant", case, lambda i, A=A: BNB.int8_double_quant(A[i % len(A)], 0.0),
            upstream=lambda i, A=A: both_ways(A[i % len(A)]), moved=n * (3 * dtype.itemsize + 2), ratio=1,
        )  # fmt: skip
    codes = report.rotation(lambda: torch.randint(-127, 128, (rows, cols), dtype=torch.int8).to(device))
    row, col = torch.rand(rows).to(device), torch.rand(cols).to(device)
    report.time(
        "int8_vectorwise_dequant", shape, lambda i: BNB.int8_vectorwise_dequant(codes[i % len(codes)], row),
        moved=n * 5, ratio=1,
    )  # fmt: skip
    sums = report.rotation(lambda: torch.randint(-(2**20), 2**20, (rows, cols), dtype=torch.int32).to(device))
    for dtype in report.some(DTYPES, torch.bfloat16):
        bias = torch.rand(cols).to(dtype).to(device)
        report.time(
            "int8_mm_dequant", f"{shape} {name_of(dtype)}",
            lambda i, b=bias, d=dtype: BNB.int8_mm_dequant(sums[i % len(sums)], row, col, d, b),
            moved=n * (4 + dtype.itemsize), ratio=1,
        )  # fmt: skip


def add_products(report: Report) -> None:
    """Products of 1 to 512 rows."""
    device = report.device
    weight = report.rotation(lambda: torch.randint(-127, 128, (4096, 4096), dtype=torch.int8).to(device))
    stats = torch.rand(4096).to(device)
    for m in report.some((1, 16, 128, 512), 1, 128):
        A = torch.randn(m, 4096).half().to(device)
        A[:, ::600] = 8
        codes, row, columns = BNB.int8_vectorwise_quant(A, 6.0)
        case = f"M = {m}, 4096 x 4096"
        report.time(
            "int8_linear_matmul", case,
            lambda i, c=codes: BNB.int8_linear_matmul(c, weight[i % len(weight)]), ratio=1,
            moved=4096 * 4096, of="read", operations=2 * m * 4096 * 4096, unit=torch.int8,
        )  # fmt: skip
        report.time(
            "int8_scaled_mm", case,
            lambda i, c=codes, r=row: BNB.int8_scaled_mm(c, weight[i % len(weight)], r, stats),
            moved=4096 * 4096, of="read", operations=2 * m * 4096 * 4096, unit=torch.int8,
            ratio=1.3 if report.on_cpu and m <= 16 else 1,
        )  # fmt: skip
        report.time(
            "int8_mixed_scaled_mm", f"{case}, 7 columns",
            lambda i, a=A, c=codes, r=row, o=columns: BNB.int8_mixed_scaled_mm(
                a, c, weight[i % len(weight)], r, stats, o
            ),
            moved=4096 * 4096, of="read", operations=2 * m * 4096 * 4096, unit=torch.int8, ratio=1,
        )  # fmt: skip


def add_layers(report: Report) -> None:
    """Whole calls of Linear8bitLt, threshold 6, with outliers in the input."""
    # It warns in each call that the input becomes float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for dtype in report.some(DTYPES, torch.bfloat16):
        quantised = []
        for _ in range(4):
            layer = bitsandbytes.nn.Linear8bitLt(4096, 4096, has_fp16_weights=False, threshold=6.0)
            layer.load_state_dict(torch.nn.Linear(4096, 4096).state_dict())
            quantised.append(layer.to(dtype).to(report.device).eval())
        A = torch.randn(512, 4096).to(dtype).to(report.device)
        A[:, ::600] = 8
        with torch.no_grad():
            report.time(
                "Linear8bitLt", f"M = 512, 4096 x 4096 {name_of(dtype)}, 7 columns",
                lambda i, q=quantised, a=A: q[i % len(q)](a), ratio=3 if report.on_cpu else 1,
            )  # fmt: skip


def add_rows(report: Report) -> None:
    """Passes, products, layers."""
    for rows, cols in report.some(SHAPES):
        add_passes(report, rows, cols)
    add_products(report)
    add_layers(report)
