"""The gradient of a 4-bit product's activations on the CPU, as autograd calls for it.

Upstream writes out all of the weight and leaves the product to torch. The limit is that of the product. The other rival
is torch's product with a weight that is not quantised.
"""

from __future__ import annotations

import bitsandbytes
import bitsandbytes.functional as F
import torch

from ... import backward
from ..common import Report, Run, name_of

OPERATORS = (backward.NAME,)
N = K = 4096
# Of float16 few: where the CPU does not multiply it, torch does one element at a time, and upstream with it.
ROWS: dict[torch.dtype, tuple[int, ...]] = {
    torch.float32: (16, 128, 512),
    torch.bfloat16: (16, 128, 512),
    torch.float16: (16,),
}


def call(weights: list[tuple[torch.Tensor, torch.Tensor]], grad: torch.Tensor) -> Run:
    """The backward pass of a product whose gradient is given; the forward pass is done."""
    code, dtype = F.get_4bit_type("nf4", device="cpu"), grad.dtype
    x = torch.randn(len(grad), K).to(dtype).requires_grad_()
    products = [
        bitsandbytes.matmul_4bit(x, codes.t(), F.QuantState(absmax, torch.Size((N, K)), code, 64, "nf4", dtype))
        for codes, absmax in weights
    ]
    return lambda i: torch.autograd.grad(products[i % len(products)], x, grad, retain_graph=True)


def add_rows(report: Report) -> None:
    """Rows 16 to 512 of 4096 x 4096."""
    weights = report.packed(N, K)
    for dtype in report.some(tuple(ROWS), torch.bfloat16):
        dense = report.rotation(lambda dtype=dtype: torch.randn(N, K).to(dtype))
        for m in report.some(ROWS[dtype], 128):
            grad = torch.randn(m, N).to(dtype)
            report.time(
                backward.NAME, f"M = {m} {name_of(dtype)}", call(weights, grad), rounds=5, repeats=2,
                other=("torch, dense", lambda i, grad=grad, dense=dense: grad @ dense[i % len(dense)]),
                operations=2 * m * N * K, unit=dtype,
            )  # fmt: skip
