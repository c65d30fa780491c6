"""Loads the compiled virtual XPU, and gives ``torch._C`` what an XPU build of torch has there.

torch's own ``torch.xpu`` then runs on it: only its search for Level Zero devices is switched off.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import importlib.metadata
import pathlib
import types
import warnings
from collections.abc import Callable
from typing import Any

from .. import sycl


def check_torch() -> None:
    """Raise RuntimeError where the installed torch cannot take the virtual XPU."""
    import torch

    if torch._C._has_xpu:
        raise RuntimeError(
            "the virtual XPU is for a CPU build of torch, and this torch has real XPU support: unset "
            "BNB_INTEL_VIRTUAL_XPU (or do not call enable())"
        )
    build = "CUDA" if torch.version.cuda else "ROCm" if torch.version.hip else None
    if build:
        raise RuntimeError(
            f"the virtual XPU is for a CPU build of torch, and this torch, {torch.__version__}, is a {build} build, "
            "whose accelerator is another one already: install a CPU build (pip install torch --index-url "
            "https://download.pytorch.org/whl/cpu), or unset BNB_INTEL_VIRTUAL_XPU (or do not call enable())"
        )


class Library:
    """The compiled virtual XPU: its C functions, with their errors as RuntimeError."""

    def __init__(self, path: pathlib.Path) -> None:
        try:
            # Global, because native operators look up aoti_torch_get_current_xpu_stream at run time.
            self._free = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise RuntimeError(f"the virtual XPU does not load: {error}") from error
        # The same library, called without letting go of the interpreter: for what never waits.
        self._held = ctypes.PyDLL(str(path))
        self._held.vxpu_last_error.restype = ctypes.c_char_p

    def error(self) -> RuntimeError:
        """The last failure of this thread."""
        return RuntimeError(self._held.vxpu_last_error().decode())

    def shut_down(self) -> None:
        """Wait for the kernels at work, and free nothing from here on."""
        self._free.vxpu_shut_down()

    def quick(self, name: str, restype: Any = ctypes.c_int32, argtypes: tuple[Any, ...] = ()) -> Callable[..., Any]:
        """A function that never waits and never fails."""
        function = self._held[name]
        function.restype, function.argtypes = restype, argtypes
        return function

    def checked(self, name: str, *argtypes: Any) -> Callable[..., None]:
        """A function that returns 0, or something else when it has failed; it may wait."""
        function = self._free[name]
        function.restype, function.argtypes = ctypes.c_int32, argtypes

        def call(*arguments: Any) -> None:
            if function(*arguments) != 0:
                raise self.error()

        return call

    def text(self, name: str) -> list[list[str]]:
        """The lines that a text function hands out, split at the tabs."""
        function = self.quick(name, ctypes.c_size_t, (ctypes.c_char_p, ctypes.c_size_t))
        size = function(None, 0)
        while True:
            buffer = ctypes.create_string_buffer(size + 256)
            size = function(buffer, len(buffer))
            if size == 0:
                raise self.error()
            if size <= len(buffer):  # else it has grown in between
                return [line.split("\t") for line in buffer.value.decode().splitlines()]

    def fallback_counts(self) -> dict[str, int]:
        """How often each operator has run a borrowed CPU kernel."""
        return {name: int(calls) for name, calls in self.text("vxpu_fallback_counts")}

    def reset_fallback_counts(self) -> None:
        """Set every count to zero."""
        self.quick("vxpu_reset_fallback_counts", None)()


def load(path: pathlib.Path) -> Library:
    """Load the compiled library and register the device with torch."""
    sycl.show_cpu_device()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = Library(path)
        if not library.quick("vxpu_hooks_active")():
            raise RuntimeError(
                "torch has asked for its accelerators before the virtual XPU came, and does so but once: set "
                "BNB_INTEL_VIRTUAL_XPU=1 before `import torch`, or call enable() right after it"
            )
        library.checked("vxpu_register")()
        _fill_torch(library)
    # Kernels still at work must not outlive the interpreter, and no memory is freed after this.
    atexit.register(library.shut_down)
    atexit.register(_settle_autograd)
    return library


def _settle_autograd() -> None:
    """Wait until autograd's thread has let go of the last backward pass.

    `torch.autograd` gives a pass Python's context, which the thread releases after `backward()` has returned: where the
    interpreter is at its end by then, the process aborts. One more pass, without a context, comes behind it in the
    thread's queue; what that one holds is never freed.
    """
    if not any(task.read_text().startswith("pt_autograd") for task in pathlib.Path("/proc/self/task").glob("*/comm")):
        return
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        leaf, gradient = torch.ones(1, device="xpu", requires_grad=True), torch.ones(1, device="xpu")
        kept = leaf, gradient, leaf * gradient
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
        engine = torch.autograd.Variable._execution_engine
        engine.run_backward((kept[-1],), (gradient,), True, False, (), allow_unreachable=True, accumulate_grad=True)


_BOOLEANS = ("has_fp16", "has_fp64", "has_atomic64")
_TEXTS = ("name", "platform_name", "vendor", "driver_version", "version")


class _XpuDeviceProperties(types.SimpleNamespace):
    """What :func:`torch.xpu.get_device_properties` returns."""

    @property
    def uuid(self) -> bytes:
        """A constant: there is one device."""
        return b"virtual-xpu-0000"


def _properties(library: Library) -> _XpuDeviceProperties:
    values: dict[str, Any] = {
        "type": "cpu",
        "gpu_eu_count": 0,
        "gpu_subslice_count": 0,
        "architecture": 0,
        "memory_clock_rate": 0,
        "memory_bus_width": 0,
        "is_integrated_gpu": False,
        "has_bfloat16_conversions": True,
        "has_subgroup_matrix_multiply_accumulate": False,
        "has_subgroup_matrix_multiply_accumulate_tensor_float32": False,
        "has_subgroup_2d_block_io": False,
    }
    for name, value in library.text("vxpu_device_properties"):
        if name in _TEXTS:
            values[name] = value
        elif name == "sub_group_sizes":
            values[name] = [int(size) for size in value.split()]
        else:
            values[name] = bool(int(value)) if name in _BOOLEANS else int(value)
    return _XpuDeviceProperties(**values)


def _memory_stats(library: Library) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, *figures in library.text("vxpu_memory_stats"):
        if len(figures) == 1:
            nested[name] = int(figures[0])
        else:
            stat, pool = name.split(".")
            kinds = ("current", "peak", "allocated", "freed")
            nested.setdefault(stat, {})[pool] = dict(zip(kinds, map(int, figures), strict=True))
    return nested


def _stream_and_event(library: Library) -> tuple[type, type]:
    import torch

    get_queue = library.checked("vxpu_stream_queue", ctypes.c_int64, ctypes.POINTER(ctypes.c_void_p))
    get_elapsed = library.checked(
        "vxpu_event_elapsed_ms", ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_double)
    )
    get_priority = library.quick("vxpu_stream_priority", ctypes.c_int64, (ctypes.c_int64,))

    class _XpuStreamBase(torch.Stream):
        """The base of :class:`torch.xpu.Stream`."""

        def __new__(
            cls, priority: int = 0, stream_id: int = 0, device_index: int = 0, device_type: int = 0
        ) -> _XpuStreamBase:
            if stream_id or device_index or device_type:
                return super().__new__(cls, stream_id=stream_id, device_index=device_index, device_type=device_type)
            return super().__new__(cls, device="xpu", priority=priority)

        @property
        def sycl_queue(self) -> int:
            """The address of the stream's ``sycl::queue``."""
            queue = ctypes.c_void_p()
            get_queue(self.stream_id, ctypes.byref(queue))
            return queue.value or 0

        @property
        def priority(self) -> int:
            """-1 (high), 0 or 1 (low)."""
            return get_priority(self.stream_id)

        @staticmethod
        def priority_range() -> tuple[int, int]:
            """The lowest and the highest priority."""
            return 1, -1

    class _XpuEventBase(torch.Event):
        """The base of :class:`torch.xpu.Event`."""

        def __new__(cls, enable_timing: bool = False) -> _XpuEventBase:
            return super().__new__(cls, device="xpu", enable_timing=enable_timing)

        @property
        def sycl_event(self) -> int:
            """The address of the ``sycl::event``; 0 before the event was recorded."""
            return self.event_id

        def elapsed_time(self, other: torch.Event) -> float:
            """Milliseconds between the two events."""
            milliseconds = ctypes.c_double()
            get_elapsed(self.event_id, other.event_id, ctypes.byref(milliseconds))
            return milliseconds.value

    return _XpuStreamBase, _XpuEventBase


