"""Calls every operator with arguments that are wrong, corrupted or odd, until the time is over; a crash is a fault.

usage: python fuzz.py [--device cpu|xpu|all] [--seconds 1800] [--seed N] [--part operators|checkpoints|cache|all]

Three parts take turns, each in a process of its own, which says on a line what it is about to do, so that the last line
before a crash is the case:

operators    the valid arguments of test_wrong_arguments.py with up to three of them changed: dtype, shape, strides,
             size, device, layout, bytes, sizes, numbers. On the CPU, tensors may end right before a forbidden page.
checkpoints  layers of 4 and 8 bits from state dicts that were truncated, extended, retyped or overwritten
cache        files of compiled kernels that were changed anywhere

An operator may return, or raise RuntimeError, ValueError or TypeError (of torch or ours). Anything else is a fault.
Loading a checkpoint may raise what bitsandbytes' Python raises.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import json
import os
import pathlib
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

PARTS = ("operators", "checkpoints", "cache")
ROUND = 60.0  # seconds of a process: after it, another one starts anew
MEMORY = 24 << 30  # of addresses at most: a size that was believed is an error
HANGS_AFTER = 600
EDGES = (
    0,
    1,
    -1,
    2,
    3,
    7,
    16,
    31,
    33,
    64,
    255,
    256,
    257,
    4096,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**62,
    2**63 - 1,
    -(2**63),
)
NUMBERS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, -1e38, float("nan"), float("inf"), float("-inf"), 0.5, 127.0)


# ---- the process that may crash -------------------------------------------------------------------------------------
class Journal:
    """What is being done, on a line that is written before it is done."""

    def __init__(self) -> None:
        self.calls = self.raised = 0
        self.faults: list[str] = []
        self.case = ""

    def begin(self, case: str) -> None:
        self.case = case
        self.calls += 1
        print("case", case.replace("\n", " ")[:2000], flush=True)

    def fault(self, what: str) -> None:
        self.faults.append(what)
        print("fault", f"{what}: {self.case}".replace("\n", " ")[:3000], flush=True)


def described(value: Any) -> str:
    import torch

    if not isinstance(value, torch.Tensor):
        return repr(value)[:80]
    strides = tuple(value.stride()) if value.layout == torch.strided else str(value.layout)
    return f"{str(value.dtype)[6:]}{list(value.shape)}{strides}@{value.device}"


def changed_tensor(draw: random.Random, tensor: Any, device: str) -> Any:
    """A tensor like this one, with something wrong or odd about it."""
    import torch

    dtypes = (
        torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool, torch.float16, torch.bfloat16,
        torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn,
    )  # fmt: skip
    flat = tensor.detach().reshape(-1)
    kind = draw.choice((
        "dtype", "bytes", "short", "long", "one", "none", "empty", "scalar", "flat", "strided", "expanded",
        "transposed", "unaligned", "noise", "fill", "grad", "device", "meta", "sparse", "huge view", "negative", "wide",
        "same",
    ))  # fmt: skip
    n = flat.numel()
    if kind == "dtype":
        return tensor.to(draw.choice(dtypes))
    if kind == "bytes":
        raw = flat.contiguous().view(torch.uint8)
        to = draw.choice(dtypes)
        return raw[: raw.numel() // to.itemsize * to.itemsize].view(to)
    if kind == "short":
        return flat[: draw.randrange(n + 1)]
    if kind == "long":
        return torch.cat([flat, flat[: draw.randrange(n + 1)]])
    if kind == "one":
        return flat[:1]
    if kind == "none":
        return None
    if kind == "empty":
        return flat[:0].reshape(draw.choice(((0,), (0, 3), (3, 0), (0, 0, 2))))
    if kind == "scalar":
        return flat[0].clone() if n else flat
    if kind == "flat":
        return flat.reshape(draw.choice(((-1, 1), (1, -1), (1, 1, -1)))) if n else flat
    if kind == "strided":
        return torch.stack([flat, flat], dim=-1).reshape(-1)[:: draw.choice((2, 3))][:n]
    if kind == "expanded":
        return flat[:1].expand(tensor.shape) if n else flat
    if kind == "transposed":
        return tensor.mT if tensor.dim() > 1 else tensor
    if kind == "unaligned":
        return torch.cat([flat[:1], flat])[1:].view(tensor.shape) if n else flat
    if kind == "noise":
        size = n * tensor.element_size()
        noise = torch.frombuffer(bytearray(draw.randbytes(size)), dtype=torch.uint8) if size else flat
        return (noise.view(tensor.dtype) if size else flat).reshape(tensor.shape).to(tensor.device)
    if kind == "fill":
        try:
            return torch.full_like(tensor, draw.choice((*NUMBERS, 255, -128)))
        except (RuntimeError, OverflowError, ValueError):
            return torch.zeros_like(tensor)
    if kind == "grad":
        return tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor
    if kind == "device":
        return tensor.to("cpu" if tensor.device.type == "xpu" else device)
    if kind == "meta":
        return tensor.to("meta")
    if kind == "sparse":
        return tensor.to_sparse() if tensor.device.type == "cpu" and tensor.dim() else tensor
    if kind == "huge view":  # of a size that its memory does not have, in one element
        return flat[:1].expand(draw.choice((2**31, 2**33, 2**40))) if n else flat
    if kind == "negative":
        return torch._neg_view(tensor) if tensor.is_floating_point() else tensor
    if kind == "wide":
        return tensor.unsqueeze(0).expand(draw.randrange(1, 5), *tensor.shape)
    return tensor


def changed(draw: random.Random, value: Any, device: str) -> Any:
    """Something else in the place of an argument."""
    import torch

    if draw.random() < 0.03:
        return draw.choice((None, "nf4", 3, 2.5, [1, 2], True, torch.float16))
    if isinstance(value, torch.Tensor):
        return changed_tensor(draw, value, device)
    if isinstance(value, torch.dtype):
        return draw.choice((torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int64))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice(EDGES)
    if isinstance(value, float):
        return draw.choice(NUMBERS)
    if isinstance(value, str):
        return draw.choice(("nf4", "fp4", "adam", "lion", "ademamix", "lamb", "", "NF4", "\0", "x" * 5000))
    if isinstance(value, (list, tuple)):
        sizes = [draw.choice((*EDGES, *value)) for _ in range(draw.choice((0, 1, 2, 2, 2, 3, 9)))]
        return sizes
    return draw.choice((None, 0, 1.0, "nf4"))


def behind_a_page(draw: random.Random, value: Any, pages: list[Any]) -> Any:
    """The same tensor in memory that ends right before a forbidden page, or begins right behind one."""
    import guarded
    import torch

    plain = isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.layout == torch.strided
    if not plain or not 0 < value.numel() < 1 << 20 or not value.is_contiguous() or value.is_neg():
        return value
    if value.requires_grad or value.dtype in (torch.bool, torch.complex64, torch.float8_e4m3fn):
        return value
    buffer = guarded.Guarded(value.numel(), value.dtype, draw.choice(guarded.PLACES))
    pages.append(buffer)
    buffer.tensor.copy_(value.reshape(-1))
    return buffer.tensor.view(value.shape)


def fuzz_operators(draw: random.Random, device: str, journal: Journal, until: float) -> None:
    import test_wrong_arguments as table
    import torch
    from helpers import operator_of

    names = sorted(table.VALID)
    while time.time() < until:
        name = draw.choice(names)
        given = table.VALID[name].arguments(device)
        if draw.random() < 0.3 and "A" in given and given["A"].is_floating_point():
            given["A"] = torch.full(given["A"].shape, draw.choice(NUMBERS), device=device).to(given["A"].dtype)
        for argument in draw.sample(sorted(given), k=min(len(given), draw.choice((0, 1, 1, 1, 2, 3)))):
            with contextlib.suppress(RuntimeError, TypeError):  # torch makes no such tensor
                given[argument] = changed(draw, given[argument], device)
        if draw.random() < 0.05:
            given.pop(draw.choice(sorted(given)))
        pages: list[Any] = []
        if device == "cpu" and draw.random() < 0.7:
            given = {key: behind_a_page(draw, value, pages) for key, value in given.items()}
        # torch gives a call with a sparse or meta tensor, or with none at all, to bitsandbytes' Python.
        tensors = [value for value in given.values() if isinstance(value, torch.Tensor)]
        foreign = not tensors or any(value.is_meta or value.layout != torch.strided for value in tensors)
        tensors.clear()
        journal.begin(f"{name}({', '.join(f'{key}={described(value)}' for key, value in given.items())})")
        try:
            with torch.no_grad():
                operator_of(name)(**given)
                if device == "xpu":
                    torch.xpu.synchronize()
        except (RuntimeError, ValueError, TypeError, MemoryError, NotImplementedError):
            journal.raised += 1
        except Exception as error:  # nothing else may come out of an operator of ours
            if not foreign:
                journal.fault(f"{type(error).__name__}: {error}")
        if not all(buffer.canary_is_alive() for buffer in pages):
            journal.fault("it wrote outside of a tensor")
        given.clear()
        for buffer in pages:
            buffer.free()


def fuzz_checkpoints(draw: random.Random, device: str, journal: Journal, until: float) -> None:
    import bitsandbytes as bnb
    import torch

    def linear4bit() -> Any:
        n, k = draw.choice(((64, 128), (33, 64), (5, 37), (256, 512)))
        made = bnb.nn.Linear4bit(
            k, n, bias=draw.random() < 0.5, compute_dtype=draw.choice((torch.float32, torch.bfloat16, torch.float16)),
            compress_statistics=draw.random() < 0.5, quant_type=draw.choice(("nf4", "fp4")),
            quant_storage=draw.choice((torch.uint8, torch.bfloat16)) if n * k % 4 == 0 else torch.uint8,
        )  # fmt: skip
        return made.to(device), k

    def linear8bit() -> Any:
        n, k = draw.choice(((64, 128), (33, 64)))
        return bnb.nn.Linear8bitLt(k, n, has_fp16_weights=False, threshold=draw.choice((0.0, 6.0))).to(device), k

    while time.time() < until:
        kind = draw.choice((linear4bit, linear4bit, linear8bit))
        layer, k = kind()
        state = {name: tensor.detach().cpu().clone() for name, tensor in layer.state_dict().items()}
        log = [kind.__name__]
        for name in draw.sample(sorted(state), k=min(len(state), draw.choice((1, 1, 2)))):
            if draw.random() < 0.1:
                del state[name]
                log.append(f"no {name}")
                continue
            if "quant_state." in name and draw.random() < 0.7:  # JSON: numbers of it change, or bytes
                text = bytes(state[name].tolist())
                try:
                    content = json.loads(text)
                    field = draw.choice(sorted(content))
                    content[field] = changed(draw, content[field], device)
                    text = json.dumps(content, default=str).encode()
                except ValueError:
                    pass
                if draw.random() < 0.3:
                    at = draw.randrange(len(text))
                    text = text[:at] + draw.randbytes(3) + text[at + draw.randrange(4) :]
                state[name] = torch.tensor(list(text), dtype=torch.uint8)
                log.append(f"{name}={text[:200]!r}")
                continue
            new = None
            with contextlib.suppress(RuntimeError, TypeError):  # torch makes no such tensor
                new = changed_tensor(draw, state[name], device)
            if new is not None and new.numel() < 1 << 24:
                state[name] = new
            log.append(f"{name}={described(state[name])}")
        journal.begin("; ".join(log))
        x = torch.randn(draw.choice((1, 3, 70)), k, device=device)
        try:
            if kind is linear4bit:
                rest = {name.removeprefix("weight."): v for name, v in state.items() if name.startswith("weight.")}
                layer.weight = bnb.nn.Params4bit.from_prequantized(state["weight"], rest, device=device, module=layer)
            else:
                layer.load_state_dict(state, strict=False)
            with torch.no_grad():
                layer(x)
                if device == "xpu":
                    torch.xpu.synchronize()
        except Exception as error:  # bitsandbytes' Python reads a checkpoint, and raises what it likes
            journal.raised += 1
            if isinstance(error, (SystemError, BufferError)):
                journal.fault(f"{type(error).__name__}: {error}")


def fuzz_cache(draw: random.Random, device: str, journal: Journal, until: float) -> None:
    """Files that are not as they were written are none; of whole files, our own framing is checked."""
    from bitsandbytes_intel import cache, runtime

    folder = tempfile.TemporaryDirectory()
    os.environ["BNB_INTEL_CACHE_DIR"] = folder.name
    opened = runtime.open_device(runtime.new_queue())
    family = next(each for each in runtime.catalogue(opened.kind) if each.name.startswith("gemv_4bit/float32/any"))
    key = runtime.key(opened, family)
    payload = runtime.compile_family(opened.index, family.name)
    path = cache.write(key, payload)
    whole = path.read_bytes()
    until = max(until, time.time() + 1)  # the compiler may have taken all of it
    numbers = [0, 8, 16, 24, len(payload) - 8]  # of the framing: magic, format, how many images, the first one's size
    while time.time() < until:
        content = bytearray(whole)
        kind = draw.choice(("flip", "cut", "grow", "overwrite", "other", "framing", "framing cut"))
        where = draw.randrange(len(content)) if draw.random() < 0.5 else draw.randrange(200)
        if kind == "flip":
            content[where] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del content[where:]
        elif kind == "grow":
            content += draw.randbytes(draw.randrange(1, 5000))
        elif kind == "overwrite":
            content[where : where + 100] = draw.randbytes(100)
        elif kind == "other":
            content = bytearray(draw.randbytes(draw.randrange(2000)))
        journal.begin(f"{kind} at {where}")
        if kind.startswith("framing"):  # under a right digest: what a fault of our own writing would be
            bad = bytearray(payload)
            if kind == "framing":
                at = draw.choice(numbers)
                bad[at : at + 8] = (draw.choice(EDGES) & (2**64 - 1)).to_bytes(8, "little")
            else:
                del bad[draw.randrange(40) :]
            if bad == payload:
                continue
            cache.write(key, bytes(bad))
            try:
                kept = cache.read(key)
                assert kept == bad
                runtime.load_family(opened.index, family.name, kept)
                if bad[-8:] == payload[-8:] and bad[:32] != payload[:32]:
                    journal.fault("a file with another framing is taken")
            except runtime.KernelError:
                journal.raised += 1
            continue
        path.write_bytes(content)
        path.chmod(0o600)
        if content != whole and cache.read(key) is not None:
            journal.fault("a changed file is taken")
        else:
            journal.raised += 1
        if draw.random() < 0.01 and runtime.build(opened, family.name) == "loaded":
            journal.fault("a changed file is loaded")


def child(part: str, device: str, seconds: float, seed: int) -> int:
    faulthandler.enable()
    faulthandler.dump_traceback_later(seconds + HANGS_AFTER, exit=True)
    sys.path[:0] = [str(pathlib.Path(__file__).parent)]
    import conftest  # noqa: F401 (it starts the virtual XPU where there is no GPU)
    import torch

    torch.set_warn_always(False)
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    # Nor more than is free: 2^31 elements that are all one take gigabytes once they lie one by one.
    (available,) = re.findall(r"MemAvailable: +(\d+) kB", pathlib.Path("/proc/meminfo").read_text())
    memory = min(MEMORY, int(available) * 1024 * 2 // 3)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    journal = Journal()
    start = {"operators": fuzz_operators, "checkpoints": fuzz_checkpoints, "cache": fuzz_cache}[part]
    start(random.Random(seed), device, journal, time.time() + seconds)
    print("done", json.dumps({"calls": journal.calls, "raised": journal.raised}), flush=True)
    return 0


# ---- the process that watches ---------------------------------------------------------------------------------------
def watch(part: str, device: str, seconds: float, seed: int) -> tuple[int, int, list[str]]:
    """Run one child: calls, those that raised, and faults."""
    command = [sys.executable, __file__, "--child", "--part", part, "--device", device]
    command += ["--seconds", str(seconds), "--seed", str(seed)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace")
        last, calls, raised, faults, ended = "nothing", 0, 0, [], False
        assert process.stdout is not None
        for line in process.stdout:
            kind, _, text = line.rstrip("\n").partition(" ")
            if kind == "case":
                last, calls = text, calls + 1
            elif kind == "fault":
                faults.append(text)
            elif kind == "done":
                ended, raised = True, json.loads(text)["raised"]
        status = process.wait()
        if not ended or status:
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            errors.seek(0)
            faults.append(f"the process ended with {how}: {last}\n{errors.read()[-3000:]}")
    return calls, raised, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "xpu", "all"), default="all")
    parser.add_argument("--seconds", type=float, default=1800, help="for all of it (default: 1800)")
    parser.add_argument("--seed", type=int, help="of the first process (default: the clock)")
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments.part, arguments.device, arguments.seconds, arguments.seed)
    devices = ("cpu", "xpu") if arguments.device == "all" else (arguments.device,)
    parts = PARTS if arguments.part == "all" else (arguments.part,)
    turns = [(part, device) for device in devices for part in parts if part != "cache" or device == devices[-1]]
    share = {"operators": 3.0, "checkpoints": 1.5, "cache": 0.5}
    until = time.time() + arguments.seconds
    seed = int(time.time()) if arguments.seed is None else arguments.seed
    totals: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    unit = min(ROUND, arguments.seconds / sum(share[part] for part, _ in turns))
    while True:
        for part, device in turns:
            calls, raised, found = watch(part, device, unit * share[part], seed)
            totals.update(calls=calls, raised=raised, faults=len(found))
            faults += [f"{part} {device} --seed {seed}: {fault}" for fault in found]
            print(f"{part} on {device}, seed {seed}: {calls} calls, {raised} raised, {len(found)} faults", flush=True)
            for fault in found:
                print("FAULT", fault, flush=True)
            seed += 1
        if time.time() + unit > until:
            break
    print(f"{totals['calls']} calls, {totals['faults']} faults ({totals['raised']} calls raised)")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
