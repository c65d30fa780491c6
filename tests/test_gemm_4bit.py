"""gemm_4bit of any number of rows: fused, or dequantised in panels; and what stands on it: Linear4bit, autograd."""

import pathlib
import re
import threading

import bitsandbytes as bnb
import pytest
import torch
from helpers import (
    BLOCKSIZES,
    FLOATS,
    QUANT_TYPES,
    STORAGES,
    Weight,
    check_operator,
    check_product,
    exactly_equal,
    generator,
    on,
    ops,
    short,
    strided,
)

from bitsandbytes_intel import reference

ROWS = (0, 1, 2, 3, 4, 5, 7, 16, 17, 64, 65, 300)


def activation(*shape, dtype=torch.float32, seed=1):
    return torch.randn(*shape, generator=generator(seed)).to(dtype)


def check(w, A, bias, device):
    result = w.to(device).gemm(A.to(device), None if bias is None else bias.to(device))
    check_product(result, A, w.exact(), bias)


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("shape", [(5, 33), (33, 64), (40, 100), (70, 256), (16, 1001)], ids=str)
@pytest.mark.parametrize("m", ROWS)
def test_any_number_of_rows(m, shape, dtype, device):
    w = Weight.random(*shape, blocksize=32, seed=m)
    check(w, activation(m, shape[1], dtype=dtype), None, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
@pytest.mark.parametrize("m", [1, 3, 7, 14, 64])
def test_weights_are_cudas_to_the_bit(m, dtype, device):
    """Nested statistics too: CUDA rounds a scale twice, where a compiler would fuse its product with its sum."""
    w = Weight.random(500, 128, blocksize=64, nested=True, seed=m)
    columns = torch.arange(m) * 2 + 1  # each row of the activations takes one column of the weight
    A = torch.nn.functional.one_hot(columns, 128).to(dtype)
    # Adding 0 makes 0 of -0, as a sum of products does.
    exactly_equal(w.to(device).gemm(A.to(device)) + 0, (w.exact()[:, columns].T.to(dtype) + 0).contiguous())


@pytest.mark.parametrize("n", [40, 1032])
def test_activations_larger_than_caches(n, device, one_thread):
    """Of the larger n, one thread of a CPU multiplies more columns at a time."""
    check(Weight.random(n, 16400), activation(98, 16400), None, device)


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_more_rows_than_are_packed_at_a_time(dtype, device):
    """SYCL's CPU devices pack 1024 rows at a time."""
    w = Weight.random(33, 96, seed=1)
    A = activation(2060, 110, dtype=dtype).to(device)[:, 7:103]
    check(w, A, activation(33, dtype=dtype, seed=2), device)


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("m", [2, 5, 65, 130])
def test_nested_and_bias(m, quant_type, dtype, device):
    for shape in ((7, 77), (96, 512), (300, 64)):
        w = Weight.random(*shape, blocksize=32, quant_type=quant_type, nested=True)
        check(w, activation(m, shape[1], dtype=dtype), activation(shape[0], dtype=dtype, seed=2), device)


@pytest.mark.parametrize("offset_dtype", FLOATS, ids=short)
@pytest.mark.parametrize("m", [1, 3, 130])
def test_absmax_offset_of_any_dtype(m, offset_dtype, device):
    w = Weight.random(20, 96, nested=True)
    w.nested["absmax_offset"] = w.nested["absmax_offset"].to(offset_dtype)
    check(w, activation(m, 96), None, device)
    w.nested["absmax_offset"] = w.nested["absmax_offset"].reshape(1)
    check(w, activation(m, 96), None, device)


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("m", [1, 2, 8, 9, 33, 64])
def test_a_row_does_not_see_its_neighbours_scale(m, value, dtype, device):
    n, k = 50, 64 * 3 + 31  # rows begin anywhere in a block
    w = Weight.random(n, k, blocksize=32)
    block = torch.arange(n * k).reshape(n, k) // 32
    spoilt = block[20, 70]
    w.absmax[spoilt] = value
    moved, A = w.to(device), activation(m, k, dtype=dtype)
    clean = ~(block == spoilt).any(1)
    result = moved.gemm(A.to(device), None).cpu()
    assert not result[:, ~clean].isfinite().all()
    check_product(result[:, clean], A, w.exact()[clean], None)


@pytest.mark.parametrize("m", [3, 70])
@pytest.mark.parametrize("k", [32, 96, 5000])
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_any_blocksize(blocksize, k, m, device):
    w = Weight.random(11, k, blocksize=blocksize)
    check(w, activation(m, k, dtype=torch.bfloat16), None, device)


@pytest.mark.parametrize("m", [2, 70])
@pytest.mark.parametrize("storage", STORAGES, ids=short)
def test_any_storage(storage, m, device):
    for shape in ((6, 64), (3, 37)):
        check(Weight.random(*shape, storage=storage), activation(m, shape[1]), None, device)


@pytest.mark.parametrize("m", [2, 70])
@pytest.mark.parametrize("offset", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_any_alignment(dtype, offset, m, device):
    w = Weight.random(19, 256, nested=True)
    A, bias = activation(m, 256, dtype=dtype), activation(19, dtype=dtype, seed=4)
    result = w.to(device, offset).gemm(on(device, A, offset), on(device, bias, offset))
    check_product(result, A, w.exact(), bias)


@pytest.mark.parametrize(
    "shape", [(64,), (1, 1, 64), (2, 3, 64), (4, 1, 33, 64), (0, 64), (3, 0, 64), (2, 150, 64)], ids=str
)
def test_any_batch(shape, device):
    w = Weight.random(10, 64)
    check(w, activation(*shape, dtype=torch.float16), activation(10, dtype=torch.float16), device)


@pytest.mark.parametrize("shape", [(0, 64), (0, 0), (3, 0)], ids=str)
@pytest.mark.parametrize("m", [0, 1, 3, 100])
def test_empty_weight(m, shape, device):
    w = Weight.random(*shape)
    bias = activation(shape[0])
    for b in (None, bias):
        check(w, activation(m, shape[1]), b, device)


@pytest.mark.parametrize("m", [3, 90])
def test_inputs_that_are_not_contiguous(m, device):
    w = Weight.random(10, 64, nested=True)
    A, bias = activation(m, 64), activation(10)
    moved = w.to(device)
    nested = {**moved.nested, "absmax_8bit": strided(moved.nested["absmax_8bit"])}
    nested["absmax_code"] = strided(nested["absmax_code"])
    for x in (A.t().contiguous().to(device).t(), strided(A.to(device))):
        for packed in (
            moved.packed.t(),
            strided(moved.packed.view(20, 16)),
            moved.packed.view(20, 16).t().contiguous().t(),
        ):
            result = ops.gemm_4bit(
                x, packed, [10, 64], strided(moved.absmax), 64, "nf4", strided(bias.to(device)), **nested
            )
            check_product(result, A, w.exact(), bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=short)
@pytest.mark.parametrize(("n", "k"), [(36000, 500), (34000, 512)])
def test_panels(n, k, dtype, device):
    """A weight too large for one panel of scratch; also one whose rows are no whole number of blocks."""
    w = Weight.random(n, k, blocksize=64)
    A, bias = activation(130, k, dtype=dtype), activation(n, dtype=dtype)
    check(w, A, bias, device)


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("m", [1, 4, 16, 17, 64, 65, 130])
def test_sums_are_fp32(m, dtype, device):
    """Many small products next to a large one: sums rounded to 16 bit would lose them all."""
    k = 4096
    w = Weight.random(8, k, blocksize=4096)
    w.packed[:] = 0xFF  # every weight 1 * absmax
    w.absmax[:] = 1.0
    A = torch.full((m, k), 2.0**-9)
    A[:, 0] = 16.0
    check(w, A.to(dtype), None, device)


# ---- torch ----------------------------------------------------------------------------------------------------------
def good(device, m=3):
    w = Weight.random(20, 64, blocksize=32, nested=True).to(device)
    return {
        "A": activation(m, 64, dtype=torch.float16).to(device),
        "B": w.packed,
        "shapeB": [20, 64],
        "absmax": w.absmax,
        "blocksize": 32,
        "quant_type": "nf4",
        "bias": activation(20, dtype=torch.float16).to(device),
        **w.nested,
    }


@pytest.mark.parametrize("m", [1, 3, 130])
def test_opcheck(m, device):
    check_operator(ops.gemm_4bit.default, tuple(good(device, m).values()), {})


@pytest.mark.parametrize("m", [1, 3, 130])
def test_compile(m, device):
    arguments = good(device, m)
    compiled = torch.compile(lambda **kw: ops.gemm_4bit(**kw) * 2, fullgraph=True, backend="aot_eager")
    exactly_equal(compiled(**arguments), ops.gemm_4bit(**arguments) * 2)


def quantized(weight, quant_type, nested, device):
    """(packed, QuantState) of a weight, on a device, and the same on the CPU."""
    packed, state = bnb.functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=nested, quant_type=quant_type
    )
    moved = bnb.functional.QuantState.from_dict(state.as_dict(packed=True), device=torch.device(device))
    return (packed.to(device), moved), (packed, state)


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("m", [1, 6, 80])
def test_matmul_4bit_backward(m, quant_type, nested, device):
    weight = activation(48, 128)
    (packed, state), (packed_cpu, state_cpu) = quantized(weight, quant_type, nested, device)
    exact = bnb.functional.dequantize_4bit(packed_cpu, state_cpu).float()
    A = activation(m, 128)
    bias = activation(48)
    x = A.to(device).requires_grad_()
    b = bias.to(device).requires_grad_()
    out = bnb.matmul_4bit(x, packed.t(), quant_state=state, bias=b)
    check_product(out, A, exact, bias)
    gradient = activation(m, 48, seed=7)
    out.backward(gradient.to(device))
    torch.testing.assert_close(x.grad.cpu(), gradient @ exact, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(b.grad.cpu(), gradient.sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compute", FLOATS, ids=short)
@pytest.mark.parametrize("storage", STORAGES, ids=short)
def test_linear4bit_trains_as_on_the_cpu(storage, compute, device):
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(
        128, 48, compute_dtype=compute, compress_statistics=True, quant_type="nf4", quant_storage=storage
    )
    packed, state = bnb.functional.quantize_4bit(
        layer.weight.data, compress_statistics=True, quant_type="nf4", quant_storage=storage
    )
    exact = bnb.functional.dequantize_4bit(packed, state).float()
    bias = layer.bias.detach().clone()
    layer.weight = bnb.nn.Params4bit.from_prequantized(packed, state.as_dict(packed=True), device=device, module=layer)
    layer = layer.to(device)
    A = activation(10, 128)
    x = A.to(device).requires_grad_()
    out = layer(x)
    assert out.dtype == torch.float32
    eps = torch.finfo(compute).eps
    torch.testing.assert_close(out.detach().cpu(), A @ exact.T + bias, rtol=4 * eps, atol=8 * eps)
    out.sum().backward()
    torch.testing.assert_close(x.grad.cpu(), exact.sum(0).expand(10, -1), rtol=8 * eps, atol=8 * eps)
    torch.testing.assert_close(layer.bias.grad.float().cpu(), torch.full((48,), 10.0), rtol=8 * eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=short)
def test_autocast(dtype, device):
    weight = activation(48, 128)
    (packed, state), (packed_cpu, state_cpu) = quantized(weight, "nf4", False, device)
    exact = bnb.functional.dequantize_4bit(packed_cpu, state_cpu).float()
    layer = bnb.nn.Linear4bit(128, 48, bias=False, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit.from_prequantized(packed_cpu, state_cpu.as_dict(packed=True), device=device)
    A = activation(7, 128)
    with torch.autocast(device, dtype=dtype):
        hidden = torch.mm(A.to(device), torch.eye(128, device=device))
        assert hidden.dtype == dtype
        out = layer(hidden)
    assert out.dtype == dtype
    check_product(out, A.to(dtype), exact)
    with torch.autocast(device, dtype=dtype):
        assert bnb.matmul_4bit(hidden, packed.t(), quant_state=state).dtype == dtype


def test_inference_mode(device):
    w = Weight.random(20, 64)
    A = activation(3, 64)
    with torch.inference_mode():
        check(w, A, None, device)


def test_switching_streams(xpu):
    """Work goes to the caller's current stream: a chain over several streams, ordered by events alone, is right."""
    w = Weight.random(256, 256).to(xpu)
    dense = w.dequantize(torch.float32)
    A = (activation(2, 256) / 64).to(xpu)
    expected = A
    for _ in range(6):
        expected = (expected.double().cpu() @ dense.double().cpu().T).to(torch.float32)
    streams = [torch.xpu.Stream() for _ in range(3)]
    torch.xpu.synchronize()
    for _ in range(5):
        x, previous = A, torch.xpu.current_stream()
        for i in range(6):
            stream = streams[i % 3]
            stream.wait_stream(previous)
            with torch.xpu.stream(stream):
                x = w.gemm(x)
                x.record_stream(stream)
            previous = stream
        torch.xpu.current_stream().wait_stream(previous)
        torch.testing.assert_close(x.cpu(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_threads_with_streams_of_their_own(xpu):
    weights = [Weight.random(100, 300, seed=i) for i in range(2)]
    failures = []

    def work(w, seed):
        try:
            moved = w.to(xpu)
            with torch.xpu.stream(torch.xpu.Stream()):
                for i in range(20):
                    A = activation(1 + i % 5, 300, dtype=torch.bfloat16, seed=seed + i)
                    result = moved.gemm(A.to(xpu))
                    torch.xpu.current_stream().synchronize()
                    check_product(result, A, w.exact())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(w, 100 * i)) for i, w in enumerate(weights)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_assembly_of_kernels_has_no_operand_that_is_read_and_written():
    """SPIR-V drops the tie ("+v"): what is read is then another register than what is written, or by luck the same."""
    sources = pathlib.Path(__file__).parents[1] / "csrc" / "xpu_kernels"
    assembly = [
        (path.name, statement)
        for path in sources.iterdir()
        for statement in re.findall(r"__asm__(?: volatile)? ?\((.*?)\);", path.read_text(), re.DOTALL)
    ]
    assert len(assembly) >= 4
    for name, statement in assembly:
        assert not re.search(r'"[+0-9]', statement), f"{name}: {statement}"


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_reference_has_the_same_checks():
    arguments = good("cpu")
    for spoiled in ({"quant_type": "nf3"}, {"blocksize": 33}, {"shapeB": [20]}, {"absmax_code": None}):
        with pytest.raises(ValueError, match="must"):
            reference.gemm_4bit(**{**arguments, **spoiled})
