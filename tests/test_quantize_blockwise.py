"""quantize_4bit and quantize_blockwise: codes and absmax bit for bit the reference, which decides as CUDA does."""

import pathlib
import re

import pytest
import torch
from bitsandbytes.functional import create_dynamic_map, create_fp8_map, create_linear_map
from helpers import (
    BLOCKSIZES,
    FLOATS,
    QUANT_TYPES,
    STORAGES,
    check_error,
    check_operator,
    exactly_equal,
    generator,
    on,
    ops,
    short,
    strided,
)

from bitsandbytes_intel import reciprocal, reference, runtime

# Around the edges of a byte, a lane's share, a sub-group's, a block, a tile.
SIZES = (0, 1, 2, 3, 7, 8, 9, 31, 33, 63, 64, 65, 127, 129, 1000, 4095, 4096, 4097, 8191, 8193, 16385, 20001)
ODD_BLOCKSIZES = (1, 2, 3, 7, 8, 15, 16, 17, 31, 100, 255, 1000, 4097, 8192, 16384, 30000)
NAN, INF = float("nan"), float("inf")
# As the absmax of a block: zeros, denormals, where the reciprocal overflows or is denormal itself, infinities.
MAGNITUDES = (0.0, 1e-45, 1e-40, 2.9387e-39, 2.93874e-39, 1.17e-38, 6e-8, 1e-3, 1.0, 60000.0, 8.6e37, 1.7e38, 3.4e38)
_g = generator(7)
TABLES = {
    "dynamic": create_dynamic_map(),
    "unsigned dynamic": create_dynamic_map(signed=False),
    "linear": create_linear_map(),
    "fp8": create_fp8_map(),
    "uniform": torch.linspace(-1, 1, 256),
    "unsorted": torch.randn(256, generator=_g),
    "falling": torch.linspace(1, -1, 256),
    "with equal values": (torch.randn(256, generator=_g) * 4).round().div(4).sort().values,
    "neighbouring floats": torch.arange(0x3F000000, 0x3F000100, dtype=torch.int32).view(torch.float32),
    "huge": torch.linspace(-3e38, 3e38, 256),
    "with NaN": torch.cat([torch.linspace(-1, 1, 255), torch.tensor([NAN])]),
    "with infinities": torch.cat([torch.tensor([-INF]), torch.linspace(-1, 1, 254), torch.tensor([INF])]),
    "zeros": torch.zeros(256),
}


