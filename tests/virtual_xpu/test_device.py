"""Properties, memory, streams, events, generators: what `torch.xpu` offers."""

import ctypes
import threading

import pytest
import torch


def test_answers_like_an_xpu():
    assert torch.xpu.is_available()
    assert torch.xpu.device_count() == 1
    assert torch.xpu.current_device() == 0
    assert torch.accelerator.current_accelerator() == torch.device("xpu")
    assert torch.xpu.is_bf16_supported()
    assert torch.version.xpu[:2] == "20"
    assert len(torch.version.xpu) == 8
    with torch.xpu.device(0):
        assert torch.empty(1, device="xpu").device == torch.device("xpu:0")
    with pytest.raises(RuntimeError, match="out of range"):
        torch.xpu.set_device(1)
    with pytest.raises(RuntimeError, match="one device"):
        torch.empty(1, device="xpu:1")


def test_names_itself():
    properties = torch.xpu.get_device_properties()
    assert torch.xpu.get_device_name().startswith("Virtual XPU (SYCL on ")
    assert properties.total_memory > 0
    assert properties.max_compute_units > 0
    assert properties.type == "cpu"
    assert properties.has_fp64
    assert properties.sub_group_sizes
    assert torch.xpu.get_device_capability()["name"] == properties.name
    assert repr(properties)


def test_memory_statistics_and_cache():
    torch.xpu.empty_cache()
    before = torch.xpu.memory_allocated()
    block = torch.empty(1 << 20, device="xpu")
    assert torch.xpu.memory_allocated() - before == 4 << 20
    assert torch.xpu.max_memory_allocated() >= torch.xpu.memory_allocated()
    address = block.data_ptr()
    assert address % 64 == 0
    del block
    assert torch.xpu.memory_allocated() == before
    reserved = torch.xpu.memory_reserved()
    assert torch.empty(1 << 20, device="xpu").data_ptr() == address, "a freed block is used again"
    torch.xpu.empty_cache()
    assert torch.xpu.memory_reserved() <= reserved - (4 << 20)
    torch.xpu.reset_peak_memory_stats()
    assert torch.xpu.max_memory_allocated() == torch.xpu.memory_allocated()
    free, total = torch.xpu.mem_get_info()
    assert 0 < free <= total


def test_out_of_memory():
    with pytest.raises(torch.OutOfMemoryError, match="XPU out of memory"):
        torch.empty(1 << 50, device="xpu")
    assert torch.ones(3, device="xpu").sum().item() == 3


def test_memory_fraction():
    torch.xpu.empty_cache()
    torch.xpu.set_per_process_memory_fraction(1e-3)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(torch.xpu.mem_get_info()[1] // 100, dtype=torch.uint8, device="xpu")
    finally:
        torch.xpu.set_per_process_memory_fraction(1.0)


def test_streams_are_distinct_queues():
    default, one, two = torch.xpu.current_stream(), torch.xpu.Stream(), torch.xpu.Stream(priority=-1)
    assert len({default.sycl_queue, one.sycl_queue, two.sycl_queue}) == 3
    assert default.sycl_queue == torch._C._xpu_getCurrentRawStream(0) != 0
    assert (one.priority, two.priority) == (0, -1)
    with torch.xpu.stream(two):
        assert torch.xpu.current_stream() == two != default
        assert torch._C._xpu_getCurrentRawStream(0) == two.sycl_queue
        x = torch.ones(1000, device="xpu") * 3
        x.record_stream(one)
    one.wait_stream(two)
    with one:
        total = x.sum()
    one.synchronize()
    assert one.query()
    assert total.item() == 3000
    assert torch.xpu.current_stream() == default


def test_current_stream_symbol():
    """Native operators find the queue through torch's own C function."""
    lookup = ctypes.CDLL(None).aoti_torch_get_current_xpu_stream
    queue = ctypes.c_void_p()
    stream = torch.xpu.Stream()
    with torch.xpu.stream(stream):
        assert lookup(ctypes.c_int32(0), ctypes.byref(queue)) == 0
    assert queue.value == stream.sycl_queue


def test_external_stream():
    own = torch.xpu.Stream()
    wrapped = torch.xpu.get_stream_from_external(own.sycl_queue)
    assert wrapped.sycl_queue == own.sycl_queue


def test_streams_are_per_thread():
    seen = []
    with torch.xpu.stream(torch.xpu.Stream()):
        thread = threading.Thread(target=lambda: seen.append(torch.xpu.current_stream().stream_id))
        thread.start()
        thread.join()
    assert seen == [0]


def test_events():
    start, end = torch.xpu.Event(enable_timing=True), torch.xpu.Event(enable_timing=True)
    assert "uninitialized" in repr(start)
    start.record()
    x = torch.randn(300, 300, device="xpu")
    for _ in range(5):
        x = x @ x / 300
    end.record()
    end.synchronize()
    assert end.query()
    assert start.elapsed_time(end) > 0
    assert "sycl_event" in repr(end)
    plain = torch.xpu.current_stream().record_event()
    torch.xpu.Stream().wait_event(plain)
    plain.synchronize()
    with pytest.raises(RuntimeError):
        plain.elapsed_time(end)


def test_generator_is_deterministic():
    draw = lambda: [  # noqa: E731
        torch.randn(7, device="xpu"),
        torch.rand(7, device="xpu"),
        torch.randint(0, 100, (7,), device="xpu"),
        torch.randperm(7, device="xpu"),
        torch.nn.functional.dropout(torch.ones(50, device="xpu"), 0.5),
        torch.multinomial(torch.ones(9, device="xpu"), 3),
        torch.empty(7, device="xpu").exponential_(),
    ]
    torch.xpu.manual_seed(42)
    torch.rand(3)  # the CPU's generator is another one
    first = draw()
    state = torch.xpu.get_rng_state()
    later = torch.rand(5, device="xpu")
    torch.rand(3)
    torch.xpu.manual_seed(42)
    assert all(torch.equal(a, b) for a, b in zip(first, draw(), strict=True))
    torch.xpu.set_rng_state(state)
    assert torch.equal(later, torch.rand(5, device="xpu"))
    assert torch.xpu.initial_seed() == 42


def test_own_generator():
    one, two = (torch.Generator("xpu").manual_seed(7) for _ in range(2))
    assert one.device.type == "xpu"
    a, b = (torch.randn(5, device="xpu", generator=g) for g in (one, two))
    assert torch.equal(a, b)
    assert not torch.equal(a, torch.randn(5, device="xpu", generator=one))
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(5, device="xpu", generator=torch.Generator())


def test_many_threads():
    failures = []

    def work(seed):
        try:
            with torch.xpu.stream(torch.xpu.Stream()):
                for step in range(30):
                    n = 1 + (seed * 31 + step * 17) % 400
                    a = torch.full((n, 8), float(seed), device="xpu")
                    b = (a + 1).t().contiguous()
                    assert torch.equal(b.cpu(), torch.full((8, n), seed + 1.0))
                    assert a.sum().item() == seed * n * 8
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
