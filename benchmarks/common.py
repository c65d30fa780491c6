"""What the benchmarks share: upstream's operators and ours in turns, bandwidth in the same run, a table with goals.

Every benchmark times `torch.ops.bitsandbytes` as a user calls it. Ours, upstream's and other rivals take turns within
one process, the operands rotate so that they come from memory, and the figures are medians. Without an Intel GPU,
`xpu` is the virtual XPU, where only ratios and shares of bandwidth mean anything.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from rich.console import Console
from rich.table import Table

from bitsandbytes_intel import cpu, env, ops

BNB = torch.ops.bitsandbytes
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
ROTATED = 256 << 20  # bytes of operands in rotation: more than any cache
SECONDS = 4.0  # for one row, where its operators are slow
LEAST_ROUNDS = 3

# One call, by its number: it picks the operands.
Run = Callable[[int], object]


@dataclass
class Row:
    """One measured case; times in milliseconds, `share` of the bandwidth named in `of`, `other` another rival."""

    operator: str
    case: str
    ours_ms: float
    upstream_ms: float | None = None
    share: float | None = None
    of: str = ""
    other: str = ""
    other_ms: float | None = None
    goal: str = ""
    met: bool | None = None

    @property
    def ratio(self) -> float | None:
        """How many times faster ours is than upstream's."""
        return self.upstream_ms / self.ours_ms if self.upstream_ms else None

    @property
    def other_ratio(self) -> float | None:
        """How many times faster ours is than the other rival."""
        return self.other_ms / self.ours_ms if self.other_ms else None


@dataclass
class Report:
    """The rows of a run, with the machine and the bandwidth that they were measured on."""

    device: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    copy_gbps: float = 0.0
    read_gbps: float = 0.0

    @property
    def on_cpu(self) -> bool:
        """Whether these are the CPU's operators."""
        return self.device == "cpu"

    def time(
        self,
        operator: str,
        case: str,
        run: Run,
        *,
        upstream: bool | Run = True,
        other: tuple[str, Run] | None = None,
        moved: float | None = None,
        of: str = "copy",
        rounds: int = 9,
        repeats: int = 3,
        calls: int = 1,
        ratio: float | None = None,
        share: float | None = None,
        other_most: float | None = None,
        most_us: float | None = None,
    ) -> Row:
        """Time a case and add its row.

        Args:
            operator: the operator's name.
            case: shapes and dtypes, for people.
            run: our call.
            upstream: whether upstream's operators are timed too, or the call that is timed with them instead of `run`.
            other: another rival, and its call.
            moved: bytes that have to be moved at least.
            of: which bandwidth `moved` is compared with, "copy" or "read".
            rounds: turns at most; fewer where they take long.
            repeats: measurements in a turn.
            calls: calls in a measurement.
            ratio: goal, times as fast as upstream's.
            share: goal, part of the bandwidth.
            other_most: goal, time as a multiple of the other rival's.
            most_us: goal, microseconds of a call.
        """
        runs = {"ours": run}
        if upstream:
            runs["upstream"] = run if upstream is True else upstream
        if other:
            runs["other"] = other[1]
        times = in_turns(runs, rounds=rounds, repeats=repeats, calls=calls)
        row = Row(operator, case, times["ours"], times.get("upstream"))
        if other:
            row.other, row.other_ms = other[0], times["other"]
        if moved is not None:
            row.of = of
            row.share = moved / row.ours_ms / 1e6 / {"copy": self.copy_gbps, "read": self.read_gbps}[of]
        goals = []
        if ratio is not None:
            goals.append((f"≥ {ratio:g} ×", (row.ratio or 0) >= ratio))
        if share is not None:
            goals.append((f"≥ {share:.0%}", (row.share or 0) >= share))
        if other_most is not None and row.other_ms:
            goals.append((f"≤ {other_most:g} of other's", row.ours_ms <= other_most * row.other_ms))
        if most_us is not None:
            goals.append((f"≤ {most_us:g} µs", row.ours_ms * 1e3 <= most_us))
        if goals:
            row.goal, row.met = ", ".join(text for text, _ in goals), all(met for _, met in goals)
        self.rows.append(row)
        return row

    def head(self) -> dict[str, object]:
        """The machine and the versions."""
        head: dict[str, object] = {"device": cpu_name() if self.on_cpu else torch.xpu.get_device_name()}
        if self.on_cpu:
            head["isa"] = env.ISA.get() or list(cpu.isas())[-1]
            if "ONEDNN_MAX_CPU_ISA" in os.environ:
                head["onednn_max_cpu_isa"] = os.environ["ONEDNN_MAX_CPU_ISA"]
        head["threads"] = torch.get_num_threads()
        head |= {name: importlib.metadata.version(name) for name in ("bitsandbytes-intel", "bitsandbytes", "torch")}
        return head | {"copy_gbps": round(self.copy_gbps, 1), "read_gbps": round(self.read_gbps, 1)}

    def show(self, as_json: bool) -> None:
        """Print the report: a table for people, or JSON."""
        if as_json:
            rows = [{**asdict(row), "ratio": row.ratio, "other_ratio": row.other_ratio} for row in self.rows]
            print(json.dumps({**self.head(), "rows": rows, "notes": self.notes}, indent=1))
            return
        console = Console(width=None if sys.stdout.isatty() else 170)
        console.print(", ".join(f"{key} {value}" for key, value in self.head().items()))
        table = Table()
        left = ("operator", "case", "other", "goal", "")
        for name in ("operator", "case", "ours ms", "upstream ms", "× upstream", "bandwidth", "other", "× other",
                     "goal", ""):  # fmt: skip
            table.add_column(name, justify="left" if name in left else "right")
        for row in self.rows:
            table.add_row(
                row.operator, row.case, f"{row.ours_ms:.3f}", f"{row.upstream_ms:.3f}" if row.upstream_ms else "-",
                f"{row.ratio:.1f}" if row.ratio else "-", f"{row.share:.0%} of {row.of}" if row.share else "-",
                row.other, f"{row.other_ratio:.2f}" if row.other_ratio else "", row.goal,
                "" if row.met is None else "met" if row.met else "MISSED",
            )  # fmt: skip
        console.print(table)
        for note in self.notes:
            console.print(note)


