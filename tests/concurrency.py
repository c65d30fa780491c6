"""A call of every case of every operator of ours, for many streams, threads and processes to make at once.

Run as a script it keeps the results of one of every operator in a file, and prints what the log said: how kernels
come into an empty cache.
"""

from __future__ import annotations

import gc
import logging
import os
import pathlib
import sys
import threading
from collections.abc import Callable

import bitsandbytes  # noqa: F401 (it registers our operators)
import torch
from helpers import exactly_equal
from torch import Tensor

from bitsandbytes_intel import ops
from bitsandbytes_intel.cli import cases

Call = Callable[[], "list[Tensor | None]"]
LEAK_CALLS = 100_000


def every_call(device: str, most: int | None = None) -> dict[str, Call]:
    """The calls by name, of each operator at most so many.

    Each copies what it changes, so that it returns the same every time; nothing waits.
    """
    return {
        f"{operator.name}: {case.text}, {case.dtype}": call(operator.name, case, device)
        for operator in ops.OPERATORS
        for case in cases.of(operator.name)[:most]
    }


def call(operator: str, case: cases.Case, device: str, *, in_place: bool = False) -> Call:
    """A case as a call on a device. With ``in_place`` it goes on changing the same tensors."""
    packet, _, overload = operator.partition(".")
    function = getattr(getattr(torch.ops.bitsandbytes, packet), overload or "default")
    arguments = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in case.arguments.items()}
    out = None
    if overload == "out":
        out = torch.empty_like(getattr(torch.ops.bitsandbytes, packet)(**arguments))

    def run() -> list[Tensor | None]:
        changed = {key: arguments[key] if in_place else arguments[key].clone() for key in case.changes}
        if out is not None:
            changed["out"] = out if in_place else torch.empty_like(out)
        returned = function(**{**arguments, **changed})
        if changed:
            return list(changed.values())
        return list(returned) if isinstance(returned, (tuple, list)) else [returned]

    return run


def on_cpu(results: list[Tensor | None]) -> list[Tensor | None]:
    """The results, when they are there."""
    return [None if result is None else result.cpu() for result in results]


def results(device: str) -> dict[str, list[Tensor | None]]:
    """The results of the first call of every operator, on the CPU."""
    return {name: on_cpu(run()) for name, run in every_call(device, 1).items()}


def check(got: list[Tensor | None], wanted: list[Tensor | None]) -> None:
    """Assert that the results have the same bits."""
    for result, expected in zip(got, wanted, strict=True):
        assert (result is None) == (expected is None)
        if result is not None:
            exactly_equal(result, expected)


def together(work: Callable[[int], None], count: int, seconds: float = 100) -> None:
    """Run a function in threads that start at once; raise the first failure, or that one has not come to its end."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run(index: int) -> None:
        try:
            barrier.wait()
            work(index)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
        assert not thread.is_alive(), "a thread hangs"
    for failure in failures:
        raise failure


def held() -> dict[str, int]:
    """What this process holds: bytes of memory and of device memory, files and threads."""
    torch.xpu.synchronize()
    gc.collect()
    stats = torch.xpu.memory_stats()
    return {
        "resident": int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        "allocated": stats["allocated_bytes.all.current"],
        "blocks": stats["allocation.all.current"],
        "reserved": stats["reserved_bytes.all.current"],
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }


def leak() -> list[dict[str, int]]:
    """What is held after the first tenth of the calls, and after all of them; wrong calls are among them."""
    every = [
        call(operator.name, min(cases.of(operator.name), key=_size), "xpu", in_place=True) for operator in ops.OPERATORS
    ]
    wrong = torch.empty(3, 5, dtype=torch.int32, device="xpu")

    def refused() -> None:
        try:
            torch.ops.bitsandbytes.quantize_4bit(wrong, 64, "nf4", torch.uint8)
        except RuntimeError:
            return
        raise AssertionError("a wrong dtype was not refused")

    every.append(refused)
    states = []
    for number in range(LEAK_CALLS):
        every[number % len(every)]()
        if number % 1000 == 999:
            torch.xpu.synchronize()
        if number + 1 in (LEAK_CALLS // 10, LEAK_CALLS):
            states.append(held())
    return states


def _size(case: cases.Case) -> int:
    return sum(value.numel() for value in case.arguments.values() if isinstance(value, Tensor))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    torch.save(results("xpu"), sys.argv[1])