def random(*shape, dtype=torch.float32, seed=0):
    """Normal values whose scale differs from stretch to stretch."""
    g = generator(seed)
    n = torch.Size(shape).numel()
    scale = torch.exp(torch.randn(n // 32 + 1, generator=g)).repeat_interleave(32)[:n]
    return (torch.randn(n, generator=g) * scale).to(dtype).reshape(shape)


def special(dtype):
    """Blocks of every magnitude, with NaN, zeros of both signs and elements at the bounds between codes among them."""
    g = generator(3)
    nf4 = reference.codebook("nf4")
    bounds = torch.cat([(nf4[1:] + nf4[:-1]) / 2, torch.tensor(reference._FP4_BOUNDS)])
    bounds = torch.cat([bounds, bounds.nextafter(torch.tensor(9.0)), bounds.nextafter(torch.tensor(-9.0))])
    blocks = []
    for magnitude in MAGNITUDES:
        unit = torch.rand(3, 64, generator=g) * 2 - 1
        unit[:, 0] = torch.tensor([1.0, -1.0, 1.0])
        unit[1, 10:14] = torch.tensor([NAN, 0.0, -0.0, NAN])
        ties = torch.ones(66)
        ties[: bounds.numel()] = bounds
        values = torch.cat([unit.reshape(-1), ties[:64], -ties[:64], ties[2:]])
        blocks.append(values * magnitude)
    blocks.append(torch.full((64,), NAN))
    blocks.append(torch.full((64,), -0.0))
    values = torch.cat(blocks).to(dtype)
    values[values.isinf()] = torch.finfo(dtype).max
    return values


def check_4bit(device, A, blocksize, quant_type, storage=torch.uint8, moved=None):
    packed, absmax = ops.quantize_4bit(A.to(device) if moved is None else moved, blocksize, quant_type, storage)
    wanted, wanted_absmax = reference.quantize_4bit(A, blocksize, quant_type, storage)
    exactly_equal(absmax, wanted_absmax)
    exactly_equal(packed.cpu().contiguous().view(torch.uint8), wanted.view(torch.uint8))
    assert packed.dtype == storage
    assert packed.shape == wanted.shape
    assert packed.device.type == absmax.device.type == device


def check_8bit(device, A, code, blocksize, moved=None):
    codes, absmax = ops.quantize_blockwise(A.to(device) if moved is None else moved, code.to(device), blocksize)
    wanted, wanted_absmax = reference.quantize_blockwise(A, code, blocksize)
    exactly_equal(absmax, wanted_absmax)
    exactly_equal(codes, wanted)


# ---- quantize_4bit --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("n", SIZES)
def test_4bit_of_any_size(n, dtype, quant_type, device):
    check_4bit(device, random(n, dtype=dtype, seed=n), 64, quant_type)


@pytest.mark.parametrize("n", [1, 4096 * 3 + 5, 4096 * 5])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_4bit_of_any_blocksize(blocksize, dtype, n, device):
    for quant_type in QUANT_TYPES:
        check_4bit(device, random(n, dtype=dtype, seed=n), blocksize, quant_type)


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("blocksize", [32, 64, 256])
def test_4bit_of_special_values(blocksize, dtype, quant_type, device):
    check_4bit(device, special(dtype), blocksize, quant_type)


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_4bit_rounds_the_reciprocal_as_cuda_does(quant_type, device):
    """Elements at the very bounds between codes, of blocks of every exponent and many mantissas."""
    g = generator(11)
    ranges = ((1, 0x7F800000, 4000), (1, 1 << 23, 500), (0x7E000000, 0x7F800000, 500))
    bits = [torch.randint(low, high, (count,), generator=g) for low, high, count in ranges]
    bits = torch.cat([*bits, torch.arange(1 << 23, 0x7F800000, 1 << 23), torch.arange(0x1FFFF0, 0x200010)])
    absmax = bits.int().view(torch.float32).unsqueeze(1)
    nf4 = reference.codebook("nf4")
    fp4 = torch.tensor(reference._FP4_BOUNDS)
    bounds = torch.cat([(nf4[1:] + nf4[:-1]) / 2, fp4, -fp4])
    rows = torch.cat([absmax, absmax * bounds, torch.zeros(len(bits), 64 - 1 - bounds.numel())], dim=1)
    check_4bit(device, rows.reshape(-1), 64, quant_type)


# NVIDIA's instruction for 1 / x (rcp.approx.ftz.f32, on an H200) less the correctly rounded result, in units in
# the last place, for x = 1 + i / 128.
RECIPROCALS = (
    "0000-0+0000-0+000000-0-00000000000000++000000000000+000000000+00"
    "0++00000000000000+000000000+00000000000000000+00000++0+00+00000-"
)


def test_reciprocals_are_those_of_cuda():
    x = 1 + torch.arange(128, dtype=torch.float32) / 128
    off = torch.tensor([{"-": -1, "0": 0, "+": 1}[sign] for sign in RECIPROCALS], dtype=torch.int32)
    wanted = ((1 / x.double()).float().view(torch.int32) + off).view(torch.float32)
    exactly_equal(reciprocal.fast_reciprocal(x), wanted)
    exactly_equal(reciprocal.fast_reciprocal(x * 2.0**40), wanted * 2.0**-40)
    special = torch.tensor([0.0, 1e-40, 2.0**-126, 2.0**126, 1.5 * 2.0**126, 3e38, INF])
    exactly_equal(reciprocal.fast_reciprocal(special), torch.tensor([INF, INF, 2.0**126, 2.0**-126, 0.0, 0.0, 0.0]))


def test_kernels_have_the_same_table():
    source = pathlib.Path(__file__).parents[1] / "csrc" / "reciprocal.h"
    table = [(int(a, 16), int(b, 16)) for a, b in re.findall(r"\{(0x\w+), (0x\w+)\}", source.read_text())]
    assert table == list(reciprocal.TABLE)


def test_denormals_count_as_zero_and_nan_as_no_maximum(device):
    """CUDA's kernels flush denormals, and begin a maximum at the lowest float."""
    lowest = torch.finfo(torch.float32).min
    values = torch.cat([torch.full((64,), 1e-39), torch.full((64,), NAN), torch.tensor([1e-30, -1e-39] * 32)]).to(
        device
    )
    for quant_type in QUANT_TYPES:
        codes, absmax = ops.quantize_4bit(values, 64, quant_type, torch.uint8)
        exactly_equal(absmax, torch.tensor([0.0, lowest, 1e-30]))
        assert not codes.flatten()[:64].any()
        assert codes.flatten()[64].item() == (0xF7 if quant_type == "nf4" else 0x30)


def test_4bit_of_zero_and_nan(device):
    """CUDA's codes: NaN and the elements of a block of zeros become 0; zero elsewhere is the code of zero."""
    values = torch.tensor([0.0, -0.0, NAN, 1.0] + [-1e-9] * 4 + [0.5] * 56 + [0.0] * 64).to(device)
    nf4, absmax = ops.quantize_4bit(values, 64, "nf4", torch.uint8)
    assert absmax.tolist() == [1.0, 0.0]
    assert nf4.flatten()[:4].tolist() == [0x77, 0x0F, 0x77, 0x77]
    assert not nf4.flatten()[32:].any()
    fp4, _ = ops.quantize_4bit(values, 64, "fp4", torch.uint8)
    assert fp4.flatten()[:4].tolist() == [0x00, 0x03, 0x88, 0x88]
    assert not fp4.flatten()[32:].any()


@pytest.mark.parametrize("value", [INF, -INF])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_infinity_is_a_maximum(dtype, value, device):
    """Its reciprocal is zero: numbers become the code of zero, and infinity times zero is NaN."""
    A = random(5000, dtype=dtype)
    A[[3, 700, 4999]] = value
    for blocksize in (64, 1024):
        for quant_type in QUANT_TYPES:
            check_4bit(device, A, blocksize, quant_type)
        check_8bit(device, A, TABLES["dynamic"], blocksize)
    packed, absmax = ops.quantize_4bit(A.to(device), 64, "nf4", torch.uint8)
    assert absmax[0] == INF
    assert packed.flatten()[:3].tolist() == [0x77, 0x70, 0x77]


@pytest.mark.parametrize("offset", range(1, 9))
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_4bit_of_any_alignment(dtype, offset, device):
    A = random(9001, dtype=dtype, seed=offset)
    check_4bit(device, A, 128, "nf4", moved=on(device, A, offset))


@pytest.mark.parametrize("storage", STORAGES, ids=short)
@pytest.mark.parametrize("n", [0, 8, 4096, 4104, 4103])
def test_4bit_into_any_storage(n, storage, device):
    """Where n is odd the last half byte is free, and n + 1 fill the storage."""
    check_4bit(device, random(n, seed=n), 64, "fp4", storage)


@pytest.mark.parametrize(
    ("n", "storage"), [(1, torch.float16), (4, torch.float32), (4102, torch.bfloat16), (4098, torch.float32)]
)
def test_4bit_that_does_not_fill_its_storage(n, storage, device, capfd):
    """Upstream's shape would leave the last codes no place, and CUDA would write behind the result."""
    A = torch.randn(n, device=device)
    check_error(lambda: ops.quantize_4bit(A, 64, "nf4", storage), "A", f"got {n} elements", capfd)


@pytest.mark.parametrize("shape", [(), (1,), (5, 0), (3, 5, 7), (1, 77), (48, 96)], ids=str)
def test_4bit_of_any_shape(shape, device):
    check_4bit(device, random(*shape), 64, "nf4")


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_4bit_reads_logical_order(layout, device):
    A = random(60, 70).to(device)
    given = {"transposed": A.t(), "strided": strided(A), "expanded": A[:1].expand(60, 70)}[layout]
    check_4bit(device, given.cpu().contiguous(), 64, "nf4", moved=given)


def test_4bit_comes_back(device):
    """Within half of the widest gap between values."""
    A = random(300, 500).to(device)
    packed, absmax = ops.quantize_4bit(A, 64, "nf4", torch.uint8)
    back = ops.dequantize_4bit(packed, absmax, 64, "nf4", [300, 500], torch.float32)
    scale = absmax.cpu().repeat_interleave(64)[: A.numel()].reshape(300, 500)
    assert bool(((back.cpu() - A.cpu()).abs() <= 0.1520 * scale).all())


# ---- quantize_blockwise ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("n", SIZES)
def test_8bit_of_any_size(n, dtype, device):
    check_8bit(device, random(n, dtype=dtype, seed=n), TABLES["dynamic"], 256)


@pytest.mark.parametrize("n", [1, 20005])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("blocksize", [*BLOCKSIZES, *ODD_BLOCKSIZES])
def test_8bit_of_any_blocksize(blocksize, dtype, n, device):
    check_8bit(device, random(n, dtype=dtype, seed=n), TABLES["dynamic"], blocksize)


@pytest.mark.parametrize("blocksize", [64, 4096, 100])
@pytest.mark.parametrize("table", TABLES)
def test_8bit_of_any_table(table, blocksize, device):
    """Sorted or not, CUDA's search decides; and so it does for values at the entries and at the midpoints."""
    code = TABLES[table].float()
    edges = torch.cat([code, (code[1:] + code[:-1]) / 2])
    edges = torch.cat([edges, edges.nextafter(torch.tensor(9.0)), edges.nextafter(torch.tensor(-9.0))])
    edges = edges[edges.abs() <= 1]
    A = torch.cat([edges, random(9000)])
    A[::64] = 1.0
    check_8bit(device, A, code, blocksize)


@pytest.mark.parametrize("blocksize", [256, 100])
@pytest.mark.parametrize("table", TABLES)
def test_8bit_of_many_values(table, blocksize, device):
    """So many that CPU kernels search in another way."""
    code = TABLES[table].float()
    edges = torch.cat([code, (code[1:] + code[:-1]) / 2])
    edges = torch.cat([edges, edges.nextafter(torch.tensor(9.0)), edges.nextafter(torch.tensor(-9.0)), -edges])
    edges = edges[edges.abs() <= 1]
    A = torch.cat([edges, special(torch.float32), random(70_001)])
    A[: edges.numel() : blocksize] = 1.0
    check_8bit(device, A, code, blocksize)


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("blocksize", [7, 64, 512])
def test_8bit_of_special_values(blocksize, dtype, device):
    for table in ("dynamic", "uniform", "unsorted"):
        check_8bit(device, special(dtype), TABLES[table], blocksize)


def test_8bit_has_a_code_for_zero(device):
    codes, absmax = ops.quantize_blockwise(torch.zeros(500, device=device), TABLES["dynamic"].to(device), 256)
    again, _ = ops.quantize_blockwise(torch.tensor([0.0, 1.0] * 128, device=device), TABLES["dynamic"].to(device), 256)
    assert absmax.tolist() == [0.0, 0.0]
    assert TABLES["dynamic"][again[0].item()] == 0.0
    assert not codes.any()  # 0 / 0 is NaN, as in CUDA


@pytest.mark.parametrize("offset", range(1, 9))
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_8bit_of_any_alignment(dtype, offset, device):
    A = random(9001, dtype=dtype, seed=offset)
    check_8bit(device, A, TABLES["dynamic"], 256, moved=on(device, A, offset))


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_8bit_reads_logical_order(layout, device):
    A = random(60, 70).to(device)
    given = {"transposed": A.t(), "strided": strided(A), "expanded": A[:1].expand(60, 70)}[layout]
    check_8bit(device, given.cpu().contiguous(), TABLES["dynamic"], 64, moved=given)
    codes, _ = ops.quantize_blockwise(given, TABLES["dynamic"].to(device), 64)
    assert codes.stride() == torch.empty_like(given, dtype=torch.uint8).stride()


def test_8bit_takes_a_table_that_is_not_contiguous(device):
    A, code = random(1000), TABLES["dynamic"]
    codes, _ = ops.quantize_blockwise(A.to(device), strided(code.to(device)), 64)
    exactly_equal(codes, reference.quantize_blockwise(A, code, 64)[0])


# ---- both -----------------------------------------------------------------------------------------------------------
def test_inputs_are_not_changed(device):
    A, code = random(5000).to(device), TABLES["dynamic"].to(device)
    before = A.clone(), code.clone()
    ops.quantize_4bit(A, 64, "nf4", torch.uint8)
    ops.quantize_blockwise(A, code, 64)
    exactly_equal(A, before[0])
    exactly_equal(code, before[1])


def test_torch_checks_the_operators(device):
    A = random(40, 33).to(device)
    check_operator(ops.quantize_4bit.default, (A, 64, "nf4", torch.uint8), {})
    check_operator(ops.quantize_blockwise.default, (A, TABLES["dynamic"].to(device), 100), {})
    check_operator(ops.quantize_blockwise.default, (A.t(), TABLES["dynamic"].to(device), 64), {})


def test_compiled(device):
    """Under torch.compile, without a graph break."""
    code = TABLES["dynamic"].to(device)

    def both(A):
        return *ops.quantize_4bit(A, 64, "fp4", torch.bfloat16), *ops.quantize_blockwise(A * 2, code, 256)

    A = random(64, 96, dtype=torch.bfloat16).to(device)
    for result, expected in zip(torch.compile(both, backend="aot_eager", fullgraph=True)(A), both(A), strict=True):
        exactly_equal(result, expected)


@pytest.mark.parametrize("kind", runtime.KINDS)
def test_every_kernel_stays_within_its_operands(kind, python):
    """The kernels for GPUs too, compiled for the CPU device; operands lie between forbidden pages."""
    sweep = pathlib.Path(__file__).with_name("quantize_bounds_sweep.py")
    code = f"import runpy, sys; sys.path.insert(0, {str(sweep.parent)!r}); sys.argv = ['', {kind!r}, '2'];"
    code += f"runpy.run_path({str(sweep)!r}, run_name='__main__')"
    done = python(code, check=False, timeout=600, BNB_INTEL_AUTOLOAD="0", BNB_INTEL_VIRTUAL_XPU=None)
    last = "\n".join(done.stderr.splitlines()[-40:])
    assert done.returncode == 0, f"exit status {done.returncode} after:\n{last}"
    assert "touched no byte outside" in done.stdout
