"""Memory between pages that may not be touched, and our kernels called on it through their C entries.

A CPU device takes any memory of the process, so a kernel that reads or writes a byte too much, before or behind a
buffer, ends the process with a segmentation fault. Inputs are made read-only as well.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from bitsandbytes_intel import cpu, env, runtime

PAGE = mmap.PAGESIZE
CANARY = 0xA5
# Where in its pages a buffer lies: right behind the forbidden page, right before one, the same but for alignment.
PLACES = ("begin", "end", "aligned end")
ALIGNMENT = 32
DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}
DATA_TYPES = {"general8bit": 0, "fp4": 1, "nf4": 2}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_MAP_NORESERVE, _MAP_FIXED = 0x4000, 0x10


def map_memory(size: int, *, at: int = 0, fd: int = -1, writable: bool = True) -> int:
    """The address of fresh pages, which cost nothing until they are written; of a file's with ``fd``."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE if fd < 0 else mmap.MAP_SHARED
    address = _libc.mmap(at or None, size, protection, kind | (_MAP_FIXED if at else 0), fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), f"cannot map {size} bytes")
    return address


def protect(address: int, size: int, protection: int) -> None:
    """Change what may be done with pages."""
    if _libc.mprotect(address, size, protection):
        raise OSError(ctypes.get_errno(), "mprotect failed")


def tensor_at(address: int, numel: int, dtype: torch.dtype) -> Tensor:
    """Memory as a tensor."""
    if numel == 0:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer((ctypes.c_char * (numel * dtype.itemsize)).from_address(address), dtype=dtype)


