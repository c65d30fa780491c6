"""Calls our operators on a device and compares them with the plain torch reference."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops, reference
from . import cases


@dataclass(frozen=True)
class Check:
    """One call's outcome. ``error`` and ``allowed`` are of the element that came nearest to what it was allowed."""

    operator: str
    device: str
    inputs: str
    output: str
    error: float | None
    allowed: float | None
    held: bool
    problem: str | None = None


def text_of(tensor: Tensor) -> str:
    """A tensor's dtype, shape and device."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"


def checks(device: str) -> Iterator[Check]:
    """Every check of our operators on a device, ``int8_linear_matmul`` first."""
    ours = [operator for operator in ops.OPERATORS if device in operator.devices]
    answering = {operator.name for operator in ops.registered().get(device, ())}
    for operator in sorted(ours, key=lambda each: not each.name.startswith("int8_linear_matmul")):
        known = cases.of(operator.name)
        if operator.name not in answering:
            yield Check(operator.name, device, "", "", None, None, False, "not registered")
        elif not known:
            yield Check(operator.name, device, "", "", None, None, False, "the validation has no case for it")
        else:
            for case in known:
                yield _check(operator.name, case, device)


def _check(operator: str, case: cases.Case, device: str) -> Check:
    try:
        exact = _exact(operator, case)
        actual = _call(operator, case, device, exact)
        if torch.device(device).type == "xpu":
            torch.xpu.synchronize()
        problem, error, allowed = _compare(actual, exact, case, device)
        return Check(operator, device, case.text, text_of(actual), error, allowed, problem is None, problem)
    except Exception as failure:  # a check that cannot be made is a check that failed
        first = str(failure).strip().partition("\n")[0]
        return Check(operator, device, case.text, "", None, None, False, f"{type(failure).__name__}: {first}")


def _exact(operator: str, case: cases.Case) -> Tensor:
    """The reference's result; of a product before it is rounded to 16 bits."""
    arguments = dict(case.arguments)
    if case.weight is not None:
        arguments["A"] = arguments["A"].float()
    return getattr(reference, operator.partition(".")[0])(**arguments)


def _call(operator: str, case: cases.Case, device: str, exact: Tensor) -> Tensor:
    name, _, overload = operator.partition(".")
    function = getattr(getattr(torch.ops.bitsandbytes, name), overload or "default")
    arguments: dict[str, Any] = {
        key: value.to(device) if isinstance(value, Tensor) else value for key, value in case.arguments.items()
    }
    if overload != "out":
        return function(**arguments)
    out = torch.empty(exact.shape, dtype=case.dtype, device=device)
    function(**arguments, out=out)
    return out


def _compare(
    actual: Tensor, exact: Tensor, case: cases.Case, device: str
) -> tuple[str | None, float | None, float | None]:
    """What is wrong, if anything; the error and the bound at the element nearest to its bound."""
    if (actual.dtype, actual.shape, actual.device.type) != (case.dtype, exact.shape, torch.device(device).type):
        return f"expected {text_of(exact.to(case.dtype)).rpartition(' on ')[0]} on {device}", None, None
    measured = [_distance(actual, exact, case, case.weight)]
    if case.weight is not None and case.dtype != torch.float32:
        # For many rows the weight may be rounded to A's dtype before the product, as bitsandbytes does on every device.
        rounded = case.weight.to(case.dtype)
        bias = case.arguments.get("bias")
        product = case.arguments["A"].double() @ rounded.double().T + (0 if bias is None else bias.double())
        measured.append(_distance(actual, product, case, rounded))
    error, allowed = min(measured, key=lambda pair: pair[0] - pair[1])
    return (None if error <= allowed else "too far from the reference"), error, allowed


def _distance(actual: Tensor, exact: Tensor, case: cases.Case, weight: Tensor | None) -> tuple[float, float]:
    difference = (actual.cpu().double() - exact.double()).abs().flatten()
    if weight is None:
        bound = torch.zeros_like(difference)
    else:
        bound = reference.product_tolerance(case.arguments["A"], weight, exact.to(case.dtype)).flatten()
        bound = bound + torch.finfo(case.dtype).smallest_normal
    share = torch.where(difference == 0, 0.0, difference / bound).nan_to_num(nan=torch.inf)
    worst = int(share.argmax())
    error = float(difference[worst])
    return math.inf if math.isnan(error) else error, float(bound[worst])
