"""No instruction stands where a CPU that lacks it could meet it, and the package works on a CPU that has nothing."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from bitsandbytes_intel import cpu, env, ops, runtime
from bitsandbytes_intel.runtime import KernelError

# Instructions and operands that a file of this name may hold; a file of another name may hold none of them.
LEVELS = ("avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx")
INCLUDED = {
    "avx2": {"avx2"},
    "avx_vnni": {"avx2", "vnni"},
    "avx512": {"avx2", "avx512"},
    "avx512_vnni": {"avx2", "avx512", "vnni"},
    "avx512_bf16": {"avx2", "avx512", "vnni", "bf16"},
    "amx": {"avx2", "avx512", "vnni", "bf16", "amx"},
}
KINDS = (
    ("amx", re.compile(r"^(tdp|tile|ldtilecfg|sttilecfg)|^v\w+(ph|sh)\b|^vp(erm\w*b|multishift\w*)\b")),
    ("bf16", re.compile(r"^v(dpbf16|cvtne)")),
    ("vnni", re.compile(r"^(\{vex\} )?vpdp(bu|ws)")),
    ("avx512", re.compile(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])\b")),
    (
        "avx2",
        re.compile(
            r"^v|%ymm|^(andn[lq]?\b|bextr|blsi|blsmsk|blsr|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx|lzcnt|popcnt)"
        ),
    ),
)
# vcvtps2ph and vcvtph2ps are F16C's, which AVX2 brings along here, also of 512 bits.
NOT_FP16 = re.compile(r"^vcvt(ps2ph|ph2ps)\b")


def kind_of(instruction: str) -> str | None:
    """The newest kind of instruction set that an instruction, as objdump writes it, needs."""
    for kind, pattern in KINDS:
        if pattern.search(instruction) and not (kind == "amx" and NOT_FP16.match(instruction)):
            return kind
    return None


def functions_by_file(library: str) -> dict[tuple[str, int], str]:
    """(Name, address) of each function that is local to a source file -> the file's name without its suffix."""
    table = subprocess.run(["readelf", "-sW", library], capture_output=True, text=True, check=True).stdout
    found, file = {}, ""
    for line in table.splitlines():
        fields = line.split()
        if len(fields) < 8 or not fields[0].rstrip(":").isdigit():
            continue
        if fields[3] == "FILE":
            file = fields[7]
        elif fields[3] == "FUNC" and fields[4] == "LOCAL":
            found[fields[7], int(fields[1], 16)] = file.removesuffix(".cpp")
    return found


@pytest.mark.parametrize("library", [cpu.LIBRARY, runtime.TORCH_LIBRARY], ids=lambda path: path.name)
def test_instructions_stay_within_their_files(library):
    """What the linker could take for another file's, and what runs while the library loads, is plain x86-64."""
    local = functions_by_file(str(library))
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", "-w", str(library)], capture_output=True, text=True, check=True
    ).stdout
    misplaced, checked, allowed, name = [], dict.fromkeys(LEVELS, 0), frozenset(), ""
    for line in listing.splitlines():
        if heading := re.match(r"^([0-9a-f]+) <(.+)>:$", line):
            address, name = int(heading[1], 16), heading[2]
            file = local.get((name, address), "")
            loads = name.startswith(("_GLOBAL__", "__static_init"))
            allowed = frozenset() if loads else INCLUDED.get("amx" if file.startswith("amx_") else file, frozenset())
            if allowed:
                checked[file] = checked.get(file, 0) + 1
        elif "\t" in line:
            instruction = line.split("\t", 1)[1].strip()
            kind = kind_of(instruction)
            if kind and kind not in allowed:
                misplaced.append(f"{name}: {instruction}")
    assert misplaced == []
    if library == cpu.LIBRARY:
        assert min(checked["avx2"], checked["avx512"]) > 0, "no function found in its file: the library has no symbols"


def test_the_names_of_instruction_sets():
    assert list(cpu.isas()) == [name for name in env.ISAS if name in cpu.isas()]
    assert next(iter(cpu.isas())) == "scalar"
    assert set(cpu.kernels().values()) <= {*cpu.isas(), "avx_vnni"}


def test_a_forced_instruction_set_answers(python):
    code = "import bitsandbytes; from bitsandbytes_intel import cpu; print(set(cpu.kernels().values()))"
    assert python(code, BNB_INTEL_ISA="scalar").stdout.strip() == "{'scalar'}"


def test_a_forced_instruction_set_rules_kernels_of_a_virtual_xpu_out(python):
    code = "from bitsandbytes_intel import runtime\n"
    code += "print(*(name for family in runtime.catalogue('cpu') for name in family.kernels), sep='\\n')"
    names = python(code, BNB_INTEL_ISA="scalar").stdout
    assert "PlainProducts" in names
    assert "kgemm_4bit_inference_along_m<bnb::bfloat16" in names
    assert not re.search("Vnni|avx512", names)
    assert ("VnniProducts" in python(code, BNB_INTEL_ISA=None).stdout) == ("avx512_vnni" in cpu.isas())


