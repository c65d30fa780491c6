"""What the benchmarks share: a device, upstream's operators and ours in turns, bandwidth in the same run, a table.

Every benchmark times `torch.ops.bitsandbytes` as a user calls it. Ours and upstream's take turns within one process,
the operands rotate so that they come from memory, and the figures are medians. Without an Intel GPU it runs on the
virtual XPU, where only ratios and shares of bandwidth mean anything.
"""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from rich.console import Console
from rich.table import Table

from bitsandbytes_intel import ops

DEVICE = "xpu"
BNB = torch.ops.bitsandbytes


@dataclass
class Row:
    """One measured case; times in milliseconds, `share` of the bandwidth named in `of`."""

    operator: str
    case: str
    ours_ms: float
    upstream_ms: float | None
    share: float | None = None
    of: str = ""
    goal: str = ""
    met: bool | None = None

    @property
    def ratio(self) -> float | None:
        """How many times faster ours is than upstream's."""
        return self.upstream_ms / self.ours_ms if self.upstream_ms else None


@dataclass
class Report:
    """The rows of a run, with the machine and the bandwidth that they were measured on."""

    device: str = DEVICE
    rows: list[Row] = field(default_factory=list)
    copy_gbps: float = 0.0
    read_gbps: float = 0.0

    def add(self, row: Row, *, ratio: float | None = None, share: float | None = None) -> None:
        """Add a row, with what it has to reach."""
        goals = []
        if ratio is not None:
            goals.append((f"≥ {ratio:g} ×", (row.ratio or 0) >= ratio))
        if share is not None:
            goals.append((f"≥ {share:.0%}", (row.share or 0) >= share))
        if goals:
            row.goal, row.met = ", ".join(text for text, _ in goals), all(met for _, met in goals)
        self.rows.append(row)

    def show(self, as_json: bool) -> None:
        """Print the report: a table for people, or JSON."""
        versions = {name: importlib.metadata.version(name) for name in ("bitsandbytes-intel", "bitsandbytes", "torch")}
        name = torch.xpu.get_device_name() if self.device == "xpu" else self.device
        head = {"device": name, "threads": torch.get_num_threads(), **versions,
                "copy_gbps": round(self.copy_gbps, 1), "read_gbps": round(self.read_gbps, 1)}  # fmt: skip
        if as_json:
            print(json.dumps({**head, "rows": [{**asdict(row), "ratio": row.ratio} for row in self.rows]}, indent=1))
            return
        console = Console(width=None if sys.stdout.isatty() else 130)
        console.print(", ".join(f"{key} {value}" for key, value in head.items()))
        table = Table()
        for name in ("operator", "case", "ours ms", "upstream ms", "× upstream", "bandwidth", "goal", ""):
            table.add_column(name, justify="left" if name in ("operator", "case", "goal", "") else "right")
        for row in self.rows:
            table.add_row(
                row.operator, row.case, f"{row.ours_ms:.3f}", f"{row.upstream_ms:.3f}" if row.upstream_ms else "-",
                f"{row.ratio:.1f}" if row.ratio else "-", f"{row.share:.0%} of {row.of}" if row.share else "-",
                row.goal, "" if row.met is None else "met" if row.met else "MISSED",
            )  # fmt: skip
        console.print(table)


def name_of(dtype: torch.dtype) -> str:
    """A dtype's name without the module."""
    return str(dtype).removeprefix("torch.")


def timed(run: Callable[[], object]) -> float:
    """Seconds of one run, the device drained before and after."""
    xpu = torch.xpu.is_available()
    if xpu:
        torch.xpu.synchronize()
    start = time.perf_counter()
    run()
    if xpu:
        torch.xpu.synchronize()
    return time.perf_counter() - start


def in_turns(
    run: Callable[[int], object], *, rounds: int = 9, repeats: int = 3, upstream: bool = True
) -> tuple[float, float | None]:
    """Medians in milliseconds of run(i) with our operators and with upstream's, in turns; i counts up, to rotate."""
    ours: list[float] = []
    theirs: list[float] = []
    count = 0
    for turn in range(rounds + 1):
        for times, register in ((ours, True), (theirs, False)):
            if not register and not upstream:
                continue
            ops.register() if register else ops.unregister()
            for _ in range(repeats):
                count += 1
                elapsed = timed(lambda i=count: run(i))
                if turn:  # the first turn warms up
                    times.append(elapsed * 1e3)
    ops.register()
    return statistics.median(ours), statistics.median(theirs) if theirs else None


def measure_bandwidth(report: Report) -> None:
    """Fill in the copy bandwidth (bytes read plus written) and the read bandwidth, the best of several ways."""
    n = 1 << 28
    host = [torch.ones(n // 4) for _ in range(2)]
    device = [torch.ones(n // 4, device=report.device) for _ in range(2)]

    def best(ways: list[Callable[[], object]], size: int) -> float:
        return max(size / statistics.median(timed(way) for _ in range(7)) / 1e9 for way in ways)

    report.copy_gbps = best([lambda: host[1].copy_(host[0]), lambda: device[1].copy_(device[0])], 2 * n)
    report.read_gbps = best([lambda: host[0].sum(), lambda: host[0].max()], n)


def packed(
    n: int, k: int, copies: int, blocksize: int = 64, device: str = DEVICE
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Random NF4 weights of n rows and k columns with their statistics, so many copies of their own on the device."""
    made = []
    for _ in range(copies):
        codes = torch.randint(0, 256, (n * k // 2, 1), dtype=torch.uint8).to(device)
        absmax = (torch.rand(n * k // blocksize) + 0.5).to(device)
        made.append((codes, absmax))
    return made


def has_upstream() -> bool:
    """Whether upstream's own library for this device is loaded."""
    from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary, lib

    return not isinstance(lib, ErrorHandlerMockBNBNativeLibrary)
