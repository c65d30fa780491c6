#!/usr/bin/env python3
"""Turn the package's SYCL kernels into PTX, for bench.py and sanitize.py on a machine with an NVIDIA GPU.

    python make_ptx.py OUTDIR              the kernels of the catalogue, in their 32-lane shapes
    python make_ptx.py OUTDIR --variants   many shapes of each kernel, for bench.py --tune

Needs intel-sycl-rt (no GPU, no other compiler) and this package. Writes OUTDIR/*.ptx and OUTDIR/kernels.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import sycl_jit

from bitsandbytes_intel.runtime import catalogue

TYPES = ("bnb::half", "bnb::bfloat16", "float")
CHUNK = 6  # kernels a compilation: enough to share the front end's time, few enough to spread over cores

# SPIR-V built-ins as NVPTX's own. The run-time compiler would link SYCL's libspirv for them, which it looks for in a
# system folder, and leave them as calls. A work-group is a block and a sub-group is a warp.
BUILT_INS = {
    "__spirv_BuiltInWorkgroupId(0)": "__nvvm_read_ptx_sreg_ctaid_x()",
    "__spirv_BuiltInLocalInvocationId(0)": "__nvvm_read_ptx_sreg_tid_x()",
    "__spirv_BuiltInSubgroupLocalInvocationId()": "(__nvvm_read_ptx_sreg_tid_x() & 31)",
    "__spirv_BuiltInSubgroupId()": "(__nvvm_read_ptx_sreg_tid_x() >> 5)",
}
BARRIERS = {
    r"__spirv_ControlBarrier\(kScopeSubGroup[^()]*\)": "__nvvm_bar_warp_sync(0xffffffff)",
    r"__spirv_ControlBarrier\([^()]*\)": "__syncthreads()",
}


@dataclass(frozen=True)
class Kernel:
    """A kernel as kernels.json holds it."""

    family: str
    name: str
    """The instantiation, as in the catalogue."""
    symbol: str
    file: str
    template: dict[str, str | int]
    """Template parameter -> argument."""
    arguments: list[tuple[str, str]]
    """Type and name of each argument of the kernel, T resolved."""
    source_hash: str


def for_ptx(source: str) -> str:
    """The kernel source with what differs for NVPTX replaced; the kernels themselves are not touched."""
    for spirv, nvvm in BUILT_INS.items():
        source = source.replace(spirv, nvvm)
    for pattern, nvvm in BARRIERS.items():
        source = re.sub(pattern, nvvm, source)
    # The entry calls the kernel's function; a call would make every pointer a generic one.
    source = re.sub(r"^(BNB_KERNEL\w*)\(", r"__attribute__((always_inline)) \1(", source, flags=re.M)
    if left := sorted(set(re.findall(r"__spirv_BuiltIn\w+\([^)]*\)|__spirv_ControlBarrier", outside_of_spirv(source)))):
        raise SystemExit(f"no NVPTX counterpart known for {', '.join(left)}: add it to BUILT_INS in {__file__}")
    return source


def outside_of_spirv(source: str) -> str:
    """The source without comments and without the branches of `#else  // libsycl 8`, which PTX never takes."""
    source = re.sub(r"#else +// libsycl 8.*?^#endif\n#endif", "", source, flags=re.S | re.M)
    return re.sub(r"//[^\n]*", "", source)


# How many work-groups a multiprocessor should have room for, by the beginning of a kernel's symbol in its source: these
# take many registers, of which an Intel GPU gives each thread as many whatever it needs, and an NVIDIA GPU does not.
GROUPS_AT_ONCE = {
    "kOptimizerStatic8bit1StateBlockwise": 4,
    "kOptimizerStatic8bit2StateBlockwise": 3,
    "kQuantizeBlockwise": 4,
}


def with_bounds(ptx: bytes, image: sycl_jit.Image) -> bytes:
    """The PTX with a work-group's size said, and the number of them that is wanted at once, for kernels of 256."""
    for name, symbol in image.symbols.items():
        function = name.partition("<")[0].rpartition("::")[2]
        if (groups := GROUPS_AT_ONCE.get(function)) and re.search(r"\b256, ?32>", name):
            bounds = f".maxntid 256, 1, 1\n.minnctapersm {groups}\n".encode()
            ptx = re.sub(
                rb"(\.entry " + re.escape(symbol.encode()) + rb"\([^)]*\))\s*\n", rb"\1\n" + bounds, ptx, count=1
            )
    return ptx


