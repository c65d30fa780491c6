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

# How far each element of a result may be from the reference's: of the result's name, and the reference's value.
Bound = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One call: what it is as text, its arguments on the CPU, and the dtype of its (first) result.

    The results are what the operator returns, named by their index, or, of one that works in place, the arguments that
    ``changes`` names. They must have the reference's bits. A matrix product of floats, which has ``weight`` (the exact
    one, fp32), may instead be off by :func:`reference.product_tolerance`, and a case that has ``bound`` by that. Codes
    that have a bound must be the reference's but for a share of :data:`RARE`.
    """

    text: str
    arguments: dict[str, Any]
    dtype: torch.dtype
    weight: Tensor | None = None
    changes: tuple[str, ...] = ()
    bound: Bound | None = None


RARE = 0.01
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _codes(n: int, random: torch.Generator) -> Tensor:
    """N packed 4-bit codes."""
    return torch.randint(0, 256, ((n + 1) // 2, 1), dtype=torch.uint8, generator=random)


def _absmax(n: int, blocksize: int, random: torch.Generator) -> Tensor:
    return torch.rand(-(-n // blocksize), generator=random) * 0.1 + 0.01


def _dynamic_map(*, signed: bool = True) -> Tensor:
    from bitsandbytes.functional import create_dynamic_map

    return create_dynamic_map(signed=signed)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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


def _quantize_4bit() -> Iterator[Case]:
    sizes = (((64, 256), 64), ((37, 129), 128))  # the second: no multiple of the block, an odd number of elements
    for seed, ((shape, blocksize), dtype) in enumerate(itertools.product(sizes, _FLOATS)):
        kind = reference.QUANT_TYPES[seed % 2]
        A = torch.randn(shape, generator=_random(seed)).to(dtype)
        A[0] = 0
        yield Case(
            f"{_short(dtype)} {list(shape)} to {kind}, blocksize {blocksize}",
            {"A": A, "blocksize": blocksize, "quant_type": kind, "quant_storage": torch.uint8},
            torch.uint8,
        )


def _quantize_blockwise() -> Iterator[Case]:
    sizes = (((64, 256), 256), ((37, 129), 100))  # the second: no power of two
    for seed, ((shape, blocksize), dtype) in enumerate(itertools.product(sizes, _FLOATS)):
        A = torch.randn(shape, generator=_random(seed)).to(dtype)
        A[:4] = 0
        yield Case(
            f"{_short(dtype)} {list(shape)} to 8 bit, blocksize {blocksize}",
            {"A": A, "code": _dynamic_map(), "blocksize": blocksize},
            torch.uint8,
        )


def _int8_quant() -> Iterator[Case]:
    sizes = (((32, 512), 0.0), ((32, 512), 6.0), ((5, 33), 2.5))
    for seed, ((shape, threshold), dtype) in enumerate(itertools.product(sizes, _FLOATS)):
        yield Case(
            f"{_short(dtype)} {list(shape)}, threshold {threshold:g}",
            {"A": _activation(shape, dtype, _random(seed)), "threshold": threshold},
            torch.int8,
        )


def _activation(shape: tuple[int, int], dtype: torch.dtype, random: torch.Generator) -> Tensor:
    """Normal values, and a column of outliers."""
    A = torch.randn(shape, generator=random)
    A[:, shape[1] // 3] *= 8
    A[0, shape[1] // 3] = 20
    return A.to(dtype)


def _int8_vectorwise_dequant() -> Iterator[Case]:
    for seed, shape in enumerate(((64, 256), (5, 33))):
        random = _random(seed)
        A = torch.randint(-127, 128, shape, dtype=torch.int8, generator=random)
        stats = torch.rand(shape[0], generator=random) * 3
        yield Case(f"int8 {list(shape)}", {"A": A, "stats": stats}, torch.float32)


def _int8_mm_dequant() -> Iterator[Case]:
    for seed, (shape, dtype) in enumerate(itertools.product(((64, 256), (5, 33)), _FLOATS)):
        random = _random(seed)
        bias = torch.randn(shape[1], generator=random).to(dtype) if seed % 2 else None
        yield Case(
            f"int32 {list(shape)}{'' if bias is None else ', bias'}",
            {
                "A": torch.randint(-(2**20), 2**20, shape, dtype=torch.int32, generator=random),
                "row_stats": torch.rand(shape[0], generator=random) * 3,
                "col_stats": torch.rand(shape[1], generator=random),
                "dtype": dtype,
                "bias": bias,
            },
            dtype,
            bound=_dequantized_bound,
        )


def _dequantized_bound(result: str, exact: Tensor) -> Tensor:
    """One rounding to the dtype, three of fp32 on the way, and what a bias cancels."""
    limits = torch.finfo(exact.dtype)
    return exact.double().abs() * (limits.eps + 2**-21) + limits.smallest_normal + 2**-18


def _int8_scaled_mm() -> Iterator[Case]:
    for seed, ((m, n, k), dtype) in enumerate(itertools.product(((32, 128, 256), (5, 24, 33)), _FLOATS)):
        random = _random(seed)
        bias = torch.randn(n, generator=random).to(dtype) if seed % 2 else None
        yield Case(
            f"A int8 {[m, k]}, B int8 {[n, k]}{'' if bias is None else ', bias'}",
            {
                "A": torch.randint(-127, 128, (m, k), dtype=torch.int8, generator=random),
                "B": torch.randint(-127, 128, (n, k), dtype=torch.int8, generator=random),
                "row_stats": torch.rand(m, generator=random) * 3,
                "col_stats": torch.rand(n, generator=random),
                "bias": bias,
                "dtype": dtype,
            },
            dtype,
            bound=_scaled_bound(1),
        )


def _int8_mixed_scaled_mm() -> Iterator[Case]:
    for seed, ((m, n, k), dtype) in enumerate(itertools.product(((32, 128, 256), (5, 24, 33)), _FLOATS)):
        random, threshold = _random(seed), 6.0
        A = _activation((m, k), dtype, random)
        CA, SCA, columns = reference.int8_vectorwise_quant(A, threshold)
        CB, SCB, _ = reference.int8_vectorwise_quant(torch.randn(n, k, generator=random).half() / 8)
        bias = torch.randn(n, generator=random).to(dtype) if seed % 2 else None
        arguments = {"A": A, "CA": CA, "CB": CB, "SCA": SCA, "SCB": SCB, "outlier_cols": columns, "bias": bias}
        text = f"A {[m, k]} with outliers, B int8 {[n, k]}{'' if bias is None else ', bias'}"
        yield Case(text, arguments, dtype, bound=_scaled_bound(2))


def _scaled_bound(roundings: int) -> Bound:
    """So many roundings to the dtype, where terms cancel relative to the largest value; outliers must be exact."""

    def bound(result: str, exact: Tensor) -> Tensor:
        size = exact.double().abs()
        if result != "0":
            return torch.zeros_like(size)
        return roundings * torch.finfo(exact.dtype).eps * (size + size.max() / 16) + 1e-6

    return bound


_OPTIMIZERS = ("adam", "ademamix", "lion", "momentum")
_LR = 0.01


def _optimizer_update_32bit() -> Iterator[Case]:
    yield from _optimizers(reference.optimizer_update_32bit, torch.float32)


def _optimizer_update_8bit_blockwise() -> Iterator[Case]:
    yield from _optimizers(reference.optimizer_update_8bit_blockwise, torch.uint8)


def _optimizers(step: Callable[..., None], state: torch.dtype) -> Iterator[Case]:
    """The second step of each: the reference takes the first, so that no state is zero."""
    shape = (37, 129)  # no multiple of a block
    blocks = -(-math.prod(shape) // 256)
    for seed, (name, dtype) in enumerate(itertools.product(_OPTIMIZERS, (torch.bfloat16, torch.float32))):
        random, two, rows = _random(seed), name.startswith("ad"), (2,) if name == "ademamix" else ()
        gradients = [torch.randn(shape, generator=random).to(dtype) for _ in range(2)]
        gradients[1][0] = 0
        arguments: dict[str, Any] = {
            "optimizer_name": name,
            "g": gradients[0],
            "p": torch.randn(shape, generator=random).to(dtype),
            "state1": torch.zeros(rows + shape, dtype=state),
            "state2": torch.zeros(shape, dtype=state) if two else None,
            "beta1": 0.9,
            "beta2": 0.99,
            "beta3": 0.999,
            "alpha": 5.0,
            "eps": 1e-8,
            "weight_decay": 0.1,
            "step": 1,
            "lr": _LR,
            "gnorm_scale": 0.5,
        }
        if state == torch.uint8:
            arguments |= {
                "qmap1": _dynamic_map(),
                "qmap2": _dynamic_map(signed=False) if two else None,
                "absmax1": torch.zeros((*rows, blocks)),
                "absmax2": torch.zeros(blocks) if two else None,
            }
        else:
            arguments |= {"unorm_vec": None, "max_unorm": 0.0, "param_norm": 0.0}
        step(**arguments)
        arguments |= {"g": gradients[1], "step": 2}
        named = ("p", "state1", "state2", "absmax1", "absmax2")
        changes = tuple(key for key in named if arguments.get(key) is not None)
        bound = _optimizer_bound(arguments["p"].clone())
        yield Case(f"{name} {_short(dtype)} {list(shape)}", arguments, dtype, changes=changes, bound=bound)


def _optimizer_bound(before: Tensor) -> Bound:
    """The last bits of fp32, and the one rounding of a 16-bit parameter or the one code that follow from them.

    A step that is long because it divides by next to nothing is as inexact as it is long.
    """

    def bound(result: str, exact: Tensor) -> Tensor:
        if exact.dtype == torch.uint8:
            return torch.ones(exact.shape, dtype=torch.float64)
        size = exact.double().abs()
        if result == "p":
            moved = (exact.double() - before.double()).abs()
            return size * max(torch.finfo(exact.dtype).eps, 2e-6) + _LR * 1e-4 + moved * 1e-4
        return size * 1e-4 + size.max() * 1e-6

    return bound


_CASES: dict[str, Callable[[], Iterator[Case]]] = {
    "int8_linear_matmul": _int8_linear_matmul,
    "dequantize_4bit": _dequantize_4bit,
    "dequantize_blockwise": _dequantize_blockwise,
    "gemv_4bit": _gemv_4bit,
    "gemm_4bit": _gemm_4bit,
    "quantize_4bit": _quantize_4bit,
    "quantize_blockwise": _quantize_blockwise,
    "int8_vectorwise_quant": _int8_quant,
    "int8_double_quant": _int8_quant,
    "int8_vectorwise_dequant": _int8_vectorwise_dequant,
    "int8_mm_dequant": _int8_mm_dequant,
    "int8_scaled_mm": _int8_scaled_mm,
    "int8_mixed_scaled_mm": _int8_mixed_scaled_mm,
    "optimizer_update_32bit": _optimizer_update_32bit,
    "optimizer_update_8bit_blockwise": _optimizer_update_8bit_blockwise,
}


def of(operator: str) -> list[Case]:
    """The cases of an operator; its ``.out`` variant has the same. Empty for one that has none."""
    make = _CASES.get(operator.partition(".")[0])
    return list(make()) if make else []
