"""``python -m bitsandbytes_intel``: what is here, which implementation answers, and the validation."""

from __future__ import annotations

import dataclasses
from typing import Any

from .. import ops, runtime
from . import environment
from .console import Output, Unusable
from .environment import Setup

_DEVICES = ("cpu", "xpu")
_NONE, _ABSENT = "none", "no such device"


def run(out: Output, setup: Setup, wanted: str) -> bool:
    """Print the report; True if every check held."""
    _show_here(out, setup)
    _show_operators(out, setup)
    return _validate(out, setup, wanted)


def _show_here(out: Output, setup: Setup) -> None:
    versions, devices, cache = environment.versions(), environment.devices(setup), environment.cache()
    out.data.update(
        versions=versions,
        devices=devices,
        virtual_xpu=setup.virtual,
        cache=cache,
        failures=ops.failures(),
        environment=environment.variables(),
    )
    table = out.table("What is here", "what", "value")
    for name, version in versions.items():
        table.add_row(name, version)
    for device in devices:
        parts = [device["name"], device["driver"] and f"driver {device['driver']}", device["kind"], device["error"]]
        table.add_row(device["device"], ", ".join(part for part in parts if part))
    table.add_row("kernel cache", f"{cache['folder']}: {cache['files']} files, {cache['bytes'] / 1e6:.1f} MB")
    out.show(table)
    if setup.virtual:
        out.show("No Intel GPU here: xpu:0 is the virtual XPU, which runs the same kernels on this machine's CPU.")
    elif setup.no_xpu:
        out.show(f"No XPU: {setup.no_xpu}.")
    for device_type, reason in ops.failures().items():
        out.show(f"Our operators do not answer on {device_type}: {reason}")


def implementations(setup: Setup) -> list[dict[str, Any]]:
    """Every operator of ``torch.ops.bitsandbytes`` that torch's dispatcher knows, and what answers on each device."""
    import torch

    prefix = "bitsandbytes::"
    rows = []
    replaced = {device: ops.replaced(device) for device in _DEVICES}
    for name in sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith(prefix)):
        row: dict[str, Any] = {"operator": name.removeprefix(prefix)}
        for device in _DEVICES:
            row[device] = _ABSENT if device == "xpu" and setup.no_xpu else _answers(name, device, replaced[device])
        rows.append(row)
    return rows


def _answers(name: str, device: str, replaced: dict[str, str]) -> str:
    import torch

    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for operator in ops.registered().get(device, ()):
        if name == f"bitsandbytes::{operator.name}":
            if operator.name in replaced:
                return f"another's, registered over ours at {replaced[operator.name]}"
            return f"ours: {operator.kernel(device)}"
    if has(name, device.upper()):
        return f"upstream's for {device}"
    if has(name, "CompositeExplicitAutograd") or has(name, "CompositeImplicitAutograd"):
        return "upstream's default (PyTorch)"
    return _NONE


def _show_operators(out: Output, setup: Setup) -> None:
    rows = implementations(setup)
    out.data["operators"] = rows
    table = out.table("Which implementation answers for torch.ops.bitsandbytes", "operator", *_DEVICES)
    for row in rows:
        table.add_row(row["operator"], *(row[device] for device in _DEVICES))
    out.show(table)


def _validate(out: Output, setup: Setup, wanted: str) -> bool:
    have = {device for operator in ops.OPERATORS for device in operator.devices}
    from . import validation

    devices = [device for device in reversed(_DEVICES) if wanted in (device, "all") and device in have]
    if wanted == validation.SYCL_CPU:
        devices = [validation.SYCL_CPU]
    if not devices:
        raise Unusable(f"none of our operators is for {wanted} in this version, so there is nothing to check")
    if setup.no_xpu and "xpu" in devices:
        if wanted == "xpu" or devices == ["xpu"]:
            raise Unusable(setup.no_xpu)
        devices[devices.index("xpu")] = validation.SYCL_CPU
    if validation.SYCL_CPU in devices:
        try:
            with ops.sycl_on_cpu() as opened:
                out.data["sycl_cpu"] = dataclasses.asdict(opened)
                out.show(f"sycl-cpu: the SYCL kernels, on {opened.name} ({opened.backend}), on tensors of the CPU.")
        except runtime.KernelError as error:
            if wanted == validation.SYCL_CPU:
                raise Unusable(str(error)) from error
            devices.remove(validation.SYCL_CPU)
            out.show(f"The SYCL kernels are not checked: {error}")

    done: list[validation.Check] = []
    table = out.table(
        "Validation against plain torch",
        "operator",
        "device",
        "inputs",
        "output",
        "error",
        "allowed",
        "result",
        right=("error", "allowed"),
    )
    out.show()
    for device in devices:
        for check in validation.checks(device):
            if not done:
                outcome = "held" if check.held else f"FAILED: {check.problem}"
                call = f"{check.inputs} -> {check.output or 'no output'}: " if check.inputs else ""
                out.show(f"{check.operator}: {call}{outcome}")
            done.append(check)
            output, _, at = check.output.rpartition(" on ")
            table.add_row(
                check.operator,
                at or device,
                check.inputs,
                output,
                _figure(check.error),
                _figure(check.allowed),
                "held" if check.held else f"FAILED: {check.problem}",
            )
    failed = sum(not check.held for check in done)
    out.data["validation"] = [dataclasses.asdict(check) for check in done]
    out.show(table)
    out.show("error, allowed: of the element nearest to its bound. Where that is 0, results must be exact.")
    out.show(f"{len(done) - failed} of {len(done)} checks held" + (f", {failed} FAILED." if failed else "."))
    return failed == 0


def _figure(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.2g}"
