"""Which operator is ours on which device, and the registration of it with torch. The only list of operators."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from . import cpu, paged, repacking, runtime

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Operator:
    """One of ours: its name in ``torch.ops.bitsandbytes`` with its overload, its devices, what does the work on xpu."""

    name: str
    devices: tuple[str, ...]
    xpu_kernel: str

    def kernel(self, device: str) -> str:
        """What does the work on a device."""
        return "C++" if device == "cpu" else self.xpu_kernel


OPERATORS = (
    Operator("dequantize_4bit", ("cpu", "xpu"), "SYCL"),
    Operator("dequantize_4bit.out", ("cpu", "xpu"), "SYCL"),
    Operator("dequantize_blockwise", ("cpu", "xpu"), "SYCL"),
    Operator("dequantize_blockwise.out", ("cpu", "xpu"), "SYCL"),
    Operator("quantize_4bit", ("cpu", "xpu"), "SYCL"),
    Operator("quantize_blockwise", ("cpu", "xpu"), "SYCL"),
    Operator("gemv_4bit", ("cpu", "xpu"), "SYCL"),
    Operator("gemv_4bit.out", ("cpu", "xpu"), "SYCL"),
    Operator("gemm_4bit", ("cpu", "xpu"), "SYCL"),
    Operator("int8_linear_matmul", ("cpu", "xpu"), "oneDNN"),
    Operator("int8_linear_matmul.out", ("cpu", "xpu"), "oneDNN"),
    Operator("int8_vectorwise_quant", ("cpu", "xpu"), "SYCL"),
    Operator("int8_vectorwise_dequant", ("cpu", "xpu"), "SYCL"),
    Operator("int8_double_quant", ("cpu", "xpu"), "SYCL"),
    Operator("int8_mm_dequant", ("cpu", "xpu"), "SYCL"),
    Operator("int8_scaled_mm", ("cpu", "xpu"), "oneDNN, SYCL"),
    Operator("int8_mixed_scaled_mm", ("cpu", "xpu"), "oneDNN, SYCL"),
    Operator("optimizer_update_32bit", ("cpu", "xpu"), "SYCL"),
    Operator("optimizer_update_8bit_blockwise", ("cpu", "xpu"), "SYCL"),
)

_HERE = "csrc/torch/common.cpp:"  # where our registrations stand, as torch's dispatcher tells it

_registered: dict[str, tuple[Operator, ...]] = {}
_failures: dict[str, str] = {}
_torch_library: ctypes.CDLL | None = None


def registered() -> dict[str, tuple[Operator, ...]]:
    """Our operators that answer in this process, by device."""
    return dict(_registered)


def failures() -> dict[str, str]:
    """Why our operators are not registered on a device that is present, by device."""
    return dict(_failures)


def replaced(device: str) -> dict[str, str]:
    """Our registered operators that somebody has registered over since, and where in their code."""
    import torch

    found = {}
    for operator in _registered.get(device, ()):
        lines = torch._C._dispatch_dump(f"bitsandbytes::{operator.name}").splitlines()
        answers = next((line for line in lines if line.startswith(f"{device.upper()}: ")), "")
        if _HERE not in answers:
            found[operator.name] = answers.partition("registered at ")[2].partition(" :: ")[0] or "nothing answers"
    return found


def present_devices() -> tuple[str, ...]:
    """The devices of torch that exist here, of those that we have operators for."""
    import torch

    return ("cpu", "xpu") if torch.xpu.is_available() else ("cpu",)


def register() -> None:
    """Register every operator that we have for a present device, over upstream's. Idempotent; never raises.

    A library that is there but does not load is a warning in the log, kept for :func:`failures`.
    """
    for device in present_devices():
        if device in _registered:
            continue
        try:
            _register(device)
            _failures.pop(device, None)
        except Exception as error:
            _failures[device] = f"{type(error).__name__}: {error}"
            _log.warning("bitsandbytes keeps its own operators on %s: %s", device, error)


def unregister() -> None:
    """Take our operators back: upstream's answer again."""
    if _torch_library is not None:
        _torch_library.bnb_torch_unregister_all()
        from . import backward

        paged.uninstall()
        repacking.uninstall()
        backward.uninstall()
    _registered.clear()