def _functions(library: Library) -> dict[str, Any]:
    """The functions of ``torch._C`` that an XPU build of torch has."""
    import torch

    start = library.checked("vxpu_start")
    synchronize = library.checked("vxpu_synchronize")
    empty_cache = library.checked("vxpu_empty_cache")
    set_stream = library.checked("vxpu_set_stream", ctypes.c_int64)
    current_stream = library.quick("vxpu_current_stream", ctypes.c_int64)
    current_queue = library.quick("vxpu_current_queue", ctypes.c_void_p)
    stream_of_queue = library.checked("vxpu_stream_of_queue", ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64))
    reset_peak = library.quick("vxpu_reset_peak_stats", None)
    reset_accumulated = library.quick("vxpu_reset_accumulated_stats", None)
    pointer = ctypes.POINTER(ctypes.c_int64)
    memory_info = library.checked("vxpu_memory_info", pointer, pointer)
    fraction = library.quick("vxpu_memory_fraction", ctypes.c_double)
    set_fraction = library.checked("vxpu_set_memory_fraction", ctypes.c_double)
    in_bad_fork = library.quick("vxpu_in_bad_fork")
    xpu_type = 12  # c10::DeviceType::XPU

    def check(device: int) -> None:
        if device not in (0, -1):
            raise RuntimeError(f"The device index is out of range. It must be in [0, 1), but got {device}.")

    def init() -> None:
        start()
        properties = _properties(library)
        generator = torch.ops.bitsandbytes_intel_virtual_xpu.default_generator()

        def get_device_properties(device: int) -> _XpuDeviceProperties:
            check(device)
            return properties

        setattr(torch.xpu, "_get_device_properties", get_device_properties)  # noqa: B010 (torch declares it nowhere)
        torch.xpu.default_generators = (generator,)

    def exchange_device(device: int) -> int:
        check(device)
        return 0 if device >= 0 else -1

    def get_current_stream(device: int) -> tuple[int, int, int]:
        check(device)
        return current_stream(), 0, xpu_type

    def set_current_stream(stream_id: int, device_index: int, device_type: int) -> None:
        check(device_index)
        set_stream(stream_id)

    def get_stream_from_external(data_ptr: int, device_index: int) -> tuple[int, int, int]:
        check(device_index)
        stream = ctypes.c_int64()
        stream_of_queue(data_ptr, ctypes.byref(stream))
        return stream.value, 0, xpu_type

    def get_current_raw_stream(device: int) -> int:
        queue = current_queue()
        if queue is None:
            raise library.error()
        return queue

    def get_memory_info(device: int) -> tuple[int, int]:
        check(device)
        free, total = ctypes.c_int64(), ctypes.c_int64()
        memory_info(ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    return {
        "_xpu_init": init,
        "_xpu_isInBadFork": lambda: bool(in_bad_fork()),
        "_xpu_getDeviceCount": lambda: 1,
        "_xpu_getDevice": lambda: 0,
        "_xpu_setDevice": check,
        "_xpu_exchangeDevice": exchange_device,
        "_xpu_maybeExchangeDevice": exchange_device,
        "_xpu_canDeviceAccessPeer": lambda device, peer: False,
        "_xpu_getArchFlags": lambda: None,
        "_xpu_getCurrentStream": get_current_stream,
        "_xpu_setStream": set_current_stream,
        "_xpu_getCurrentRawStream": get_current_raw_stream,
        "_xpu_getStreamFromExternal": get_stream_from_external,
        "_xpu_synchronize": lambda device: synchronize(),
        "_xpu_emptyCache": lambda: empty_cache(),
        "_xpu_memoryStats": lambda device: _memory_stats(library),
        "_xpu_resetPeakMemoryStats": lambda device: reset_peak(),
        "_xpu_resetAccumulatedMemoryStats": lambda device: reset_accumulated(),
        "_xpu_getMemoryInfo": get_memory_info,
        "_xpu_getMemoryFraction": lambda device: fraction(),
        "_xpu_setMemoryFraction": lambda value, device: set_fraction(value),
        "_xpu_isCurrentStreamCapturing": lambda: False,
    }


def _sycl_version() -> str:
    """The SYCL runtime's version in the form of ``torch.version.xpu``: "20260200"."""
    try:
        parts = importlib.metadata.version("intel-sycl-rt").split(".")
        return f"{int(parts[0]):04d}{int(parts[1]):02d}{int(parts[2]):02d}"
    except (importlib.metadata.PackageNotFoundError, IndexError, ValueError):
        return "20260000"


def _fill_torch(library: Library) -> None:
    import torch

    stream, event = _stream_and_event(library)
    names = {
        "_has_xpu": True,
        "_XpuStreamBase": stream,
        "_XpuEventBase": event,
        "_XpuDeviceProperties": _XpuDeviceProperties,
        **_functions(library),
    }
    for name, value in names.items():
        if isinstance(value, types.FunctionType):
            value.__name__ = value.__qualname__ = name
        setattr(torch._C, name, value)
    torch.version.xpu = _sycl_version()

    # torch.xpu decides at its import what it can do, so that it has to be imported again. Seeds set before are kept.
    before = torch.xpu
    queued, seeds = before._queued_calls, before._lazy_seed_tracker
    importlib.reload(torch.xpu.streams)
    importlib.reload(torch.xpu.graphs)
    importlib.reload(torch.xpu)
    torch.xpu._queued_calls, torch.xpu._lazy_seed_tracker = queued, seeds
    # Where Level Zero's tools are installed they would count real devices, of which there are none.
    torch.xpu._device_count_zes = lambda: -1
