"""Calls our operators on a device and compares them with the plain torch reference."""

from __future__ import annotations

import dataclasses
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


SYCL_CPU = "sycl-cpu"
"""No device of torch's: the SYCL kernels on the OpenCL CPU device, on CPU tensors (:func:`ops.sycl_on_cpu`)."""


def checks(device: str) -> Iterator[Check]:
    """Every check of our operators on a device of torch's or SYCL_CPU, ``int8_linear_matmul`` first."""
    if device != SYCL_CPU:
        yield from _checks(device)
        return
    with ops.sycl_on_cpu():
        for check in _checks("cpu"):
            yield dataclasses.replace(check, device=device, output=check.output.replace(" on cpu", f" on {device}"))


def _checks(device: str) -> Iterator[Check]:
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
        made = [text_of(result).partition(" on ") for result in actual.values() if result is not None]
        output = f"{', '.join(text for text, _, _ in made)} on {made[0][2]}"
        return Check(operator, device, case.text, output, error, allowed, problem is None, problem)
    except Exception as failure:  # a check that cannot be made is a check that failed
        first = str(failure).strip().partition("\n")[0]
        return Check(operator, device, case.text, "", None, None, False, f"{type(failure).__name__}: {first}")


def _results(returned: Any, arguments: dict[str, Any], case: cases.Case) -> dict[str, Tensor | None]:
    """What a call made, by name: see :class:`cases.Case`."""
    if case.changes:
        return {name: arguments[name] for name in case.changes}
    return {str(i): result for i, result in enumerate(returned if isinstance(returned, (tuple, list)) else [returned])}


def _copied(case: cases.Case, device: str) -> dict[str, Any]:
    """The arguments on a device; a case's own stay as they are."""
    return {
        key: value.to(device, copy=True) if isinstance(value, Tensor) else value
        for key, value in case.arguments.items()
    }


def _exact(operator: str, case: cases.Case) -> dict[str, Tensor | None]:
    """The reference's results; of a product before it is rounded to 16 bits."""
    arguments = _copied(case, "cpu")
    if case.weight is not None:
        arguments["A"] = arguments["A"].float()
    return _results(getattr(reference, operator.partition(".")[0])(**arguments), arguments, case)


def _call(operator: str, case: cases.Case, device: str, exact: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    name, _, overload = operator.partition(".")
    function = getattr(getattr(torch.ops.bitsandbytes, name), overload or "default")
    arguments = _copied(case, device)
    if overload != "out":
        return _results(function(**arguments), arguments, case)
    (expected,) = exact.values()
    assert expected is not None
    out = torch.empty(expected.shape, dtype=case.dtype, device=device)
    function(**arguments, out=out)
    return {"0": out}


def _compare(
    actual: dict[str, Tensor | None], exact: dict[str, Tensor | None], case: cases.Case, device: str
) -> tuple[str | None, float | None, float | None]:
    """What is wrong, if anything; the error and the bound at the element nearest to its bound, of all results."""
    if len(actual) != len(exact):
        return f"expected {len(exact)} results, got {len(actual)}", None, None
    measures: list[tuple[float, float]] = []
    for index, ((name, result), wanted) in enumerate(zip(actual.items(), exact.values(), strict=True)):
        if result is None or wanted is None:
            if result is not wanted:
                return f"result {name} is {'' if result is None else 'not '}None", None, None
            continue
        dtype = case.dtype if index == 0 else wanted.dtype
        if (result.dtype, result.shape, result.device.type) != (dtype, wanted.shape, torch.device(device).type):
            return f"expected {text_of(wanted.to(dtype)).rpartition(' on ')[0]} on {device}", None, None
        if wanted.numel() == 0:
            continue
        measured = [_distance(name, result, wanted, case, case.weight)]
        if case.weight is not None and case.dtype != torch.float32:
            # For many rows the weight may be rounded to A's dtype first, as bitsandbytes does on every device.
            rounded = case.weight.to(case.dtype)
            bias = case.arguments.get("bias")
            product = case.arguments["A"].double() @ rounded.double().T + (0 if bias is None else bias.double())
            measured.append(_distance(name, result, product, case, rounded))
        error, allowed = min(measured, key=lambda pair: pair[0] - pair[1])
        if not error <= allowed:
            return "too far from the reference", error, allowed
        if wanted.dtype == torch.uint8 and (result.cpu() != wanted).double().mean() > cases.RARE:
            return "too many codes are not the reference's", error, allowed
        measures.append((error, allowed))
    return None, *max(measures, key=lambda pair: pair[0] / pair[1] if pair[1] else 0.0)


def _distance(name: str, actual: Tensor, exact: Tensor, case: cases.Case, weight: Tensor | None) -> tuple[float, float]:
    difference = (actual.cpu().double() - exact.double()).abs().flatten()
    if weight is not None:
        bound = reference.product_tolerance(case.arguments["A"], weight, exact.to(case.dtype)).flatten()
        bound = bound + torch.finfo(case.dtype).smallest_normal
    elif case.bound is not None:
        bound = case.bound(name, exact).flatten()
    else:
        bound = torch.zeros_like(difference)
    share = torch.where(difference == 0, 0.0, difference / bound).nan_to_num(nan=torch.inf)
    worst = int(share.argmax())
    error = float(difference[worst])
    return math.inf if math.isnan(error) else error, float(bound[worst])
