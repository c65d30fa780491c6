"""Runs every kernel of a kind of device on guarded memory, over awkward sizes; test_bounds.py runs it as a program.

usage: python bounds_sweep.py KIND OPERATOR [ROUNDS]

Before each call its sizes go to stderr, so that the last line before a segmentation fault says what ran.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import itertools
import os
import sys

import bitsandbytes
import guarded
import torch
from helpers import FLOATS, Weight, check_product, exactly_equal, generator, short

from bitsandbytes_intel import cpu, reference

SIZES = (1, 2, 3, 7, 8, 9, 31, 32, 33, 64, 100, 127, 128, 129, 255, 256, 257, 264, 511, 513, 1000, 1016, 2047, 2048,
         2049, 2056, 4095, 4096, 4097, 8184, 8191, 8192, 8193, 8200, 16385, 20000, 24591)  # fmt: skip
BLOCKSIZES = {"general8bit": (1, 3, 8, 32, 64, 100, 256, 4096), "fp4": (32, 64, 4096), "nf4": (32, 256, 1024)}
KS = (1, 2, 3, 7, 8, 15, 16, 24, 31, 32, 33, 40, 63, 64, 72, 96, 100, 127, 128, 129, 136, 160, 224, 256, 257, 264, 320,
      384, 504, 512, 520, 640, 1000, 1001, 1024, 1032, 2080, 2112)  # fmt: skip
COLUMNS = (1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 255, 256, 257, 511, 1000, 1024, 2047, 4095,
           4096, 4097, 8200, 9001)  # fmt: skip
OPTIMIZER_SIZES = (
    1,
    2,
    7,
    8,
    31,
    33,
    100,
    255,
    256,
    257,
    511,
    513,
    1000,
    2047,
    2048,
    2049,
    4097,
    8191,
    8193,
    16385,
    20001,
)
WIDE_KS = (8, 33, 40, 128, 136, 264, 512, 520)
NS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 66, 67, 129)
# So many rows that the GPU kernels for large matrices run, whatever the number of cores.
WIDE = 40 * (os.cpu_count() or 1) + 3
MS = {"gemv_4bit": (1, 1, 2, 3), "gemm_4bit": (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 50)}
CPU_MS = {"gemv_4bit": (1, 1, 2, 3, 4), "gemm_4bit": (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 70)}
_last = ""


def note(*what: object) -> None:
    """Say what runs next, should it be the last."""
    global _last
    _last = " ".join(map(short, what))
    print(_last, file=sys.stderr, flush=True)


def dequantize_blockwise(kernels: guarded.Kernels, rounds: int) -> int:
    """Every size with every data type and dtype, the places and blocksizes in turn."""
    count = 0
    for (data_type, blocksizes), dtype in itertools.product(BLOCKSIZES.items(), FLOATS):
        turns = itertools.cycle(itertools.product(blocksizes, guarded.PLACES))
        for n in SIZES * rounds:
            blocksize, place = next(turns)
            note("dequantize_blockwise", data_type, dtype, f"{n=}", f"{blocksize=}", place)
            g = generator(n)
            size = n if data_type == "general8bit" else -(-n // 2)
            A = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=g)
            absmax = torch.rand(-(-n // blocksize), generator=g)
            code = torch.randn(256, generator=g) if data_type == "general8bit" else None
            if code is None:
                expected = reference.dequantize_4bit(A, absmax, blocksize, data_type, [n], dtype)
            else:
                expected = reference.dequantize_blockwise(A, absmax, code, blocksize, dtype)
            with guarded.arena(place) as memory:
                out = memory.out(n, dtype)
                addresses = memory.hold(code), memory.hold(A), memory.hold(absmax)
                kernels.dequantize(dtype, data_type, *addresses, out.address, blocksize, n)
                assert out.canary_is_alive(), "bytes outside the result were written"
                exactly_equal(out.tensor, expected)
            count += 1
    return count


def hold_statistics(memory: guarded.Arena, w: Weight) -> list[int | None]:
    """The addresses of a weight's absmax and of what it is nested in."""
    return [
        memory.hold(w.absmax),
        *(memory.hold(w.nested.get(f)) for f in ("absmax_8bit", "absmax_code", "absmax_offset")),
    ]


