"""Streams, threads and processes: right results, no deadlock, no leak."""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import re
import subprocess
import sys

import concurrency
import pytest
import torch
from helpers import FLOATS, exactly_equal, ops, share_virtual_xpu, short

SCRIPT = str(pathlib.Path(concurrency.__file__))
PATH = f"import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})\n"


@pytest.fixture(scope="module")
def calls(xpu):
    """Every call, and what it returns when nothing else is at work."""
    every = concurrency.every_call(xpu)
    return {name: (run, concurrency.on_cpu(run())) for name, run in every.items()}


# ---- streams and threads --------------------------------------------------------------------------------------------
def chain(W, A, one, two):
    """Work of several operators, each of which needs what the last one made on the other stream."""
    one.wait_stream(torch.xpu.current_stream())
    with torch.xpu.stream(one):
        packed, absmax = ops.quantize_4bit(W, 64, "nf4", torch.uint8)
    two.wait_stream(one)
    with torch.xpu.stream(two):
        products = [ops.gemm_4bit(A[:m], packed, list(W.shape), absmax, 64, "nf4") for m in (1, 4)]
        back = ops.dequantize_4bit(packed, absmax, 64, "nf4", list(W.shape), W.dtype)
        codes, statistics, _ = ops.int8_vectorwise_quant(back.half())
    one.wait_stream(two)
    with torch.xpu.stream(one):
        rows = ops.int8_vectorwise_dequant(codes, statistics)
        state = torch.zeros_like(back, dtype=torch.float32)
        rest = {"beta1": 0.9, "beta2": 0.9, "beta3": 0.0, "alpha": 0.0, "eps": 1e-8, "weight_decay": 0.0, "lr": 0.1}
        ops.optimizer_update_32bit(
            "momentum", rows.to(back.dtype), back, state, None, None, 0.0, 0.0, step=1, gnorm_scale=1.0, **rest
        )
        for tensor in (packed, absmax, back, codes, statistics, *products):
            tensor.record_stream(two)
            tensor.record_stream(one)
    torch.xpu.current_stream().wait_stream(one)
    return packed, *products, codes, back, state


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_dependent_work_on_two_streams(dtype, xpu):
    W, A = (torch.randn(shape, device=xpu).to(dtype) for shape in ((1024, 2048), (4, 2048)))
    default = torch.xpu.current_stream()
    expected = chain(W, A, default, default)
    one, two = torch.xpu.Stream(), torch.xpu.Stream()
    runs = [chain(W, A, *((one, two) if i % 2 else (two, one))) for i in range(6)]
    for run in runs:
        for result, wanted in zip(run, expected, strict=True):
            exactly_equal(result, wanted)


def test_independent_work_on_two_streams(calls):
    """All of it is submitted before anything is waited for."""
    streams, made = [torch.xpu.Stream(), torch.xpu.Stream()], []
    for number, (run, expected) in enumerate(calls.values()):
        with torch.xpu.stream(streams[number % 2]):
            made.append((run(), expected))
    for stream in streams:
        stream.synchronize()
    for results, expected in made:
        concurrency.check(results, expected)


def test_threads_on_streams_of_their_own(calls):
    """Two make all calls in order, and two in reverse."""

    def work(index):
        with torch.xpu.stream(torch.xpu.Stream()):
            for name in sorted(calls, reverse=index % 2 == 1):
                run, expected = calls[name]
                concurrency.check(run(), expected)

    concurrency.together(work, 4)


def test_threads_on_one_stream(calls):
    def work(index):
        for run, expected in list(calls.values())[index::2]:
            concurrency.check(run(), expected)

    concurrency.together(work, 2)


def test_threads_build_kernels_at_once(python, tmp_path):
    """They are the first of their process to need any, and there is none on disk: each kernel is compiled once."""
    code = """
import logging
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
import concurrency, torch
made = [None] * 4
def work(index):
    with torch.xpu.stream(torch.xpu.Stream()):
        calls = {name: run for name, run in concurrency.every_call("xpu", 1).items() if "4bit" in name.split(":")[0]}
        made[index] = [concurrency.on_cpu(run()) for run in calls.values()]
concurrency.together(work, 4, 200)
for other in made[1:]:
    for got, wanted in zip(other, made[0], strict=True):
        concurrency.check(got, wanted)
"""
    compiled_once([python(PATH + code, cache=tmp_path / "c").stdout])


