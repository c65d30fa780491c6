"""The SYCL run-time compiler of intel-sycl-rt as a Python function: SYCL source in, SPIR-V or PTX out, no GPU needed.

`libsycl-jit.so` carries the whole SYCL tool chain, its NVPTX back end included, behind one function, `compileSYCL`. Its
interface is internal to the release; the structures below mirror intel-sycl-rt 2026.2, and another release may need
another look at them (sycl-jit/jit-compiler/include/RTC.h and Kernel.h in intel/llvm).
"""

from __future__ import annotations

import base64
import ctypes
import importlib.metadata
import os
import re
import sys
import zlib
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


# Where the compiler looks for SYCL's device library for NVIDIA, and ends without it, even if told to link none.
DEVICE_LIBRARY = Path("/lib/clang/23/lib/nvptx64-nvidia-cuda/libspirv.l64.signed_char.bc")
# LLVM bitcode of an empty module, compressed: what the kernels here need of that library.
_EMPTY_MODULE = (
    "eNotVG9ME2cYv3LQq1DfOxkq1bvbVZjpjLpbcdpy7UJ7Tus0WXH7wBIXOWQV9oe0UKGgMy3HvBr7oTP90A8ugcwsbp/qwhKWkIVyjDV4cZ1ZFu"
    "IIaUdBWFCIMmMyP+w5sek97dv0fd7n9+/1ihPzb9VgWAWGYW1mvv7dD3/+9vP/fnyvqjl6ygC/Wc0Y9jF8qSqzYmWw3gMPEav7ypMrP2Gk7M7r"
    "hiHzaxUmC1t+rS1a/k6Z93qVt56y1zhMtScr7dVxX6bdKl6Jlx+n7d76UM60rf71pisJ6qTB3j5kuk5zdZ74ImbZ4i237LPtSzaf4ep+arpitq"
    "jEne2W6kSinrDY2/Y7c8ltdbnqOGIa248ez1F7xGNlll3YVQ7DTPpMgXLqB+/gCeo0lGRo0u+r3LLXM13hrd5rGoxh2Ct7+zJEZJi4lMEbO/C+"
    "jBLmlLBJOVyrDHBKMG+SuuPrS+H++188PfEZZft+B4ZR13TsRXgaTFF6qkgHagzuuOgYUhPeKNEfIXrSIfMSRj6k0EYUNZi97GSWuTtCB/iKF3"
    "+Td2u4Oye6E7hbiyTCQeKiiej3KcEgMRDEeyNKkFMs2ja0mkRFnuziyYV1tO5HDdQUM2+lZ63MpMQG+KvCuCzkReco7hqXXUO4oK3X9LYSFzuI"
    "Ix1KN9SoEkwqwVai10b0PquAtn1R5axJCdUq3WmlPx3b/2gdPSqgfyfQKo+35Ubo0gitvahzEj1jpadizIxk/DMpOnOiM/2ijqmOlOiI40JKfQ"
    "MOfT4o/IELGdX8a6cSbFG6g3K4g4i0KuFaJTysWO6+Tz7CyMd+VEqihSayyKFVQMHZmLksO+lh71npuRg7V6BLReYfAxuobXZkxMYbsqD5618C"
    "aVX6IkQk3XxqI0nqDLCfsDMSvWxl5rPMZQOrD2xl1iXjB1/KDk0VMqIbCHk+6SqJQhyWauKXSkCq9ME8JmLARnSnY2cWKLQ6gRb96Alfl73nYU"
    "vFnbNFZh4G8FmEjOwelXcPqY6E6NRU11jWmVMBo0vzjYZMBEwVAgJbFMtf02i1lXxYMK5z5CJPLnLkUz/qotACj2D5pGBcKaCSHz3j6/5elejJ"
    "GDNb3LlqZZaszJSVAQWXra8GuK+FcdE9hjtTslNrGQf1AewAzOlT+oKK5c4DtMaTxQJaaSJXhuEU1YD33CIAy9k0WEVnOJwHKWNDHmdBBercoJ"
    "TWNDXMzIwwBQ87n6UD9ed4VNT1JaHJIi9a5Qu1RI9POTusXIrC3tspgyuhulKqIy82gp00YMzss273SiyMejfLnI7VBE6d59EaR64VjGt+ckNv"
    "hRYLxiWOLOYB7DdNcm8H0W9SLKd3jakC+PCm6NCAQ9yZlF0a7gIyU6r52NZpsC44aoS+HGMfG0DH6dtGcCD0AS0aqiFuwSgxcIvot4Fk2VGPI4"
    "ML46rjeZl7XG1MwWwdcxxz38ACe9NAYHarrr6ew+9qMewIfFZVdtvA48RASzANvOqUOPPq4BI9PbJ12aNHcEknXvfOjkMLreiBHyxJlnRjkg/8"
    "aCMTjemH64mJKKFNv7QEb6iOUYNwU3an1LJPIXz0XJGe4+iSpNflGDsp0fkROrcpspQ1kBtADPAURVXxTbIrfnMAtbMQIBWkFsBZkPscLuy3wZ"
    "Z70E3KHkWLlB6RlVayCBVymTc+SZIPObQ2gQAa9juFYUb9btVcN2XhBgQQdw/LLghjUtU5CMFdp9+/dkTtKcc2Xx/B3QxvrBpPSfrabj/45kG+"
    "qzcYjhw+dKCrt7O9Uzpw7kK75OoJd3d2nX/75b7/AZPPM7w="
)


def _provide_device_library() -> None:
    """Put an empty device library where there is none."""
    if DEVICE_LIBRARY.exists():
        return
    try:
        DEVICE_LIBRARY.parent.mkdir(parents=True, exist_ok=True)
        DEVICE_LIBRARY.write_bytes(zlib.decompress(base64.b64decode(_EMPTY_MODULE)))
    except OSError as error:
        raise CompileError(
            f"the compiler wants a device library at {DEVICE_LIBRARY}, which may be empty: {error}"
        ) from error


def compile_sycl(source: str, kernels: Sequence[str], target: Format, options: Sequence[str] = ()) -> list[Image]:
    """Compile `source` and instantiate `kernels`, names such as "ns::kernel<float, 8>"."""
    if target == Format.PTX:
        _provide_device_library()
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