def with_mma(ptx: bytes) -> bytes:
    """The PTX said to be of a version and of a GPU that know mma.sync.m16n8k16; the compiler says the oldest."""
    if b"mma.sync" not in ptx:
        return ptx
    ptx = re.sub(rb"^\.version .*$", b".version 7.0", ptx, count=1, flags=re.M)
    return re.sub(rb"^\.target \w+", b".target sm_80", ptx, count=1, flags=re.M)


def codebook_of(source: str) -> str:
    """The lines of a kernel source that are the 4-bit tables."""
    return "\n".join(re.findall(r"^constexpr float k(?:NF4|FP4)\[16\] = {.*?};", source, re.S | re.M))


def split(text: str) -> list[str]:
    """`text` at its commas, spaces trimmed."""
    return [part.strip() for part in text.split(",") if part.strip()]


def signatures(source: str) -> dict[str, tuple[list[str], list[str]]]:
    """Kernel function -> its template parameters and its arguments, read from the source."""
    pattern = r"template\s*<([^<>]*)>\s*(?:__attribute__\(\(\w+\)\)\s*)?BNB_KERNEL\w*\([^()]*\)\s*(\w+)\(([^()]*)\)"
    found = re.findall(pattern, re.sub(r"//[^\n]*", "", source))
    return {name: (split(template), split(arguments)) for template, name, arguments in found}


def describe(family: str, source: str, name: str, symbol: str, file: str) -> Kernel:
    """A kernel's entry of kernels.json."""
    function, given = re.fullmatch(r"(?:\w+::)*(\w+)<(.*)>", name).groups()  # type: ignore[union-attr]
    parameters, arguments = signatures(source)[function]
    template = {
        parameter.split()[-1]: int(value) if re.fullmatch(r"-?\d+", value) else value
        for parameter, value in zip(parameters, split(given), strict=True)
    }
    resolved = []
    for argument in arguments:
        kind, _, argument_name = argument.rpartition(" ")
        kind = kind.replace("const ", "")
        while argument_name.startswith("*"):
            kind, argument_name = kind + "*", argument_name[1:]
        resolved.append((re.sub(r"\bT\b", str(template.get("T", "T")), kind), argument_name))
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    return Kernel(family, name, symbol, file, template, resolved, digest)


def variants(function: str, parameters: Sequence[str]) -> Iterator[str]:
    """Template arguments of the shapes to choose among."""
    if function == "kDequantizeBlockwise":
        data_types = ("bnb::General8bit", "bnb::NF4")  # FP4 is NF4 with another table
        for kind, data_type, group, width, times in product(TYPES, data_types, (128, 256, 512), (4, 8), (1, 2, 4)):
            yield f"{kind}, {group * width * times}, {width}, {data_type}, {group}, 32"
    elif function == "kgemv_4bit_inference":
        for kind, group, rows, steps in product(TYPES, (64, 128, 256), (1, 2, 4, 8), (1, 2, 4)):
            if rows * steps <= 16:
                yield f"{kind}, {group}, 8, 32, {32 if kind == 'float' else 16}, {rows}, {steps}"
    elif function == "kgemm_4bit_inference_matrix":
        for kind, split_k, steps, rows, tile_m in product(TYPES[:2], (4, 8, 16), (4, 8), (16, 32), (8, 16, 32)):
            if rows * tile_m * steps <= 2048:
                yield f"{kind}, 32, {split_k}, 1, {rows}, {steps}, {tile_m}, 2"
    elif function == "kgemm_4bit_inference_along_n":
        for kind, split_k, rows, tile_m in product(TYPES[2:], (4, 8, 16), (1, 2, 4), (4, 8, 16, 32)):
            if rows * tile_m <= 64 and 128 * split_k * max(rows * tile_m, tile_m + 4) <= 48 << 10:  # of local memory
                yield f"{kind}, 32, {split_k}, {rows}, {tile_m}, true"
    elif function == "kgemm_4bit_inference_along_k":
        for kind, group, rows, steps, tile_m in product(TYPES, (64, 128), (1, 2, 4), (1, 2), (2, 4, 8)):
            if rows * tile_m <= 16:
                yield f"{kind}, {group}, 8, 32, {rows}, {steps}, {tile_m}"


