#!/usr/bin/env python3
"""The SYCL kernels on an NVIDIA GPU, against the copy bandwidth of the device and bitsandbytes' own CUDA kernels.

    python bench.py DIR             the package's kernels: speed, every result checked, the goals
    python bench.py DIR --tune      the best of many shapes of each kernel (DIR made with --variants)

DIR is what make_ptx.py wrote. Needs torch with CUDA, rich, and bitsandbytes to compare with. Everything is timed from
CUDA graphs, on buffers in turn that are together several times the size of the L2 cache: weights come from memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from rig import (
    DATA_TYPES,
    FP4,
    GENERAL_8BIT,
    NF4,
    TABLES,
    Driver,
    DryDriver,
    Kernel,
    ceil_div,
    dequantize_launch,
    product_launch,
    read_kernels,
)

SHAPES = ((4096, 4096), (14336, 4096), (28672, 8192))
ROWS = (1, 2, 4, 8, 16, 32, 64)
"""Of the activations."""
BLOCKSIZE = {GENERAL_8BIT: 256, FP4: 64, NF4: 64}
TYPES = {"half": torch.float16, "bfloat16": torch.bfloat16, "float": torch.float32}
LABELS = {"half": "fp16", "bfloat16": "bf16", "float": "fp32"}
UNIT = {"half": 2.0**-11, "bfloat16": 2.0**-8, "float": 2.0**-20}
"""Relative error allowed, of a norm: the output's rounding; float32's is that of long sums."""


# ---- timing ----------------------------------------------------------------------------------------------------------
class Clock:
    """Times launches from a replayed graph; on a dry run only makes them."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.side = torch.cuda.Stream() if device == "cuda" else None

    def stream(self) -> int:
        """The stream that launches go to: torch's current one."""
        return torch.cuda.current_stream().cuda_stream if self.device == "cuda" else 0

    def time_us(self, run: Callable[[int], object], buffers: int, bytes_each: int, replays: int = 9) -> float:
        """Median time of one `run(i)`, i going round the buffers, in µs."""
        if self.device != "cuda":
            run(0)
            return 1e-3 * bytes_each
        # Long enough that starting the graph does not show: about a millisecond at 4 TB/s.
        rounds = max(1, ceil_div(2**32, bytes_each * buffers))
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(self.side):
            run(0)
            torch.cuda.synchronize()
            graph.capture_begin()
            for i in range(rounds * buffers):
                run(i % buffers)
            graph.capture_end()
            graph.replay()
            events = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 1)]
            events[0].record()
            for event in events[1:]:
                graph.replay()
                event.record()
        torch.cuda.synchronize()
        times = [a.elapsed_time(b) for a, b in itertools.pairwise(events)]
        graph.reset()
        return statistics.median(times) / (rounds * buffers) * 1e3

    def time_eager_us(self, run: Callable[[int], object], buffers: int, launches: int = 60) -> float:
        """The same without a graph, for what goes to the default stream or waits: mean time of one `run(i)`, in µs."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for i in range(3):
            run(i % buffers)
        torch.cuda.synchronize()
        begin.record()
        for i in range(launches):
            run(i % buffers)
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / launches * 1e3

    def copy_gbps(self, size: int) -> float:
        """Bandwidth of a device-to-device copy, bytes read and written, in GB/s."""
        buffers = max(1, ceil_div(2**30, size))
        x = torch.randint(0, 256, (buffers, size), dtype=torch.uint8, device=self.device)
        y = torch.empty_like(x)
        return 2 * size / self.time_us(lambda i: y[i].copy_(x[i]), buffers, 2 * size) / 1e3


# ---- what is measured ------------------------------------------------------------------------------------------------
@dataclass
class Row:
    """What was measured of one operator, type and size."""

    operator: str
    type: str
    shape: str
    kernel: str
    us: float
    share: float
    """Of the bandwidth of a large copy."""
    share_of_same_size: float
    """Of the bandwidth of a copy that moves as many bytes, timed in the same way."""
    upstream: str
    upstream_us: float | None
    ratio: float | None
    """Upstream's time over ours."""
    right: bool
    check: str
    times_us: dict[str, float]
    """Of each of our shapes."""
    goals: dict[str, bool] = field(default_factory=dict)


