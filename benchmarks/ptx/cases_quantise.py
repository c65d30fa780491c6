"""Quantisation, int8 and 8-bit optimizers for bench.py: launches, upstream's operators for the same work, the bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from bench import BLOCKSIZE, TYPES, Bench, Case
from rig import DATA_TYPES, FP4, GENERAL_8BIT, NF4, Kernel, ceil_div, shift_of, tiles_launch

BARS = {
    "quantise NF4": 0.50,
    "quantise FP4": 0.50,
    "quantise 8-bit": 0.35,
    "optimizer": 0.35,
    "int8": 0.70,
}
"""Beginning of an operator's name -> share of a copy of the same size that it has to reach."""
OPTIMIZERS = {
    "adam": "ADAM", "ademamix": "ADEMAMIX", "lion": "LION", "momentum": "MOMENTUM", "rmsprop": "RMSPROP",
    "adagrad": "ADAGRAD",
}  # fmt: skip


def dynamic_map(signed: bool, device: str) -> torch.Tensor:
    """Bitsandbytes' 8-bit map, or any increasing one where bitsandbytes is not installed."""
    try:
        from bitsandbytes.functional import create_dynamic_map
    except Exception:
        return torch.linspace(-1.0 if signed else 0.0, 1, 256, device=device)
    return create_dynamic_map(signed=signed).to(device)


def differing(got: torch.Tensor, expected: torch.Tensor) -> int:
    """How many elements differ."""
    return int((got != expected).sum())