def sources(stems: list[str] | None, with_variants: bool) -> dict[str, tuple[str, dict[str, str]]]:
    """Stem of a source's name -> its text, and the instantiations to make of it with the family of each."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for family in catalogue("mma32"):
        stem = family.name.partition("/")[0]
        if not stems or stem in stems:
            found.setdefault(stem, (family.source, {}))[1].update(dict.fromkeys(family.kernels, family.name))
    if with_variants:
        for stem, (source, kernels) in found.items():
            functions = sorted({name.partition("<")[0] for name in kernels})
            parameters = {f: signatures(source)[f.rpartition("::")[2]][0] for f in functions}
            names = [
                f"{f}<{arguments}>"
                for f in functions
                for arguments in variants(f.rpartition("::")[2], [p.split()[-1] for p in parameters[f]])
            ]
            found[stem] = source, dict.fromkeys(names, stem)
    return found


def compile_chunk(source: str, names: list[str]) -> list[sycl_jit.Image]:
    """Compile some instantiations (in a process of its own: the compiler is not made for threads)."""
    sys.stderr.flush()
    return sycl_jit.compile_sycl(for_ptx(source), names, sycl_jit.Format.PTX, ["-fno-sycl-libspirv"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outdir", type=Path, metavar="OUTDIR")
    parser.add_argument("--variants", action="store_true", help="the tuner's shapes instead of the catalogue's")
    parser.add_argument("--only", action="append", metavar="STEM", help="only this source, such as gemv_4bit")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilations at a time (default: all cores)")
    options = parser.parse_args()

    found = sources(options.only, options.variants)
    options.outdir.mkdir(parents=True, exist_ok=True)
    for old in options.outdir.glob("*.ptx"):
        old.unlink()

    kernels: list[Kernel] = []
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        chunks = []
        for stem, (source, families) in found.items():
            names = list(families)
            for i in range(0, len(names), CHUNK):
                chunks.append(
                    (f"{stem}.{i}", source, families, pool.submit(compile_chunk, source, names[i : i + CHUNK]))
                )
        for stem, source, families, result in chunks:
            for part, image in enumerate(result.result()):
                file = f"{stem}.{part}.ptx"
                (options.outdir / file).write_bytes(with_bounds(with_mma(image.code), image))
                kernels += [describe(families[name], source, name, s, file) for name, s in image.symbols.items()]
    order = [name for _, families in found.values() for name in families]
    kernels.sort(key=lambda kernel: order.index(kernel.name))
    written = {
        "compiler": f"intel-sycl-rt {sycl_jit.release()}",
        "variants": options.variants,
        "codebook": codebook_of(next(source for source, _ in found.values() if "kNF4[16]" in source)),
        "kernels": [asdict(k) for k in kernels],
    }
    (options.outdir / "kernels.json").write_text(json.dumps(written, indent=1) + "\n")
    print(f"{len(kernels)} kernels of {len(found)} sources in {options.outdir}")


if __name__ == "__main__":
    main()
