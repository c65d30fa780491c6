"""gemm_4bit of one to many rows, against upstream's path.

The limit is memory for few rows (the weights, read once) and the matrix units for many.
"""

from __future__ import annotations

import torch

from ... import cpu
from ..common import BNB, DTYPES, Report, Run, name_of

OPERATORS = ("gemm_4bit",)
N = K = 4096
BLOCKS = N * K // 64
# Goals on a CPU: times upstream's speed, by dtype and rows.
CPU_GOALS: dict[torch.dtype, dict[int, float | None]] = {
    torch.float32: {1: 50, 4: 20, 16: 9, 128: 1.7, 512: 1.4},
    torch.bfloat16: {1: 35, 4: 18, 16: 7, 128: 3, 512: 2.5},
    torch.float16: {1: 30, 4: None, 16: None, 128: 6, 512: None},
}
_IN_A_ROW = 15  # calls of one row in a turn: a model that decodes makes hundreds, each after the other
CPU_INT8_GOALS = {16: None, 128: 3.5, 512: 2.5}


def call(
    report: Report,
    weights: list[tuple[torch.Tensor, torch.Tensor]],
    m: int,
    dtype: torch.dtype,
    nested: bool = False,
    bias: bool = False,
) -> Run:
    """A product of m rows."""
    x = torch.randn(m, K).to(dtype).to(report.device)
    added = torch.randn(N).to(dtype).to(report.device) if bias else None
    if not nested:

        def run(i: int) -> None:
            codes, absmax = weights[i % len(weights)]
            BNB.gemm_4bit(x, codes, (N, K), absmax, 64, "nf4", added)

        return run
    inner = [torch.randint(0, 256, (BLOCKS,), dtype=torch.uint8).to(report.device) for _ in weights]
    outer = torch.rand(BLOCKS // 256).to(report.device)
    code, offset = torch.linspace(0, 1, 256).to(report.device), torch.tensor(0.5).to(report.device)

    def run_nested(i: int) -> None:
        i %= len(weights)
        BNB.gemm_4bit(x, weights[i][0], (N, K), outer, 64, "nf4", added, inner[i], code, offset)

    return run_nested


def add_rows(report: Report) -> None:
    """Rows 1 to 512 of 4096 x 4096."""
    weights = report.packed(N, K)
    if not report.on_cpu:
        for dtype in report.some(DTYPES, torch.bfloat16):
            for m in report.some((1, 2, 4, 8, 16, 32, 64, 128, 512), 1, 16, 128):
                run = call(report, weights, m, dtype, nested=True, bias=True)
                moved = N * K * (0.5 + 1 / 64)
                report.time(
                    "gemm_4bit",
                    f"M = {m} {name_of(dtype)}",
                    run,
                    moved=moved,
                    of="read",
                    operations=2 * m * N * K,
                    unit=dtype,
                    rounds=5,
                    repeats=2,
                )
        return
    for dtype in report.some(tuple(CPU_GOALS), torch.bfloat16):
        for m in report.some(tuple(CPU_GOALS[dtype]), 1, 16, 128):
            goal, one = CPU_GOALS[dtype][m], m == 1
            report.time(
                "gemm_4bit", f"M = {m} {name_of(dtype)}", call(report, weights, m, dtype), ratio=goal,
                moved=N * K * (0.5 + 4 / 64), of="read", operations=2 * m * N * K, unit=dtype,
                share=0.85 if one else None, repeats=_IN_A_ROW if one else 3,
            )  # fmt: skip
        nested, plain = (call(report, weights, 1, dtype, nested=is_nested) for is_nested in (True, False))
        report.time(
            "gemm_4bit", f"M = 1 {name_of(dtype)}, nested", nested, moved=N * K * (0.5 + 1 / 64), of="read",
            other=("not nested", plain), other_most=1.1, repeats=_IN_A_ROW,
        )  # fmt: skip
    if report.quick:
        return
    for m, goal in CPU_INT8_GOALS.items():
        with cpu.int8_activations():
            report.time(
                "gemm_4bit", f"M = {m} float32, int8 activations", call(report, weights, m, torch.float32), ratio=goal
            )
    small, absmax = torch.randint(0, 256, (64 * 32, 1), dtype=torch.uint8), torch.rand(64)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(1, 64).to(dtype)
        report.time(
            "gemm_4bit", f"64 x 64, M = 1 {name_of(dtype)}",
            lambda i, x=x: BNB.gemm_4bit(x, small, (64, 64), absmax, 64, "nf4"), calls=100, most_us=15,
        )  # fmt: skip