class Quantise(Case):
    """Blockwise quantisation; every code and absmax must be upstream's."""

    upstream_in_graph = False

    def __init__(self, bench: Bench, kind: str, shape: tuple[int, int], data_type: int, a: torch.Tensor) -> None:
        super().__init__(bench, kind, shape)
        self.operator = f"quantise {DATA_TYPES[data_type]}"
        self.kernels = bench.fast_kernels("kQuantizeBlockwise", "NUM_PER_TH", kind, DATA_TYPE=data_type)
        self.data_type, self.blocksize, self.a = data_type, BLOCKSIZE[data_type], a
        self.n, self.count = shape[0] * shape[1], len(a)
        size = self.n if data_type == GENERAL_8BIT else self.n // 2
        self.out = torch.empty((self.count, size), dtype=torch.uint8, device=bench.device)
        self.absmax = torch.empty((self.count, ceil_div(self.n, self.blocksize)), device=bench.device)
        self.code = dynamic_map(True, bench.device)
        self.moved = a[0].nbytes + self.out[0].nbytes + self.absmax[0].nbytes

    def ours(self, i: int, kernel: Kernel) -> None:
        values = {
            "code": self.code.data_ptr(), "A": self.a[i].data_ptr(), "absmax": self.absmax[i].data_ptr(),
            "out": self.out[i].data_ptr(), "blocksize": self.blocksize, "shift": shift_of(self.blocksize),
            "vectorised": 1, "n": self.n,
        }  # fmt: skip
        groups = ceil_div(self.n, kernel.number("TILE_SIZE"))
        self.bench.driver.launch(kernel, groups, values, self.bench.clock.stream())

    def upstream(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        ops = torch.ops.bitsandbytes
        if self.data_type == GENERAL_8BIT:
            return ops.quantize_blockwise(self.a[i], self.code, self.blocksize)
        return ops.quantize_4bit(self.a[i], self.blocksize, "nf4" if self.data_type == NF4 else "fp4", torch.uint8)

    def theirs(self) -> dict[str, Callable[[int], object]]:
        return {"quantize": self.upstream}

    def check(self, kernel: Kernel) -> tuple[bool, str]:
        self.out[0].fill_(0xEE)
        self.absmax[0].fill_(float("nan"))
        self.ours(0, kernel)
        if not self.bench.upstream:
            return True, "not checked"
        codes, absmax = self.upstream(0)
        bad = differing(self.out[0], codes.view(-1)), differing(self.absmax[0], absmax)
        # csrc/reciprocal.h: of float32 maxima, one in a hundred has a scale one unit off.
        allowed = self.n * 1e-6 if self.kind == "float" else 0
        return bad[0] <= allowed and not bad[1], f"{bad[0]} bytes, {bad[1]} absmax differ" if any(bad) else "equal"


class Optimizer8bit(Case):
    """A step with 8-bit states, in place; how many codes differ from upstream's is told."""

    upstream_in_graph = False

    def __init__(self, bench: Bench, kind: str, name: str, n: int) -> None:
        super().__init__(bench, kind, (1, n))
        self.operator, self.name, self.n = f"optimizer {name}, 8-bit states", name, n
        self.states = {"adam": 2, "ademamix": 3}.get(name, 1)
        function = f"kOptimizerStatic8bit{min(self.states, 2)}StateBlockwise"
        wanted = f"bnb::{OPTIMIZERS[name]}"
        self.kernels = [k for k in bench.kernels
                        if k.function == function and k.type == kind and k.template["OPTIMIZER"] == wanted]  # fmt: skip
        rows, blocks, device = (2 if name == "ademamix" else 1), ceil_div(n, 256), bench.device
        self.moved = n * (3 * self.dtype.itemsize + 2 * self.states) + 8 * blocks * self.states
        self.count = bench.buffers_for(self.moved)
        self.sets: list[dict[str, Any]] = [
            {
                "g": (torch.randn(n, device=device) * 0.1).to(self.dtype),
                "p": torch.randn(n, device=device).to(self.dtype),
                "state1": torch.randint(0, 256, (rows * n,), dtype=torch.uint8, device=device),
                "state2": torch.randint(0, 256, (n,), dtype=torch.uint8, device=device),
                "absmax1": torch.rand(rows * blocks, device=device) * 0.1,
                "absmax2": torch.rand(blocks, device=device) * 0.01,
            }
            for _ in range(self.count)
        ]
        self.maps = dynamic_map(True, device), dynamic_map(False, device)

    def values(self, tensors: dict[str, Any]) -> dict[str, Any]:
        absmax = tensors["absmax1"].data_ptr()
        return {name: t.data_ptr() for name, t in tensors.items()} | {
            "quantiles1": self.maps[0].data_ptr(), "quantiles2": self.maps[1].data_ptr(),
            "absmax3": absmax + 4 * ceil_div(self.n, 256), "beta1": 0.9, "beta2": 0.999, "beta3": 0.9999, "alpha": 5.0,
            "eps": 1e-8, "weight_decay": 0.01, "correction1": 1 - 0.9**7, "correction2": (1 - 0.999**7) ** 0.5,
            "lr": 1e-3, "gnorm_scale": 1.0, "skip_zeros": 0, "wide": 1, "first": 0, "n": self.n,
        }  # fmt: skip

    def ours(self, i: int, kernel: Kernel) -> None:
        groups = ceil_div(self.n, kernel.number("TILE_SIZE"))
        self.bench.driver.launch(kernel, groups, self.values(self.sets[i]), self.bench.clock.stream())

    def upstream(self, tensors: dict[str, Any]) -> None:
        two, rows = self.states > 1, 2 if self.states == 3 else 1
        state1, absmax1 = tensors["state1"], tensors["absmax1"]
        torch.ops.bitsandbytes.optimizer_update_8bit_blockwise(
            self.name, tensors["g"], tensors["p"], state1.view(rows, -1) if rows == 2 else state1,
            tensors["state2"] if two else None, 0.9, 0.999, 0.9999, 5.0, 1e-8, 7, 1e-3, self.maps[0],
            self.maps[1] if two else None, absmax1.view(rows, -1) if rows == 2 else absmax1,
            tensors["absmax2"] if two else None, 0.01, 1.0, False,
        )  # fmt: skip

    def theirs(self) -> dict[str, Callable[[int], object]]:
        return {"optimizer_update_8bit_blockwise": lambda i: self.upstream(self.sets[i])}

    def check(self, kernel: Kernel) -> tuple[bool, str]:
        mine = {name: t.clone() for name, t in self.sets[0].items()}
        theirs = {name: t.clone() for name, t in mine.items()}
        groups = ceil_div(self.n, kernel.number("TILE_SIZE"))
        self.bench.driver.launch(kernel, groups, self.values(mine), self.bench.clock.stream())
        if not self.bench.upstream:
            return True, "not checked"
        self.upstream(theirs)
        codes = [differing(mine[s], theirs[s]) for s in ("state1", "state2")[: 1 + (self.states > 1)]]
        far = max(int((mine[s].int() - theirs[s].int()).abs().max()) for s in ("state1", "state2"))
        error = float((mine["p"].float() - theirs["p"].float()).abs().max())
        share = max(codes) / self.n
        return share < 1e-3, f"codes {share:.1e} (by {far}), p {error:.1e}"


class Int8(Case):
    """A pass of LLM.int8(); what upstream has for it on CUDA must give the same."""

    upstream_in_graph = False

    def __init__(self, bench: Bench, kind: str, shape: tuple[int, int], operator: str, function: str, **template: int):
        super().__init__(bench, kind, shape)
        self.operator = f"int8 {operator}"
        self.kernels = bench.fast_kernels(function, "NUM_PER_TH", kind, **template)
        rows, cols = shape
        n, device = rows * cols, bench.device
        sizes = {"kInt8VectorQuant": self.dtype.itemsize + 1, "kInt8VectorDequant": 1 + self.dtype.itemsize,
                 "kdequant_mm_int32": 4 + self.dtype.itemsize, "kColumnStats": self.dtype.itemsize,
                 "kInt8ColumnQuant": self.dtype.itemsize + 1}  # fmt: skip
        self.moved, self.function = n * sizes[function], function
        self.count = bench.buffers_for(self.moved)
        self.sparse = template.get("SPARSE_DECOMP", 0)
        self.height = max(64, ceil_div(rows, 128)) if function == "kColumnStats" else 32 if n > 2**25 else 16
        self.second = bench.fast_kernels("kColumnStats", "NUM_PER_TH", "float")[0]  # over the parts of the first
        scaled = function == "kdequant_mm_int32"
        self.sets = []
        for _ in range(self.count):
            a = torch.randn(rows, cols, device=device)
            if self.sparse:
                a[:, :: cols // 6] = 8
            source = a.to(self.dtype)
            if scaled:
                source = (a * 2**18).to(torch.int32)
            if function == "kInt8VectorDequant":
                source = (a * 30).to(torch.int8)
            out = torch.empty(n, dtype=torch.int8 if "Quant" in function else self.dtype, device=device)
            self.sets.append((source, out))
        self.rows_stats = torch.rand(rows, device=device) + 1
        self.cols_stats = torch.rand(cols, device=device) + 4
        self.stats = torch.empty(max(rows, 128 * cols), device=device)
        self.column_stats = torch.empty(cols, device=device)
        self.outliers = torch.zeros(cols, dtype=torch.uint8, device=device)

    def ours(self, i: int, kernel: Kernel) -> None:
        (a, out), (rows, cols) = self.sets[i], self.shape
        columns, by_row = self.cols_stats.data_ptr(), self.rows_stats.data_ptr()
        values = {
            "A": a.data_ptr(), "out": self.stats.data_ptr() if self.function == "kColumnStats" else out.data_ptr(),
            "rowStats": self.stats.data_ptr() if self.function == "kInt8VectorQuant" else by_row, "colStats": columns,
            "outliers": self.outliers.data_ptr() if self.sparse else None, "threshold": 6.0 if self.sparse else 0.0,
            "stats": by_row, "stride": 1, "bias": None, "bias_type": -1, "addend": None, "height": self.height,
            "rows": rows, "cols": cols,
        }  # fmt: skip
        groups = rows if self.function == "kInt8VectorQuant" else tiles_launch(kernel, rows, cols, self.height)
        self.bench.driver.launch(kernel, groups, values, self.bench.clock.stream())
        if self.function == "kColumnStats":
            parts = ceil_div(rows, self.height)
            values |= {"A": self.stats.data_ptr(), "out": self.column_stats.data_ptr(), "rows": parts, "height": parts}
            groups = tiles_launch(self.second, parts, cols, parts)
            self.bench.driver.launch(self.second, groups, values, self.bench.clock.stream())

    def theirs(self) -> dict[str, Callable[[int], object]]:
        ops = torch.ops.bitsandbytes
        if self.kind == "half" and self.function == "kInt8VectorQuant":
            return {"int8_vectorwise_quant": lambda i: ops.int8_vectorwise_quant(self.sets[i][0], 6.0 * self.sparse)}
        if self.kind == "half" and self.function == "kdequant_mm_int32":
            return {"int8_mm_dequant": lambda i: ops.int8_mm_dequant(self.sets[i][0], self.rows_stats, self.cols_stats)}
        return {}

    def check(self, kernel: Kernel) -> tuple[bool, str]:
        self.ours(0, kernel)
        (a, out), ops = self.sets[0], torch.ops.bitsandbytes
        if "Column" in self.function and not self.bench.dry:
            if self.function == "kColumnStats":
                bad = differing(self.column_stats, a.abs().amax(0).float())
            else:
                bad = differing(out.view(self.shape), ((a * 127).float() / self.cols_stats).round().to(torch.int8))
            return not bad, f"{bad} differ" if bad else "equal"
        if not self.bench.upstream or not self.theirs():
            return True, "not checked"
        if self.function == "kInt8VectorQuant":
            codes, stats, columns = ops.int8_vectorwise_quant(a, 6.0 * self.sparse)
            mine = out.view(self.shape).clone()
            if columns is not None:
                mine[:, columns] = 0
            bad = differing(mine, codes), differing(self.stats[: self.shape[0]], stats)
        else:
            bad = differing(out, ops.int8_mm_dequant(a, self.rows_stats, self.cols_stats).view(-1)), 0
        return not any(bad), f"{bad[0]} codes, {bad[1]} stats differ" if any(bad) else "equal"


def cases(bench: Bench) -> Iterator[Case]:
    """Everything to measure, one after the other, so that only one holds its buffers."""
    for shape in ((64, 4096),) if bench.dry else ((4096, 4096), (28672, 4096)):
        for kind, dtype in TYPES.items():
            count = bench.buffers_for(shape[0] * shape[1] * dtype.itemsize)
            a = torch.randn((count, *shape), device=bench.device).to(dtype)
            for data_type in (NF4, FP4, GENERAL_8BIT):
                yield Quantise(bench, kind, shape, data_type, a)
            del a
            yield Int8(bench, kind, shape, "rows", "kInt8VectorQuant", SPARSE_DECOMP=0)
            yield Int8(bench, kind, shape, "rows, threshold", "kInt8VectorQuant", SPARSE_DECOMP=1)
            yield Int8(bench, kind, shape, "column absmax", "kColumnStats")
            yield Int8(bench, kind, shape, "columns", "kInt8ColumnQuant")
            yield Int8(bench, kind, shape, "dequantise rows", "kInt8VectorDequant")
            yield Int8(bench, kind, shape, "mm_dequant", "kdequant_mm_int32")
    for name in OPTIMIZERS:
        for kind in TYPES:
            yield Optimizer8bit(bench, kind, name, 2**16 if bench.dry else 2**26)


def bar(operator: str) -> float | None:
    """The share of a copy of the same size that an operator has to reach."""
    return next((share for beginning, share in BARS.items() if operator.startswith(beginning)), None)
