"""The SYCL run-time compiler of intel-sycl-rt as a Python function: SYCL source in, SPIR-V or PTX out, no GPU needed.

`libsycl-jit.so` carries the whole SYCL tool chain, its NVPTX back end included, behind one function, `compileSYCL`. Its
interface is internal to the release; the structures below mirror intel-sycl-rt 2026.2, and another release may need
another look at them (sycl-jit/jit-compiler/include/RTC.h and Kernel.h in intel/llvm).
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

PINNED_RELEASE = "2026.2"


class Format(IntEnum):
    """What to make of a source (the values of the library's BinaryFormat)."""

    SPIRV = 2
    PTX = 3


class CompileError(RuntimeError):
    """The compiler refused the source; the message is its log."""


@dataclass(frozen=True)
class Image:
    """One device image. The compiler splits the kernels of a source by the device features that they need."""

    code: bytes
    symbols: dict[str, str]
    """Name of each instantiation in the image, as it was asked for, and its symbol."""


class _File(ctypes.Structure):
    _fields_ = [("path", ctypes.c_char_p), ("contents", ctypes.c_char_p)]


class _Array(ctypes.Structure):
    _fields_ = [("begin", ctypes.c_void_p), ("size", ctypes.c_size_t)]

    def of(self, kind: type) -> list[Any]:
        items: Any = ctypes.cast(self.begin, ctypes.POINTER(kind))
        return [items[i] for i in range(self.size)]

    def bytes(self) -> bytes:
        return ctypes.string_at(self.begin, self.size) if self.size else b""


class _Binary(ctypes.Structure):
    _fields_ = [
        ("format", ctypes.c_uint32),
        ("address_bits", ctypes.c_uint64),
        ("start", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
    ]


class _PropertyValue(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("is_integer", ctypes.c_bool),
        ("integer", ctypes.c_uint32),
        ("raw", _Array),
    ]


class _PropertySet(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("values", _Array)]


class _Image(ctypes.Structure):
    _fields_ = [("binary", _Binary), ("symbols", _Array), ("properties", _Array)]


class _Result(ctypes.Structure):
    _fields_ = [
        ("error", ctypes.c_uint32),
        ("images", _Array),
        ("options", ctypes.c_char_p),
        ("ir", _Array),
        ("log", ctypes.c_char_p),
    ]


def release() -> str:
    """The installed release of intel-sycl-rt, or an empty string."""
    try:
        return importlib.metadata.version("intel-sycl-rt")
    except importlib.metadata.PackageNotFoundError:
        return ""


def library() -> Path:
    """Where libsycl-jit.so lies."""
    candidates = [Path(sys.prefix) / "lib" / "libsycl-jit.so"]
    try:
        files = importlib.metadata.files("intel-sycl-rt") or []
        candidates += [Path(str(f.locate())).resolve() for f in files if f.name == "libsycl-jit.so"]
    except importlib.metadata.PackageNotFoundError:
        pass
    for path in candidates:
        if path.exists():
            return path
    raise FileNotFoundError(f"no libsycl-jit.so in {sys.prefix}: pip install 'intel-sycl-rt=={PINNED_RELEASE}.*'")


@cache
def _compiler() -> Any:
    if not release().startswith(PINNED_RELEASE):
        print(f"warning: intel-sycl-rt {release()} is not the {PINNED_RELEASE} this was written for", file=sys.stderr)
    function = ctypes.CDLL(str(library()), mode=os.RTLD_NOW | os.RTLD_DEEPBIND).compileSYCL
    function.argtypes = [_File, _Array, _Array, _Array, ctypes.c_bool, ctypes.c_uint32]
    function.restype = _Result
    return function


def _registered(image: _Image) -> dict[str, str]:
    """Instantiation name -> symbol. The library stores the symbol behind 8 bytes that hold its length in bits."""
    for properties in image.properties.of(_PropertySet):
        if properties.name == b"SYCL/registered kernels":
            return {v.name.decode(): v.raw.bytes()[8:].decode() for v in properties.values.of(_PropertyValue)}
    return {}


def compile_sycl(source: str, kernels: Sequence[str], target: Format, options: Sequence[str] = ()) -> list[Image]:
    """Compile `source` and instantiate `kernels`, names such as "ns::kernel<float, 8>"."""
    entries = ",\n".join(f'  {{"{name}", {name}}}' for name in kernels)
    text = f"{source}\n[[__sycl_detail__::__registered_kernels__(\n{entries}\n)]];\n".encode()
    argv = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    empty = _Array(None, 0)
    result = _compiler()(
        _File(b"kernels.cpp", text),
        empty,
        _Array(ctypes.cast(argv, ctypes.c_void_p), len(options)),
        empty,
        False,
        target,
    )
    log = (result.log or b"").decode(errors="replace")
    if result.error:
        lines = [line for line in log.splitlines() if line.strip() and not re.search(r"instructions in function", line)]
        raise CompileError("\n".join(lines))
    images = [Image(ctypes.string_at(i.binary.start, i.binary.size), _registered(i)) for i in result.images.of(_Image)]
    missing = set(kernels).difference(*(image.symbols for image in images))
    if missing:
        raise CompileError(f"the compiler made no kernel of {', '.join(sorted(missing))}")
    return images
