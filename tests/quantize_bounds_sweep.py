"""Runs every kernel of quantisation of a kind of device on guarded memory, over awkward sizes, as bounds_sweep.py does.

usage: python quantize_bounds_sweep.py KIND [ROUNDS]

Before each call its sizes go to stderr, so that the last line before a segmentation fault says what ran.
"""

from __future__ import annotations

import ctypes
import faulthandler
import itertools
import sys

import guarded
import torch
from helpers import FLOATS, exactly_equal, generator, short

from bitsandbytes_intel import reference

SIZES = (1, 2, 3, 7, 8, 9, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 255, 256, 257, 511, 513, 1000, 2047, 2048, 2049,
         4095, 4096, 4097, 8184, 8191, 8192, 8193, 12289, 16384, 16385, 20000, 24591)  # fmt: skip
BLOCKSIZES = {
    "general8bit": (64, 256, 1, 3, 8, 16, 32, 100, 4096, 5000, 8192, 16384),
    "fp4": (32, 64, 128, 512, 2048, 4096),
    "nf4": (32, 64, 256, 1024, 4096),
}


def sweep(kernels: guarded.Kernels, rounds: int) -> int:
    """Every size with every data type and dtype, the places and blocksizes in turn."""
    pointer, long = ctypes.c_void_p, ctypes.c_int64
    kernels.library.cquantize_blockwise.argtypes = [
        ctypes.c_int, ctypes.c_int, *[pointer] * 4, long, long, pointer, ctypes.c_char_p, ctypes.c_size_t,
    ]  # fmt: skip
    count = 0
    for (data_type, blocksizes), dtype in itertools.product(BLOCKSIZES.items(), FLOATS):
        turns = itertools.cycle(itertools.product(blocksizes, guarded.PLACES))
        packed = data_type != "general8bit"
        for n in SIZES * rounds:
            blocksize, place = next(turns)
            what = f"quantize_blockwise {data_type} {short(dtype)} {n=} {blocksize=} {place}"
            print(what, file=sys.stderr, flush=True)
            g = generator(n)
            A = torch.randn(n, generator=g).to(dtype)
            code = None if packed else torch.linspace(-1, 1, 256)
            if count % 5 == 0 and not packed:
                code = torch.randn(256, generator=g)
            if packed:
                wanted, wanted_absmax = reference.quantize_4bit(A, blocksize, data_type)
            else:
                wanted, wanted_absmax = reference.quantize_blockwise(A, code, blocksize)
            with guarded.arena(place) as memory:
                out = memory.out(wanted.numel(), torch.uint8)
                absmax = memory.out(wanted_absmax.numel(), torch.float32)
                kernels._call(
                    "cquantize_blockwise", guarded.DTYPES[dtype], guarded.DATA_TYPES[data_type], memory.hold(code),
                    memory.hold(A), absmax.address, out.address, blocksize, n,
                )  # fmt: skip
                assert out.canary_is_alive(), "bytes outside the codes were written"
                assert absmax.canary_is_alive(), "bytes outside the statistics were written"
                exactly_equal(out.tensor, wanted.reshape(-1))
                exactly_equal(absmax.tensor, wanted_absmax)
            count += 1
    return count


def main(kind: str, rounds: str = "1") -> None:
    """The kernels of one kind."""
    faulthandler.enable()
    kernels = guarded.Kernels(kind)
    assert kernels.kind == kind
    count = sweep(kernels, int(rounds))
    if left := [family for family in kernels.not_built() if family.startswith("quantize_blockwise/")]:
        raise SystemExit(f"these kernels have not run: {', '.join(left)}")
    print(f"{count} calls of quantize_blockwise as {kind} touched no byte outside")


if __name__ == "__main__":
    main(*sys.argv[1:])
