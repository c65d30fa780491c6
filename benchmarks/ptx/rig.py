"""Loads the kernels of make_ptx.py through the CUDA driver and launches them, by the names of their arguments.

Nothing but `libcuda.so.1` and numpy is needed: bench.py launches on torch's tensors and streams (both live in the
device's primary context), sanitize.py on allocations of its own.
"""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

GENERAL_8BIT, FP4, NF4 = 0, 1, 2
DATA_TYPES = {GENERAL_8BIT: "8-bit", FP4: "FP4", NF4: "NF4"}
_ENUMERATORS = {"General8bit": GENERAL_8BIT, "FP4": FP4, "NF4": NF4}


def codebooks(text: str) -> dict[int, np.ndarray]:
    """The 4-bit tables as csrc/codebook.h has them, which is the only place for them."""
    found = {}
    for data_type, name in ((NF4, "kNF4"), (FP4, "kFP4")):
        numbers = re.search(rf"\b{name}\[16\] = {{(.*?)}};", text, re.S)[1]  # type: ignore[index]
        found[data_type] = np.array([float(x.strip(" f")) for x in numbers.replace("\n", "").split(",") if x.strip()],
                                    np.float32)  # fmt: skip
    return found


TABLES: dict[int, np.ndarray] = {}
"""Values of the 4-bit types, by code; read_kernels fills it from what make_ptx.py wrote."""

Values: TypeAlias = dict[str, Any]
"""Arguments of a kernel by name; a pointer is an address, or None."""

_CTYPES: dict[str, Any] = {
    "i64": ctypes.c_int64,
    "i32": ctypes.c_int32,
    "u64": ctypes.c_uint64,
    "u32": ctypes.c_uint32,
    "float": ctypes.c_float,
}


@dataclass
class Kernel:
    """One kernel of kernels.json."""

    family: str
    name: str
    symbol: str
    file: str
    template: dict[str, str | int]
    arguments: list[tuple[str, str]]
    source_hash: str
    handle: Any = None

    @cached_property
    def function(self) -> str:
        """The kernel function's name, without namespace and template arguments."""
        return self.name.partition("<")[0].rpartition("::")[2]

    @cached_property
    def shape(self) -> str:
        """The template arguments, for people."""
        return ", ".join(str(value).replace("bnb::", "") for value in self.template.values())

    @cached_property
    def type(self) -> str:
        """The type T of activations and outputs: half, bfloat16 or float."""
        return str(self.template["T"]).rpartition("::")[2]

    def number(self, parameter: str) -> int:
        """An integer template argument."""
        value = self.template[parameter]
        return value if isinstance(value, int) else _ENUMERATORS[value.rpartition("::")[2]]

    @cached_property
    def group_size(self) -> int:
        """Work-items of a work-group: threads of a block."""
        if "GROUP_SIZE" in self.template:
            return self.number("GROUP_SIZE")
        if "SPLIT_K" in self.template:
            return self.number("SUBG_SIZE") * self.number("SPLIT_K") * self.row_groups
        return self.number("SUBG_SIZE")

    @cached_property
    def row_groups(self) -> int:
        """Of a matrix product that splits k: groups of sub-groups that share rows."""
        return self.number("ROW_GROUPS") if "ROW_GROUPS" in self.template else 1

    @cached_property
    def on_matrix_unit(self) -> bool:
        """Whether it is a matrix product on the matrix unit."""
        return self.function == "kgemm_4bit_inference_matrix"

    @cached_property
    def width(self) -> int:
        """Of a matrix product: K must be a multiple of this."""
        if self.on_matrix_unit:
            return 32 * self.number("WORDS")
        return self.number("NUM_PER_THREAD") if "NUM_PER_THREAD" in self.template else 32

    @cached_property
    def least_blocksize(self) -> int:
        """Of a matrix product."""
        return max(32, self.width)

    @cached_property
    def rows_of_a(self) -> int:
        """Of a matrix product: rows of activations that a sub-group takes."""
        return self.number("TILE_M") if "TILE_M" in self.template else 1

    @cached_property
    def rows_of_b(self) -> int:
        """Of a matrix product: rows of weights that a work-group takes."""
        if self.on_matrix_unit:
            return self.row_groups * self.number("ROWS")
        if "SPLIT_K" in self.template:  # a row, or more, a lane
            return self.number("SUBG_SIZE") * self.number("ROWS")
        return self.group_size // self.number("SUBG_SIZE") * self.number("ROWS")

    def pack(self, values: Values) -> list[Any]:
        """The arguments as C values, in the order of the signature."""
        packed = []
        for kind, name in self.arguments:
            if name not in values:
                raise KeyError(f"{self.function} takes an argument '{name}' that this script does not know")
            packed.append((ctypes.c_uint64 if kind.endswith("*") else _CTYPES[kind])(values[name] or 0))
        return packed


