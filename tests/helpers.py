"""Random operands, awkward layouts, and the one way in which results are compared."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bitsandbytes_intel import cpu, env, reference

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
STORAGES = (torch.uint8, *FLOATS)
BLOCKSIZES = reference.BLOCKSIZES_4BIT
QUANT_TYPES = reference.QUANT_TYPES
ops = torch.ops.bitsandbytes

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def short(value: Any) -> str:
    """A test id for a dtype or anything else."""
    return str(value).removeprefix("torch.")


def operator_of(name: str) -> torch._ops.OpOverload:
    """An operator of ours by its name, with its overload if that is not the default one."""
    base, _, overload = name.partition(".")
    return getattr(getattr(ops, base), overload or "default")


def generator(seed: int) -> torch.Generator:
    """A generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def exactly_equal(result: Tensor, expected: Tensor) -> None:
    """Assert that two tensors hold the same bits (any NaN equals any other), shape and dtype."""
    result, expected = result.detach().cpu(), expected.detach().cpu()
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    bits = _BITS[result.itemsize]
    different = result.contiguous().view(bits) != expected.contiguous().view(bits)
    if result.is_floating_point():
        different &= ~(result.isnan() & expected.isnan())
    if different.any():
        i = int(different.flatten().nonzero()[0])
        got, wanted = result.flatten()[i].item(), expected.flatten()[i].item()
        raise AssertionError(
            f"{int(different.sum())} of {different.numel()} elements differ, first [{i}]: {got} instead of {wanted}"
        )


# For what CPUs alone have: the fixture `device`, of each instruction set.
on_cpus = pytest.mark.parametrize("device", [f"cpu-{isa}" for isa in cpu.isas()], indirect=True)


def check_error(call: Callable[[], object], argument: str, got: str, capfd: pytest.CaptureFixture) -> None:
    """Assert that a call raises, prints nothing, and says which argument it is about, what came and what must be."""
    with pytest.raises((RuntimeError, ValueError, TypeError)) as error:
        call()
    text = str(error.value)
    for part in (argument, "must", got):
        assert part in text, text
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