def compiled_once(outputs):
    """Assert that every family of kernels was compiled, by one of all."""
    families = re.findall(r"compiling kernels (\S+)", "\n".join(outputs))
    assert families
    assert len(families) == len(set(families)), sorted(families)


def same(results, calls):
    """Assert that another process has had the results of this one, of every operator."""
    assert {name.split(":")[0] for name in results} == {name.split(":")[0] for name in calls}
    for name, result in results.items():
        concurrency.check(result, calls[name][1])


# ---- processes ------------------------------------------------------------------------------------------------------
def test_spawned_processes(calls, xpu):
    """The parent has used the device, and goes on while its children work."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pending = [pool.apply_async(concurrency.results, (xpu,)) for _ in range(2)]
        for run, expected in calls.values():
            concurrency.check(run(), expected)
        for results in (each.get(timeout=100) for each in pending):
            same(results, calls)


def test_processes_build_kernels_at_once(calls, tmp_path):
    """All operators in each, with one empty cache: each kernel is compiled once, and all results are right."""
    share_virtual_xpu(tmp_path / "c")
    environment = {**os.environ, "BNB_INTEL_CACHE_DIR": str(tmp_path / "c")}
    paths = [tmp_path / f"{number}.pt" for number in range(3)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen([sys.executable, SCRIPT, str(path)], env=environment, **pipes) for path in paths]
    outputs = [child.communicate(timeout=200) for child in children]
    assert [child.returncode for child in children] == [0] * len(paths), outputs
    compiled_once([out for out, _ in outputs])
    for path in paths:
        same(torch.load(path), calls)


# The child ends as a program does, with everything that runs at exit; a hang of it is the parent's failure.
FORK = """
import os, signal, torch
{before}
child = os.fork()
if child == 0:
    signal.alarm(60)
{child}
    sys.exit(0)
{after}
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
USE = """
    import concurrency
    for run in concurrency.every_call("xpu", 2).values():
        concurrency.check(run(), concurrency.on_cpu(run()))
"""


def test_a_child_forked_before_the_first_use_can_use_everything(python):
    """Before bitsandbytes is imported, that is: the import itself puts tables on the device."""
    python(PATH + FORK.format(before="import bitsandbytes_intel", child=USE, after=USE.replace("\n    ", "\n")))


def test_a_child_forked_after_the_first_use_is_told_so(python):
    """As with CUDA: an error that says what to do, of operators that allocate and of those that do not; no hang."""
    before = """
import concurrency
from bitsandbytes_intel import ops
from bitsandbytes_intel.cli import cases
every = {operator.name: concurrency.call(operator.name, cases.of(operator.name)[0], "xpu", in_place=True)
         for operator in ops.OPERATORS}
"""
    use = """
for run in every.values():
    run()
torch.xpu.synchronize()
"""
    child = """
    for name, run in every.items():
        try:
            run()
        except RuntimeError as error:
            assert "fork" in str(error) and "spawn" in str(error), (name, str(error))
        else:
            raise AssertionError(f"{name} ran in a forked child")
    assert torch.ones(3).sum() == 3
"""
    python(PATH + FORK.format(before=before + use, child=child, after=use))


def test_memory_is_flat_over_100_000_calls(python, record_property):
    """Every operator in turn, the small cases of the validation, with refused calls among them."""
    done = python(f"{PATH}import concurrency, json; print(json.dumps(concurrency.leak()))")
    before, after = json.loads(done.stdout)
    record_property("held", [before, after])
    assert after["resident"] - before["resident"] < 4 << 20, (before, after)
    for what in ("allocated", "blocks", "reserved", "files", "threads"):
        assert after[what] <= before[what], (what, before, after)