def ceil_div(a: int, b: int) -> int:
    """Of a / b, rounded up."""
    return -(-a // b)


def shift_of(blocksize: int) -> int:
    """The power of two that blocksize is, or -1."""
    return blocksize.bit_length() - 1 if blocksize & (blocksize - 1) == 0 else -1


def dequantize_launch(
    kernel: Kernel, *, code: int | None, a: int, absmax: int, out: int, blocksize: int, n: int
) -> tuple[int, Values]:
    """Work-groups and arguments of a dequantisation."""
    values = {"code": code, "A": a, "absmax": absmax, "out": out, "blocksize": blocksize, "n": n}
    return ceil_div(n, kernel.number("TILE_SIZE")), values | {"shift": shift_of(blocksize)}


def product_launch(
    kernel: Kernel,
    *,
    m: int,
    n: int,
    k: int,
    a: int,
    b: int,
    absmax: int,
    data_type: int,
    out: int,
    blocksize: int,
    datatype: int | None = None,
    bias: int | None = None,
    absmax_8bit: int | None = None,
    absmax_code: int | None = None,
    absmax_offset: int | None = None,
    lda: int | None = None,
    ldc: int | None = None,
) -> tuple[int, Values]:
    """Work-groups and arguments of out[m, n] = A[m, k] @ B[n, k].T."""
    tiles_m = ceil_div(m, kernel.rows_of_a)
    values = {
        "N": n,
        "K": k,
        "M": m,
        "A": a,
        "B": b,
        "absmax": absmax,
        "absmax_8bit": absmax_8bit,
        "absmax_code": absmax_code,
        "absmax_offset": absmax_offset,
        "bias": bias,
        "datatype": datatype,
        "data_type": data_type,
        "out": out,
        "lda": lda or k,
        "ldb": k,
        "ldc": ldc or n,
        "tiles_m": tiles_m,
        "shift": shift_of(blocksize),
    }
    return tiles_m * ceil_div(n, kernel.rows_of_b), values


def tiles_launch(kernel: Kernel, rows: int, cols: int, height: int) -> int:
    """Work-groups of an int8 kernel that works by tiles, of so many rows where the kernel does not say it."""
    width = kernel.number("NUM_PER_TH") * kernel.number("STEPS") * kernel.number("SUBG_SIZE")
    height = kernel.number("HEIGHT") if "HEIGHT" in kernel.template else height
    tiles = ceil_div(cols, width) * ceil_div(rows, height)
    if kernel.template.get("SHARED"):  # by the work-group's sub-groups
        return tiles
    return ceil_div(tiles, kernel.group_size // kernel.number("SUBG_SIZE"))


class Driver:
    """The CUDA driver, as far as these scripts need it."""

    def __init__(self, device: int = 0) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._call("cuInit", 0)
        handle = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(handle), device)
        name = ctypes.create_string_buffer(128)
        self._call("cuDeviceGetName", name, len(name), handle)
        self.device_name = name.value.decode()
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)  # the one that torch uses
        self._call("cuCtxSetCurrent", context)

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._cuda, function)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(status, ctypes.byref(text))
            raise RuntimeError(f"{function}: {(text.value or b'error').decode()} ({status})")

    def load(self, folder: Path, kernels: list[Kernel]) -> None:
        """Load the PTX of `kernels`, which the driver compiles for the device."""
        modules: dict[str, ctypes.c_void_p] = {}
        for kernel in kernels:
            if kernel.file not in modules:
                module = ctypes.c_void_p()
                ptx = (folder / kernel.file).read_bytes() + b"\0"
                try:
                    self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(ptx))
                except RuntimeError as error:
                    raise RuntimeError(f"{kernel.file}: {error}") from None
                modules[kernel.file] = module
            kernel.handle = ctypes.c_void_p()
            symbol = kernel.symbol.encode()
            self._call("cuModuleGetFunction", ctypes.byref(kernel.handle), modules[kernel.file], symbol)

    def resources(self, kernel: Kernel) -> tuple[int, int]:
        """Registers a thread, and bytes of local memory (spills and arrays) a thread."""
        registers, local = ctypes.c_int(), ctypes.c_int()
        self._call("cuFuncGetAttribute", ctypes.byref(registers), 4, kernel.handle)
        self._call("cuFuncGetAttribute", ctypes.byref(local), 3, kernel.handle)
        return registers.value, local.value

    def can_run(self, kernel: Kernel) -> bool:
        """Whether the device has registers for a whole work-group."""
        threads = ctypes.c_int()
        self._call("cuFuncGetAttribute", ctypes.byref(threads), 0, kernel.handle)
        return kernel.group_size <= threads.value

    def launch(self, kernel: Kernel, groups: int, values: Values, stream: int = 0) -> None:
        """Launch on a stream (0: the default one); does not wait."""
        packed = kernel.pack(values)
        pointers = (ctypes.c_void_p * len(packed))(*(ctypes.addressof(value) for value in packed))
        self._call(
            "cuLaunchKernel",
            kernel.handle,
            ctypes.c_uint(groups), ctypes.c_uint(1), ctypes.c_uint(1),
            ctypes.c_uint(kernel.group_size), ctypes.c_uint(1), ctypes.c_uint(1),
            ctypes.c_uint(0),
            ctypes.c_void_p(stream),
            pointers,
            None,
        )  # fmt: skip

    def synchronize(self) -> None:
        """Wait for the device; raises what a kernel did wrong."""
        self._call("cuCtxSynchronize")

    def allocate(self, size: int) -> int:
        """Address of a new allocation of exactly so many bytes."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def free(self, address: int) -> None:
        """Give an allocation back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def write(self, address: int, data: bytes) -> None:
        """Copy to the device."""
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), ctypes.c_char_p(data), ctypes.c_size_t(len(data)))

    def read(self, address: int, size: int) -> bytes:
        """Copy from the device, after all work on the default stream."""
        data = ctypes.create_string_buffer(size)
        self._call("cuMemcpyDtoH_v2", data, ctypes.c_uint64(address), ctypes.c_size_t(size))
        return data.raw


