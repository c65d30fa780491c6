"""The XPU kernel runtime, seen from Python: which kernels there are, and how they are built, kept and loaded.

``csrc/xpu_ops`` compiles, loads and launches; this module decides what is compiled and what comes from the cache.
It works on a ``sycl::queue*`` as a number, and needs no torch. A family is a set of kernels that are built together.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from . import cache, env, sycl

_log = logging.getLogger(__name__)
_PACKAGE = pathlib.Path(__file__).parent
TORCH_LIBRARY = _PACKAGE / "libbitsandbytes_intel_torch.so"
_XPU_LIBRARY = "libbitsandbytes_intel_xpu_sycl{}.so"
KINDS = ("cpu", "gpu16", "gpu32")
MATRIX_KINDS = ("xmx16", "mma32")
"""GPUs with a matrix unit for sub-groups of 16 (Intel's XMX), and of 32 (NVIDIA's, in benchmarks/ptx alone): they have
the families of gpu16 and gpu32, some in shapes of their own, and those of gemm_4bit_matrix."""

_MESSAGE_SIZE = 4096
_Builder = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_char), ctypes.c_size_t)
_unsaved = threading.Event()  # set once keeping kernels has failed, so that it is said once


class KernelError(RuntimeError):
    """A kernel library, a device or a kernel that cannot be used; the text says why."""


@dataclass(frozen=True)
class Family:
    """Kernels that are built together: a name, the whole SYCL source, and the instantiations in it."""

    name: str
    source: str
    kernels: tuple[str, ...]


@dataclass(frozen=True)
class Device:
    """A SYCL device: its kind and who drives it.

    The kind is "cpu", "gpu16" or "gpu32" (CPU, GPU with sub-groups of 16, of 32), or one of MATRIX_KINDS.
    """

    index: int
    kind: str
    backend: str
    name: str
    version: str
    driver: str
    options: str
    """Of builds."""


def xpu_libraries() -> dict[int, pathlib.Path]:
    """The XPU libraries of this installation, by the N of the libsycl.so.N that each is linked to."""
    return {int(path.stem.rpartition("_sycl")[2]): path for path in _PACKAGE.glob(_XPU_LIBRARY.format("[0-9]*"))}


def xpu_library() -> pathlib.Path:
    """The XPU library for the SYCL runtime of this environment: there is one for each libsycl.so.N it was built for.

    Raises:
        KernelError: there is no SYCL runtime, or no library for it. The text says what was looked for and what to do.
    """
    built = xpu_libraries()
    if not built:
        raise KernelError(
            f"{_XPU_LIBRARY.format('N')} was not built with this installation: intel-sycl-rt was missing then. "
            "Install intel-sycl-rt and install bitsandbytes-intel again"
        )
    found = sycl.find_sycl()
    if found is None:
        raise KernelError(sycl.missing())
    if found.major not in built:
        served = ", ".join(f"libsycl.so.{major}" for major in sorted(built))
        raise KernelError(
            f"this environment has {found.library}, and {_XPU_LIBRARY.format(found.major)} is not in {_PACKAGE}: this "
            f"installation serves {served}. Install bitsandbytes-intel again from source, or an intel-sycl-rt of those"
        )
    return built[found.major]


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded XPU library, with our builder set.

    Raises:
        KernelError: it was not built, or does not load. The text says what to do.
        ValueError: ``BNB_INTEL_ISA`` names no instruction set.
    """
    path = xpu_library()
    env.ISA.get()  # which the library reads, and does not check
    sycl.show_cpu_device()
    try:
        sycl.load()
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"{path.name} does not load: {error}") from error
    text, size = ctypes.c_char_p, ctypes.c_size_t
    out_data, out_size = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_size_t)
    signatures = {
        "bnb_xpu_set_builder": (None, [_Builder]),
        "bnb_xpu_open": (ctypes.c_int, [ctypes.c_void_p, text, size]),
        "bnb_xpu_describe": (text, [ctypes.c_int]),
        "bnb_xpu_families": (text, [text]),
        "bnb_xpu_source": (text, [text]),
        "bnb_xpu_is_built": (ctypes.c_int, [ctypes.c_int, text]),
        "bnb_xpu_compile": (ctypes.c_int, [ctypes.c_int, text, ctypes.c_int, out_data, out_size, text, size]),
        "bnb_xpu_load": (ctypes.c_int, [ctypes.c_int, text, text, size, text, size]),
        "bnb_xpu_spirv": (ctypes.c_int, [ctypes.c_int, text, text, out_data, out_size, text, size]),
        "bnb_xpu_free": (None, [ctypes.c_void_p]),
        "bnb_xpu_force_kind": (ctypes.c_int, [text, text, size]),
        "bnb_xpu_new_queue": (ctypes.c_void_p, [text, size]),
        "bnb_xpu_wait": (ctypes.c_int, [ctypes.c_void_p, text, size]),
        "bnb_xpu_delete_queue": (None, [ctypes.c_void_p]),
        "bnb_xpu_malloc_shared": (ctypes.c_void_p, [size, ctypes.c_void_p, text, size]),
        "bnb_xpu_prefetch": (ctypes.c_int, [ctypes.c_void_p, size, ctypes.c_void_p, text, size]),
        "bnb_xpu_fill": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint32, size, size, ctypes.c_void_p, text, size]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.bnb_xpu_set_builder(_build_for_operator)
    return lib


