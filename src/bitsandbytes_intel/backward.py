"""The gradient of a 4-bit product on CPUs, in panels of float32, where torch's own 16-bit product is slow.

QLoRA's backward pass is ``grad_output @ W``. bitsandbytes writes all of W out in 16 bits and leaves the product to
torch. On a CPU without instructions for that dtype, torch is slow: in float16 a hundred times and more slower than in
float32. There, while our operators answer, W is written out a panel of rows at a time in float32, and the panels'
products are summed in float32. The result differs by rounding: W is not
rounded to 16 bits, the sum once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import cpu, env

_METHOD = "backward"
_PANEL_BYTES = 16 << 20
_FROM_ROWS = 16  # with fewer rows of gradient, writing W out is most of the work

_upstreams: Callable[..., Any] | None = None
_slow: frozenset[torch.dtype] = frozenset()


def install() -> None:
    """Take over the backward pass of ``MatMul4Bit`` for CPU tensors that are better off here. Idempotent."""
    global _slow, _upstreams
    from bitsandbytes.autograd import _functions

    if _upstreams is None:
        _slow = slow_dtypes()
        _upstreams = vars(_functions.MatMul4Bit)[_METHOD].__func__
        setattr(_functions.MatMul4Bit, _METHOD, staticmethod(_backward))


def uninstall() -> None:
    """Leave it to bitsandbytes again."""
    global _upstreams
    from bitsandbytes.autograd import _functions

    if _upstreams is not None:
        setattr(_functions.MatMul4Bit, _METHOD, staticmethod(_upstreams))
        _upstreams = None


def slow_dtypes() -> frozenset[torch.dtype]:
    """The dtypes that torch has no fast product for on this CPU, or that ``BNB_INTEL_ISA`` holds our kernels from."""
    slow = set()
    isa = env.ISA.get() or list(cpu.isas())[-1]
    if isa not in ("avx512_bf16", "amx") or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        slow.add(torch.bfloat16)
    if not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        slow.add(torch.float16)
    return frozenset(slow)


def grad_input(grad_output: Tensor, packed: Tensor, state: Any) -> Tensor:
    """``grad_output @ W`` for a 4-bit W.

    Args:
        grad_output: ``[..., N]`` of a 16-bit dtype, on the CPU.
        packed: the codes of W, ``[N, K]``.
        state: their ``QuantState``.

    Returns:
        ``[..., K]`` of the dtype of ``grad_output``.
    """
    n, k = state.shape
    blocksize = state.blocksize
    absmax = state.absmax
    if state.nested:
        inner = state.state2
        absmax = torch.ops.bitsandbytes.dequantize_blockwise(
            absmax, inner.absmax, inner.code, inner.blocksize, torch.float32
        )
        absmax = absmax.add_(state.offset)
    step = math.lcm(k, 2 * blocksize) // k  # rows after which a block begins, and a byte
    panel = max(step, _PANEL_BYTES // (4 * k) // step * step)
    codes = packed.reshape(-1).view(torch.uint8)
    grad = grad_output.reshape(-1, n)
    result = torch.zeros(grad.shape[0], k)
    for first in range(0, n, panel):
        rows = min(panel, n - first)
        begin, end = first * k, (first + rows) * k
        weight = torch.ops.bitsandbytes.dequantize_4bit(
            codes[begin // 2 : (end + 1) // 2].view(-1, 1), absmax[begin // blocksize : -(-end // blocksize)],
            blocksize, state.quant_type, (rows, k), torch.float32,
        )  # fmt: skip
        result.addmm_(grad[:, first : first + rows].float(), weight)
    return result.to(grad_output.dtype).view(*grad_output.shape[:-1], k)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    packed = None if ctx.is_empty else ctx.tensors[1]
    if (
        packed is None
        or not ctx.needs_input_grad[0]
        or grad_output.device.type != "cpu"
        or grad_output.numel() < _FROM_ROWS * grad_output.shape[-1]
        or grad_output.dtype not in _slow
        or torch.compiler.is_compiling()
    ):
        assert _upstreams is not None
        return _upstreams(ctx, grad_output)
    grad_bias = grad_output.sum(0, dtype=ctx.dtype_bias) if ctx.needs_input_grad[3] else None
    return grad_input(grad_output, packed, ctx.state), None, None, grad_bias, None