class DryDriver(Driver):
    """No device: checks what is launched against the PTX, and lets `emulate` make the results in host memory."""

    def __init__(self, emulate: Callable[[Kernel, Values], None] | None = None) -> None:
        self.device_name = "no device (dry run)"
        self._emulate = emulate
        self._buffers: dict[int, Any] = {}

    def load(self, folder: Path, kernels: list[Kernel]) -> None:
        texts: dict[str, str] = {}
        for kernel in kernels:
            text = texts.setdefault(kernel.file, (folder / kernel.file).read_text())
            entry = re.search(rf"\.entry {re.escape(kernel.symbol)}\((.*?)\n\)", text, re.S)
            assert entry, f"{kernel.file} has no entry {kernel.symbol}"
            kinds = re.findall(r"\.param \.(\w+)", entry[1])
            sizes = [ctypes.sizeof(value) for value in kernel.pack({name: 0 for _, name in kernel.arguments})]
            assert [int(kind[1:]) // 8 for kind in kinds] == sizes, f"{kernel.name}: arguments {kinds}"

    def resources(self, kernel: Kernel) -> tuple[int, int]:
        return 0, 0

    def can_run(self, kernel: Kernel) -> bool:
        return True

    def launch(self, kernel: Kernel, groups: int, values: Values, stream: int = 0) -> None:
        kernel.pack(values)
        assert 0 < groups < 2**31
        if self._emulate:
            self._emulate(kernel, values)

    def synchronize(self) -> None:
        pass

    def allocate(self, size: int) -> int:
        buffer = ctypes.create_string_buffer(size)
        self._buffers[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def free(self, address: int) -> None:
        del self._buffers[address]

    def write(self, address: int, data: bytes) -> None:
        ctypes.memmove(address, data, len(data))

    def read(self, address: int, size: int) -> bytes:
        return ctypes.string_at(address, size)


def read_kernels(folder: Path) -> list[Kernel]:
    """The kernels that make_ptx.py wrote."""
    written = json.loads((folder / "kernels.json").read_text())
    TABLES.update(codebooks(written["codebook"]))
    entries = written["kernels"]
    return [Kernel(**{**entry, "arguments": [tuple(a) for a in entry["arguments"]]}) for entry in entries]
