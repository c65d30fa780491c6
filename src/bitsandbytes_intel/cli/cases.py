"""The cases of the validation: for each operator, inputs that a user's tensors look like, and awkward ones.

They are few, and quick on any device: the tests hold the thorough ones. A new operator gets its cases here; one that
has none fails the validation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import reference


@dataclass(frozen=True)
class Case:
    """One call: what it is as text, its arguments on the CPU, and the dtype of its result.

    The result must have the reference's bits. A matrix product of floats, which has ``weight`` (the exact one, fp32),
    may instead be off by :func:`reference.product_tolerance`.
    """

    text: str
    arguments: dict[str, Any]
    dtype: torch.dtype
    weight: Tensor | None = None


_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _codes(n: int, random: torch.Generator) -> Tensor:
    """N packed 4-bit codes."""
    return torch.randint(0, 256, ((n + 1) // 2, 1), dtype=torch.uint8, generator=random)


def _absmax(n: int, blocksize: int, random: torch.Generator) -> Tensor:
    return torch.rand(-(-n // blocksize), generator=random) * 0.1 + 0.01


def _dynamic_map() -> Tensor:
    from bitsandbytes.functional import create_dynamic_map

    return create_dynamic_map()


def _int8_linear_matmul() -> Iterator[Case]:
    for seed, (a, b) in enumerate((((32, 64), (128, 64)), ((1, 1024), (256, 1024)), ((2, 5, 33), (7, 33)))):
        random = _random(seed)
        A, B = (torch.randint(-128, 128, shape, dtype=torch.int8, generator=random) for shape in (a, b))
        yield Case(f"A int8 {list(a)}, B int8 {list(b)}", {"A": A, "B": B}, torch.int32)


def _dequantize_4bit() -> Iterator[Case]:
    sizes = (((512, 1024), 64), ((37, 129), 128))  # the second: no multiple of the block, an odd number of elements
    for seed, ((shape, blocksize), dtype) in enumerate(itertools.product(sizes, _FLOATS)):
        random, n, kind = _random(seed), math.prod(shape), reference.QUANT_TYPES[seed % 2]
        yield Case(
            f"{kind} {list(shape)}, blocksize {blocksize}",
            {
                "A": _codes(n, random),
                "absmax": _absmax(n, blocksize, random),
                "blocksize": blocksize,
                "quant_type": kind,
                "shape": shape,
                "dtype": dtype,
            },
            dtype,
        )


def _dequantize_blockwise() -> Iterator[Case]:
    sizes = (((512, 1024), 256), ((37, 129), 100))  # the second: no power of two
    for seed, ((shape, blocksize), dtype) in enumerate(itertools.product(sizes, _FLOATS)):
        random = _random(seed)
        A = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
        yield Case(
            f"8 bit {list(shape)}, blocksize {blocksize}",
            {
                "A": A,
                "absmax": _absmax(A.numel(), blocksize, random),
                "code": _dynamic_map(),
                "blocksize": blocksize,
                "dtype": dtype,
            },
            dtype,
        )


def _gemv_4bit() -> Iterator[Case]:
    sizes = ((512, 1024, 64), (37, 130, 32))  # N, K, blocksize; the second: rows that are no multiple of anything
    for seed, ((n, k, blocksize), dtype) in enumerate(itertools.product(sizes, _FLOATS)):
        random, kind = _random(seed), reference.QUANT_TYPES[seed % 2]
        A = torch.randn(1, 1, k, generator=random).to(dtype)
        B, absmax = _codes(n * k, random), _absmax(n * k, blocksize, random)
        yield Case(
            f"A {list(A.shape)}, B {kind} {[n, k]}, blocksize {blocksize}",
            {
                "A": A,
                "B": B,
                "shapeB": (n, k),
                "absmax": absmax,
                "code": reference.codebook(kind),
                "blocksize": blocksize,
            },
            dtype,
            reference.dequantize_4bit(B, absmax, blocksize, kind, (n, k), torch.float32),
        )


def _gemm_4bit() -> Iterator[Case]:
    sizes = (
        (1, 512, 1024, 64, True),
        (4, 37, 130, 32, False),
        (128, 384, 1536, 64, True),
    )  # M, N, K, blocksize, nested
    for seed, ((m, n, k, blocksize, nested), dtype) in enumerate(itertools.product(sizes, _FLOATS)):
        random, kind = _random(seed), reference.QUANT_TYPES[seed % 2]
        A = torch.randn(m, k, generator=random).to(dtype)
        B, absmax = _codes(n * k, random), _absmax(n * k, blocksize, random)
        bias = torch.randn(n, generator=random).to(dtype) if nested else None
        arguments: dict[str, Any] = {
            "A": A,
            "B": B,
            "shapeB": (n, k),
            "absmax": absmax,
            "blocksize": blocksize,
            "quant_type": kind,
            "bias": bias,
        }
        if nested:
            offset, code = absmax.mean(), _dynamic_map()
            quantised, outer = reference.quantize_blockwise(absmax - offset, code, 256)
            absmax = reference.dequantize_blockwise(quantised, outer, code, 256, torch.float32) + offset
            arguments.update(absmax=outer, absmax_8bit=quantised, absmax_code=code, absmax_offset=offset)
        weight = reference.dequantize_4bit(B, absmax, blocksize, kind, (n, k), torch.float32)
        extras = ", nested, bias" if nested else ""
        yield Case(f"A {[m, k]}, B {kind} {[n, k]}, blocksize {blocksize}{extras}", arguments, dtype, weight)


_CASES: dict[str, Callable[[], Iterator[Case]]] = {
    "int8_linear_matmul": _int8_linear_matmul,
    "dequantize_4bit": _dequantize_4bit,
    "dequantize_blockwise": _dequantize_blockwise,
    "gemv_4bit": _gemv_4bit,
    "gemm_4bit": _gemm_4bit,
}


def of(operator: str) -> list[Case]:
    """The cases of an operator; its ``.out`` variant has the same. Empty for one that has none."""
    make = _CASES.get(operator.partition(".")[0])
    return list(make()) if make else []