def test_kernels_of_a_virtual_xpu_for_any_cpu(xpu):
    """Those for any CPU, in the place of those with AVX512-VNNI and AVX512-BF16 that the other tests run."""
    tests = pathlib.Path(__file__).parent
    files = [str(tests / f"test_{name}.py") for name in ("int8_linear_matmul", "int8_scaled_mm", "gemm_4bit")]
    options = ["-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-q", "-k", xpu]
    done = subprocess.run(
        [sys.executable, *options, *files],
        env={**os.environ, "BNB_INTEL_ISA": "scalar"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_an_instruction_set_that_the_cpu_lacks(python):
    missing = [name for name in env.ISAS if name not in cpu.isas()]
    if not missing:
        with pytest.raises(KernelError, match="must be one that this CPU has"), cpu.using("avx10"):
            pass
        return
    code = "import logging; logging.basicConfig(); import bitsandbytes\n"
    code += "from bitsandbytes_intel import ops; print(ops.failures())"
    done = python(code, BNB_INTEL_ISA=missing[0])
    for text in (done.stdout, done.stderr):
        assert "BNB_INTEL_ISA" in text
        assert ", ".join(cpu.isas()) in text


def test_an_unknown_instruction_set(python):
    code = "from bitsandbytes_intel import env; env.ISA.get()"
    done = python(code, check=False, BNB_INTEL_ISA="sse9")
    assert "BNB_INTEL_ISA='sse9' is not an instruction set: expected one of scalar, avx2" in done.stderr


# Upstream's own CPU library ends the process on a CPU without AVX2: it must not be loaded there.
WITHOUT_UPSTREAM = """
import ctypes, runpy, sys
load = ctypes.CDLL.__init__
def refuse(self, name, *args, **kwargs):
    if "libbitsandbytes_cpu" in str(name):
        raise OSError("not on this CPU")
    load(self, name, *args, **kwargs)
ctypes.CDLL.__init__ = refuse
"""
VALIDATION = """
sys.argv = ["bitsandbytes_intel", "--device", "cpu", "--json"]
runpy.run_module("bitsandbytes_intel", run_name="__main__", alter_sys=True)
"""
PRODUCTS_OF_WORDS = """
import bitsandbytes, torch
from bitsandbytes_intel import cpu, reference
assert cpu.kernels()["gemv_4bit_words"] == "avx2", cpu.kernels()
g = torch.Generator().manual_seed(0)
for dtype in (torch.float16, torch.bfloat16):
    for kind in ("nf4", "fp4"):
        for blocksize, k in ((32, 2144), (64, 256), (4096, 4096)):
            packed = torch.randint(0, 256, (33 * k // 2, 1), dtype=torch.uint8, generator=g)
            absmax = torch.rand(-(-33 * k // blocksize), generator=g) + 0.1
            A = torch.randn(1, k, generator=g).to(dtype)
            result = torch.ops.bitsandbytes.gemm_4bit(A, packed, [33, k], absmax, blocksize, kind, None)
            weight = reference.dequantize_4bit(packed, absmax, blocksize, kind, [33, k], torch.float32)
            exact = A.double() @ weight.double().T
            error = (result.double() - exact).abs() / reference.product_tolerance(A, weight, exact.to(dtype))
            assert float(error.max()) <= 1, (dtype, kind, blocksize, error)
print("held")
"""


def emulated(model, code):
    """The finished process of a CPU that is emulated."""
    environment = {**os.environ, "BNB_INTEL_VIRTUAL_XPU": "0", "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    environment.pop("OPENBLAS_CORETYPE", None)  # numpy's library would take it for this CPU's
    command = ["qemu-x86_64", "-cpu", model, sys.executable, "-c", WITHOUT_UPSTREAM + code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.mark.skipif(not shutil.which("qemu-x86_64"), reason="qemu-x86_64 (Debian: qemu-user) is not installed")
def test_every_operator_on_a_cpu_without_avx():
    """The whole validation of the CPU's operators, on a CPU that is emulated."""
    done = emulated("Nehalem", VALIDATION)
    assert '"scalar"' in done.stdout
    for operator in ops.OPERATORS:
        if "cpu" in operator.devices:
            assert operator.name in done.stdout


@pytest.mark.skipif(not shutil.which("qemu-x86_64"), reason="qemu-x86_64 (Debian: qemu-user) is not installed")
def test_products_of_words_on_a_cpu_without_vnni():
    """A CPU with AVX-VNNI multiplies words by it, whatever it is held to."""
    assert "held" in emulated("Haswell", PRODUCTS_OF_WORDS).stdout
