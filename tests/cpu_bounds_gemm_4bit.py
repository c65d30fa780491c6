"""Runs gemv_4bit and gemm_4bit on the CPU on guarded memory, over awkward sizes.

usage: python cpu_bounds_gemm_4bit.py ISA [ROUNDS]
"""

from __future__ import annotations

import ctypes
import faulthandler
import sys

import bitsandbytes  # noqa: F401
import bounds_sweep
import guarded

from bitsandbytes_intel import cpu


class CpuKernels(guarded.Kernels):
    """The C entries of the CPU library, on the calling thread."""

    def __init__(self) -> None:
        """With every argument typed."""
        self.queue = None
        lib = cpu.library()
        pointer, long = ctypes.c_void_p, ctypes.c_int64
        end = [pointer, ctypes.c_char_p, ctypes.c_size_t]
        number = ctypes.c_int
        product = [number, long, long, long, *[pointer] * 4, number, pointer, *[long] * 4]
        lib.cgemv_4bit_inference.argtypes = [*product, pointer, *end]
        lib.cgemm_4bit_inference.argtypes = [*product, pointer, pointer, *end]
        lib.cgemm_4bit_scratch.restype, lib.cgemm_4bit_scratch.argtypes = long, [long, long, pointer]
        self._lib = lib

    def _call(self, name: str, *args: object) -> None:
        message = ctypes.create_string_buffer(4096)
        if getattr(self._lib, name)(*args, self.queue, message, len(message)):
            raise RuntimeError(f"{name}: {message.value.decode()}")


def main(isa: str, rounds: str = "1") -> None:
    """Every operator under one instruction set."""
    faulthandler.enable()
    kernels = CpuKernels()
    bounds_sweep.WIDE = 160  # more panels than a thread takes at a time
    bounds_sweep.MS = {"gemv_4bit": (1, 1, 2, 3, 4), "gemm_4bit": (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 70)}
    with cpu.using(isa):
        count = sum(bounds_sweep.product(name, kernels, int(rounds)) for name in bounds_sweep.MS)
    print(f"{count} calls under {isa} touched no byte outside their operands")


if __name__ == "__main__":
    main(*sys.argv[1:])