class Bench:
    """The device, the kernels and the bandwidths that everything is compared with."""

    def __init__(self, folder: Path, dry: bool) -> None:
        self.dry = dry
        self.device = "cpu" if dry else "cuda"
        if not dry:
            torch.zeros(1, device="cuda")  # torch makes the context first
        self.driver: Driver = DryDriver() if dry else Driver()
        self.clock = Clock(self.device)
        self.kernels = read_kernels(folder)
        begin = time.monotonic()
        self.driver.load(folder, self.kernels)
        self.kernels = [kernel for kernel in self.kernels if self.driver.can_run(kernel)]
        print(f"{self.driver.device_name}: {len(self.kernels)} kernels loaded in {time.monotonic() - begin:.1f} s")
        self.l2 = 2**20 if dry else torch.cuda.get_device_properties(0).L2_cache_size
        torch.manual_seed(1)
        begin = time.monotonic()
        self.copy = self.large_copy()
        while not dry and time.monotonic() - begin < 1:  # until the clocks are up
            self.copy = self.large_copy()
        print(f"copy {self.copy:.0f} GB/s, L2 {self.l2 >> 20} MB", flush=True)
        self.copies: dict[int, float] = {}
        self.upstream = not dry and self._has_upstream()

    @staticmethod
    def _has_upstream() -> bool:
        """Whether bitsandbytes is there with its CUDA library."""
        try:
            import bitsandbytes
        except Exception as error:
            print(f"bitsandbytes cannot be imported, no comparison: {error!r}")
            return False
        if type(bitsandbytes.cextension.lib).__name__ == "CudaBNBNativeLibrary":
            return True
        print("bitsandbytes has no CUDA library here, no comparison")
        return False

    def large_copy(self) -> float:
        """Bandwidth of a copy far larger than any cache."""
        return self.clock.copy_gbps(2**20 if self.dry else 2**30)

    def copy_like(self, moved: int) -> float:
        """Bandwidth of a copy that moves so many bytes in all, read and written."""
        size = ceil_div(moved, 2 << 20) << 20
        if size not in self.copies:
            self.copies[size] = self.clock.copy_gbps(size)
        return self.copies[size]

    def buffers_for(self, bytes_each: int) -> int:
        """How many buffers in turn keep the L2 cache from helping."""
        return 3 if self.dry else max(3, ceil_div(6 * self.l2, bytes_each))

    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(N, K) of the weights."""
        return ((64, 1024), (48, 2048)) if self.dry else SHAPES

    def fast_kernels(self, function: str, width: str, kind: str, **template: int) -> list[Kernel]:
        """The vectorised kernels of a function and type; `width` names the parameter that says how wide."""
        return [
            k
            for k in self.kernels
            if k.function == function
            and k.type == kind
            and (width not in k.template or k.number(width) > 1)
            and all(k.number(name) == value for name, value in template.items())
        ]


class Case:
    """One operator, type and size, with its buffers."""

    operator: str
    kernels: list[Kernel]
    count: int
    """Buffers in turn."""
    moved: int
    """Bytes that a launch has to read and write."""
    upstream_in_graph = True
    """Whether upstream's operators can be captured: those that ignore torch's stream, or wait, cannot."""

    def __init__(self, bench: Bench, kind: str, shape: tuple[int, int]) -> None:
        self.bench, self.kind, self.shape = bench, kind, shape
        self.dtype = TYPES[kind]

    def ours(self, i: int, kernel: Kernel) -> None:
        """Launch on buffer i."""
        raise NotImplementedError

    def theirs(self) -> dict[str, Callable[[int], object]]:
        """Upstream's operators for the same work."""
        raise NotImplementedError

    def check(self, kernel: Kernel) -> tuple[bool, str]:
        """Launch on a buffer of NaNs: whether every value is right, and how right."""
        raise NotImplementedError

    def measure(self, replays: int) -> Row | None:
        """Check and time every shape of the kernel, and upstream's operators."""
        clock, times, right, said = self.bench.clock, {}, True, ""
        for kernel in self.kernels:
            good, text = self.check(kernel)
            if not good:
                print(f"\nWRONG {kernel.name} {self.shape}: {text}", flush=True)
            right, said = right and good, text if good == right else said
            times[kernel.shape] = clock.time_us(partial(self.ours, kernel=kernel), self.count, self.moved, replays)
        if not times:
            return None
        upstream = {}
        if self.bench.upstream:
            upstream = {
                name: clock.time_us(run, self.count, self.moved)
                if self.upstream_in_graph
                else clock.time_eager_us(run, self.count)
                for name, run in self.theirs().items()
            }
        best = min(times, key=times.__getitem__)
        other = min(upstream, key=upstream.__getitem__) if upstream else ""
        us, other_us, gbps = times[best], upstream.get(other), self.moved / times[best] / 1e3
        return Row(
            self.operator,
            LABELS[self.kind],
            f"{self.shape[0]}x{self.shape[1]}",
            best,
            us,
            gbps / self.bench.copy,
            gbps / self.bench.copy_like(self.moved),
            other,
            other_us,
            other_us / us if other_us else None,
            right,
            said,
            times,
        )


