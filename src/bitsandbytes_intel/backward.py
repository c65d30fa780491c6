"""The gradient of a 4-bit product on CPUs, by a kernel of its own.

QLoRA's backward pass is ``grad_output @ W``. bitsandbytes writes all of W out in the gradient's dtype and leaves the
product to torch. While our operators answer, ``gemm_4bit_transposed`` takes its place: W is written out a panel at a
time, which stays in the caches. It is an operator of our own, ``torch.ops.bitsandbytes_intel.gemm_4bit_transposed``,
since bitsandbytes has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "bitsandbytes_intel"
NAME = "gemm_4bit_transposed"
_SCHEMA = (
    f"{NAME}(Tensor A, Tensor B, int[] shapeB, Tensor absmax, int blocksize, str quant_type, *, "
    "Tensor? absmax_8bit=None, Tensor? absmax_code=None, Tensor? absmax_offset=None) -> Tensor"
)
_METHOD = "backward"
_NESTED_BLOCKSIZE = 256  # the only one that kernels know

_library: torch.library.Library | None = None
_upstreams: Callable[..., Any] | None = None


def define() -> None:
    """Make the operator known to torch, with its fake kernel. Idempotent; ``ops`` registers the kernel itself."""
    global _library
    if _library is None:
        _library = torch.library.Library(NAMESPACE, "FRAGMENT")
        _library.define(_SCHEMA)
        torch.library.register_fake(f"{NAMESPACE}::{NAME}", _fake, lib=_library)


def _fake(A: Tensor, B: Tensor, shapeB: list[int], *_: Any, **__: Any) -> Tensor:
    return A.new_empty((*A.shape[:-1], shapeB[1]))


def install() -> None:
    """Take over the backward pass of ``MatMul4Bit`` for CPU tensors. Idempotent."""
    global _upstreams
    from bitsandbytes.autograd import _functions

    if _upstreams is None:
        _upstreams = vars(_functions.MatMul4Bit)[_METHOD].__func__
        setattr(_functions.MatMul4Bit, _METHOD, staticmethod(_backward))


def uninstall() -> None:
    """Leave it to bitsandbytes again."""
    global _upstreams
    from bitsandbytes.autograd import _functions

    if _upstreams is not None:
        setattr(_functions.MatMul4Bit, _METHOD, staticmethod(_upstreams))
        _upstreams = None


def grad_input(grad_output: Tensor, packed: Tensor, state: Any) -> Tensor:
    """``grad_output @ W`` for a 4-bit W.

    Args:
        grad_output: ``[..., N]`` of float16, bfloat16 or float32, on the CPU.
        packed: the codes of W, ``[N, K]``.
        state: their ``QuantState``; nested statistics are in blocks of 256.

    Returns:
        ``[..., K]`` of the dtype of ``grad_output``, summed in float32. In bfloat16, weights are rounded to it where
        the CPU multiplies it; otherwise they are not rounded.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit; the text names the argument.
    """
    gemm_4bit_transposed = torch.ops.bitsandbytes_intel.gemm_4bit_transposed
    args = (packed.view(-1, 1), state.shape)
    if not state.nested:
        return gemm_4bit_transposed(grad_output, *args, state.absmax, state.blocksize, state.quant_type)
    inner = state.state2
    return gemm_4bit_transposed(
        grad_output, *args, inner.absmax, state.blocksize, state.quant_type,
        absmax_8bit=state.absmax, absmax_code=inner.code, absmax_offset=state.offset,
    )  # fmt: skip


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    packed = None if ctx.is_empty else ctx.tensors[1]
    if (
        packed is None
        or not ctx.needs_input_grad[0]
        or grad_output.device.type != "cpu"
        or (ctx.state.nested and ctx.state.state2.blocksize != _NESTED_BLOCKSIZE)
        or torch.is_grad_enabled()  # for a second derivative
        or torch.compiler.is_compiling()
    ):
        assert _upstreams is not None
        return _upstreams(ctx, grad_output)
    grad_bias = grad_output.sum(0, dtype=ctx.dtype_bias) if ctx.needs_input_grad[3] else None
    return grad_input(grad_output, packed, ctx.state), None, None, grad_bias, None
