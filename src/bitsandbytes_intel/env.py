"""Every ``BNB_INTEL_*`` environment variable, read in this one place.

Variables are read when they are needed, never cached, so that a test can change them; the XPU library reads
``BNB_INTEL_ISA`` itself, once.
A value that a variable does not know is a ``ValueError`` that names the allowed ones.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_SWITCH = {"1": True, "true": True, "on": True, "yes": True, "0": False, "false": False, "off": False, "no": False}

ISAS = ("scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx")


@dataclass(frozen=True)
class Variable:
    """One environment variable: its name, what it does, its default as text, and how its text becomes a value."""

    name: str
    help: str
    default: str
    parse: Callable[[str, str], Any]

    def get(self) -> Any:
        """The variable's value; its default where it is unset or empty."""
        return self.parse(self.name, os.environ.get(self.name) or self.default)


def _switch(name: str, text: str) -> bool:
    try:
        return _SWITCH[text.strip().lower()]
    except KeyError:
        raise ValueError(f"{name}={text!r} is not a switch: expected one of {', '.join(_SWITCH)}") from None


def _folder(name: str, text: str) -> pathlib.Path:
    if not text:
        import platformdirs  # here, not above: torch imports this package at start and must not pay for it

        return pathlib.Path(platformdirs.user_cache_dir("bitsandbytes_intel", appauthor=False))
    path = pathlib.Path(text).expanduser()
    if not path.is_absolute():
        raise ValueError(f"{name}={text!r} is not an absolute path: expected an absolute path or nothing")
    return path


def _isa(name: str, text: str) -> str:
    if text and text not in ISAS:
        raise ValueError(f"{name}={text!r} is not an instruction set: expected one of {', '.join(ISAS)}")
    return text


AUTOLOAD = Variable("BNB_INTEL_AUTOLOAD", "register our operators when bitsandbytes is imported", "1", _switch)
VIRTUAL_XPU = Variable(
    "BNB_INTEL_VIRTUAL_XPU", "give a CPU build of torch the virtual device xpu:0 when torch is imported", "0", _switch
)
CACHE_DIR = Variable(
    "BNB_INTEL_CACHE_DIR", "folder of compiled kernels (default: the user's cache folder)", "", _folder
)
ISA = Variable(
    "BNB_INTEL_ISA",
    f"the most that CPU kernels may use, one of {', '.join(ISAS)} (default: all that the CPU has)",
    "",
    _isa,
)
INT8_ACTIVATIONS = Variable(
    "BNB_INTEL_INT8_ACTIVATIONS",
    "let gemm_4bit of 8 rows and more on a CPU with VNNI or AMX quantise its activations to int8: faster, less exact",
    "0",
    _switch,
)

VARIABLES = (AUTOLOAD, VIRTUAL_XPU, CACHE_DIR, ISA, INT8_ACTIVATIONS)


def cache_dir() -> pathlib.Path:
    """The folder that compiled kernels are kept in; it need not exist yet."""
    return CACHE_DIR.get()
