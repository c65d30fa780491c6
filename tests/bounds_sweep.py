"""Runs every kernel of a kind of device on guarded memory, over awkward sizes; test_bounds.py runs it as a program.

usage: python bounds_sweep.py KIND OPERATOR [ROUNDS]

Before each call its sizes go to stderr, so that the last line before a segmentation fault says what ran.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import sys

import guarded
import torch
from helpers import FLOATS, Weight, check_product, exactly_equal, generator, short

from bitsandbytes_intel import reference

SIZES = (1, 2, 3, 7, 8, 9, 31, 32, 33, 64, 100, 127, 128, 129, 255, 256, 257, 264, 511, 513, 1000, 1016, 2047, 2048,
         2049, 2056, 4095, 4096, 4097, 8184, 8191, 8192, 8193, 8200, 16385, 20000, 24591)  # fmt: skip
BLOCKSIZES = {"general8bit": (1, 3, 8, 32, 64, 100, 256, 4096), "fp4": (32, 64, 4096), "nf4": (32, 256, 1024)}
KS = (1, 2, 3, 7, 8, 15, 16, 24, 31, 32, 33, 40, 63, 64, 72, 96, 100, 127, 128, 129, 136, 160, 224, 256, 257, 264, 320,
      384, 504, 512, 520, 640, 1000, 1001, 1024, 1032, 2080)  # fmt: skip
WIDE_KS = (8, 33, 40, 128, 136, 264, 512, 520)
NS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 66, 67, 129)
# So many rows that the GPU kernels for large matrices run, whatever the number of cores.
WIDE = 40 * (os.cpu_count() or 1) + 3
MS = {"gemv_4bit": (1, 1, 2, 3), "gemm_4bit": (1, 2, 3, 4, 5, 7, 8, 9, 16, 17)}
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
                statistics = [memory.hold(w.absmax)]
                statistics += [memory.hold(w.nested.get(f)) for f in ("absmax_8bit", "absmax_code", "absmax_offset")]
                datatype = None if extras else memory.hold(reference.codebook(quant_type))
                floats = kernels.scratch_bytes(m, k) // 4
                scratch = memory.out(floats, torch.float32) if floats and count % 3 else None
                kernels.product(
                    name, dtype, m, n, k, memory.hold(A), memory.hold(w.packed), statistics, datatype, quant_type,
                    out.address, blocksize, memory.hold(bias), scratch.address if scratch else None,
                )  # fmt: skip
                assert out.canary_is_alive(), "bytes outside the result were written"
                assert not scratch or scratch.canary_is_alive(), "bytes outside the scratch were written"
                check_product(out.tensor.view(m, n).clone(), A, w.exact(), bias)
            count += 1
    return count


def main(kind: str, name: str, rounds: str = "1") -> None:
    """One operator's kernels of one kind."""
    faulthandler.enable()
    kernels = guarded.Kernels(kind)
    assert kernels.device.kind == kind
    try:
        if name == "dequantize_blockwise":
            count = dequantize_blockwise(kernels, int(rounds))
        else:
            count = product(name, kernels, int(rounds))
    except Exception as error:
        raise SystemExit(f"{_last}: {type(error).__name__}: {error}") from error
    left = [family for family in kernels.not_built() if family.startswith(f"{name}/")]
    if left:
        raise SystemExit(f"these kernels have not run: {', '.join(left)}")
    print(f"{count} calls of {name} as {kind} touched no byte outside")


if __name__ == "__main__":
    main(*sys.argv[1:])