def map_periodic(size: int, pattern: Tensor) -> int:
    """The address of `size` bytes that repeat a pattern of whole pages, and take no more memory than one period."""
    period = pattern.numel() * pattern.element_size()
    assert period % PAGE == 0
    fd = os.memfd_create("pattern")
    os.ftruncate(fd, period)
    tensor_at(map_memory(period, fd=fd), pattern.numel(), pattern.dtype).copy_(pattern)
    total = -(-size // period) * period
    base = map_memory(total + 2 * PAGE) + PAGE
    protect(base - PAGE, PAGE, 0)
    protect(base + total, PAGE, 0)
    for at in range(0, total, period):
        map_memory(period, at=base + at, fd=fd)
    os.close(fd)
    return base


class Guarded:
    """A buffer of elements between two forbidden pages. The rest of its pages is filled with a canary."""

    def __init__(self, numel: int, dtype: torch.dtype, place: str):
        """Uninitialised memory for so many elements."""
        size = numel * dtype.itemsize
        self._pages = max(1, -(-(size + ALIGNMENT) // PAGE)) * PAGE
        self._base = map_memory(self._pages + 2 * PAGE)
        first = self._base + PAGE
        ctypes.memset(first, CANARY, self._pages)
        protect(self._base, PAGE, 0)
        protect(first + self._pages, PAGE, 0)
        end = first + self._pages - size
        self.address = {"begin": first, "end": end, "aligned end": end // ALIGNMENT * ALIGNMENT}[place]
        self.tensor = tensor_at(self.address, numel, dtype)
        self._size = size

    def freeze(self) -> Guarded:
        """Let nobody write to it any more."""
        protect(self._base + PAGE, self._pages, mmap.PROT_READ)
        return self

    def canary_is_alive(self) -> bool:
        """Whether all bytes of its pages that are not its own are unchanged."""
        whole = tensor_at(self._base + PAGE, self._pages, torch.uint8)
        start = self.address - self._base - PAGE
        return bool((whole[:start] == CANARY).all()) and bool((whole[start + self._size :] == CANARY).all())

    def free(self) -> None:
        """Give the memory back; the tensor must not be used any more."""
        _libc.munmap(self._base, self._pages + 2 * PAGE)


@contextmanager
def arena(place: str) -> Iterator[Arena]:
    """Buffers that live until the end of the block."""
    made = Arena(place)
    try:
        yield made
    finally:
        made.free()


class Arena:
    """Makes guarded buffers, all of one place."""

    def __init__(self, place: str):
        """No buffer yet."""
        self._place = place
        self._buffers: list[Guarded] = []

    def hold(self, tensor: Tensor | None) -> int | None:
        """The address of a read-only copy; None for None."""
        if tensor is None:
            return None
        buffer = Guarded(tensor.numel(), tensor.dtype, self._place)
        buffer.tensor.copy_(tensor.reshape(-1))
        self._buffers.append(buffer.freeze())
        return buffer.address

    def out(self, numel: int, dtype: torch.dtype) -> Guarded:
        """A buffer to write to."""
        buffer = Guarded(numel, dtype, self._place)
        self._buffers.append(buffer)
        return buffer

    def free(self) -> None:
        """Give all of them back."""
        for buffer in self._buffers:
            buffer.free()


class Statistics(ctypes.Structure):
    """``BnbStatistics`` of csrc/xpu_ops/xpu_ops.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("absmax", "absmax_8bit", "absmax_code", "absmax_offset")]


class Kernels:
    """The C entries of the XPU library, on a queue of its own, or of the CPU's; every call waits for its end."""

    def __init__(self, kind: str = ""):
        """On SYCL's first device, as if it were of another kind if one is named; or of an instruction set."""
        self.kind, self.queue = kind, None
        if kind in env.ISAS:
            lib = cpu.library()
            self._stack = ExitStack()
            self._stack.enter_context(cpu.using(kind))
        else:
            if kind:
                runtime.force_kind(kind)
            self.queue = runtime.new_queue()
            self.device = runtime.open_device(self.queue)
            self.kind = self.device.kind
            lib = runtime.library()
        pointer, long = ctypes.c_void_p, ctypes.c_int64
        end = [pointer, ctypes.c_char_p, ctypes.c_size_t]
        lib.cdequantize_blockwise.argtypes = [ctypes.c_int, ctypes.c_int, *[pointer] * 4, long, long, *end]
        product = [ctypes.c_int, long, long, long, pointer, pointer, ctypes.POINTER(Statistics), pointer, ctypes.c_int]
        lib.cgemv_4bit_inference.argtypes = [*product, pointer, *[long] * 4, pointer, *end]
        lib.cgemm_4bit_inference.argtypes = [*product, pointer, *[long] * 4, pointer, pointer, *end]
        lib.cgemm_4bit_scratch.restype, lib.cgemm_4bit_scratch.argtypes = long, [long, long, ctypes.c_void_p]
        self.library = lib

    def not_built(self) -> list[str]:
        """The families of kernels of this kind that no call has needed."""
        if self.queue is None:
            return []
        index, families = self.device.index, runtime.catalogue(self.device.kind)
        return [f.name for f in families if not self.library.bnb_xpu_is_built(index, f.name.encode())]

    def dequantize(self, dtype, data_type, code, A, absmax, out, blocksize, n) -> None:
        """cdequantize_blockwise, of addresses."""
        self._call("cdequantize_blockwise", DTYPES[dtype], DATA_TYPES[data_type], code, A, absmax, out, blocksize, n)

    def scratch_bytes(self, m: int, k: int) -> int:
        """How much scratch cgemm_4bit_inference wants."""
        return self.library.cgemm_4bit_scratch(m, k, self.queue)

    def product(
        self, name, dtype, m, n, k, A, B, statistics, datatype, quant_type, out, blocksize, bias, scratch=None
    ) -> None:
        """cgemv_4bit_inference, or cgemm_4bit_inference, which alone takes scratch; of addresses."""
        self._call(
            f"c{name}_inference", DTYPES[dtype], m, n, k, A, B, ctypes.byref(Statistics(*statistics)), datatype,
            DATA_TYPES[quant_type], out, k, k, n, blocksize, bias, *([scratch] if name == "gemm_4bit" else []),
        )  # fmt: skip

    def transposed(self, dtype, m, n, k, A, B, statistics, quant_type, out, blocksize) -> None:
        """cgemm_4bit_transposed, of addresses."""
        pointer, long = ctypes.c_void_p, ctypes.c_int64
        self.library.cgemm_4bit_transposed.argtypes = [
            ctypes.c_int, *[long] * 3, *[pointer] * 3, ctypes.c_int, pointer, *[long] * 4, pointer, ctypes.c_char_p,
            ctypes.c_size_t,
        ]  # fmt: skip
        self._call(
            "cgemm_4bit_transposed", DTYPES[dtype], m, n, k, A, B, ctypes.byref(Statistics(*statistics)),
            DATA_TYPES[quant_type], out, n, k, k, blocksize,
        )  # fmt: skip

    def _call(self, name: str, *args) -> None:
        message = ctypes.create_string_buffer(4096)
        failed = getattr(self.library, name)(*args, self.queue, message, len(message))
        if self.queue is not None:
            failed = failed or self.library.bnb_xpu_wait(self.queue, message, len(message))
        if failed:
            raise RuntimeError(f"{name}: {message.value.decode()}")