def _check(function: Callable[..., int], *args: object) -> None:
    message = ctypes.create_string_buffer(_MESSAGE_SIZE)
    if function(*args, message, _MESSAGE_SIZE):
        raise KernelError(message.value.decode(errors="replace"))


def catalogue(kind: str) -> list[Family]:
    """Every family of kernels for a kind of device."""
    if kind not in KINDS + MATRIX_KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS + MATRIX_KINDS)}, got {kind!r}")
    lib = library()
    families = []
    for line in lib.bnb_xpu_families(kind.encode()).decode().splitlines():
        name, *kernels = line.split("\t")
        families.append(Family(name, lib.bnb_xpu_source(name.encode()).decode(), tuple(kernels)))
    return families


@functools.cache
def _families(kind: str) -> dict[str, Family]:
    return {family.name: family for family in catalogue(kind)}


def open_device(queue: int) -> Device:
    """The device of a ``sycl::queue*``.

    Raises:
        KernelError: our kernels cannot run on it.
    """
    message = ctypes.create_string_buffer(_MESSAGE_SIZE)
    index = library().bnb_xpu_open(queue, message, _MESSAGE_SIZE)
    if index < 0:
        raise KernelError(message.value.decode(errors="replace"))
    return describe(index)


def describe(index: int) -> Device:
    """An opened device, by its index."""
    return Device(index, *library().bnb_xpu_describe(index).decode().split("\n"))


def new_queue() -> int:
    """A ``sycl::queue*`` of our own, on the first device that SYCL finds: for tests and tools, never for operators."""
    message = ctypes.create_string_buffer(_MESSAGE_SIZE)
    queue = library().bnb_xpu_new_queue(message, _MESSAGE_SIZE)
    if not queue:
        raise KernelError(message.value.decode(errors="replace"))
    return queue


def wait(queue: int) -> None:
    """Wait for the end of everything on a ``sycl::queue*``."""
    _check(library().bnb_xpu_wait, queue)


def malloc_shared(size: int, queue: int) -> int:
    """The address of memory that the host shares with the device of a ``sycl::queue*``; never freed.

    Raises:
        KernelError: there is none.
    """
    message = ctypes.create_string_buffer(_MESSAGE_SIZE)
    pointer = library().bnb_xpu_malloc_shared(size, queue, message, _MESSAGE_SIZE)
    if not pointer:
        raise KernelError(message.value.decode(errors="replace"))
    return pointer


def prefetch(pointer: int, size: int, queue: int) -> None:
    """Ask for shared memory to be brought to the device, when the queue comes to it."""
    _check(library().bnb_xpu_prefetch, pointer, size, queue)


def fill(pointer: int, bits: int, item_size: int, count: int, queue: int) -> None:
    """Fill memory with ``count`` items of 4 bytes or 1, when the queue comes to it."""
    _check(library().bnb_xpu_fill, pointer, bits, item_size, count, queue)