def cpu_name() -> str:
    """The CPU's name, as the system has it."""
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "cpu"


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


def in_turns(runs: dict[str, Run], *, rounds: int = 9, repeats: int = 3, calls: int = 1) -> dict[str, float]:
    """Medians in milliseconds of each call, in turns; "upstream" is run with upstream's operators, others with ours.

    The first turn warms up. After `SECONDS`, and three turns, it ends before all rounds are done.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    counts = dict.fromkeys(runs, 0)

    def measure(name: str) -> float:
        start = counts[name]
        counts[name] += calls
        return timed(lambda: [runs[name](i) for i in range(start + 1, start + calls + 1)]) / calls

    begin = time.perf_counter()
    for turn in range(rounds + 1):
        if turn > LEAST_ROUNDS and time.perf_counter() - begin > SECONDS:
            break
        for name in runs:
            ops.unregister() if name == "upstream" else ops.register()
            elapsed = [measure(name) * 1e3 for _ in range(repeats if turn else 1)]
            if turn:
                times[name] += elapsed
    ops.register()
    return {name: statistics.median(each) for name, each in times.items()}


def measure_bandwidth(report: Report) -> None:
    """Fill in the copy bandwidth (bytes read plus written) and the read bandwidth, the best of several ways."""
    n = 1 << 28
    host = [torch.ones(n // 4) for _ in range(2)]
    device = [torch.ones(n // 4, device=report.device) for _ in range(2)]

    def best(ways: list[Callable[[], object]], size: int) -> float:
        return max(size / statistics.median(timed(way) for _ in range(7)) / 1e9 for way in ways)

    report.copy_gbps = best([lambda: host[1].copy_(host[0]), lambda: device[1].copy_(device[0])], 2 * n)
    report.read_gbps = best([lambda: host[0].sum(), lambda: host[0].max()], n)


def rotation(make: Callable[[], torch.Tensor], least: int = 2) -> list[torch.Tensor]:
    """A tensor and copies of it, so many that together they do not fit a cache."""
    first = make()
    copies = max(least, -(-ROTATED // max(1, first.numel() * first.element_size())))
    return [first, *(first.clone() for _ in range(copies - 1))]


def packed(n: int, k: int, device: str, blocksize: int = 64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Random NF4 weights of n rows and k columns with their statistics, in rotation."""
    codes = rotation(lambda: torch.randint(0, 256, (n * k // 2, 1), dtype=torch.uint8).to(device))
    absmax = (torch.rand(n * k // blocksize) + 0.5).to(device)
    return [(each, absmax.clone()) for each in codes]


def has_upstream() -> bool:
    """Whether upstream's own library for this device is loaded."""
    from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary, lib

    return not isinstance(lib, ErrorHandlerMockBNBNativeLibrary)
