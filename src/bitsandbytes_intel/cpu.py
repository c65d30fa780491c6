"""The CPU kernels, seen from Python: which instruction sets this CPU has, and which of them the kernels use."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import pathlib
from collections.abc import Iterator

from . import env
from .runtime import KernelError

LIBRARY = pathlib.Path(__file__).parent / "libbitsandbytes_intel_cpu.so"
_MESSAGE_SIZE = 1024


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded CPU library, held to ``BNB_INTEL_ISA`` if that is set.

    ``BNB_INTEL_INT8_ACTIVATIONS`` is read when it is loaded.

    Raises:
        KernelError: it is missing, does not load, or this CPU lacks the instruction set.
    """
    if not LIBRARY.exists():
        raise KernelError(f"{LIBRARY.name} is missing: install bitsandbytes-intel again")
    try:
        lib = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise KernelError(f"{LIBRARY.name} does not load: {error}") from error
    text, size = ctypes.c_char_p, ctypes.c_size_t
    lib.bnb_cpu_isas.restype = lib.bnb_cpu_kernels.restype = text
    lib.bnb_cpu_force_isa.argtypes = [text, text, size]
    lib.bnb_cpu_int8_activations.restype = None
    lib.bnb_cpu_int8_activations(int(env.INT8_ACTIVATIONS.get()))
    wanted = env.ISA.get()
    if wanted:
        _force(lib, wanted, env.ISA.name)
    return lib


def isas() -> dict[str, str]:
    """The instruction sets of this CPU that kernels can be held to, and what each is, in increasing order."""
    lines = library().bnb_cpu_isas().decode().splitlines()
    return dict(line.split("\t") for line in lines)


def kernels() -> dict[str, str]:
    """Each kernel and the instruction set of the implementation that answers now."""
    lines = library().bnb_cpu_kernels().decode().splitlines()
    return dict(sorted(line.split("\t") for line in lines))


def _force(lib: ctypes.CDLL, name: str, what: str) -> None:
    message = ctypes.create_string_buffer(_MESSAGE_SIZE)
    if lib.bnb_cpu_force_isa(name.encode(), message, _MESSAGE_SIZE):
        raise KernelError(f"{what}: {message.value.decode(errors='replace')}")


@contextlib.contextmanager
def using(isa: str) -> Iterator[None]:
    """Hold the kernels to an instruction set, in the whole process: for tests and benchmarks.

    Raises:
        KernelError: this CPU lacks it.
    """
    lib = library()
    _force(lib, isa, "isa")
    try:
        yield
    finally:
        _force(lib, env.ISA.get(), env.ISA.name)


@contextlib.contextmanager
def int8_activations() -> Iterator[None]:
    """Let gemm_4bit quantise its activations to int8, in the whole process: for tests and benchmarks."""
    lib = library()
    lib.bnb_cpu_int8_activations(1)
    try:
        yield
    finally:
        lib.bnb_cpu_int8_activations(int(env.INT8_ACTIVATIONS.get()))
