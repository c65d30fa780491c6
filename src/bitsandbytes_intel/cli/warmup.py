"""``python -m bitsandbytes_intel warmup``: fills the cache of compiled kernels."""

from __future__ import annotations

import time
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .. import runtime
from . import environment
from .console import Output, Unusable
from .environment import Setup


def run(out: Output, setup: Setup) -> bool:
    """Build what is missing, for every XPU; True unless a kernel does not compile."""
    import torch

    environment.require_xpu(setup)
    rows: list[dict[str, Any]] = []
    held = True
    for index in range(torch.xpu.device_count()):
        try:
            device = runtime.open_device(torch.xpu.current_stream(index).sycl_queue)
            total = len(runtime.catalogue(device.kind))
        except runtime.KernelError as error:
            raise Unusable(str(error)) from error
        progress = Progress(
            TextColumn("kernels for {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=out.log,
            disable=not out.log.is_terminal,
        )
        with progress:
            task = progress.add_task(device.name, total=total)
            start = time.monotonic()
            try:
                for family, did in runtime.warm_up(device):
                    now = time.monotonic()
                    rows.append(
                        {"device": f"xpu:{index}", "family": family, "was": did, "seconds": round(now - start, 3)}
                    )
                    start = now
                    progress.advance(task)
            except runtime.KernelError as error:
                held = False
                rows.append({"device": f"xpu:{index}", "family": None, "was": f"FAILED: {error}", "seconds": None})
    cache = environment.cache()
    out.data.update(virtual_xpu=setup.virtual, kernels=rows, cache=cache)
    if setup.virtual:
        out.show("No Intel GPU here: these are the kernels of the virtual XPU.")
    table = out.table("Kernels", "device", "family", "was", "seconds", right=("seconds",))
    for row in rows:
        table.add_row(
            row["device"], row["family"] or "", row["was"], "" if row["seconds"] is None else f"{row['seconds']:.2f}"
        )
    out.show(table)
    out.show(f"The cache {cache['folder']} holds {cache['files']} files, {cache['bytes'] / 1e6:.1f} MB.")
    return held