def _register(device: str) -> None:
    lib = _load()
    message = ctypes.create_string_buffer(4096)
    _use_library(device)
    ours = tuple(operator for operator in OPERATORS if device in operator.devices)
    _silence_override_warning(device)
    names = [operator.name for operator in ours]
    if device == "cpu":
        from . import backward

        backward.define()
        names.append(f"{backward.NAMESPACE}::{backward.NAME}")
    for name in names:
        if lib.bnb_torch_register(device.upper().encode(), name.encode(), message, len(message)):
            raise runtime.KernelError(message.value.decode(errors="replace"))
    if device == "cpu":
        repacking.install()
        backward.install()
    else:
        paged.install()
    _registered[device] = ours
    _log.info("%d operators registered on %s", len(ours), device)


@contextlib.contextmanager
def sycl_on_cpu() -> Iterator[runtime.Device]:
    """Let our operators on ``cpu`` run the SYCL kernels on the OpenCL CPU device, in the whole process: for checks.

    It needs no XPU in torch. Yields the device; each call waits for its kernels.

    Raises:
        KernelError: the SYCL runtime, our library for it or the CPU device is missing. The text says which.
    """
    lib = _load()
    _use_library("xpu")
    queue = runtime.new_queue()
    try:
        device = runtime.open_device(queue)
        if device.kind != "cpu":
            raise runtime.KernelError(
                f"SYCL's first device is {device.name}, and no CPU: set ONEAPI_DEVICE_SELECTOR=opencl:cpu, with "
                "intel-opencl-rt installed"
            )
        lib.bnb_torch_sycl_on_cpu(queue)
        try:
            yield device
        finally:
            lib.bnb_torch_sycl_on_cpu(None)
    finally:
        runtime.library().bnb_xpu_delete_queue(queue)


def _use_library(device: str) -> None:
    message = ctypes.create_string_buffer(4096)
    if device == "cpu":
        cpu.library()
        path = cpu.LIBRARY
    else:
        runtime.library()
        path = runtime.xpu_library()
    if _load().bnb_torch_use_library(device.encode(), str(path).encode(), message, len(message)):
        raise runtime.KernelError(message.value.decode(errors="replace"))


def _load() -> ctypes.CDLL:
    global _torch_library
    if _torch_library is None:
        if not runtime.TORCH_LIBRARY.exists():
            raise runtime.KernelError(f"{runtime.TORCH_LIBRARY.name} is missing: install bitsandbytes-intel again")
        lib = ctypes.CDLL(str(runtime.TORCH_LIBRARY))
        text, size = ctypes.c_char_p, ctypes.c_size_t
        lib.bnb_torch_use_library.argtypes = [text, text, text, size]
        lib.bnb_torch_register.argtypes = [text, text, text, size]
        lib.bnb_torch_unregister_all.restype = None
        lib.bnb_torch_sycl_on_cpu.restype, lib.bnb_torch_sycl_on_cpu.argtypes = None, [ctypes.c_void_p]
        lib.bnb_torch_operators.restype = text
        _torch_library = lib
    return _torch_library


def _silence_override_warning(device: str) -> None:
    """Use up the one warning that torch prints in C++ when a kernel replaces another: replacing is our purpose."""
    import torch

    key = device.upper()
    for operator in OPERATORS:
        name = f"bitsandbytes::{operator.name}"
        if device in operator.devices and torch._C._dispatch_has_kernel_for_dispatch_key(name, key):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                library = torch.library.Library("bitsandbytes", "IMPL")
                library.impl(operator.name, lambda *args: None, key, allow_override=True)
                library._destroy()
            return
