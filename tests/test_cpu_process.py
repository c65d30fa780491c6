"""The CPU's operators wherever a program calls them: threads, forked and spawned processes, DataLoader workers."""

from __future__ import annotations

import re
import threading

import pytest
import torch
from helpers import Weight, check_product, exactly_equal, generator

WORK = """
import sys, torch, bitsandbytes
w = torch.ops.bitsandbytes
def work(seed):
    g = torch.Generator().manual_seed(seed)
    A = torch.randn(512, 1024, generator=g)
    q, absmax = w.quantize_4bit(A, 64, "nf4", torch.uint8)
    y = w.gemm_4bit(A[:5], q, [512, 1024], absmax, 64, "nf4")
    d = w.dequantize_4bit(q, absmax, 64, "nf4", [512, 1024], torch.bfloat16)
    return y, d
def same(a, b):
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
"""


def test_after_fork(python):
    """Torch's own operators wait for ever in a child whose parent has used its threads; ours work there."""
    code = (
        WORK
        + """
import os, signal
expected = work(0)
assert torch.get_num_threads() > 1 or torch.set_num_threads(2) is None
expected = work(0)
child = os.fork()
if child == 0:
    signal.alarm(60)
    torch.manual_seed(0)
    packed, statistics = w.quantize_4bit(expected[1], 64, "nf4", torch.uint8)
    out = w.dequantize_4bit(packed, statistics, 64, "nf4", [512, 1024], torch.bfloat16)
    os._exit(0 if out.shape == expected[1].shape and bytes(out.view(torch.uint8).numpy()) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
assert same(work(0), expected)
"""
    )
    assert python(code, timeout=120).stdout.split() == ["0"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_workers(python, tmp_path, method):
    script = tmp_path / "loader.py"
    script.write_text(
        WORK
        + f"""
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, i):
        return work(i)
if __name__ == "__main__":
    loader = torch.utils.data.DataLoader(Data(), batch_size=None, num_workers=2, multiprocessing_context={method!r})
    expected = [work(i) for i in range(6)]
    print(all(same(a, b) for a, b in zip(loader, expected, strict=True)))
"""
    )
    done = python("import subprocess, sys; subprocess.run([sys.executable, sys.argv[1]], check=True)", str(script))
    assert done.stdout.split() == ["True"]


def test_several_python_threads():
    weights = [Weight.random(300, 700, seed=i) for i in range(4)]
    failures = []

    def work(w: Weight, seed: int) -> None:
        try:
            for i in range(20):
                A = torch.randn(1 + 7 * (i % 4), 700, generator=generator(seed + i))
                check_product(w.gemm(A), A, w.exact())
                exactly_equal(w.dequantize(torch.float16), w.exact().to(torch.float16))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(w, 100 * i)) for i, w in enumerate(weights)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_the_number_of_threads_is_torchs(python):
    """With one thread nothing else runs; with more, the results are the same bits."""
    code = (
        WORK
        + """
import os
torch.set_num_threads(1)
before = len(os.listdir("/proc/self/task"))
one = work(3)
assert len(os.listdir("/proc/self/task")) == before
torch.set_num_threads(3)
assert same(work(3), one)
"""
    )
    python(code, BNB_INTEL_VIRTUAL_XPU=None)