def product(name: str, kernels: guarded.Kernels, rounds: int) -> int:
    """Every K with every dtype, N and all else in turn."""
    count = 0
    for dtype in FLOATS:
        turns = itertools.cycle(
            itertools.product(guarded.PLACES, NS, (False, True), ("nf4", "fp4"), (32, 64, 4096), MS[name])
        )
        # A stride that has no common factor with the number of combinations visits them all, in a mixed order.
        turns = itertools.islice(turns, 0, None, 101)
        for k, wide in [*((k, 0) for k in KS), *((k, WIDE) for k in WIDE_KS)] * rounds:
            place, n, extras, quant_type, blocksize, m = next(turns)
            n += wide
            note(name, dtype, f"{m=} {n=} {k=}", f"{blocksize=}", quant_type, "nested, bias" if extras else "", place)
            w = Weight.random(n, k, blocksize=blocksize, quant_type=quant_type, nested=extras, seed=k)
            A = torch.randn(m, k, generator=generator(n)).to(dtype)
            bias = torch.randn(n, generator=generator(k)).to(dtype) if extras else None
            with guarded.arena(place) as memory:
                out = memory.out(m * n, dtype)
                statistics = hold_statistics(memory, w)
                datatype = None if extras else memory.hold(reference.codebook(quant_type))
                floats = kernels.scratch_bytes(m, k) // 4
                scratch = memory.out(floats, torch.float32) if floats and count % 3 else None
                # In turn as torch allocates them, and 4 bytes further: what is aligned to more has kernels of its own.
                a, b = (
                    memory.hold(torch.cat([x.new_zeros(4 // x.itemsize), x.view(-1)])) + 4 if moved else memory.hold(x)
                    for x, moved in ((A, count % 4 == 3), (w.packed, count % 8 == 5))
                )
                kernels.product(
                    name, dtype, m, n, k, a, b, statistics, datatype, quant_type,
                    out.address, blocksize, memory.hold(bias), scratch.address if scratch else None,
                )  # fmt: skip
                assert out.canary_is_alive(), "bytes outside the result were written"
                assert not scratch or scratch.canary_is_alive(), "bytes outside the scratch were written"
                check_product(out.tensor.view(m, n).clone(), A, w.exact(), bias)
            count += 1
            if name == "gemm_4bit" and kernels.queue is None:
                gradient(kernels, dtype, w, m, place)
                count += 1
                if k % 64 == 0:
                    int8_activations(kernels, dtype, n, k, 8 + count % 27, place)
                    count += 1
    return count


def int8_activations(kernels: guarded.Kernels, dtype: torch.dtype, n: int, k: int, m: int, place: str) -> None:
    """Products of activations in int8, which CPUs have, and which want whole blocks."""
    nested = m % 2 == 1
    w = Weight.random(n, k, blocksize=k & -k if m % 3 else 64, nested=nested, seed=k)
    A = torch.randn(m, k, generator=generator(n)).to(dtype)
    with guarded.arena(place) as memory, cpu.int8_activations():
        out = memory.out(m * n, dtype)
        statistics = hold_statistics(memory, w)
        kernels.product(
            "gemm_4bit", dtype, m, n, k, memory.hold(A), memory.hold(w.packed), statistics, None, w.quant_type,
            out.address, w.blocksize, None, None,
        )  # fmt: skip
        assert out.canary_is_alive(), "bytes outside the result of int8 were written"
        exact = A.double() @ w.exact().double().T
        assert float((out.tensor.view(m, n).double() - exact).norm()) < 0.03 * float(exact.norm())


def gradient(kernels: guarded.Kernels, dtype: torch.dtype, w: Weight, m: int, place: str) -> None:
    """The product with the weight's transpose, which CPUs have."""
    n, k = w.shape
    grad = torch.randn(m, n, generator=generator(k)).to(dtype)
    with guarded.arena(place) as memory:
        out = memory.out(m * k, dtype)
        statistics = hold_statistics(memory, w)
        kernels.transposed(
            dtype, m, n, k, memory.hold(grad), memory.hold(w.packed), statistics, w.quant_type, out.address, w.blocksize
        )
        assert out.canary_is_alive(), "bytes outside the result were written"
        check_product(out.tensor.view(m, k).clone(), grad, w.exact().T.contiguous())


def int8(kernels: guarded.Kernels, rounds: int) -> int:
    """Every number of columns with every dtype; rows, places and thresholds in turn."""
    pointer, long, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    end = [pointer, ctypes.c_char_p, ctypes.c_size_t]
    lib = kernels.library
    lib.cint8_vector_quant.argtypes = [number, *[pointer] * 4, ctypes.c_float, long, long, *end]
    lib.cint8_zero_columns.argtypes = [pointer, pointer, long, long, long, *end]
    lib.cint8_column_quant.argtypes = [number, *[pointer] * 4, ctypes.c_float, long, long, long, *end]
    lib.cint8_vector_dequant.argtypes = [number, *[pointer] * 3, long, long, long, *end]
    lib.cdequant_mm_int32.argtypes = [number, *[pointer] * 5, number, pointer, long, long, *end]
    count = 0
    for dtype in FLOATS:
        turns = itertools.cycle(itertools.product((1, 2, 3, 9, 17, 40), guarded.PLACES, (0.0, 2.5)))
        for cols in COLUMNS * rounds:
            rows, place, threshold = next(turns)
            note("int8", dtype, f"{rows=} {cols=} {threshold=}", place)
            g = generator(cols)
            A = torch.randn(rows, cols, generator=g).to(dtype)
            codes, stats, columns = reference.int8_vectorwise_quant(A, threshold)
            by_column = reference.int8_double_quant(A, 0.0)
            wide = torch.randint(-9999, 9999, (rows, cols), dtype=torch.int32, generator=g)
            bias = torch.randn(cols, generator=g).to(dtype)
            which, height = guarded.DTYPES[dtype], 16
            with guarded.arena(place) as memory:
                out, out_stats = memory.out(rows * cols, torch.int8), memory.out(rows, torch.float32)
                flags = memory.out(cols, torch.uint8)
                flags.tensor.zero_()
                x = memory.hold(A)
                kernels._call(
                    "cint8_vector_quant", which, x, out.address, out_stats.address,
                    flags.address if threshold else None, threshold, rows, cols,
                )  # fmt: skip
                if threshold and rows > 1 and len(columns):
                    kernels._call(
                        "cint8_zero_columns", out.address, memory.hold(columns.long()), len(columns), rows, cols
                    )
                exactly_equal(out.tensor, codes.reshape(-1))
                exactly_equal(out_stats.tensor, stats)
                if threshold:
                    exactly_equal(flags.tensor.nonzero().reshape(-1), columns.long().sort().values)
                second, col_stats = memory.out(rows * cols, torch.int8), memory.out(cols, torch.float32)
                scratch = memory.out(-(-rows // height) * cols, torch.float32)
                kernels._call(
                    "cint8_column_quant", which, x, second.address, col_stats.address, scratch.address, 0.0, rows, cols,
                    height,
                )  # fmt: skip
                exactly_equal(second.tensor, by_column[1].reshape(-1))
                exactly_equal(col_stats.tensor, by_column[3])
                back, product = memory.out(rows * cols, dtype), memory.out(rows * cols, dtype)
                kernels._call(
                    "cint8_vector_dequant", which, memory.hold(codes), memory.hold(stats), back.address, 1, rows, cols
                )
                kernels._call(
                    "cdequant_mm_int32", which, memory.hold(wide), memory.hold(stats), memory.hold(by_column[3]),
                    product.address, memory.hold(bias), which, None, rows, cols,
                )  # fmt: skip
                wanted = reference.int8_mm_dequant(wide, stats, by_column[3], dtype, bias)
                torch.testing.assert_close(product.tensor.view(rows, cols), wanted)
                dequantised = reference.int8_vectorwise_dequant(codes, stats).to(dtype)
                torch.testing.assert_close(back.tensor.view(rows, cols), dequantised)
                for buffer in (out, out_stats, flags, second, col_stats, scratch, back, product):
                    assert buffer.canary_is_alive(), "bytes outside a result were written"
            if kernels.queue is None or kernels.kind == "cpu":
                int8_products(kernels, dtype, rows, count % (37 if kernels.queue is None else 149) + 1, cols, place)
            count += 5
    return count


def int8_products(kernels: guarded.Kernels, dtype: torch.dtype, m: int, n: int, k: int, place: str) -> None:
    """The products that CPUs, and XPUs that are one, have: exact, and scaled with outliers and without."""
    pointer, long, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    end = [pointer, ctypes.c_char_p, ctypes.c_size_t]
    lib = kernels.library
    lib.cint8_linear_matmul.argtypes = [*[pointer] * 3, *[long] * 3, *end]
    lib.cint8_scaled_mm.argtypes = [number, *[pointer] * 6, number, pointer, pointer, *[long] * 4, *end]
    g = generator(k)
    A, B = (torch.randint(-128, 128, (rows, k), dtype=torch.int8, generator=g) for rows in (m, n))
    row, col = torch.rand(m, generator=g), torch.rand(n, generator=g)
    columns = torch.arange(0, k, max(1, k // (5 if n % 4 else 70))) if (m + n + k) % 2 else torch.arange(0)
    outliers, bias = torch.randn(m, len(columns), generator=g).to(dtype), torch.randn(n, generator=g)
    which = guarded.DTYPES[dtype]
    with guarded.arena(place) as memory:
        a, b = memory.hold(A), memory.hold(B)
        sums, out = memory.out(m * n, torch.int32), memory.out(m * n, dtype)
        kernels._call("cint8_linear_matmul", a, b, sums.address, m, n, k)
        exactly_equal(sums.tensor.view(m, n), reference.int8_linear_matmul(A, B))
        kernels._call(
            "cint8_scaled_mm", which, a, b, memory.hold(row), memory.hold(col), out.address, memory.hold(bias),
            guarded.DTYPES[bias.dtype], memory.hold(outliers), memory.hold(columns), len(columns), m, n, k,
        )  # fmt: skip
        # Quantised codes of the outlier columns are 0 as the operator is used; here they count like all others.
        wanted = reference.int8_scaled_mm(A, B, row, col, bias, torch.float32).double()
        weight = reference.int8_vectorwise_dequant(B[:, columns], col).to(dtype).double()
        wanted += outliers.double() @ weight.T
        torch.testing.assert_close(out.tensor.view(m, n).double(), wanted, rtol=torch.finfo(dtype).eps * 2, atol=1e-3)
        for buffer in (sums, out):
            assert buffer.canary_is_alive(), "bytes outside a result were written"
        if kernels.queue is None or not len(columns):
            return
        lib.cint8_outlier_product.argtypes = [number, *[pointer] * 3, long, pointer, pointer, *[long] * 3, *end]
        product = memory.out(m * n, dtype)
        kernels._call(
            "cint8_outlier_product", which, memory.hold(outliers), b, memory.hold(columns), len(columns),
            memory.hold(col), product.address, m, n, k,
        )  # fmt: skip
        got, wanted = product.tensor.view(m, n).double(), outliers.double() @ weight.T
        torch.testing.assert_close(got, wanted, rtol=torch.finfo(dtype).eps * 2, atol=1e-3)
        assert product.canary_is_alive(), "bytes outside a result were written"


class OptimizerStep(ctypes.Structure):
    """``BnbOptimizerStep`` of csrc/xpu_ops/xpu_ops.h."""

    _fields_ = [
        *((name, ctypes.c_float) for name in ("beta1", "beta2", "beta3", "alpha", "eps", "weight_decay", "lr",
                                              "gnorm_scale", "max_unorm", "param_norm")),
        ("step", ctypes.c_int32), ("skip_zeros", ctypes.c_int32),
    ]  # fmt: skip


OPTIMIZERS = {"adam": 0, "momentum": 1, "rmsprop": 2, "adagrad": 4, "lion": 5, "ademamix": 6}
UNORM_SCRATCH = 2048


def optimizer(kernels: guarded.Kernels, rounds: int) -> int:
    """Every optimizer with every dtype, 32-bit and 8-bit states; sizes and places in turn."""
    pointer, number = ctypes.c_void_p, ctypes.c_int
    end = [ctypes.POINTER(OptimizerStep), ctypes.c_int64, pointer, ctypes.c_char_p, ctypes.c_size_t]
    lib = kernels.library
    lib.coptimizer32bit.argtypes = [number, number, *[pointer] * 6, *end]
    lib.coptimizer_static_8bit_blockwise.argtypes = [number, number, *[pointer] * 8, *end]
    signed, unsigned = (
        bitsandbytes.functional.create_dynamic_map(True),
        bitsandbytes.functional.create_dynamic_map(False),
    )
    options = {"beta1": 0.9, "beta2": 0.99, "beta3": 0.999, "alpha": 2.0, "eps": 1e-6, "weight_decay": 0.01, "lr": 0.01,
               "gnorm_scale": 0.5}  # fmt: skip
    turns = itertools.cycle(itertools.product(guarded.PLACES, OPTIMIZER_SIZES))
    turns = itertools.islice(turns, 0, None, 8)  # no common factor with their number
    count = 0
    for name, dtype, bits in itertools.product(OPTIMIZERS, FLOATS, (32, 8)):
        for _ in range(6 * rounds):
            place, n = next(turns)
            max_unorm = 0.3 if bits == 32 and count % 2 else 0.0
            note("optimizer", name, dtype, f"{bits=} {n=} {max_unorm=}", place)
            g = generator(n)
            gradient, p = torch.randn(n, generator=g).to(dtype), torch.randn(n, generator=g).to(dtype)
            two = name in ("adam", "ademamix")
            rows, blocks = 2 if name == "ademamix" else 1, -(-n // 256)
            norm = float(p.float().norm()) if max_unorm else 0.0
            step = OptimizerStep(**options, max_unorm=max_unorm, param_norm=norm, step=1, skip_zeros=0)
            state_dtype = torch.float32 if bits == 32 else torch.uint8
            with guarded.arena(place) as memory:
                parameter = memory.out(n, dtype)
                parameter.tensor.copy_(p)
                state1 = memory.out(rows * n, state_dtype)
                state2 = memory.out(n, state_dtype) if two else None
                made = [parameter, state1, *([state2] if two else [])]
                for state in made[1:]:
                    state.tensor.zero_()
                if bits == 32:
                    unorm, scratch = memory.out(1, torch.float32), memory.out(UNORM_SCRATCH, torch.float32)
                    unorm.tensor.zero_()
                    made += [unorm, scratch]
                    kernels._call(
                        "coptimizer32bit", guarded.DTYPES[dtype], OPTIMIZERS[name], memory.hold(gradient),
                        parameter.address, state1.address, state2.address if two else None,
                        unorm.address if max_unorm else None, scratch.address if max_unorm else None,
                        ctypes.byref(step), n,
                    )  # fmt: skip
                    mine = [torch.zeros(rows, n) if rows == 2 else torch.zeros(n), torch.zeros(n) if two else None]
                    reference.optimizer_update_32bit(
                        name, gradient.clone(), p, *mine, torch.zeros(1) if max_unorm else None, max_unorm, norm,
                        *list(options.values())[:6], 1, options["lr"], options["gnorm_scale"], False,
                    )  # fmt: skip
                else:
                    absmax1 = memory.out(rows * blocks, torch.float32)
                    absmax2 = memory.out(blocks, torch.float32) if two else None
                    made += [absmax1, *([absmax2] if two else [])]
                    for buffer in made[-2 if two else -1 :]:
                        buffer.tensor.zero_()
                    kernels._call(
                        "coptimizer_static_8bit_blockwise", guarded.DTYPES[dtype], OPTIMIZERS[name], parameter.address,
                        memory.hold(gradient), state1.address, state2.address if two else None, memory.hold(signed),
                        memory.hold(unsigned) if two else None, absmax1.address, absmax2.address if two else None,
                        ctypes.byref(step), n,
                    )  # fmt: skip
                for buffer in made:
                    assert buffer.canary_is_alive(), "bytes outside a state were written"
                if bits == 32:
                    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
                    torch.testing.assert_close(parameter.tensor, p, rtol=tolerance, atol=tolerance)
                else:
                    assert parameter.tensor.isfinite().all()
                    assert not torch.equal(parameter.tensor, p)
            count += 1
    return count


def main(kind: str, name: str, rounds: str = "1") -> None:
    """One operator's kernels of one kind."""
    faulthandler.enable()
    kernels = guarded.Kernels(kind)
    assert kernels.kind == kind
    if kernels.queue is None:
        globals().update(WIDE=160, MS=CPU_MS)  # more panels than a thread takes at a time
    try:
        sweeps = {"dequantize_blockwise": dequantize_blockwise, "int8": int8, "optimizer": optimizer}
        count = sweeps.get(name, functools.partial(product, name))(kernels, int(rounds))
    except Exception as error:
        raise SystemExit(f"{_last}: {type(error).__name__}: {error}") from error
    left = [family for family in kernels.not_built() if family.startswith(name)]
    if left:
        raise SystemExit(f"these kernels have not run: {', '.join(left)}")
    print(f"{count} calls of {name} as {kind} touched no byte outside")


if __name__ == "__main__":
    main(*sys.argv[1:])