def check_operator(operator: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> None:
    """What torch wants of an operator: a schema that tells the truth, fake tensors and autograd that agree with it."""
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    # Where bitsandbytes' own fake kernel is at fault, whatever answers for the operator:
    wrong_fakes = {
        ops.dequantize_4bit.out: True,  # it compares out.shape, a tuple, with shape, a list, and always fails
        ops.int8_mixed_scaled_mm.default: True,  # its second result has one dimension, and the true one, two
        ops.int8_double_quant.default: not kwargs.get("threshold"),  # its last result is never None
    }
    if wrong_fakes.get(operator):
        tests.pop()
    torch.library.opcheck(operator, args, kwargs, test_utils=tests)


def another_device(device: str) -> str:
    """One that is not `device`."""
    return "xpu" if device == "cpu" else "cpu"


def on(device: str, tensor: Tensor, offset: int = 0) -> Tensor:
    """A copy on a device that begins `offset` elements into its storage."""
    storage = torch.empty(tensor.numel() + offset, dtype=tensor.dtype, device=device)
    storage[offset:] = tensor.reshape(-1).to(device)
    return storage[offset:].view(tensor.shape)


def elsewhere(tensor: Tensor) -> Tensor:
    """The same on the other device: the XPU's on the CPU, the CPU's on the XPU."""
    return tensor.to("cpu" if tensor.device.type == "xpu" else "xpu")


def strided(tensor: Tensor) -> Tensor:
    """The same values, every second element of its storage's last dimension."""
    twice = torch.empty(*tensor.shape[:-1], tensor.shape[-1] * 2, dtype=tensor.dtype, device=tensor.device)
    view = twice[..., ::2]
    view.copy_(tensor)
    assert tensor.numel() < 2 or not view.is_contiguous()
    return view


@dataclass(frozen=True)
class Weight:
    """Random 4-bit codes of a tensor with their statistics, and the arguments of an operator that say the same."""

    shape: tuple[int, ...]
    packed: Tensor
    absmax: Tensor
    blocksize: int
    quant_type: str
    nested: dict[str, Tensor]

    @staticmethod
    def random(
        *shape: int,
        blocksize: int = 64,
        quant_type: str = "nf4",
        storage: torch.dtype = torch.uint8,
        nested: bool = False,
        seed: int = 0,
    ) -> Weight:
        """A weight on the CPU. Its bytes are rounded up to whole elements of the storage dtype."""
        g = generator(seed)
        n = 1
        for size in shape:
            n *= size
        size = -(-n // (2 * storage.itemsize)) * storage.itemsize
        packed = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=g).view(storage).unsqueeze(1)
        blocks = -(-n // blocksize)
        if not nested:
            return Weight(shape, packed, torch.rand(blocks, generator=g) + 0.1, blocksize, quant_type, {})
        statistics = {
            "absmax_8bit": torch.randint(0, 256, (blocks,), dtype=torch.uint8, generator=g),
            "absmax_code": torch.linspace(-1, 1, 256),
            "absmax_offset": torch.tensor(0.7),
        }
        absmax = torch.rand(-(-blocks // 256), generator=g) * 0.5
        return Weight(shape, packed, absmax, blocksize, quant_type, statistics)

    def to(self, device: str, offset: int = 0) -> Weight:
        """The same on a device, its codes and statistics `offset` elements into their storage."""
        return replace(
            self,
            packed=on(device, self.packed, offset),
            absmax=on(device, self.absmax, offset),
            nested={name: tensor.to(device) for name, tensor in self.nested.items()},
        )

    def exact(self) -> Tensor:
        """The dequantised weight: fp32, on the CPU."""
        scales = self.absmax
        if self.nested:
            nested = self.nested
            scales = reference.dequantize_blockwise(
                nested["absmax_8bit"], scales, nested["absmax_code"], 256, torch.float32
            )
            scales = scales.cpu() + nested["absmax_offset"].float().cpu()
        return reference.dequantize_4bit(
            self.packed.cpu(), scales.cpu(), self.blocksize, self.quant_type, self.shape, torch.float32
        )

    def gemm(self, A: Tensor, bias: Tensor | None = None) -> Tensor:
        """gemm_4bit of an activation with this weight."""
        return ops.gemm_4bit(
            A, self.packed, list(self.shape), self.absmax, self.blocksize, self.quant_type, bias, **self.nested
        )

    def gemv(self, A: Tensor) -> Tensor:
        """gemv_4bit of an activation with this weight."""
        code = reference.codebook(self.quant_type).to(A.device)
        return ops.gemv_4bit(A, self.packed, list(self.shape), self.absmax, code, self.blocksize)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """dequantize_4bit of this weight."""
        return ops.dequantize_4bit(self.packed, self.absmax, self.blocksize, self.quant_type, list(self.shape), dtype)


def check_product(result: Tensor, A: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """Assert that a result is ``A @ weight.T + bias`` but for the rounding of fp32 sums and of the result.

    Held to the exact weight (fp32), or all of it to the weight rounded to A's dtype: what a kernel may multiply with.
    Where torch's own fp32 product of the same operands is further off, that much is allowed, and a quarter more.
    """
    A, result = A.detach().cpu(), result.detach().cpu()
    assert result.dtype == A.dtype
    assert result.shape == (*A.shape[:-1], weight.shape[0])
    excess = []
    for w in dict.fromkeys((weight, weight.to(A.dtype))):
        exact = A.double() @ w.double().T + (0 if bias is None else bias.detach().cpu().double())
        tolerance = reference.product_tolerance(A, w, exact.to(A.dtype)) + torch.finfo(A.dtype).smallest_normal
        if A.dtype == torch.float32 and exact.numel() and A.numel():
            torchs = (torch.nn.functional.linear(A, w, None if bias is None else bias.detach().cpu()) - exact).abs()
            tolerance = torch.maximum(tolerance, 1.25 * torchs.nan_to_num(0.0).max())
        error = (result.double() - exact).abs() / tolerance
        excess.append(float(error.nan_to_num(nan=torch.inf).max()) if error.numel() else 0.0)
    assert min(excess) <= 1, f"error {min(excess):.2f} times the tolerance for {list(A.shape)} @ {list(weight.shape)}.T"


def share_virtual_xpu(cache: pathlib.Path) -> None:
    """Let a cache folder of a test's own find the virtual XPU that has been compiled already."""
    built = env.cache_dir() / "virtual_xpu"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    if built.is_dir() and not (cache / "virtual_xpu").exists():
        shutil.copytree(built, cache / "virtual_xpu")
