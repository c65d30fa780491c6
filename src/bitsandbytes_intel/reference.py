"""Plain torch reference of the operators: what each must compute, one function per operator.

A function has the name and the arguments of its operator in ``torch.ops.bitsandbytes`` (without the ``.out`` variants).
It copies its arguments to the CPU, computes there without shortcuts, and returns its result on the device of the first
argument. Arguments are never changed, but by the optimizers, whose work that is. It is slow, and meant for tests and
for validation on a user's machine.

Precision: dequantisation multiplies in fp32 and rounds once to the wanted dtype, so results are exact to the bit.
Matrix products take the weights unrounded, sum in fp64, and round once to the wanted dtype; see
:func:`product_tolerance` for how far a kernel that sums in fp32 may be from that. Quantisation takes the same decisions
as bitsandbytes' CUDA kernels: ties, blocks of zeros and NaN included.

Formats. Packed 4-bit codes: two to a byte, the first in the high half, flat over the tensor, in any storage dtype
whose bytes are those. ``absmax``: fp32, one for each block of ``blocksize`` elements of the flat tensor; the last
block may be shorter, and blocks straddle rows. All indices are of the tensors' logical order, whatever their strides.

Source of the semantics: bitsandbytes 0.50, ``_ops.py`` and the CUDA backend, and what its CUDA kernels return.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bitsandbytes_intel.reciprocal import fast_reciprocal

__all__ = [
    "codebook",
    "dequantize_4bit",
    "dequantize_blockwise",
    "gemm_4bit",
    "gemv_4bit",
    "int8_double_quant",
    "int8_linear_matmul",
    "int8_mixed_scaled_mm",
    "int8_mm_dequant",
    "int8_scaled_mm",
    "int8_vectorwise_dequant",
    "int8_vectorwise_quant",
    "optimizer_update_8bit_blockwise",
    "optimizer_update_32bit",
    "product_tolerance",
    "quantize_4bit",
    "quantize_blockwise",
]

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
STORAGES = (torch.uint8, *FLOATS)
BLOCKSIZES_4BIT = (32, 64, 128, 256, 512, 1024, 2048, 4096)
QUANT_TYPES = ("nf4", "fp4")

# fmt: off
# Where the CUDA kernels change from one code of NF4 to the next: the midpoints, some rounded up and some down.
_NF4_BOUNDS = (
    -0.8480964303, -0.6106328964, -0.4599952698, -0.33967942, -0.2346073985, -0.137911737, -0.0455250181,
    0.0397901498, 0.1202552542, 0.2035212517, 0.2920137644, 0.3893125355, 0.5016633868, 0.6427869201,
    0.8614783883,
)
# fmt: on
# Where the CUDA kernels change from one magnitude of FP4 to the next, in increasing order, and the codes between them.
_FP4_BOUNDS = (0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333)
_FP4_ORDER = (0, 1, 6, 7, 4, 5, 2, 3)
_MM_DEQUANT = torch.tensor(6.200012e-05)  # 1 / 127², as CUDA's kernel has it


def codebook(quant_type: str) -> Tensor:
    """The 16 values of a 4-bit type, by code: fp32, on the CPU.

    They are bitsandbytes' own, but for the sign of code 8 of FP4, which is the -0.0 that its CUDA kernels give.

    Raises:
        ValueError: ``quant_type`` is neither "nf4" nor "fp4".
    """
    _check_quant_type(quant_type)
    return _codebook(quant_type).clone()


@functools.cache
def _codebook(quant_type: str) -> Tensor:
    from bitsandbytes.functional import get_4bit_type

    table = get_4bit_type(quant_type, device="cpu").float()
    if quant_type == "fp4":
        table[8] = -0.0
    return table


def dequantize_4bit(
    A: Tensor, absmax: Tensor, blocksize: int, quant_type: str, shape: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """``codebook[code[i]] * absmax[i // blocksize]``, in fp32, rounded once to ``dtype``.

    Args:
        A: Packed codes, at least half as many bytes as ``shape`` has elements.
        absmax: fp32, at least one for each block.
        blocksize: A power of two from 32 to 4096.
        quant_type: "nf4" or "fp4".
        shape: Of the result.
        dtype: Of the result: float16, bfloat16 or float32.

    Raises:
        ValueError: an argument is none of these.
    """
    _check_quant_type(quant_type)
    _check_blocksize_4bit(blocksize)
    _check_one_of("dtype", dtype, FLOATS)
    n = math.prod(shape)
    values = _codebook(quant_type)[_codes(A, n)] * _scales(absmax, blocksize, n)
    return values.to(dtype).reshape(tuple(shape)).to(A.device)


def dequantize_blockwise(A: Tensor, absmax: Tensor, code: Tensor, blocksize: int, dtype: torch.dtype) -> Tensor:
    """``code[A[i]] * absmax[i // blocksize]``, in fp32, rounded once to ``dtype``.

    Args:
        A: Codes, uint8, of any shape; the result has it too.
        absmax: fp32, at least one for each block.
        code: fp32, the 256 values of the 8-bit type.
        blocksize: Any positive number.
        dtype: Of the result: float16, bfloat16 or float32.

    Raises:
        ValueError: an argument is none of these.
    """
    _check_one_of("A's dtype", A.dtype, (torch.uint8,))
    _check_one_of("dtype", dtype, FLOATS)
    if blocksize <= 0:
        raise ValueError(f"blocksize must be positive, got {blocksize}")
    table = _cpu(code).reshape(-1).float()
    values = table[_cpu(A).reshape(-1).long()] * _scales(absmax, blocksize, A.numel())
    return values.to(dtype).reshape(A.shape).to(A.device)


def gemv_4bit(A: Tensor, B: Tensor, shapeB: Sequence[int], absmax: Tensor, code: Tensor, blocksize: int) -> Tensor:
    """``A @ W.T`` where W of ``shapeB`` is dequantised with the 16 values of ``code``.

    Args:
        A: ``[..., K]``: float16, bfloat16 or float32; the result is ``[..., N]`` of its dtype.
        B: Packed codes of W, flat over its rows.
        shapeB: ``[N, K]``.
        absmax: fp32, at least one for each block.
        code: fp32, at least 16 values.
        blocksize: A power of two from 32 to 4096.

    Raises:
        ValueError: an argument is none of these.
    """
    weight = _weight(A, B, shapeB, absmax, _cpu(code).reshape(-1).float(), blocksize)
    return _product(A, weight, None)


def gemm_4bit(
    A: Tensor,
    B: Tensor,
    shapeB: Sequence[int],
    absmax: Tensor,
    blocksize: int,
    quant_type: str,
    bias: Tensor | None = None,
    absmax_8bit: Tensor | None = None,
    absmax_code: Tensor | None = None,
    absmax_offset: Tensor | None = None,
) -> Tensor:
    """``A @ W.T + bias`` where W of ``shapeB`` is dequantised.

    Args:
        A: ``[..., K]``: float16, bfloat16 or float32; the result is ``[..., N]`` of its dtype.
        B: Packed codes of W, flat over its rows.
        shapeB: ``[N, K]``.
        absmax: fp32, at least one for each block; with ``absmax_8bit`` one for each 256 of those.
        blocksize: A power of two from 32 to 4096.
        quant_type: "nf4" or "fp4".
        bias: ``[N]``, of A's dtype, or None.
        absmax_8bit: uint8, one for each block, or None. If given, the scale of block i is
            ``absmax_code[absmax_8bit[i]] * absmax[i // 256] + absmax_offset``.
        absmax_code: fp32, 256 values.
        absmax_offset: One value.

    Raises:
        ValueError: an argument is none of these, or one of the last three is missing where another is given.
    """
    _check_quant_type(quant_type)
    if absmax_8bit is not None:
        if absmax_code is None or absmax_offset is None:
            raise ValueError("absmax_code and absmax_offset must be given with absmax_8bit")
        absmax = dequantize_blockwise(absmax_8bit, absmax, absmax_code, 256, torch.float32)
        absmax = _cpu(absmax).reshape(-1) + _cpu(absmax_offset).float().reshape(())
    elif absmax_code is not None or absmax_offset is not None:
        raise ValueError("absmax_8bit must be given with absmax_code and absmax_offset")
    return _product(A, _weight(A, B, shapeB, absmax, _codebook(quant_type), blocksize), bias)


def product_tolerance(A: Tensor, weight: Tensor, result: Tensor) -> Tensor:
    """How far each element of a kernel's ``A @ weight.T`` may be from the exact ``result``: fp64, on the CPU.

    One rounding to the result's dtype, and what fp32 loses in scales, products and sums: 4 times its relative rounding
    error, or a sixteenth of the dtype's where that is more, of the sum of the products' magnitudes.
    """
    eps = torch.finfo(result.dtype).eps
    magnitude = _cpu(A).double().abs() @ _cpu(weight).double().abs().T
    return magnitude * max(eps / 32, 2.0**-22) + _cpu(result).double().abs() * (eps / 2)


def int8_linear_matmul(A: Tensor, B: Tensor) -> Tensor:
    """``A @ B.T``, exactly, in int32.

    Args:
        A: ``[..., K]``, int8.
        B: ``[N, K]``, int8. The result is ``[..., N]``.

    Raises:
        ValueError: an argument is none of these.
    """
    _check_one_of("A's dtype", A.dtype, (torch.int8,))
    _check_one_of("B's dtype", B.dtype, (torch.int8,))
    if B.dim() != 2 or A.dim() == 0 or A.shape[-1] != B.shape[1]:
        raise ValueError(f"B must be [N, K] to match A's [..., K], got {list(B.shape)} and {list(A.shape)}")
    # Whole numbers of at most 2^14 K: fp64 holds them, and has a fast product.
    return (_cpu(A).double() @ _cpu(B).double().T).to(torch.int32).to(A.device)


def quantize_4bit(
    A: Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype = torch.uint8
) -> tuple[Tensor, Tensor]:
    """Blocks scaled to [-1, 1] by their largest magnitude, then rounded to the nearest value of a 4-bit type.

    A tie goes to the lower code (NF4) or the lower magnitude (FP4), NaN and a block of zeros to code 0, a negative that
    rounds to zero to code 8 of FP4. Where n is odd, the last half byte is the code of 0.

    Args:
        A: float16, bfloat16 or float32, of any shape.
        blocksize: A power of two from 32 to 4096.
        quant_type: "nf4" or "fp4".
        quant_storage: The dtype that the packed codes are stored in: uint8, float16, bfloat16 or float32.

    Returns:
        Packed codes ``[(n + 1) // (2 * itemsize), 1]`` and absmax ``[blocks]``, fp32.

    Raises:
        ValueError: an argument is none of these.
    """
    _check_quant_type(quant_type)
    _check_blocksize_4bit(blocksize)
    _check_one_of("A's dtype", A.dtype, FLOATS)
    _check_one_of("quant_storage", quant_storage, STORAGES)
    blocks, absmax = _blocks(A, blocksize)
    scaled = _scaled(blocks, absmax)
    n = A.numel()
    if quant_type == "nf4":
        codes = torch.where(scaled.isnan(), 0, torch.bucketize(scaled, torch.tensor(_NF4_BOUNDS)))
    else:
        magnitude = torch.bucketize(scaled.abs(), torch.tensor(_FP4_BOUNDS))
        codes = torch.where(scaled.isnan(), 0, torch.tensor(_FP4_ORDER)[magnitude] + 8 * (scaled < 0))
    codes = codes.to(torch.uint8)[: n + n % 2]
    packed = codes[::2] << 4 | codes[1::2]
    packed = packed[: packed.numel() // quant_storage.itemsize * quant_storage.itemsize]
    return packed.view(quant_storage).unsqueeze(1).to(A.device), absmax.to(A.device)


def quantize_blockwise(A: Tensor, code: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    """Blocks scaled to [-1, 1] by their largest magnitude, then rounded to the nearest value of an 8-bit type.

    The search is that of the CUDA kernels: a binary one whose last step compares with the midpoint to a neighbour.

    Args:
        A: float16, bfloat16 or float32, of any shape.
        code: fp32, 256 values, increasing.
        blocksize: Any positive number.

    Returns:
        Codes, uint8, of A's shape, and absmax ``[blocks]``, fp32.

    Raises:
        ValueError: an argument is none of these.
    """
    _check_one_of("A's dtype", A.dtype, FLOATS)
    if blocksize <= 0:
        raise ValueError(f"blocksize must be positive, got {blocksize}")
    blocks, absmax = _blocks(A, blocksize)
    x = _scaled(blocks, absmax)[: A.numel()]
    table = _cpu(code).reshape(-1).float()
    pivot = torch.full(x.shape, 127)
    below, above = torch.zeros_like(pivot), torch.full_like(pivot, 255)
    for step in (64, 32, 16, 8, 4, 2, 1):
        greater = x > table[pivot]
        below, above = torch.where(greater, pivot, below), torch.where(greater, above, pivot)
        pivot = torch.where(greater, pivot + step, pivot - step)
    value = table[pivot]
    up = torch.where(x > (table[above] + value) * 0.5, above, pivot)
    down = torch.where(x < (table[below] + value) * 0.5, below, pivot)
    codes = torch.where(x > value, up, down)
    return codes.to(torch.uint8).reshape(A.shape).to(A.device), absmax.to(A.device)


def int8_vectorwise_quant(A: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows scaled by ``127 / absmax`` and rounded, halves to even.

    NaN counts for nothing and becomes 0, and so does a row whose absmax is 0, infinite, or too small to divide by.

    Args:
        A: ``[..., K]``: float16, bfloat16 or float32.
        threshold: Magnitudes from here on, rounded to A's dtype, are outliers, which count for nothing and become 0;
            0 for none. With more than one row, the whole column of an outlier becomes 0.

    Returns:
        int8 of A's shape; absmax of the rows ``[rows]``, fp32; the columns with outliers, int64, increasing, or None
        if the threshold is 0.

    Raises:
        ValueError: ``threshold`` is negative, or A is no floating-point matrix.
    """
    _check_one_of("A's dtype", A.dtype, FLOATS)
    if not threshold >= 0:
        raise ValueError(f"threshold must not be negative, got {threshold}")
    rows = _cpu(A).reshape(-1, A.shape[-1]).float()
    columns = None
    if threshold > 0:
        outliers = rows.abs() >= torch.tensor(threshold, dtype=A.dtype).float()
        rows = rows.masked_fill(outliers, 0.0)
        columns = outliers.any(dim=0).nonzero().reshape(-1)
    absmax = rows.abs().nan_to_num(0.0, posinf=math.inf).amax(dim=1)
    scale = fast_reciprocal(absmax) * 127.0
    codes = (rows * scale.unsqueeze(1)).nan_to_num(0.0, posinf=0.0, neginf=0.0).round().to(torch.int8)
    if columns is not None and rows.shape[0] > 1:
        codes[:, columns] = 0
    return codes.reshape(A.shape).to(A.device), absmax.to(A.device), None if columns is None else columns.to(A.device)


def int8_double_quant(A: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """A quantised by rows, as by :func:`int8_vectorwise_quant`, and by columns.

    By columns, outliers count for nothing, NaN is the absmax wherever there is one, and the product with 127 is rounded
    to A's dtype, if that can hold it, before the division.

    Returns:
        int8 by rows and int8 by columns, of A's shape; absmax of the rows and of the columns, fp32; the columns with
        outliers, int64, or None if the threshold is 0.

    Raises:
        ValueError: as :func:`int8_vectorwise_quant`.
    """
    by_row, row_stats, columns = int8_vectorwise_quant(A, threshold)
    rows = _cpu(A).reshape(-1, A.shape[-1])
    if threshold > 0:
        rows = rows.masked_fill(rows.float().abs() >= torch.tensor(threshold, dtype=A.dtype).float(), 0.0)
    col_stats = rows.abs().amax(dim=0).float() if rows.shape[0] else torch.zeros(rows.shape[1])
    # A power of two keeps products and quotients of very small and very large columns in range.
    factor = torch.where(col_stats < 2.0**-60, 2.0**60, torch.where(col_stats > 2.0**60, 2.0**-60, 1.0))
    product = rows.float() * factor * 127.0
    rounded = product.to(A.dtype).float()
    by_column = (torch.where(rounded.isfinite(), rounded, product) / (col_stats * factor)).nan_to_num(0.0).round()
    by_column = by_column.to(torch.int8).reshape(A.shape)
    return by_row, by_column.to(A.device), row_stats, col_stats.to(A.device), columns


def int8_vectorwise_dequant(A: Tensor, stats: Tensor) -> Tensor:
    """``A * stats / 127`` by rows, in fp32.

    Args:
        A: ``[rows, K]``, int8.
        stats: fp32, one for each row.

    Raises:
        ValueError: A is not int8.
    """
    _check_one_of("A's dtype", A.dtype, (torch.int8,))
    return (_cpu(A) * _cpu(stats).reshape(-1, 1) * 7.874015718698502e-3).to(A.device)


def int8_mm_dequant(
    A: Tensor, row_stats: Tensor, col_stats: Tensor, dtype: torch.dtype | None = None, bias: Tensor | None = None
) -> Tensor:
    """``A * row_stats * col_stats / 127² + bias``, in float32 and in this order, rounded to ``dtype``.

    The last product and the sum are rounded together. CUDA's kernel gives the same float16.

    Args:
        A: ``[..., N]``, int32, of any number of rows.
        row_stats: fp32, one for each row.
        col_stats: fp32, one for each column.
        dtype: Of the result; float16 if None.
        bias: ``[N]``, or None.

    Raises:
        ValueError: A is not int32, or the statistics are not fp32.
    """
    _check_one_of("A's dtype", A.dtype, (torch.int32,))
    _check_one_of("row_stats's dtype", row_stats.dtype, (torch.float32,))
    _check_one_of("col_stats's dtype", col_stats.dtype, (torch.float32,))
    return _mm_dequant(A, row_stats, col_stats, bias).float().to(dtype or torch.float16).to(A.device)


def int8_scaled_mm(
    A: Tensor,
    B: Tensor,
    row_stats: Tensor,
    col_stats: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """:func:`int8_mm_dequant` of :func:`int8_linear_matmul`.

    Raises:
        ValueError: as those.
    """
    return int8_mm_dequant(int8_linear_matmul(A, B), row_stats, col_stats, dtype=dtype, bias=bias)


def int8_mixed_scaled_mm(
    A: Tensor,
    CA: Tensor,
    CB: Tensor,
    SCA: Tensor,
    SCB: Tensor,
    outlier_cols: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`int8_scaled_mm` of the quantised operands, plus the outlier columns of A by the dequantised weight.

    Args:
        A: ``[rows, K]``, the activation: float16, bfloat16 or float32.
        CA: A quantised, its outlier columns 0.
        CB: ``[N, K]``, int8, the weight quantised.
        SCA: fp32, absmax of A's rows.
        SCB: fp32, absmax of the weight's rows.
        outlier_cols: int64, or None.
        bias: ``[N]``, or None.

    Returns:
        ``[rows, N]`` of A's dtype, and A's outlier columns (of no element if there are none).

    Raises:
        ValueError: as :func:`int8_scaled_mm`.
    """
    out = _mm_dequant(int8_linear_matmul(CA, CB), SCA, SCB, bias)
    if outlier_cols is None or outlier_cols.numel() == 0:
        return out.to(A.dtype).to(A.device), torch.empty(0, dtype=A.dtype, device=A.device)
    columns = _cpu(outlier_cols)
    outliers = _cpu(A)[:, columns]
    weight = _cpu(int8_vectorwise_dequant(_cpu(CB)[:, columns], _cpu(SCB))).to(A.dtype)
    out = out + outliers.double() @ weight.double().T
    return out.to(A.dtype).to(A.device), outliers.to(A.device)


def optimizer_update_32bit(
    optimizer_name: str,
    g: Tensor,
    p: Tensor,
    state1: Tensor,
    state2: Tensor | None,
    unorm_vec: Tensor | None,
    max_unorm: float,
    param_norm: float,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    step: int,
    lr: float,
    gnorm_scale: float,
    skip_zeros: bool = False,
) -> None:
    """One step of an optimizer with 32-bit states, in place, in fp64 (the hyperparameters as fp32 holds them).

    Weight decay shrinks the parameter by ``1 - lr * weight_decay`` (adam, lamb and ademamix: after the update; lion:
    before, and rounded), or is added to the gradient (momentum, lars, rmsprop, adagrad). The trust ratio of max_unorm
    applies to all but ademamix and adagrad; the norm that it limits is that of the update without weight decay.

    Args:
        optimizer_name: "adam", "lamb", "ademamix", "momentum", "lars", "rmsprop", "adagrad" or "lion".
        g: Gradient: float16, bfloat16 or float32.
        p: Parameter, of g's dtype and shape; changed.
        state1: fp32, of g's shape; with ademamix ``[2, *g.shape]``; changed.
        state2: fp32, of g's shape, for adam, lamb and ademamix; changed.
        unorm_vec: fp32, ``[1]``, where max_unorm is not 0: it becomes the square of the update's norm. Of ademamix the
            sum of its first state; of lion the sum of its state after one more step, which counts for the next step.
        max_unorm: The update's norm is at most this much of param_norm; 0 for no limit.
        param_norm: The norm of the parameter.
        beta1: Of state1.
        beta2: Of state2; lion's state.
        beta3: Of ademamix's second row of state1.
        alpha: How much that row counts for.
        eps: Added to the divisor.
        weight_decay: As above.
        lr: The learning rate.
        step: The number of this step, from 1.
        gnorm_scale: The gradient is multiplied by it.
        skip_zeros: Elements whose gradient is 0 stay as they are.

    Raises:
        ValueError: an argument is none of these.
    """
    two, rows = _check_optimizer(optimizer_name, g, p, state1, state2, step, torch.float32)
    n = g.numel()
    h = _Hyperparameters(beta1, beta2, beta3, alpha, eps, weight_decay, step, lr)
    raw = _cpu(g).reshape(-1).double()
    x, q = raw * _fp32(gnorm_scale), _cpu(p).reshape(-1).double()
    s1 = _cpu(state1).reshape(rows, n).double()
    s2 = _cpu(state2).reshape(n).double() if two else None  # type: ignore[arg-type]
    ratio = 1.0
    if max_unorm > 0:
        if unorm_vec is None:
            raise ValueError("unorm_vec must be given with max_unorm, got None")
        norm2 = float(unorm_vec) if optimizer_name == "lion" else _update_norm2(optimizer_name, h, x, s1, s2)
        limit = _fp32(max_unorm) * _fp32(param_norm) + (0.0 if two else h.eps)
        norm = math.sqrt(norm2) if norm2 >= 0 else 0.0
        if norm > limit and optimizer_name not in ("ademamix", "adagrad"):
            ratio = limit / norm
    new_q, new_s1, new_s2 = _update(optimizer_name, h, x, x, q, s1, s2, ratio, p.dtype)
    keep = (raw == 0) & bool(skip_zeros)
    new_s1 = torch.where(keep, s1, new_s1)
    p.copy_(torch.where(keep, q, new_q).to(p.dtype).reshape(p.shape))
    state1.copy_(new_s1.float().reshape(state1.shape))
    if two:
        state2.copy_(torch.where(keep, s2, new_s2).float().reshape(state2.shape))  # type: ignore[union-attr, arg-type]
    if max_unorm > 0:
        if optimizer_name == "lion":
            norm2 = _update_norm2(optimizer_name, h, x, new_s1, s2)
        unorm_vec.fill_(norm2)  # type: ignore[union-attr]


def optimizer_update_8bit_blockwise(
    optimizer_name: str,
    g: Tensor,
    p: Tensor,
    state1: Tensor,
    state2: Tensor | None,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    step: int,
    lr: float,
    qmap1: Tensor,
    qmap2: Tensor | None,
    absmax1: Tensor,
    absmax2: Tensor | None,
    weight_decay: float,
    gnorm_scale: float,
    skip_zeros: bool = False,
) -> None:
    """One step of an optimizer with 8-bit states in blocks of 256, in place, in fp64 between the codes.

    As :func:`optimizer_update_32bit`, but: a NaN or infinite gradient leaves the parameter as it is and makes states 0
    (adam, lamb and ademamix); rmsprop and adagrad divide the gradient as it came, without gnorm_scale and weight
    decay. A code is that of the nearest value, a tie goes to the even code; of state1 it moves to the neighbour if its
    value has another sign than the state (-0 is no negative). In a block of zeros, state1 has code 255 and state2
    code 0. The arguments are those of there, with states in uint8, and:

    * qmap1, qmap2: fp32, 256 increasing values; qmap2 for adam, lamb and ademamix, as absmax2.
    * absmax1: fp32, ``[blocks]``, with ademamix ``[2, blocks]``; changed.
    * absmax2: fp32, ``[blocks]``; changed.

    Raises:
        ValueError: an argument is none of these.
    """
    two, rows = _check_optimizer(optimizer_name, g, p, state1, state2, step, torch.uint8)
    if two and (qmap2 is None or absmax2 is None):
        raise ValueError(f"qmap2 and absmax2 must be given for {optimizer_name}")
    n = g.numel()
    h = _Hyperparameters(beta1, beta2, beta3, alpha, eps, weight_decay, step, lr)
    raw, q = _cpu(g).reshape(-1).double(), _cpu(p).reshape(-1).double()
    s1 = _dequantized_states(state1, absmax1, qmap1, rows, n)
    s2 = _dequantized_states(state2, absmax2, qmap2, 1, n)[0] if two else None  # type: ignore[arg-type]
    new_q, new_s1, new_s2 = _update(optimizer_name, h, raw * _fp32(gnorm_scale), raw, q, s1, s2, 1.0, p.dtype)
    keep = (raw == 0) & bool(skip_zeros)
    if two:
        usable = raw.isfinite()
        new_q, new_s1 = torch.where(usable, new_q, q), torch.where(usable, new_s1, 0.0)
        new_s2 = torch.where(keep, s2, torch.where(usable, new_s2, 0.0))  # type: ignore[arg-type]
        _quantize_states(new_s2.unsqueeze(0), state2, absmax2, qmap2, signed=False)  # type: ignore[arg-type]
    p.copy_(torch.where(keep, q, new_q).to(p.dtype).reshape(p.shape))
    _quantize_states(torch.where(keep, s1, new_s1), state1, absmax1, qmap1, signed=True)


# ---- what they share ------------------------------------------------------------------------------------------------
def _cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").contiguous()


def _check_one_of(what: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(map(str, allowed))}, got {value}")


def _check_quant_type(quant_type: str) -> None:
    _check_one_of("quant_type", quant_type, QUANT_TYPES)


def _check_blocksize_4bit(blocksize: int) -> None:
    _check_one_of("blocksize", blocksize, BLOCKSIZES_4BIT)


def _codes(packed: Tensor, n: int) -> Tensor:
    """The first n codes of a packed tensor."""
    _check_one_of("the packed tensor's dtype", packed.dtype, STORAGES)
    data = _cpu(packed).reshape(-1).view(torch.uint8)
    if data.numel() < (n + 1) // 2:
        raise ValueError(f"{n} codes take {(n + 1) // 2} bytes, got {data.numel()}")
    return torch.stack([data >> 4, data & 15], dim=1).reshape(-1)[:n].long()


def _scales(absmax: Tensor, blocksize: int, n: int) -> Tensor:
    """The scale of each of n elements."""
    _check_one_of("absmax's dtype", absmax.dtype, (torch.float32,))
    flat = _cpu(absmax).reshape(-1)
    if flat.numel() < -(-n // blocksize):
        raise ValueError(f"absmax must have at least {-(-n // blocksize)} elements, got {flat.numel()}")
    return flat[torch.arange(n) // blocksize]


def _weight(A: Tensor, B: Tensor, shapeB: Sequence[int], absmax: Tensor, table: Tensor, blocksize: int) -> Tensor:
    """The dequantised weight ``[N, K]``, fp32, on the CPU."""
    _check_one_of("A's dtype", A.dtype, FLOATS)
    _check_blocksize_4bit(blocksize)
    if len(shapeB) != 2 or A.dim() == 0 or A.shape[-1] != shapeB[1]:
        raise ValueError(f"shapeB must be [N, K] to match A's [..., K], got {list(shapeB)} and {list(A.shape)}")
    n = math.prod(shapeB)
    return (table[_codes(B, n)] * _scales(absmax, blocksize, n)).reshape(tuple(shapeB))


def _product(A: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = _cpu(A).double() @ weight.double().T
    if bias is not None:
        out = out + _cpu(bias).double()
    return out.to(A.dtype).to(A.device)


def _blocks(A: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    """A in fp32, flat, padded with zeros to whole blocks, ``[blocks, blocksize]``, and absmax.

    As with CUDA, NaN is no maximum, a block of nothing but NaN has that of the lowest float, and denormals are zeros.
    """
    flat = _cpu(A).reshape(-1).float()
    blocks = -(-flat.numel() // blocksize)
    padded = torch.zeros(blocks * blocksize)
    padded[: flat.numel()] = flat
    by_block = padded.reshape(blocks, blocksize)
    lowest = torch.finfo(torch.float32).min
    absmax = by_block.abs().nan_to_num(lowest, posinf=math.inf).amax(dim=1) if blocks else torch.empty(0)
    return by_block, _flushed(absmax)


def _flushed(x: Tensor) -> Tensor:
    """Denormals as zeros."""
    return torch.where(x.abs() < 2.0**-126, 0.0, x)


def _scaled(blocks: Tensor, absmax: Tensor) -> Tensor:
    """Blocks times the reciprocals of their absmax, as CUDA's kernels multiply: flat."""
    return _flushed(_flushed(blocks) * fast_reciprocal(absmax.clamp(min=0)).unsqueeze(1)).reshape(-1)


OPTIMIZERS = ("adam", "lamb", "ademamix", "momentum", "lars", "rmsprop", "adagrad", "lion")


def _fp32(x: float) -> float:
    return float(torch.tensor(float(x), dtype=torch.float32))


class _Hyperparameters:
    """As the kernels hold them: rounded to fp32."""

    def __init__(
        self,
        beta1: float,
        beta2: float,
        beta3: float,
        alpha: float,
        eps: float,
        weight_decay: float,
        step: int,
        lr: float,
    ) -> None:
        self.beta1, self.beta2, self.beta3, self.alpha = _fp32(beta1), _fp32(beta2), _fp32(beta3), _fp32(alpha)
        self.eps, self.weight_decay, self.lr, self.step = _fp32(eps), _fp32(weight_decay), _fp32(lr), step
        self.correction1, self.correction2 = 1 - self.beta1**step, math.sqrt(1 - self.beta2**step)


def _check_optimizer(
    name: str, g: Tensor, p: Tensor, state1: Tensor, state2: Tensor | None, step: int, dtype: torch.dtype
) -> tuple[bool, int]:
    """Whether the optimizer has state2, and how many rows state1 has."""
    _check_one_of("optimizer_name", name, OPTIMIZERS)
    _check_one_of("g's dtype", g.dtype, FLOATS)
    if p.dtype != g.dtype or p.numel() != g.numel():
        raise ValueError(f"p must have g's dtype and size, {g.dtype} and {g.numel()}, got {p.dtype} and {p.numel()}")
    two, rows = name in ("adam", "lamb", "ademamix"), 2 if name == "ademamix" else 1
    if state1.dtype != dtype or state1.numel() != rows * g.numel():
        wanted = f"{rows * g.numel()} elements of {dtype}"
        raise ValueError(f"state1 must have {wanted}, got {state1.numel()} of {state1.dtype}")
    if two and (state2 is None or state2.dtype != dtype or state2.numel() != g.numel()):
        raise ValueError(f"state2 must have {g.numel()} elements of {dtype} for {name}")
    if step < 1:
        raise ValueError(f"step must be at least 1, got {step}")
    return two, rows


def _update(
    name: str, h: _Hyperparameters, g: Tensor, raw: Tensor, p: Tensor, s1: Tensor, s2: Tensor | None, ratio: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Parameter and states after a step; ``g`` is the scaled gradient, ``raw`` what rmsprop and adagrad divide."""
    if name in ("adam", "lamb", "ademamix"):
        assert s2 is not None
        m = s1[0] * h.beta1 + (1 - h.beta1) * g
        s2 = s2 * h.beta2 + (1 - h.beta2) * g * g
        if name == "ademamix":
            slow = s1[1] * h.beta3 + (1 - h.beta3) * g
            p = p - h.lr * (m / h.correction1 + h.alpha * slow) / (s2.sqrt() / h.correction2 + h.eps)
            m = torch.stack([m, slow])
        else:
            update = h.correction2 / h.correction1 * m / (s2.sqrt() + h.eps * h.correction2)
            p = p - ratio * h.lr * update
        return p * (1 - h.lr * h.weight_decay), m.reshape(s1.shape), s2
    s = s1[0]
    if name == "lion":
        p = (p * (1 - h.lr * h.weight_decay)).to(dtype).double()
        p = p - ratio * h.lr * (s * h.beta1 + (1 - h.beta1) * g).sign().nan_to_num(0.0)
        return p, (s * h.beta2 + (1 - h.beta2) * g).unsqueeze(0), None
    above = raw if raw is not g else None
    g = g + p * h.weight_decay
    above = g if above is None else above
    if name in ("momentum", "lars"):
        s = g if h.step == 1 else s * h.beta1 + g
        return p - ratio * h.lr * s, s.unsqueeze(0), None
    if name == "rmsprop":
        s = s * h.beta1 + (1 - h.beta1) * g * g
    else:
        s, ratio = s + g * g, 1.0
    return p - ratio * h.lr * above / (s.sqrt() + h.eps), s.unsqueeze(0), None


def _update_norm2(name: str, h: _Hyperparameters, g: Tensor, s1: Tensor, s2: Tensor | None) -> float:
    """What bitsandbytes writes to unorm_vec."""
    s = s1[0]
    if name == "ademamix":
        return float(s.sum())
    if name == "lion":
        return float((s * h.beta2 + (1 - h.beta2) * g).sum())
    if s2 is not None:
        v = (s2 * h.beta2 + (1 - h.beta2) * g * g) / h.correction2**2
        update = (s * h.beta1 + (1 - h.beta1) * g) / h.correction1 / (v.sqrt() + h.eps)
    elif name in ("momentum", "lars"):
        update = g if h.step == 1 else s * h.beta1 + g
    elif name == "rmsprop":
        update = g / ((s * h.beta1 + (1 - h.beta1) * g * g).sqrt() + h.eps)
    else:
        update = g / ((s + g * g).sqrt() + h.eps)
    return float((update * update).sum())


def _dequantized_states(codes: Tensor, absmax: Tensor, qmap: Tensor, rows: int, n: int) -> Tensor:
    """``[rows, n]``, fp64."""
    scales = _cpu(absmax).reshape(rows, -1)
    if scales.shape[1] != -(-n // 256):
        raise ValueError(f"absmax must have {rows} times {-(-n // 256)} elements, got {absmax.numel()}")
    values = _cpu(qmap).reshape(-1)[_cpu(codes).reshape(rows, n).long()].double()
    return values * scales.double()[:, torch.arange(n) // 256]


def _quantize_states(state: Tensor, codes: Tensor, absmax: Tensor, qmap: Tensor, signed: bool) -> None:
    """Quantises ``[rows, n]`` in blocks of 256 of each row."""
    rows, n = state.shape
    blocks = -(-n // 256)
    padded = torch.zeros(rows, blocks * 256, dtype=torch.float64)
    padded[:, :n] = state
    by_block = padded.reshape(rows, blocks, 256)
    largest = by_block.abs().nan_to_num(0.0, posinf=math.inf).amax(dim=2) if n else padded[:, :0]
    x = (by_block / largest.unsqueeze(2)).reshape(rows, -1)[:, :n].float()
    table = _cpu(qmap).reshape(-1)
    bounds = (table[1:] + table[:-1]) * 0.5
    below, upto = torch.bucketize(x, bounds, right=False), torch.bucketize(x, bounds, right=True)
    found = torch.where((below == upto) | (below % 2 == 0), below, upto).where(~x.isnan(), 0)
    if signed:
        other = table[found].signbit() != (state < 0)
        found = torch.where(other, found + torch.where(state > 0, 1, -1), found) % 256
    codes.copy_(found.to(torch.uint8).reshape(codes.shape))
    absmax.copy_(largest.float().reshape(absmax.shape))


def _mm_dequant(A: Tensor, row_stats: Tensor, col_stats: Tensor, bias: Tensor | None) -> Tensor:
    """The result before it is rounded: CUDA's float32 products, the last of them in float64, on the CPU."""
    rows = _cpu(A).float().reshape(math.prod(A.shape[:-1]), A.shape[-1])
    scaled = rows * _cpu(row_stats).float().reshape(-1, 1) * _cpu(col_stats).float().reshape(1, -1)
    out = scaled.double() * _MM_DEQUANT.double()
    if bias is not None:
        out = out + _cpu(bias).double()
    return out.reshape(A.shape)
