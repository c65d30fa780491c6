#!/usr/bin/env python3
"""Every kernel over awkward sizes, in allocations of exactly the right size, each result checked by value.

    compute-sanitizer --tool memcheck  --error-exitcode 1 python sanitize.py DIR
    compute-sanitizer --tool racecheck --error-exitcode 1 python sanitize.py DIR
    compute-sanitizer --tool initcheck --error-exitcode 1 python sanitize.py DIR

DIR is what make_ptx.py wrote. Needs numpy and the CUDA driver, no torch, so that nothing but the kernels runs under the
tool. Outputs are full of NaNs before each launch; dequantisation must be equal bit by bit, a product right within the
rounding of its float32 sums.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import sanitize_quantise
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

ITEMSIZE = {"half": 2, "bfloat16": 2, "float": 4}
UNIT = {"half": 2.0**-11, "bfloat16": 2.0**-8, "float": 2.0**-24}
"""Half a unit in the last place of 1."""


# ---- values and types ------------------------------------------------------------------------------------------------
def bits_of(values: np.ndarray, kind: str) -> np.ndarray:
    """float32 values rounded to nearest even, as unsigned integers of the type's size."""
    with np.errstate(over="ignore"):
        if kind == "half":
            return values.astype(np.float16).view(np.uint16)
    if kind == "float":
        return values.astype(np.float32).view(np.uint32)
    u = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((u.astype(np.uint64) + 0x7FFF + (u >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def values_of(bits: np.ndarray, kind: str) -> np.ndarray:
    """The float64 values of such integers."""
    if kind == "half":
        return bits.view(np.float16).astype(np.float64)
    if kind == "float":
        return bits.view(np.float32).astype(np.float64)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def unpack(packed: np.ndarray, n: int) -> np.ndarray:
    """The codes of n elements: a byte holds its first element above."""
    return np.stack([packed >> 4, packed & 15], 1).reshape(-1)[:n]


# ---- the run ---------------------------------------------------------------------------------------------------------
class Run:
    """Holds the driver and counts launches and failures."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.random = np.random.default_rng(1)
        self.launches: Counter[str] = Counter()
        self.failures: list[str] = []

    @contextmanager
    def buffers(self, *arrays: np.ndarray | None, offset: int = 0) -> Iterator[list[int | None]]:
        """The arrays on the device, each in an allocation of its own size, `offset` bytes into it."""
        bases = [None if a is None else self.driver.allocate(a.nbytes + offset) for a in arrays]
        try:
            for base, array in zip(bases, arrays, strict=True):
                if base is not None and array is not None:
                    self.driver.write(base, b"\xff" * offset + array.tobytes())
            yield [None if base is None else base + offset for base in bases]
        finally:
            for base in bases:
                if base is not None:
                    self.driver.free(base)

    def output(self, kernel: Kernel, groups: int, values: dict[str, Any], size: int, offset: int) -> np.ndarray:
        """Launch with an output of so many elements, all NaN, and return their bits."""
        itemsize = ITEMSIZE[kernel.type]
        kind = np.uint16 if itemsize == 2 else np.uint32
        with self.buffers(np.full(size * itemsize, 0xFF, np.uint8), offset=offset) as (out,):
            self.driver.launch(kernel, groups, values | {"out": out})
            self.driver.synchronize()
            self.launches[kernel.function] += 1
            return np.frombuffer(self.driver.read(out or 0, size * itemsize), kind)

    def outputs(
        self,
        kernel: Kernel,
        groups: int,
        values: dict[str, Any],
        inputs: dict[str, np.ndarray | None],
        expected: dict[str, np.ndarray],
        *,
        initial: dict[str, np.ndarray] | None = None,
        alias: dict[str, tuple[str, int]] | None = None,
        offset: int = 0,
    ) -> dict[str, np.ndarray]:
        """Launch, and return what stands in the outputs: arrays like those of `expected`.

        They are full of NaNs before, or what `initial` says. `offset`: elements that A and out lie behind an aligned
        address.
        `alias`: arguments that point so many bytes into another's memory.
        """
        before = {name: np.full(a.nbytes, 0xFF, np.uint8) for name, a in expected.items()} | (initial or {})
        arrays = {**inputs, **before}
        shifts = dict.fromkeys(arrays, 0)
        for name, like in (("A", inputs.get("A")), ("out", expected.get("out"))):
            if offset and like is not None:
                shifts[name] = offset * like.itemsize
        bases: dict[str, int] = {}
        try:
            for name, array in arrays.items():
                if array is not None:
                    bases[name] = self.driver.allocate(array.nbytes + shifts[name])
                    self.driver.write(bases[name], b"\xff" * shifts[name] + array.tobytes())
            at: dict[str, Any] = {name: base + shifts[name] for name, base in bases.items()}
            at |= {name: at[of] + by for name, (of, by) in (alias or {}).items()}
            missing = {name: None for kind, name in kernel.arguments if kind.endswith("*") and name not in at}
            self.driver.launch(kernel, groups, {**values, **missing, **at, "expected": expected})
            self.driver.synchronize()
            self.launches[kernel.function] += 1
            return {
                name: np.frombuffer(self.driver.read(at[name], a.nbytes), a.dtype).reshape(a.shape)
                for name, a in expected.items()
            }
        finally:
            for base in bases.values():
                self.driver.free(base)

    def expect(self, good: bool, kernel: Kernel, what: str) -> None:
        """Note a failure."""
        if not good:
            self.failures.append(f"{kernel.name}: {what}")
            print("WRONG", self.failures[-1], flush=True)


# ---- dequantise ------------------------------------------------------------------------------------------------------
def dequantize_sizes(kernels: list[Kernel]) -> list[int]:
    """Numbers of elements around every border that the kernels know."""
    sizes = {1, 2, 3, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 255, 256, 257, 1001, 4097}
    for k in kernels:
        tile, span = k.number("TILE_SIZE"), k.number("SUBG_SIZE") * k.number("NUM_PER_TH")
        sizes |= {span - 1, span, span + 1, tile - 1, tile, tile + 1, 2 * tile + span + 3}
    return sorted(sizes)


def check_dequantize(run: Run, kernels: list[Kernel]) -> None:
    """All dequantisation kernels: sizes x blocksizes x types, and misaligned pointers where the kernel takes them."""
    sizes = dequantize_sizes(kernels)
    for data_type, n in itertools.product(DATA_TYPES, sizes):
        packed = data_type != GENERAL_8BIT
        mine = [k for k in kernels if k.number("DATA_TYPE") == data_type]
        a = run.random.integers(0, 256, (n + 1) // 2 if packed else n, np.uint8)
        code = None if packed else run.random.uniform(-1, 1, 256).astype(np.float32)
        table = TABLES[data_type] if code is None else code
        for blocksize in (32, 64, 256, 4096) if packed else (64, 256, 4096, 8, 1, 100):
            absmax = run.random.exponential(1, ceil_div(n, blocksize)).astype(np.float32)
            absmax[run.random.random(absmax.size) < 0.1] = 1e-7  # subnormal in half
            absmax[run.random.random(absmax.size) < 0.05] = 1e6  # infinite in half
            absmax[run.random.random(absmax.size) < 0.05] = 0
            scale = np.repeat(absmax, blocksize)[:n]
            expected = table[unpack(a, n) if packed else a] * scale
            for offset in (0, 4):
                with run.buffers(code, absmax) as (code_at, absmax_at), run.buffers(a, offset=offset // 4) as (a_at,):
                    for k in mine:
                        per_thread = k.number("NUM_PER_TH")
                        if per_thread > 1 and (offset or blocksize % per_thread or blocksize & (blocksize - 1)):
                            continue
                        # An output that is aligned to its element and no more.
                        out_offset = offset and ITEMSIZE[k.type]
                        groups, values = dequantize_launch(
                            k, code=code_at, a=a_at or 0, absmax=absmax_at or 0, out=0, blocksize=blocksize, n=n
                        )
                        right = bits_of(expected, k.type)
                        got = run.output(k, groups, values | {"expected": right}, n, out_offset)
                        wrong = np.flatnonzero(got != right)
                        where = f"n={n} blocksize={blocksize} offset={offset}"
                        run.expect(not wrong.size, k, f"{where}: {wrong.size} differ, first at {wrong[:1]}")


# ---- gemv and gemm ---------------------------------------------------------------------------------------------------
def product_sizes(kernels: list[Kernel]) -> list[tuple[int, int]]:
    """(N, K) around every border of kernels of one width."""
    width = kernels[0].width
    ns = {1, 2, 3, 5}
    ks = {1: {1, 2, 5, 31, 32, 33, 63, 65, 127, 1001}, 8: {8, 24, 64, 72, 1000}}.get(width, {width, 2 * width})
    for k in kernels:
        rows, per_group = k.number("ROWS"), k.rows_of_b
        ns |= {rows, rows + 1, per_group - 1, per_group, per_group + 1, 2 * per_group + rows - 1}
        if "SPLIT_K" in k.template:
            step = width * (k.number("STEPS") if "STEPS" in k.template else 1)
            turn = step * k.number("SPLIT_K")
            ks |= {step - width, step, step + width, turn - width, turn, turn + width, 2 * turn + step + width}
        if width == 8:
            span = k.number("SUBG_SIZE") * 8
            step = span * k.number("STEPS")
            ks |= {span - 8, span, span + 8, step - 8, step, step + 8, 2 * step + span + 8}
    return [(n, k) for n, k in itertools.product(sorted(ns), sorted(ks)) if n > 0 and k > 0]


def check_product(run: Run, kernels: list[Kernel]) -> None:
    """All kernels of a matrix product: sizes x blocksizes; the rest drawn at random."""
    for width in sorted({kernel.width for kernel in kernels}):
        mine = [kernel for kernel in kernels if kernel.width == width]
        tile_m = max(kernel.rows_of_a for kernel in mine)
        for (n, k), blocksize in itertools.product(product_sizes(mine), (32, 64, 4096)):
            if (width == 8 and blocksize == 32 and k % 32) or blocksize < mine[0].least_blocksize:
                continue  # left to other kernels
            m = int(run.random.choice([1, 7, tile_m, tile_m + 1, 2 * tile_m + 1]))
            data_type, gap = int(run.random.choice((NF4, FP4))), int(run.random.choice((0, 8)))
            nested, biased, own_table = run.random.random(3) < 0.5
            b = run.random.integers(0, 256, (n * k + 1) // 2, np.uint8)
            blocks = ceil_div(n * k, blocksize)
            absmax = run.random.uniform(0.1, 2, ceil_div(blocks, 256) if nested else blocks).astype(np.float32)
            absmax_8bit = run.random.integers(0, 256, blocks, np.uint8) if nested else None
            absmax_code = np.linspace(-1, 1, 256, dtype=np.float32) if nested else None
            offset = np.array([1.5], np.float32) if nested else None
            scale = absmax.astype(np.float64)
            if absmax_8bit is not None and absmax_code is not None:
                scale = absmax_code[absmax_8bit].astype(np.float64) * np.repeat(scale, 256)[:blocks] + 1.5
            table = run.random.uniform(-1, 1, 16).astype(np.float32) if own_table else TABLES[data_type]
            weight = (table[unpack(b, n * k)] * np.repeat(scale, blocksize)[: n * k]).reshape(n, k)
            own = table if own_table else None
            x = run.random.standard_normal((m, k)).astype(np.float32)
            bias = run.random.standard_normal(n).astype(np.float32)
            for kind in ITEMSIZE:
                typed = [kernel for kernel in mine if kernel.type == kind]
                if not typed:
                    continue
                x_bits = spread(bits_of(x, kind), gap)
                bias_bits = bits_of(bias, kind) if biased else None
                x_used = values_of(bits_of(x, kind), kind)
                expected = x_used @ weight.T
                bound = np.abs(x_used) @ np.abs(weight.T) * 2.0**-24 * 64
                if bias_bits is not None:
                    expected = expected + values_of(bias_bits, kind)
                    bound += np.abs(values_of(bias_bits, kind)) * 2.0**-23
                bound += np.abs(expected) * UNIT[kind] * 1.01 + 2.0**-24
                with run.buffers(b, absmax, absmax_8bit, absmax_code, offset, bias_bits, own) as at:
                    for kernel in typed:
                        size = (m - 1) * (n + gap) + n
                        right = spread(bits_of(expected.astype(np.float32), kind), gap)
                        with run.buffers(x_bits) as (a,):
                            groups, values = product_launch(
                                kernel, m=m, n=n, k=k, a=a or 0, b=at[0] or 0, absmax=at[1] or 0, absmax_8bit=at[2],
                                absmax_code=at[3], absmax_offset=at[4], bias=at[5], datatype=at[6],
                                data_type=data_type, out=0, blocksize=blocksize, lda=k + gap, ldc=n + gap,
                            )  # fmt: skip
                            got = run.output(kernel, groups, values | {"expected": right}, size, 0)
                        rows = np.concatenate([got, np.full(gap, ones(got), got.dtype)]).reshape(m, n + gap)
                        error = np.abs(values_of(np.ascontiguousarray(rows[:, :n]), kind) - expected)
                        worst = np.max(error / bound) if np.isfinite(error).all() else np.inf
                        where = f"M={m} N={n} K={k} blocksize={blocksize} nested={nested} bias={biased} gap={gap}"
                        run.expect(worst <= 1, kernel, f"{where}: error {worst:.3g} of what is allowed")
                        run.expect(bool((rows[:, n:] == ones(got)).all()), kernel, f"{where}: wrote between the rows")


def ones(bits: np.ndarray) -> int:
    """All bits of an element set: a NaN in each of the types."""
    return int(np.iinfo(bits.dtype).max)


def spread(bits: np.ndarray, gap: int) -> np.ndarray:
    """The rows with gaps of NaNs between them; the last row ends where its values end."""
    padded = np.pad(bits, ((0, 0), (0, gap)), constant_values=ones(bits)).reshape(-1)
    return padded[: padded.size - gap]


def emulate(kernel: Kernel, values: dict[str, Any]) -> None:
    """Dry run: what a right kernel would write."""
    expected = values["expected"]
    for name, array in (expected if isinstance(expected, dict) else {"out": expected}).items():
        data = array.tobytes()
        ctypes.memmove(values[name], data, len(data))


CHECKS = {"kDequantizeBlockwise": check_dequantize, "kgem": check_product, **sanitize_quantise.CHECKS}
"""Beginning of a kernel function's name -> what checks it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, metavar="DIR")
    parser.add_argument("--only", metavar="REGEX", help="only kernels in whose name this is found")
    parser.add_argument("--dry-run", action="store_true", help="everything but the launches: needs no GPU")
    options = parser.parse_args()

    kernels = [k for k in read_kernels(options.dir) if not options.only or re.search(options.only, k.name)]
    driver = DryDriver(emulate) if options.dry_run else Driver()
    driver.load(options.dir, kernels)
    run = Run(driver)
    begin = time.monotonic()
    for function in dict.fromkeys(kernel.function for kernel in kernels):
        check = next((check for beginning, check in CHECKS.items() if function.startswith(beginning)), None)
        if check is None:
            run.failures.append(f"no check is written for {function}")
            print(run.failures[-1])
            continue
        mine = [kernel for kernel in kernels if kernel.function == function]
        check(run, mine)
        print(f"{function}: {len(mine)} kernels, {run.launches[function]} launches", flush=True)
    print(f"{driver.device_name}: {len(run.failures)} failures, {time.monotonic() - begin:.0f} s")
    sys.exit(bool(run.failures))


if __name__ == "__main__":
    main()