def test_work_is_shared_out_whole(python):
    """Threads take what others have not begun; whatever their number, every piece is done once, with the same bits."""
    code = """
import torch, bitsandbytes.functional as F
w = torch.ops.bitsandbytes
g = torch.Generator().manual_seed(7)
W, A = torch.randn(2053, 1088, generator=g), torch.randn(150, 1088, generator=g)
map8, n = F.create_dynamic_map(), 2053 * 1088
q, absmax = w.quantize_4bit(W, 64, "nf4", torch.uint8)
rows, row_scales, _ = w.int8_vectorwise_quant(W.half())
def work():
    yield from w.quantize_4bit(W, 64, "nf4", torch.uint8)
    yield from w.quantize_blockwise(W, map8, 256)
    yield w.dequantize_4bit(q, absmax, 64, "nf4", W.shape, torch.bfloat16)
    for dtype in (torch.float32, torch.bfloat16):
        for m in (1, 3, 20, 150):
            yield w.gemm_4bit(A[:m].to(dtype), q, W.shape, absmax, 64, "nf4")
    yield from (t for t in w.int8_vectorwise_quant(W.half(), 3.0) if t is not None)
    for m in (1, 20, 150):
        yield w.int8_linear_matmul(rows[:m], rows)
    p, states = W.clone(), [torch.zeros(n, dtype=torch.uint8) for _ in range(2)]
    maxima = [torch.zeros(n // 256 + 1) for _ in range(2)]
    hyper = (0.9, 0.99, 0.0, 0.0, 1e-8, 1, 0.1)
    w.optimizer_update_8bit_blockwise("adam", W, p, *states, *hyper, map8, map8, *maxima, 0.0, 1.0, False)
    yield from (p, *states)
    p, states = W.clone(), [torch.zeros(W.shape) for _ in range(2)]
    norm = torch.zeros(1)
    w.optimizer_update_32bit("lamb", W, p, *states, norm, 0.1, 0.0, 0.9, 0.99, 0.0, 0.0, 1e-8, 0.0, 1, 0.1, 1.0, False)
    yield from (p, *states, norm)
torch.set_num_threads(1)
expected = list(work())
for threads in (2, 3, 5, 16):
    torch.set_num_threads(threads)
    for _ in range(3):
        for i, (a, b) in enumerate(zip(work(), expected, strict=True)):
            assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), (threads, i)
"""
    python(code, BNB_INTEL_VIRTUAL_XPU=None, OMP_WAIT_POLICY="passive")


def test_no_second_openmp():
    with open("/proc/self/maps") as maps:
        names = {line.split()[-1] for line in maps if re.search(r"lib[gi]?omp\d*[.-]", line)}
    assert len(names) <= 1, names


def test_inference_mode_and_no_grad():
    w, A = Weight.random(40, 96), torch.randn(3, 96, generator=generator(0))
    plain = w.gemm(A)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            exactly_equal(w.gemm(A), plain)


def test_memory_of_large_results_comes_back(python):
    """Results that are freed are used again, kept within bounds, and never one result's memory while it lives."""
    code = (
        WORK
        + """
import resource
q = torch.randint(0, 256, (8 << 20, 1), dtype=torch.uint8)
absmax = torch.ones((16 << 20) // 64)
def make(dtype=torch.float32):
    return w.dequantize_4bit(q, absmax, 64, "nf4", [4096, 4096], dtype)
a, b = make(), make()
assert a.data_ptr() != b.data_ptr() and torch.equal(a, b)
place = b.data_ptr()
del b
assert make().data_ptr() == place
kept = a.clone()
for i in range(50):
    results = [make(torch.bfloat16 if i % 2 else torch.float32) for _ in range(1 + i % 3)]
assert torch.equal(a, kept)
view = make()[5:10]
copy = view.clone()
others = [make() for _ in range(3)]
for each in others:
    each.zero_()
assert torch.equal(view, copy)
make()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(300):
    make()
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < peak + 65536
"""
    )
    python(code, BNB_INTEL_VIRTUAL_XPU=None)


def test_large_results_take_no_more_memory_than_they_have(python):
    """A model holds its packed weights for as long as it lives: what huge pages round up to would be lost."""
    code = (
        WORK
        + """
from bitsandbytes_intel.bench.whole_model import _Memory
A = torch.randn(5632, 2048)
w.quantize_4bit(A, 4096, "nf4", torch.uint8)
before = _Memory.now()
held = [w.quantize_4bit(A, 4096, "nf4", torch.uint8) for _ in range(16)]
grown, needed = _Memory.now() - before, sum(codes.nbytes for codes, _ in held[1:])  # the first was there
assert grown < 1.03 * needed, (grown, needed)
"""
    )
    python(code, BNB_INTEL_VIRTUAL_XPU=None)