def force_kind(kind: str) -> None:
    """Let devices opened from now on count as this kind ("" ends that): to run GPU kernels on a CPU device in tests."""
    _check(library().bnb_xpu_force_kind, kind.encode())


def compile_family(device: int, name: str, *, spirv: bool = False) -> bytes:
    """Compile a family from source, install it on the device, and return what :func:`load_family` takes."""
    lib = library()
    return _take(lib.bnb_xpu_compile, device, name.encode(), int(spirv))


def load_family(device: int, name: str, kept: bytes) -> None:
    """Install what :func:`compile_family` returned."""
    _check(library().bnb_xpu_load, device, name.encode(), kept, len(kept))


def spirv(device: int, name: str, kind: str) -> list[bytes]:
    """The SPIR-V modules of a family of a kind, as this device compiles them: a GPU may get more options."""
    content = _take(library().bnb_xpu_spirv, device, name.encode(), kind.encode())
    modules = []
    while content:
        end = 8 + int.from_bytes(content[:8], "little")
        modules.append(content[8:end])
        content = content[end:]
    return modules


def _take(function: Callable[..., int], *args: object) -> bytes:
    data, size = ctypes.c_void_p(), ctypes.c_size_t()
    _check(function, *args, ctypes.byref(data), ctypes.byref(size))
    try:
        return ctypes.string_at(data.value or 0, size.value)
    finally:
        library().bnb_xpu_free(data)


def key(device: Device, family: Family) -> str:
    """Everything that a built family depends on, as text."""
    runtime = sycl.find_sycl()
    stamp = f"{runtime.library.resolve().name} {runtime.library.stat().st_size}" if runtime else ""
    return "\n".join([device.kind, device.backend, device.name, device.version, device.driver, device.options, stamp,
                      family.source, *family.kernels])  # fmt: skip


def build(device: Device, name: str) -> str:
    """Make a family ready on a device: "present" if it is, else "loaded" from the cache or "compiled".

    Raises:
        KernelError: it does not compile.
    """
    if library().bnb_xpu_is_built(device.index, name.encode()):
        return "present"
    wanted = key(device, _families(device.kind)[name])
    try:
        if _load(device, name, wanted):
            return "loaded"
        with cache.building(wanted):
            if _load(device, name, wanted):  # another process was first
                return "loaded"
            kept = _compile(device, name)
            cache.write(wanted, kept)
            return "compiled"
    except OSError as error:
        if not _unsaved.is_set():
            _unsaved.set()
            _log.warning("compiled kernels are not kept: %s", error)
        if not library().bnb_xpu_is_built(device.index, name.encode()):
            _compile(device, name)
        return "compiled"


def _load(device: Device, name: str, wanted: str) -> bool:
    kept = cache.read(wanted)
    if kept is None:
        return False
    try:
        load_family(device.index, name, kept)
    except KernelError as error:
        _log.warning("building kernels '%s' anew: %s", name, error)
        cache.remove(wanted)
        return False
    _log.debug("loaded kernels '%s'", name)
    return True


def _compile(device: Device, name: str) -> bytes:
    start = time.monotonic()
    _log.info("compiling kernels '%s' for %s, once on this machine", name, device.name)
    kept = compile_family(device.index, name)
    _log.info("compiled kernels '%s' in %.1f s", name, time.monotonic() - start)
    return kept


def warm_up(device: Device) -> Iterator[tuple[str, str]]:
    """Make every family ready on a device; yields (family, what :func:`build` did) as it goes."""
    for name in _families(device.kind):
        yield name, build(device, name)


@_Builder
def _build_for_operator(index: int, name: bytes, message: Any, size: int) -> int:
    """Called by the XPU library when an operator needs a family that is not there yet."""
    try:
        build(describe(index), name.decode())
    except Exception as error:  # an exception cannot cross C
        text = f"{type(error).__name__}: {error}".encode()[: size - 1] + b"\0"
        ctypes.memmove(message, text, len(text))
        return 1
    return 0