class Dequantize(Case):
    """Blockwise dequantisation."""

    def __init__(
        self, bench: Bench, kind: str, shape: tuple[int, int], data_type: int, codes: torch.Tensor, out: torch.Tensor
    ) -> None:
        super().__init__(bench, kind, shape)
        self.operator = f"dequantise {DATA_TYPES[data_type]}"
        self.kernels = bench.fast_kernels("kDequantizeBlockwise", "NUM_PER_TH", kind, DATA_TYPE=data_type)
        self.data_type, self.blocksize, self.out = data_type, BLOCKSIZE[data_type], out
        self.n, self.count = shape[0] * shape[1], len(codes)
        self.a = codes if data_type == GENERAL_8BIT else codes[:, : self.n // 2]
        self.absmax = torch.rand((self.count, ceil_div(self.n, self.blocksize)), device=bench.device) + 0.01
        self.table = torch.rand(256, device=bench.device) * 2 - 1
        self.moved = self.a[0].nbytes + self.absmax[0].nbytes + self.out[0].nbytes
        self.expected: torch.Tensor | None = None

    def ours(self, i: int, kernel: Kernel) -> None:
        groups, values = dequantize_launch(
            kernel,
            code=self.table.data_ptr(),
            a=self.a[i].data_ptr(),
            absmax=self.absmax[i].data_ptr(),
            out=self.out[i].data_ptr(),
            blocksize=self.blocksize,
            n=self.n,
        )
        self.bench.driver.launch(kernel, groups, values, self.bench.clock.stream())

    def theirs(self) -> dict[str, Callable[[int], object]]:
        ops = torch.ops.bitsandbytes
        if self.data_type == GENERAL_8BIT:
            a = self.a.view(self.count, *self.shape)
            return {
                "dequantize_blockwise": lambda i: ops.dequantize_blockwise.out(
                    a[i], self.absmax[i], self.table, self.blocksize, self.dtype, out=self.out[i]
                )
            }
        name = "nf4" if self.data_type == NF4 else "fp4"
        return {
            "dequantize_4bit": lambda i: ops.dequantize_4bit.out(
                self.a[i].view(-1, 1), self.absmax[i], self.blocksize, name, self.shape, self.dtype, out=self.out[i]
            )
        }

    def check(self, kernel: Kernel) -> tuple[bool, str]:
        if self.expected is None and self.bench.upstream:
            for run in self.theirs().values():
                run(0)
            self.expected = self.out[0].clone()
        self.out[0].fill_(float("nan"))
        self.ours(0, kernel)
        if self.expected is None:
            return True, "not checked"
        difference = compare_bits(self.out[0], self.expected)
        return not difference, difference or "equal"


def compare_bits(got: torch.Tensor, expected: torch.Tensor) -> str:
    """How two tensors differ, or nothing where every bit is equal."""
    integer = torch.int32 if got.dtype == torch.float32 else torch.int16
    if torch.equal(got.view(integer), expected.view(integer)):
        return ""
    bits = int((got.view(integer) != expected.view(integer)).sum())
    return f"{bits} of {got.numel()} differ in bits, {int((got != expected).sum())} in value"


class Product(Case):
    """A few rows of activations times an NF4 matrix: gemv for one row, else gemm."""

    def __init__(
        self, bench: Bench, kind: str, shape: tuple[int, int], m: int, weights: torch.Tensor, absmax: torch.Tensor
    ) -> None:
        super().__init__(bench, kind, shape)
        self.operator = "gemv NF4" if m == 1 else f"gemm NF4 M={m}"
        self.kernels = bench.fast_kernels("kgemv_4bit_inference", "NUM_PER_THREAD", kind)
        if m > 1:
            self.kernels = (
                bench.fast_kernels("kgemm_4bit_inference_matrix", "WORDS", kind)
                or bench.fast_kernels("kgemm_4bit_inference_along_n", "SPLIT_K", kind)
                or bench.fast_kernels("kgemm_4bit_inference_along_k", "NUM_PER_THREAD", kind)
            )
        self.m, self.weights, self.absmax, self.count = m, weights, absmax, len(weights)
        self.x = torch.randn((m, shape[1]), device=bench.device).to(self.dtype)
        self.out = torch.empty((self.count, m, shape[0]), dtype=self.dtype, device=bench.device)
        self.moved = weights[0].nbytes + absmax[0].nbytes + self.x.nbytes + self.out[0].nbytes
        self.table = torch.from_numpy(TABLES[NF4].copy()).to(bench.device)
        self.expected = product_float64(self.x, weights[0], absmax[0], self.table, shape)

    def ours(self, i: int, kernel: Kernel) -> None:
        groups, values = product_launch(
            kernel,
            m=self.m,
            n=self.shape[0],
            k=self.shape[1],
            a=self.x.data_ptr(),
            b=self.weights[i].data_ptr(),
            absmax=self.absmax[i].data_ptr(),
            data_type=NF4,
            out=self.out[i].data_ptr(),
            blocksize=BLOCKSIZE[NF4],
        )
        self.bench.driver.launch(kernel, groups, values, self.bench.clock.stream())

    def theirs(self) -> dict[str, Callable[[int], object]]:
        ops, x, shape, blocksize = torch.ops.bitsandbytes, self.x, self.shape, BLOCKSIZE[NF4]
        operators: dict[str, Callable[[int], object]] = {
            "gemm_4bit": lambda i: ops.gemm_4bit(x, self.weights[i], shape, self.absmax[i], blocksize, "nf4")
        }
        if self.m == 1:
            operators["gemv_4bit"] = lambda i: ops.gemv_4bit.out(
                x, self.weights[i], shape, self.absmax[i], self.table, blocksize, out=self.out[i]
            )
        return operators

    def check(self, kernel: Kernel) -> tuple[bool, str]:
        self.out[0].fill_(float("nan"))
        self.ours(0, kernel)
        if self.bench.dry:
            self.out[0].copy_(self.expected)
        error = relative_error(self.out[0], self.expected)
        return error <= UNIT[self.kind], f"error {error:.1e}"


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm; NaN where anything is."""
    return float((got.double() - expected).norm() / expected.norm())


def product_float64(
    x: torch.Tensor, packed: torch.Tensor, absmax: torch.Tensor, table: torch.Tensor, shape: tuple[int, int]
) -> torch.Tensor:
    """The product with the dequantised matrix in float64, some of its rows at a time; blocks of 64."""
    n, k = shape
    rows = max(1, 2**24 // k)
    parts = []
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        some = packed.view(-1)[start * k // 2 : stop * k // 2]
        codes = torch.stack([some >> 4, some & 15], 1).view(-1)
        weight = table.double()[codes.int()].view(-1, 64)
        weight *= absmax[start * k // 64 : stop * k // 64, None].double()
        parts.append(x.double() @ weight.view(stop - start, k).T)
    return torch.cat(parts, 1)


def cases(bench: Bench) -> Iterator[Case]:
    """Everything to measure, one after the other, so that only one holds its buffers."""
    yield from import_module("cases_quantise").cases(bench)  # which imports this module
    for shape in bench.shapes():
        n = shape[0] * shape[1]
        for kind, dtype in TYPES.items():
            count = bench.buffers_for(n // 2 + n * dtype.itemsize)
            codes = torch.randint(0, 256, (count, n), dtype=torch.uint8, device=bench.device)
            out = torch.empty((count, *shape), dtype=dtype, device=bench.device)
            for data_type in DATA_TYPES:
                yield Dequantize(bench, kind, shape, data_type, codes, out)
            del codes, out
        count = bench.buffers_for(n // 2)
        weights = torch.randint(0, 256, (count, n // 2, 1), dtype=torch.uint8, device=bench.device)
        absmax = torch.rand((count, n // BLOCKSIZE[NF4]), device=bench.device) + 0.01
        for kind, m in itertools.product(TYPES, ROWS):
            yield Product(bench, kind, shape, m, weights, absmax)
        del weights, absmax


# ---- 64-bit sizes ----------------------------------------------------------------------------------------------------
def check_large(bench: Bench) -> list[str]:
    """Tensors of more than 2^31 elements, right up to their far end: what is wrong."""
    return [*large_dequantize(bench), *large_product(bench)]


def large_dequantize(bench: Bench) -> Iterator[str]:
    """8-bit and NF4 to half, any shape of the kernel."""
    n, last = (2**20 + 1001, 2**10) if bench.dry else (2**31 + 1001, 2**20)
    a = torch.randint(0, 256, (n,), dtype=torch.uint8, device=bench.device)
    table = torch.rand(256, device=bench.device)
    nf4 = torch.from_numpy(TABLES[NF4].copy()).to(bench.device)
    absmax = torch.rand(ceil_div(n, 64), device=bench.device)
    out = torch.empty(n, dtype=torch.float16, device=bench.device)
    at = torch.arange(n - last, n, device=bench.device)
    byte = a[at // 2].int()
    values = {GENERAL_8BIT: table[a[at].int()], NF4: nf4[torch.where(at % 2 == 0, byte >> 4, byte & 15)]}
    for kernel in bench.kernels:
        if kernel.function != "kDequantizeBlockwise" or kernel.type != "half" or kernel.number("DATA_TYPE") == FP4:
            continue
        out.fill_(float("nan"))
        groups, arguments = dequantize_launch(
            kernel,
            code=table.data_ptr(),
            a=a.data_ptr(),
            absmax=absmax.data_ptr(),
            out=out.data_ptr(),
            blocksize=64,
            n=n,
        )
        bench.driver.launch(kernel, groups, arguments, bench.clock.stream())
        expected = (values[kernel.number("DATA_TYPE")] * absmax[at // 64]).half()
        if bench.dry:
            out[at] = expected
        if difference := compare_bits(out[at], expected):
            yield f"{kernel.name} at {n} elements: {difference}"


def large_product(bench: Bench) -> Iterator[str]:
    """The last rows of a matrix of more than 2^31 elements, in float."""
    n, k = (1032, 1024) if bench.dry else (2**17 + 9, 2**14)
    first = n - 1000
    weights = torch.randint(0, 256, (n * k // 2,), dtype=torch.uint8, device=bench.device)
    absmax = torch.rand(n * k // 64, device=bench.device)
    x = torch.randn((1, k), device=bench.device)
    out = torch.empty((1, n), device=bench.device)
    nf4 = torch.from_numpy(TABLES[NF4].copy()).to(bench.device)
    expected = product_float64(x, weights[first * k // 2 :], absmax[first * k // 64 :], nf4, (n - first, k))
    for kernel in bench.kernels:
        if kernel.function != "kgemv_4bit_inference" or kernel.type != "float":
            continue
        out.fill_(float("nan"))
        groups, arguments = product_launch(
            kernel,
            m=1,
            n=n,
            k=k,
            a=x.data_ptr(),
            b=weights.data_ptr(),
            absmax=absmax.data_ptr(),
            data_type=NF4,
            out=out.data_ptr(),
            blocksize=64,
        )
        bench.driver.launch(kernel, groups, arguments, bench.clock.stream())
        if bench.dry:
            out[:, first:] = expected
        error = relative_error(out[:, first:], expected)
        if not error <= UNIT["float"]:
            yield f"{kernel.name} at N={n} K={k}: error {error:.1e}"


# ---- goals and output ------------------------------------------------------------------------------------------------
def set_goals(row: Row) -> None:
    """What is wanted of a row."""
    smallest, largest = (f"{n}x{k}" for n, k in (SHAPES[0], SHAPES[-1]))
    row.goals["right"] = row.right
    if share := import_module("cases_quantise").bar(row.operator):
        row.goals[f"{share:.0%} of a copy of the same size"] = row.share_of_same_size >= share
        return
    if row.operator in ("gemm NF4 M=4", "gemm NF4 M=16") and row.ratio is not None:
        row.goals["2 x upstream"] = row.ratio >= 2
    if row.type == "fp32":
        return
    if row.operator.startswith("dequantise"):
        row.goals["90 % of copy"] = row.share >= 0.90
    if not row.operator.startswith("gemv"):
        return
    if row.ratio is not None and row.shape == smallest:
        row.goals["not slower than upstream"] = row.ratio >= 1
    elif row.ratio is not None:
        row.goals["1.3 x upstream"] = row.ratio >= 1.3
    if row.shape == largest:
        row.goals["80 % of copy"] = row.share >= 0.80


def print_table(title: str, columns: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
    """With rich where it is installed."""
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(title)
        for line in [columns, *lines]:
            print(" | ".join(line))
        return
    table = Table(
        *columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for line in lines:
        table.add_row(*line)
    Console(width=200).print(table)


def show_best(rows: list[Row], top: int) -> None:
    """For each operator and type the shapes that lose least over all sizes: one shape has to serve them all."""
    lines: list[tuple[str, ...]] = []
    sizes = list(dict.fromkeys(row.shape for row in rows))
    for operator, kind in dict.fromkeys((row.operator, row.type) for row in rows):
        mine = [row for row in rows if (row.operator, row.type) == (operator, kind)]
        names = set.intersection(*(set(row.times_us) for row in mine))
        loss = {name: statistics.geometric_mean(row.times_us[name] / row.us for row in mine) for name in names}
        for name in sorted(loss, key=loss.__getitem__)[:top]:
            shares = [f"{row.share * row.us / row.times_us[name]:.1%}" for row in mine]
            lines.append((operator, kind, name, f"{loss[name]:.3f}", *shares))
    columns = ("operator", "to", "template arguments", "over the best", *(f"of copy {size}" for size in sizes))
    print_table("best shapes over all sizes", columns, lines)


def show(bench: Bench, rows: list[Row]) -> None:
    """The table, and the goals that were missed."""
    lines: list[tuple[str, ...]] = []
    for row in rows:
        missed = [goal for goal, met in row.goals.items() if not met]
        lines.append(
            (
                row.operator,
                row.type,
                row.shape,
                f"{row.us:.1f}",
                f"{row.share:.1%}",
                f"{row.share_of_same_size:.0%}",
                f"{row.upstream_us:.1f}" if row.upstream_us else "-",
                f"{row.ratio:.2f}" if row.ratio else "-",
                row.check,
                "MISSED: " + "; ".join(missed) if missed else "met",
                row.kernel,
            )
        )
    columns = (
        "operator",
        "to",
        "shape",
        "µs",
        "of copy",
        "of same size",
        "upstream µs",
        "ratio",
        "check",
        "goals",
        "template arguments",
    )
    print_table(f"{bench.driver.device_name}: copy {bench.copy:.0f} GB/s", columns, lines)
    goals = [met for row in rows for met in row.goals.values()]
    print(f"{sum(goals)} of {len(goals)} goals met")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, metavar="DIR")
    parser.add_argument("--tune", action="store_true", help="print the best shapes of each kernel")
    parser.add_argument("--top", type=int, default=5, help="with --tune: how many shapes to print (default: 5)")
    parser.add_argument("--only", metavar="OPERATOR", help="only operators whose name begins so, such as gemm")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here")
    parser.add_argument("--dry-run", action="store_true", help="everything but launches and timing: needs no GPU")
    options = parser.parse_args()

    begin = time.monotonic()
    bench = Bench(options.dir, options.dry_run)
    rows: list[Row] = []
    for case in cases(bench):
        if options.only and not case.operator.startswith(options.only):
            continue
        if row := case.measure(5 if options.tune else 15):
            set_goals(row)
            rows.append(row)
            print(".", end="", flush=True)
    print()
    wrong = [] if options.tune or options.only else check_large(bench)
    if options.tune:
        show_best(rows, options.top)
    else:
        show(bench, rows)
    for line in wrong:
        print("WRONG", line)
    for kernel in bench.kernels:
        registers, local = bench.driver.resources(kernel)
        if local and not options.tune:
            print(f"{kernel.name}: {local} bytes of local memory a thread, {registers} registers")
    if options.json:
        content = {
            "device": bench.driver.device_name,
            "copy_gbps": bench.copy,
            "rows": [asdict(row) for row in rows],
            "wrong": wrong,
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    print(f"copy at the end {bench.large_copy():.0f} GB/s; {time.monotonic() - begin:.0f} s in all")
    sys.exit(bool(wrong) or not all(row.right for row in rows))


if __name__ == "__main__":
    main()
