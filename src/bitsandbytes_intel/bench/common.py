"""What the operators' benchmarks share: upstream's operators and ours in turns, bandwidth in the same run, goals.

Every benchmark times `torch.ops.bitsandbytes` as a user calls it. Ours, upstream's and other rivals take turns within
one process, the operands rotate so that they come from memory, and the figures are medians. Without an Intel GPU,
`xpu` is the virtual XPU, where only ratios and shares of bandwidth mean anything.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch

from .. import cpu, env, ops

BNB = torch.ops.bitsandbytes
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
BENCHMARKS = (
    "gemm_4bit",
    "gemv_4bit",
    "quantize_blockwise",
    "dequantize_blockwise",
    "int8",
    "optimizer_8bit_blockwise",
    "optimizer_32bit",
)
CPU_BENCHMARKS = (*BENCHMARKS, "gemm_4bit_transposed", "peers")  # these are of the CPU alone
LEAST_ROUNDS = 3
ROTATED = 256 << 20  # bytes of operands in rotation: more than any cache
_PAUSE = 0.02  # seconds: another library's threads may go on spinning after their work
_T = TypeVar("_T")

# One call, by its number: it picks the operands.
Run = Callable[[int], object]


@dataclass
class Row:
    """One measured case; times in milliseconds, `share` of the bandwidth named in `of`, `other` another rival.

    `limit_ms` is the time that the bytes take at this machine's bandwidth, or the operations at torch's own best speed
    of a product, whichever is more.
    """

    operator: str
    case: str
    ours_ms: float
    upstream_ms: float | None = None
    share: float | None = None
    of: str = ""
    other: str = ""
    other_ms: float | None = None
    limit_ms: float | None = None
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
    """The rows of a run on one device, with the bandwidth that was measured in it.

    Attributes:
        device: ``"cpu"`` or ``"xpu"``.
        quick: time few cases, and each for a short time.
        operators: time these alone; empty for all.
        advance: called before each case with a text that names it.
        caller_processors: those that the calling thread keeps to while it is timed; empty for any.
    """

    device: str
    quick: bool = False
    operators: frozenset[str] = frozenset()
    advance: Callable[[str], None] = lambda text: None
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    copy_gbps: float = 0.0
    read_gbps: float = 0.0
    caller_processors: frozenset[int] = frozenset()
    _peaks: dict[torch.dtype, float] = field(default_factory=dict)

    def some(self, values: Sequence[_T], *chosen: _T) -> Sequence[_T]:
        """The values to go through: all; where it has to be quick the chosen ones, or if there are none the first."""
        return values if not self.quick else chosen or values[:1]

    def wants(self, *operators: str) -> bool:
        """Whether any of these operators is to be timed."""
        return not self.operators or not self.operators.isdisjoint(operators)

    def peak(self, dtype: torch.dtype) -> float:
        """The operations a second of torch's own product of a dtype on this device; 16 bits may go through float32."""
        if dtype not in self._peaks:
            m, n = 512, 2048
            whole = dtype == torch.int8
            a, b = (
                (torch.randint(-9, 9, (r, n), dtype=dtype) if whole else torch.randn(r, n).to(dtype)).to(self.device)
                for r in (m, n)
            )
            product = torch._int_mm if whole else torch.mm
            seconds = statistics.median(self.timed(lambda: product(a, b.t())) for _ in range(5))
            self._peaks[dtype] = 2 * m * n * n / seconds
        if dtype in (torch.float16, torch.bfloat16):
            return max(self._peaks[dtype], self.peak(torch.float32))
        return self._peaks[dtype]

    def timed(self, run: Callable[[], object]) -> float:
        """Seconds of one run, the device drained before and after."""
        if self.on_cpu:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        torch.xpu.synchronize()
        start = time.perf_counter()
        run()
        torch.xpu.synchronize()
        return time.perf_counter() - start

    @property
    def on_cpu(self) -> bool:
        """Whether these are the CPU's operators."""
        return self.device == "cpu"

    @property
    def rival(self) -> bool:
        """Whether upstream answers; without its library for CPUs plain torch would, and ours are timed alone."""
        return not self.on_cpu or has_upstream()

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
        operations: float | None = None,
        unit: torch.dtype = torch.float32,
        rounds: int = 9,
        repeats: int = 3,
        calls: int = 1,
        ratio: float | None = None,
        share: float | None = None,
        other_most: float | None = None,
        most_us: float | None = None,
    ) -> None:
        """Time a case and add its row, unless the operator is not wanted.

        Args:
            operator: the operator's name.
            case: shapes and dtypes, for people.
            run: our call.
            upstream: whether upstream's operators are timed too, or the call that is timed with them instead of `run`.
            other: another rival, and its call.
            moved: bytes that have to be moved at least.
            of: which bandwidth `moved` is compared with, "copy" or "read".
            operations: multiplications and additions.
            unit: the dtype whose product in torch is the limit of the operations.
            rounds: turns at most; fewer where they take long.
            repeats: measurements in a turn.
            calls: calls in a measurement.
            ratio: goal, times as fast as upstream's.
            share: goal, part of the bandwidth.
            other_most: goal, time as a multiple of the other rival's.
            most_us: goal, microseconds of a call.
        """
        if not self.wants(operator):
            return
        self.advance(f"{operator}: {case}")
        if self.quick:
            rounds, repeats = LEAST_ROUNDS, min(repeats, 2)
        runs = {"ours": run}
        if upstream and self.rival:
            runs["upstream"] = run if upstream is True else upstream
        if other:
            runs["other"] = other[1]
        times = self.in_turns(runs, rounds=rounds, repeats=repeats, calls=calls)
        row = Row(operator, case, times["ours"], times.get("upstream"))
        if other:
            row.other, row.other_ms = other[0], times["other"]
        if moved is not None:
            row.of = of
            row.limit_ms = moved / {"copy": self.copy_gbps, "read": self.read_gbps}[of] / 1e6
            row.share = row.limit_ms / row.ours_ms
        if operations is not None:
            row.limit_ms = max(row.limit_ms or 0, operations / self.peak(unit) * 1e3)
        goals = []
        if ratio is not None and self.rival:
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

    def in_turns(self, runs: dict[str, Run], *, rounds: int = 9, repeats: int = 3, calls: int = 1) -> dict[str, float]:
        """Medians in milliseconds of each call, in turns; "upstream" with upstream's operators, all others with ours.

        The first turn warms up. After some seconds, and three turns, it ends before all rounds are done.
        """
        times: dict[str, list[float]] = {name: [] for name in runs}
        counts = dict.fromkeys(runs, 0)

        def measure(name: str) -> float:
            start = counts[name]
            counts[name] += calls
            return self.timed(lambda: [runs[name](i) for i in range(start + 1, start + calls + 1)]) / calls

        begin, seconds = time.perf_counter(), 0.7 if self.quick else 4.0
        anywhere = os.sched_getaffinity(0)
        try:
            for turn in range(rounds + 1):
                if turn > LEAST_ROUNDS and time.perf_counter() - begin > seconds:
                    break
                if turn == 1 and self.caller_processors:  # not before all have their threads, which would inherit it
                    os.sched_setaffinity(0, self.caller_processors)
                for name in runs:
                    ops.unregister() if name == "upstream" else ops.register()
                    if "other" in runs or not self.on_cpu:  # on a virtual XPU, torch's threads or SYCL's
                        time.sleep(_PAUSE)
                        measure(name)
                    elapsed = [measure(name) * 1e3 for _ in range(repeats if turn else 1)]
                    if turn:
                        times[name] += elapsed
        finally:
            ops.register()
            os.sched_setaffinity(0, anywhere)
        return {name: statistics.median(each) for name, each in times.items()}

    def measure_bandwidth(self) -> None:
        """Fill in the copy bandwidth (bytes read plus written) and the read bandwidth, the best of several ways."""
        n = 1 << 28
        host = [torch.ones(n // 4) for _ in range(2)]
        device = [torch.ones(n // 4, device=self.device) for _ in range(2)]

        def best(ways: list[Callable[[], object]], size: int) -> float:
            return max(size / statistics.median(self.timed(way) for _ in range(7)) / 1e9 for way in ways)

        self.copy_gbps = best([lambda: host[1].copy_(host[0]), lambda: device[1].copy_(device[0])], 2 * n)
        self.read_gbps = best([lambda: host[0].sum(), lambda: host[0].max()], n)

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

    def data(self) -> dict[str, Any]:
        """All of it, for JSON."""
        rows = [{**asdict(row), "ratio": row.ratio, "other_ratio": row.other_ratio} for row in self.rows]
        return {**self.head(), "rows": rows, "notes": self.notes}

    def rotation(self, make: Callable[[], torch.Tensor], least: int = 2) -> list[torch.Tensor]:
        """A tensor and copies of it, so many that together they do not fit a cache."""
        first = make()
        copies = max(least, -(-ROTATED // max(1, first.numel() * first.element_size())))
        return [first, *(first.clone() for _ in range(copies - 1))]

    def packed(self, n: int, k: int, blocksize: int = 64) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Random NF4 weights of n rows and k columns with their statistics, in rotation."""
        codes = self.rotation(lambda: torch.randint(0, 256, (n * k // 2, 1), dtype=torch.uint8).to(self.device))
        absmax = (torch.rand(n * k // blocksize) + 0.5).to(self.device)
        return [(each, absmax.clone()) for each in codes]


def cpu_name() -> str:
    """The CPU's name, as the system has it."""
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "cpu"


def name_of(dtype: torch.dtype) -> str:
    """A dtype's name without the module."""
    return str(dtype).removeprefix("torch.")


def has_upstream() -> bool:
    """Whether upstream's own library for this device is loaded."""
    from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary, lib

    return not isinstance(lib, ErrorHandlerMockBNBNativeLibrary)


def operators_of(benchmark: str) -> tuple[str, ...]:
    """The operators that a benchmark times."""
    return importlib.import_module(f"{__package__}.cases.{benchmark}").OPERATORS


def run(report: Report, begin: Callable[[str, int, int], None] = lambda name, done, all_of_them: None) -> None:
    """Measure the bandwidth, then go through the benchmarks of the report's device.

    Args:
        report: gets the rows.
        begin: called before each benchmark with its name, the number of those that are done, and of all.
    """
    report.measure_bandwidth()
    names = CPU_BENCHMARKS if report.on_cpu else BENCHMARKS
    for done, name in enumerate(names):
        if report.wants(*operators_of(name)):
            begin(name, done, len(names))
            importlib.import_module(f"{__package__}.cases.{name}").add_rows(report)
