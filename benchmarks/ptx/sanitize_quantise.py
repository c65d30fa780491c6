"""Quantisation, int8 and optimizers for sanitize.py: awkward sizes, and what each result must be."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from rig import DATA_TYPES, GENERAL_8BIT, TABLES, Kernel, Values, ceil_div, shift_of, tiles_launch

if TYPE_CHECKING:
    from sanitize import Run

ROUNDED = {"half": 2.0**-11, "bfloat16": 2.0**-8, "float": 2.0**-24}


def dynamic_map(signed: bool) -> np.ndarray:
    """256 increasing values, most of them near 0, as bitsandbytes' maps have it."""
    x = np.linspace(-1 if signed else 0, 1, 256)
    return (np.sign(x) * np.abs(x) ** 3).astype(np.float32)


def typed(run: Run, values: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Values rounded to a type: the bits, and what they are."""
    from sanitize import bits_of, values_of

    bits = bits_of(values.astype(np.float32), kind)
    return bits, values_of(bits, kind)


def near(got: np.ndarray, expected: np.ndarray, tolerance: np.ndarray | float) -> bool:
    """Whether all are finite and within the tolerance."""
    return bool(np.isfinite(got).all() and (np.abs(got - expected) <= tolerance).all())


def is_nearest(table: np.ndarray, codes: np.ndarray, x: np.ndarray, slack: float) -> bool:
    """Whether each code's value is as near as any in the table, but for the slack."""
    table = table.astype(np.float64)
    order = np.argsort(table, kind="stable")
    up = np.clip(np.searchsorted(table[order], x), 1, table.size - 1)
    best = np.minimum(np.abs(table[order][up] - x), np.abs(table[order][up - 1] - x))
    return bool((np.abs(table[codes] - x) <= best + slack).all())


def nearest(table: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The codes of the nearest values."""
    return np.abs(table[None, :].astype(np.float64) - x[:, None]).argmin(1)


# ---- blockwise -------------------------------------------------------------------------------------------------------
def check_quantize(run: Run, kernels: list[Kernel]) -> None:
    """All blockwise quantisation: sizes x blocksizes x types."""
    for kernel in kernels:
        data_type, wide, kind = kernel.number("DATA_TYPE"), kernel.number("NUM_PER_TH") == 8, kernel.type
        packed, group = data_type != GENERAL_8BIT, kernel.group_size
        table = dynamic_map(True) if not packed else TABLES[data_type]
        code = dynamic_map(True) if not packed else None
        tile = kernel.number("TILE_SIZE") if wide else group
        sizes = {1, 2, 7, 31, 33, 255, 257, 1001, tile - 1, tile, tile + 1, 2 * tile + 37}
        for n, blocksize in itertools.product(sorted(sizes), (32, 256, 4096) if wide else (1, 7, 100, 5000)):
            # `offset`: elements that A and out begin behind an aligned address.
            offset = int(wide and n % 3 == 1)
            bits, x = typed(run, run.random.standard_normal(n) + 1e-3, kind)
            absmax = np.maximum.reduceat(np.abs(x), np.arange(0, n, blocksize)).astype(np.float32)
            scaled = x / np.repeat(absmax.astype(np.float64), blocksize)[:n]
            codes = nearest(table, scaled).astype(np.uint8)
            size = (n + 1) // 2 if packed else n
            if packed:
                both = np.append(codes, np.uint8(nearest(table, np.zeros(1))[0])) if n % 2 else codes
                right = both[0::2] << 4 | both[1::2]
            else:
                right = codes
            blocks = ceil_div(n, blocksize)
            team = 1 if blocksize <= 32 else 32 if blocksize <= 4096 else group
            groups = ceil_div(n, tile) if wide else ceil_div(blocks, group // team)
            values: Values = {"blocksize": blocksize, "shift": shift_of(blocksize) if wide else team,
                              "vectorised": int(wide and not offset), "n": n}  # fmt: skip
            got = run.outputs(
                kernel, groups, values, {"code": code, "A": bits}, {"absmax": absmax, "out": right}, offset=offset
            )
            found = np.stack([got["out"] >> 4, got["out"] & 15], 1).reshape(-1)[:n] if packed else got["out"]
            good = (
                is_nearest(table, found, scaled, 1e-5)
                and np.array_equal(got["absmax"], absmax)
                and got["out"].size == size
            )
            run.expect(good, kernel, f"{DATA_TYPES[data_type]} n={n} blocksize={blocksize} offset={offset}")


# ---- int8 ------------------------------------------------------------------------------------------------------------
def matrix_sizes(kernel: Kernel, heights: tuple[int, ...]) -> list[tuple[int, int]]:
    """(rows, columns) around the borders of a kernel's tiles."""
    wide = kernel.number("NUM_PER_TH")
    span = wide * (kernel.group_size if "HELD" in kernel.template else kernel.number("SUBG_SIZE"))
    columns = {wide, 3 * wide, span - wide, span, span + wide, 4 * span + wide, 8 * span, 9 * span + wide}
    return [(rows, cols) for rows, cols in itertools.product(heights, sorted(columns)) if cols > 0]


def check_int8_rows(run: Run, kernels: list[Kernel]) -> None:
    """Quantisation by rows, with outliers and without."""
    for kernel in kernels:
        sparse = bool(kernel.number("SPARSE_DECOMP"))
        for rows, cols in matrix_sizes(kernel, (1, 3)):
            x = run.random.standard_normal((rows, cols))
            x[:, :: max(1, cols // 3)] *= 8 if sparse else 1
            bits, x = typed(run, x, kernel.type)
            outlier = (np.abs(x) >= 6) & sparse
            stats = np.where(outlier, 0, np.abs(x)).max(1).astype(np.float32)
            exact = np.where(outlier, 0, x * 127 / np.maximum(stats, 1e-30)[:, None])
            marks = outlier.any(0).astype(np.uint8)
            got = run.outputs(
                kernel, rows, {"threshold": 6.0, "rows": rows, "cols": cols}, {"A": bits},
                {"out": np.rint(exact).astype(np.int8), "rowStats": stats, "outliers": marks},
                initial={"outliers": np.zeros(cols, np.uint8)},
            )  # fmt: skip
            good = (
                near(got["out"], exact, 0.501)
                and np.array_equal(got["rowStats"], stats)
                and np.array_equal(got["outliers"], marks)
            )
            run.expect(good, kernel, f"{rows} x {cols}")


def check_zero_columns(run: Run, kernels: list[Kernel]) -> None:
    """Zeroing of outlier columns."""
    for kernel, rows, count in itertools.product(kernels, (1, 2, 5), (1, 31, 32, 33)):
        columns = run.random.permutation(40)[:count].astype(np.int64)
        expected = np.ones((rows, 40), np.int8)
        expected[:, columns] = 0
        groups = ceil_div(rows, kernel.group_size // kernel.number("SUBG_SIZE"))
        values: Values = {"n": count, "rows": rows, "cols": 40}
        got = run.outputs(kernel, groups, values, {"columns": columns}, {"out": expected},
                          initial={"out": np.ones((rows, 40), np.int8)})  # fmt: skip
        run.expect(np.array_equal(got["out"], expected), kernel, f"{rows} rows, {count} columns")


def check_columns(run: Run, kernels: list[Kernel]) -> None:
    """Statistics and codes by columns."""
    for kernel in kernels:
        for (rows, cols), height in itertools.product(matrix_sizes(kernel, (1, 31, 70)), (1, 32, 70)):
            bits, x = typed(run, run.random.standard_normal((rows, cols)), kernel.type)
            threshold = float(run.random.choice((0.0, 2.0)))
            kept = np.where((np.abs(x) >= threshold) & (threshold > 0), 0, np.abs(x))
            common = {"threshold": threshold, "rows": rows, "cols": cols, "height": height}
            groups = tiles_launch(kernel, rows, cols, height)
            if kernel.function == "kColumnStats":
                stats = np.maximum.reduceat(kept, np.arange(0, rows, height), 0).astype(np.float32)
                got = run.outputs(kernel, groups, common, {"A": bits}, {"out": stats})
                good = np.array_equal(got["out"], stats)
            else:
                stats = (kept.max(0) + 0.01).astype(np.float32)
                product = typed(run, x * 127, kernel.type)[1]
                exact = np.where(kept == 0, 0, product / stats)
                got = run.outputs(
                    kernel, groups, common, {"A": bits, "colStats": stats}, {"out": np.rint(exact).astype(np.int8)}
                )
                good = near(got["out"], exact, 0.501)
            run.expect(good, kernel, f"{rows} x {cols} height={height} threshold={threshold}")


def check_int8_dequantize(run: Run, kernels: list[Kernel]) -> None:
    """Rows of int8, and products of int8 matrices, scaled back."""
    for kernel in kernels:
        kind, of_product = kernel.type, kernel.function == "kdequant_mm_int32"
        for rows, cols in matrix_sizes(kernel, (1, 9, 17)):
            stats = run.random.uniform(0.5, 2, rows).astype(np.float32)
            groups = tiles_launch(kernel, rows, cols, 1)
            inputs: dict[str, np.ndarray | None]
            values: Values = {"rows": rows, "cols": cols, "stride": 1}
            if of_product:
                a = run.random.integers(-9999, 9999, (rows, cols), np.int32)
                columns = run.random.uniform(0.5, 2, cols).astype(np.float32)
                biased, added = run.random.random(2) < 0.5
                bias, addend = (
                    run.random.standard_normal(cols).astype(np.float32),
                    run.random.standard_normal((rows, cols)),
                )
                bits, addend = typed(run, addend, kind)
                inputs = {"A": a, "rowStats": stats, "colStats": columns, "bias": bias if biased else None,
                          "addend": bits if added else None}  # fmt: skip
                values["bias_type"] = 2 if biased else -1
                exact = a * (stats[:, None].astype(np.float64) * columns) / 127**2 + bias * biased + addend * added
                slack = np.abs(a) * 1e-3 + 1e-5  # CUDA's 1 / 127² is not quite that
            else:
                a = run.random.integers(-127, 128, (rows, cols), np.int8)
                inputs = {"A": a, "stats": stats}
                exact = a * stats[:, None].astype(np.float64) / 127
                slack = np.full((rows, cols), 1e-6)
            right, exact_here = typed(run, exact, kind)[0], exact
            got = run.outputs(kernel, groups, values, inputs, {"out": right})
            from sanitize import values_of

            good = near(values_of(got["out"], kind), exact_here, np.abs(exact_here) * ROUNDED[kind] * 4 + slack)
            run.expect(good, kernel, f"{rows} x {cols}")


# ---- optimizers ------------------------------------------------------------------------------------------------------
STEP: Values = {
    "beta1": 0.9, "beta2": 0.99, "beta3": 0.95, "alpha": 0.5, "eps": 1e-3, "weight_decay": 0.0, "correction1": 0.5,
    "correction2": 0.7, "first": 0, "lr": 0.01, "gnorm_scale": 0.5, "skip_zeros": 0, "max_unorm": 0.0,
    "param_norm": 1.0,
}  # fmt: skip


def stepped(
    name: str, g: np.ndarray, p: np.ndarray, s1: np.ndarray, s2: np.ndarray, s3: np.ndarray, eight: bool
) -> tuple[Any, ...]:
    """One step in float64: parameter and states."""
    b1, b2, b3, eps, lr, scale = (STEP[k] for k in ("beta1", "beta2", "beta3", "eps", "lr", "gnorm_scale"))
    raw, g = g, g * scale
    if name in ("ADAM", "ADEMAMIX"):
        s1, s2 = s1 * b1 + (1 - b1) * g, s2 * b2 + (1 - b2) * g * g
        if name == "ADEMAMIX":
            s3 = s3 * b3 + (1 - b3) * g
            p = p - lr * (s1 / STEP["correction1"] + STEP["alpha"] * s3) / (np.sqrt(s2) / STEP["correction2"] + eps)
        else:
            c1, c2 = STEP["correction1"], STEP["correction2"]
            p = p - lr * c2 / c1 * s1 / (np.sqrt(s2) + eps * c2)
    elif name == "LION":
        p, s1 = p - lr * np.sign(s1 * b1 + (1 - b1) * g), s1 * b2 + (1 - b2) * g
    elif name == "MOMENTUM":
        s1 = s1 * b1 + g
        p = p - lr * s1
    else:
        s1 = s1 * b1 + (1 - b1) * g * g if name == "RMSPROP" else s1 + g * g
        p = p - lr * (raw if eight else g) / (np.sqrt(s1) + eps)
    return p, s1, s2, s3


def check_optimizer(run: Run, kernels: list[Kernel]) -> None:
    """All updates, with 32-bit states and with 8-bit ones."""
    from sanitize import values_of

    for kernel in kernels:
        name, kind = str(kernel.template["OPTIMIZER"]).rpartition("::")[2], kernel.type
        eight, two, tile = "8bit" in kernel.function, "2State" in kernel.function, kernel.number("TILE_SIZE")
        rows = 2 if name == "ADEMAMIX" else 1
        for n in sorted({1, 31, 255, 256, 257, 1001, tile - 1, tile, tile + 8, 2 * tile + 257}):
            wide = int(rows == 1 or n % 8 == 0)
            (g_bits, g), (p_bits, p) = (typed(run, run.random.standard_normal(n) * 0.1, kind) for _ in range(2))
            maps = dynamic_map(True), dynamic_map(False)
            blocks = ceil_div(n, 256)
            inputs: dict[str, np.ndarray | None] = {"g": g_bits}
            initial: dict[str, np.ndarray] = {"p": p_bits}
            values = STEP | {"wide": wide, "n": n}
            if eight:
                codes1 = run.random.integers(128 if name in ("RMSPROP", "ADAGRAD") else 0, 256, (rows, n), np.uint8)
                codes2 = run.random.integers(0, 256, n, np.uint8)
                scale1 = run.random.uniform(0.1, 1, (rows, blocks)).astype(np.float32)
                scale2 = run.random.uniform(0.1, 1, blocks).astype(np.float32)
                s1 = maps[0][codes1].astype(np.float64) * np.repeat(scale1, 256, 1)[:, :n]
                s2 = maps[1][codes2].astype(np.float64) * np.repeat(scale2, 256)[:n]
                initial |= {"state1": codes1, "absmax1": scale1} | (
                    {"state2": codes2, "absmax2": scale2} if two else {}
                )
                inputs |= {"quantiles1": maps[0]} | ({"quantiles2": maps[1]} if two else {})
            else:
                f1 = np.abs(run.random.standard_normal((rows, n))).astype(np.float32)
                f2 = np.abs(run.random.standard_normal(n)).astype(np.float32)
                s1, s2 = f1.astype(np.float64), f2.astype(np.float64)
                initial |= {"state1": f1} | ({"state2": f2} if two else {})
            q, t1, t2, t3 = stepped(name, g, p, s1[0], s2, s1[-1], eight)
            states = [np.stack([t1, t3]) if rows == 2 else t1[None], *([t2[None]] if two else [])]
            outs: dict[str, np.ndarray] = {"p": typed(run, q, kind)[0]}
            scales = []
            for i, state in enumerate(states):
                if eight:
                    scales.append(np.maximum.reduceat(np.abs(state), np.arange(0, n, 256), 1))
                    x = state / np.repeat(scales[i], 256, 1)[:, :n]
                    outs |= {f"state{i + 1}": nearest(maps[i], x.reshape(-1)).astype(np.uint8).reshape(state.shape),
                             f"absmax{i + 1}": scales[i].astype(np.float32)}  # fmt: skip
                else:
                    outs[f"state{i + 1}"] = state.astype(np.float32)
            alias = {"absmax3": ("absmax1", 4 * blocks)} if eight and rows == 2 else {}
            got = run.outputs(kernel, ceil_div(n, tile), values, inputs, outs, initial=initial, alias=alias)
            good = near(values_of(got["p"], kind), q, np.abs(q) * ROUNDED[kind] * 3 + 1e-5)
            for i, state in enumerate(states):
                if eight:
                    absmax = got[f"absmax{i + 1}"].reshape(scales[i].shape)
                    good = good and near(absmax, scales[i], scales[i] * 1e-5)
                    x = state / np.repeat(absmax.astype(np.float64), 256, 1)[:, :n]
                    good = good and is_nearest(maps[i], got[f"state{i + 1}"].reshape(-1), x.reshape(-1), 2e-3)
                else:
                    good = good and near(got[f"state{i + 1}"].reshape(state.shape), state, np.abs(state) * 1e-5 + 1e-6)
            run.expect(bool(good), kernel, f"n={n}")


def check_norm(run: Run, kernels: list[Kernel]) -> None:
    """The partial sums of an update's norm: their sum."""
    for kernel in kernels:
        name, kind, two = (
            str(kernel.template["OPTIMIZER"]).rpartition("::")[2],
            kernel.type,
            "2State" in kernel.function,
        )
        count = kernel.group_size // 32 * 3
        for n in (1, 31, 33, 1001, 32 * count - 1, 32 * count + 5, 5 * 32 * count + 17):
            g_bits, g = typed(run, run.random.standard_normal(n), kind)
            f1, f2 = (np.abs(run.random.standard_normal(n)).astype(np.float32) for _ in range(2))
            _, t1, t2, _ = stepped(name, g, g, f1.astype(np.float64), f2.astype(np.float64), f1, False)
            eps = STEP["eps"]
            if name == "ADAM":
                terms = (t1 / STEP["correction1"] / (np.sqrt(t2) / STEP["correction2"] + eps)) ** 2
            elif name in ("RMSPROP", "ADAGRAD"):
                terms = (g * STEP["gnorm_scale"] / (np.sqrt(t1) + eps)) ** 2
            else:
                terms = f1 if name == "ADEMAMIX" else t1 if name == "LION" else t1**2
            index = np.arange(n) // 32 % count
            partial = np.bincount(index, terms, count).astype(np.float32)
            inputs: dict[str, np.ndarray | None] = {"g": g_bits, "state1": f1} | ({"state2": f2} if two else {})
            got = run.outputs(kernel, 3, STEP | {"sub_groups": count, "n": n}, inputs, {"partial": partial})
            bound = np.bincount(index, np.abs(terms), count) * 1e-4 + 1e-5
            run.expect(near(got["partial"], partial, bound), kernel, f"n={n}")


def check_sum(run: Run, kernels: list[Kernel]) -> None:
    """The sum of the partial sums."""
    for kernel, count in itertools.product(kernels, (32, 64, 1024)):
        partial = run.random.uniform(0, 1, count).astype(np.float32)
        total = partial.sum(keepdims=True, dtype=np.float64).astype(np.float32)
        got = run.outputs(kernel, 1, {"count": count}, {"partial": partial}, {"unorm": total})
        run.expect(near(got["unorm"], total, total * 1e-5), kernel, f"count={count}")


CHECKS = {
    "kQuantizeBlockwise": check_quantize,
    "kInt8VectorQuant": check_int8_rows,
    "kZeroColumns": check_zero_columns,
    "kColumnStats": check_columns,
    "kInt8ColumnQuant": check_columns,
    "kInt8VectorDequant": check_int8_dequantize,
    "kdequant_mm_int32": check_int8_dequantize,
    "kOptimizer": check_optimizer,
    "kPrecondition": check_norm,
    "kSumUnorm": check_sum,
}
"""Beginning of a kernel function's name -> what checks it."""
