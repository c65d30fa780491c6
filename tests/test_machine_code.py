"""The machine code of the kernels on Intel GPUs, by the offline compiler: what must hold without a GPU to run them on.

Wants `ocloc` and `iga64` (Debian, Ubuntu: intel-opencl-icd, libigc-tools) and is skipped without them. The limits of
issue slots are what the kernels reach, with a little room: a change that makes the inner loops dearer shows here.
"""

from __future__ import annotations

import math
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "benchmarks"))
machine_code = pytest.importorskip("machine_code")

pytestmark = pytest.mark.skipif(bool(machine_code.missing_tools()), reason=machine_code.missing_tools() or "installed")

# Issue slots a weight. A product of several rows of activations is counted for each of them.
PRODUCTS = {
    "kgemv_4bit_inference": {"pvc": 0.50, "acm-g10": 0.95},
    "kgemm_4bit_inference_along_k": {"pvc": 0.25, "acm-g10": 0.50},
    "kgemm_4bit_inference_along_n": None,  # ALONG_N
}
# By rows of activations, for each.
ALONG_N = {"pvc": {4: 0.17, 8: 0.125, 16: 0.10}, "acm-g10": {4: 0.37, 8: 0.27}}
ON_MATRIX_UNIT = {8: 0.08, 16: 0.048}  # pvc
DEQUANTISE_4BIT = {"pvc": 0.90, "acm-g10": 1.65}
DEQUANTISE_8BIT = {"pvc": 0.90, "acm-g10": 1.35}


@pytest.fixture(scope="module")
def machines() -> list[machine_code.Machine]:
    return machine_code.analyse(jobs=2)


@pytest.fixture(params=list(machine_code.TARGETS))
def on_device(request: pytest.FixtureRequest, machines: list[machine_code.Machine]) -> list[machine_code.Machine]:
    """The kernels for one GPU."""
    return [machine for machine in machines if machine.device == request.param]


def named(machine: machine_code.Machine) -> str:
    return f"{machine.function}<{machine.shape}>"


def vectorised(machines: list[machine_code.Machine], function: str) -> list[machine_code.Machine]:
    """The kernels of a function that take several weights a lane."""
    width = "NUM_PER_TH" if function == "kDequantizeBlockwise" else "NUM_PER_THREAD"
    found = [m for m in machines if m.function == function and int(m.template.get(width, 32)) > 1]
    assert found, f"no {function} in the catalogue"
    return found


def too_dear(machine: machine_code.Machine, what: str, limit: float) -> list[str]:
    way = machine.way(what)
    assert way is not None, f"{named(machine)}: the code that handles full tiles was not found"
    cost = way.slots_per_weight / int(machine.template.get("TILE_M", 1))
    return [f"{named(machine)} takes {cost:.3f} slots a weight, more than {limit:.2f}"] if cost > limit else []


def test_sub_group_size_is_what_was_asked_for(on_device: list[machine_code.Machine]) -> None:
    assert [named(m) for m in on_device if m.simd != 16] == []


def test_spills_are_read_from_what_the_compiler_says() -> None:
    info = "    per_thread_memory_buffers:\n" + "".join(
        f"      - type:            scratch\n        usage:           {usage}\n        size:            {size}\n"
        for usage, size in (("single_space", 512), ("private_space", 64), ("spill_fill_space", 128))
    )
    assert machine_code.buffer_bytes(info, "spill_fill_space", "single_space") == 640
    assert machine_code.buffer_bytes(info, "private_space") == 64


def test_nothing_spills(on_device: list[machine_code.Machine]) -> None:
    assert [f"{named(m)}: {m.spill} bytes" for m in on_device if m.spill] == []


def test_no_private_memory(on_device: list[machine_code.Machine]) -> None:
    assert [f"{named(m)}: {m.private} bytes" for m in on_device if m.private] == []


def local_memory(machine: machine_code.Machine) -> int:
    """Bytes that a work-group should need: for a table of 8-bit codes."""
    if machine.function == "kgemm_4bit_inference_along_n":  # the sums of the sub-groups that share rows
        return 4 * math.prod(int(machine.template[name]) for name in ("SPLIT_K", "SUBG_SIZE", "ROWS", "TILE_M"))
    if machine.function == "kgemm_4bit_inference_matrix":
        return 4 * math.prod(int(machine.template[name]) for name in ("SPLIT_K", "ROW_GROUPS", "ROWS", "TILE_M"))
    return 1024 if "General8bit" in machine.shape and int(machine.template["NUM_PER_TH"]) > 1 else 0


def test_local_memory_is_what_the_kernels_share(on_device: list[machine_code.Machine]) -> None:
    for machine in on_device:
        if machine.function.startswith(("kDequantize", "kgem")):
            assert machine.local == local_memory(machine), named(machine)


@pytest.mark.parametrize("function", PRODUCTS)
def test_products_look_up_without_memory(on_device: list[machine_code.Machine], function: str) -> None:
    for machine in vectorised(on_device, function):
        loop = machine.way("loop")
        assert loop is not None, f"{named(machine)}: its main loop was not found"
        assert (loop.local, loop.gathers) == (0, 0), named(machine)


@pytest.mark.parametrize("function", PRODUCTS)
def test_cost_of_a_weight_in_products(on_device: list[machine_code.Machine], function: str) -> None:
    dear = []
    for machine in vectorised(on_device, function):
        limits = PRODUCTS[function]
        limit = limits[machine.device] if limits else ALONG_N[machine.device][int(machine.template["TILE_M"])]
        dear += too_dear(machine, "loop", limit)
    assert dear == []


def test_the_matrix_unit_multiplies(machines: list[machine_code.Machine]) -> None:
    mine = [machine for machine in machines if machine.function == "kgemm_4bit_inference_matrix"]
    assert {machine.device for machine in mine} == {"pvc"}
    dear = []
    for machine in mine:
        loop = machine.way("loop")
        assert loop is not None, f"{named(machine)}: its main loop was not found"
        assert (loop.local, loop.gathers) == (0, 0), named(machine)
        dear += too_dear(machine, "loop", ON_MATRIX_UNIT[int(machine.template["TILE_M"])])
    assert dear == []


@pytest.mark.parametrize("bits", [4, 8])
def test_cost_of_a_weight_in_dequantisation(on_device: list[machine_code.Machine], bits: int) -> None:
    dear = []
    for machine in vectorised(on_device, "kDequantizeBlockwise"):
        if (bits == 8) == ("General8bit" in machine.shape):
            limit = (DEQUANTISE_8BIT if bits == 8 else DEQUANTISE_4BIT)[machine.device]
            dear += too_dear(machine, "thread", limit)
    assert dear == []
