#!/usr/bin/env python3
"""The machine code that the kernels become on Intel GPUs, from the offline compiler: no GPU is needed.

    python benchmarks/machine_code.py                       a table for Data Center GPU Max and Arc A-series
    python benchmarks/machine_code.py --markdown docs/machine_code.md

Every kernel of the catalogue is compiled to SPIR-V by SYCL's run-time compiler, as at run time, then to machine code by
`ocloc` (in Debian's and Ubuntu's intel-opencl-icd), which `iga64` (in libigc-tools) disassembles. For each kernel this
gives spills, private and local memory, and counts the issue slots that a weight costs where full tiles are handled.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "ptx"))
import sycl_jit


@dataclass(frozen=True)
class Target:
    """A GPU that ocloc compiles for."""

    device: str
    platform: str
    """Its name for iga64."""
    title: str
    lanes: int
    """Lanes that the vector engine works on at once, of 32 bits."""
    halves: bool
    """Whether it takes twice as many lanes of 16 bits. (Max has 16 lanes of any width in a sub-group of 16.)"""


TARGETS = {
    "pvc": Target("pvc", "xehpc", "Data Center GPU Max (pvc)", 16, False),
    "acm-g10": Target("acm-g10", "xehpg", "Arc A-series (acm-g10)", 8, True),
}


# ---- instructions ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Instruction:
    """A line of iga64's disassembly."""

    text: str
    op: str
    lanes: int
    predicated: bool
    targets: tuple[str, ...]
    """Labels that it may jump to."""

    @cached_property
    def message(self) -> str:
        """What a send does, such as load.ugm.d32x4; empty for other instructions."""
        if not self.op.startswith("send"):
            return ""
        found = re.search(r"// .*?((?:load|store|atomic)\w*\.\S+|fence\S*|\S*barrier\S*|end of thread)", self.text)
        return found[1] if found else self.op

    @cached_property
    def is_load(self) -> bool:
        """Whether it loads from global memory, a value or more a lane."""
        return self.lanes > 1 and self.message.startswith("load") and ".slm" not in self.message

    @cached_property
    def is_local(self) -> bool:
        """Whether it uses work-group local memory."""
        return self.op == "send.slm" or ".slm" in self.message

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes that a lane stores to global memory."""
        found = re.match(r"store\.ugm\.d(\d+)(?:u32)?(?:x(\d+))?", self.message)
        return int(found[1]) // 8 * int(found[2] or 1) if found and self.lanes > 1 else 0

    @cached_property
    def loaded_bytes(self) -> int:
        """Bytes that a lane loads from global memory."""
        found = re.match(r"load\.ugm\.d(\d+)(?:u32)?(?:x(\d+))?", self.message)
        return int(found[1]) // 8 * int(found[2] or 1) if found and self.lanes > 1 else 0

    @cached_property
    def is_look_up(self) -> bool:
        """Whether it reads a register that each lane chooses: a shuffle."""
        return "r[a0" in self.text

    @cached_property
    def ends(self) -> bool:
        """Whether the thread ends here."""
        return "EOT" in self.text

    def slots(self, target: Target) -> int:
        """Issue slots: as often as the engine must run for all lanes; once for a send or a branch."""
        if self.op.startswith("sync") or self.op == "illegal":
            return 0
        if self.op.startswith(("send", "jmpi", "goto", "join", "while")):
            return 1
        lanes = target.lanes
        if target.halves and not re.search(r":(?:u?d|f|u?q|df)\b", self.text.partition("//")[0]):
            lanes *= 2
        return max(1, self.lanes // lanes)


@dataclass
class Block:
    """Instructions that run one after the other, and where they lead."""

    index: int
    instructions: list[Instruction] = field(default_factory=list)
    next: list[int] = field(default_factory=list)

    def slots(self, target: Target) -> int:
        """Issue slots of the block."""
        return sum(i.slots(target) for i in self.instructions)


_LINE = re.compile(
    r"^\s*(?:\((?P<predicate>[^()]*)\))?\s*(?P<op>[a-z][\w.]*)(?:\.\S+)?\s*(?:\((?P<lanes>\d+)\|M\d+\))?"
)


def parse(assembly: str) -> list[Block]:
    """The control-flow graph of a kernel: blocks in the order of the code, the first is the entry.

    A forward goto is taken by all lanes or by none, as it is where the condition is the same for a whole sub-group.
    """
    blocks, labels = [Block(0)], {}
    for line in assembly.splitlines():
        if label := re.match(r"^(L\d+):", line):
            if blocks[-1].instructions:
                blocks.append(Block(len(blocks)))
            labels[label[1]] = len(blocks) - 1
            continue
        found = _LINE.match(line)
        if not found or not line.strip() or line.lstrip().startswith("//"):
            continue
        op = found["op"]
        targets = tuple(re.findall(r"\b(L\d+)\b", line.split("//")[0]))
        predicate = found["predicate"] or ""
        instruction = Instruction(line.strip(), op, int(found["lanes"] or 1), "f" in predicate, targets)
        blocks[-1].instructions.append(instruction)
        if targets and not op.startswith("join"):
            blocks.append(Block(len(blocks)))
    if not blocks[-1].instructions:
        blocks.pop()
    for block in blocks:
        last = block.instructions[-1]
        if last.ends:
            continue
        jumps = [labels[t] for t in last.targets if t in labels and labels[t] < len(blocks)]
        if jumps and not last.op.startswith("join"):
            block.next.append(jumps[-1])  # of a goto's two, where the lanes that take it go on
        if (not jumps or last.predicated or last.op.startswith("join")) and block.index + 1 < len(blocks):
            block.next.append(block.index + 1)
    return blocks


# ---- ways through the code -------------------------------------------------------------------------------------------
def shortest(blocks: list[Block], starts: Sequence[int], goals: set[int], target: Target) -> list[Block]:
    """The cheapest way from one of the blocks `starts` to one of `goals`, both included; empty if there is none."""
    queue: list[tuple[int, int, tuple[int, ...]]] = [(blocks[b].slots(target), b, (b,)) for b in starts]
    heapq.heapify(queue)
    done: set[int] = set()
    while queue:
        cost, at, way = heapq.heappop(queue)
        if at in goals:
            return [blocks[b] for b in way]
        if at in done:
            continue
        done.add(at)
        for b in blocks[at].next:
            if b not in done:
                heapq.heappush(queue, (cost + blocks[b].slots(target), b, (*way, b)))
    return []


def loops(blocks: list[Block], target: Target) -> Iterator[list[Block]]:
    """For each backward jump, the cheapest way round."""
    for block in blocks:
        for head in block.next:
            if head <= block.index and (way := shortest(blocks, [head], {block.index}, target)):
                yield way


@dataclass(frozen=True)
class Way:
    """Code that runs for so many weights."""

    what: str
    """"loop": once round the main loop; "thread": the whole of it, for a full tile."""
    weights: int
    """Of a sub-group."""
    instructions: int
    slots: int
    loads: int
    gathers: int
    """Loads beyond those of weights, statistics and activations: look-ups in memory."""
    local: int
    """Accesses of work-group local memory."""

    @property
    def slots_per_weight(self) -> float:
        """Issue slots that a weight costs."""
        return self.slots / self.weights


def measure(what: str, way: Sequence[Block], weights: int, loads: int, target: Target) -> Way:
    """Count a way through the code that handles so many weights and has to load so often."""
    code = [i for block in way for i in block.instructions]
    found = sum(i.is_load for i in code)
    return Way(
        what=what,
        weights=weights,
        instructions=sum(not i.op.startswith("sync") for i in code),
        slots=sum(i.slots(target) for i in code),
        loads=found,
        gathers=max(0, found - loads),
        local=sum(i.is_local for i in code),
    )


# ---- kernels ---------------------------------------------------------------------------------------------------------
@dataclass
class Machine:
    """A kernel as machine code for a target."""

    device: str
    family: str
    name: str
    template: dict[str, str | int]
    simd: int
    registers: int
    spill: int
    """Bytes a thread spills."""
    private: int
    """Bytes of private memory a thread has."""
    local: int
    """Bytes of local memory a work-group has."""
    size: int
    """Bytes of code."""
    ways: list[Way]

    @property
    def function(self) -> str:
        """The kernel function's name."""
        return self.name.partition("<")[0].rpartition("::")[2]

    @property
    def shape(self) -> str:
        """The template arguments, for people."""
        return ", ".join(str(v).replace("bnb::", "") for v in self.template.values())

    def way(self, what: str) -> Way | None:
        """The main loop ("loop"), or the whole of a full tile ("thread"), where the kernel has it."""
        return next((way for way in self.ways if way.what == what), None)


def template_of(source: str, name: str) -> dict[str, str | int]:
    """Template parameters of a kernel in its source -> arguments in an instantiation's name."""
    function, arguments = re.fullmatch(r"(?:\w+::)*(\w+)<(.*)>", name).groups()  # type: ignore[union-attr]
    kernel = rf"(?:__attribute__\S+\s*)?BNB_KERNEL\w*\([^()]*\)\s*{function}\("
    found = re.search(rf"template\s*<([^<>]*)>\s*{kernel}", source)
    if not found:
        raise ValueError(f"no kernel {function} in its source")
    names = [parameter.split()[-1] for parameter in found[1].split(",")]
    values = [int(a) if re.fullmatch(r"-?\d+", a) else a for a in map(str.strip, arguments.split(","))]
    return dict(zip(names, values, strict=True))


def ways_of(template: dict[str, str | int], function: str, blocks: list[Block], target: Target) -> list[Way]:
    """What to count in a kernel's vectorised shapes; nothing for the shapes that take an element a lane."""

    def number(name: str) -> int:
        return int(template.get(name, 1))

    lanes = number("SUBG_SIZE")
    if function == "kDequantizeBlockwise" and number("NUM_PER_TH") > 1:
        tile = number("TILE_SIZE") // (number("GROUP_SIZE") // lanes)
        return ways_of_dequantise(blocks, lanes * number("NUM_PER_TH"), tile, target)
    if not function.startswith("kgem"):
        return ways_of_pass(template, function, blocks, target)
    rows, tile_m, fp32 = number("ROWS"), number("TILE_M"), template["T"] == "float"
    if "WORDS" in template:  # on the matrix unit: a lane holds whole steps of a row of 16
        weights = expected = rows // 16 * number("STEPS") * number("WORDS") * 8
        # Codes by four words, a scale, and the activations.
        loads = rows // 16 * number("STEPS") * (number("WORDS") // 4 + 1) + number("STEPS") * tile_m
    elif "SPLIT_K" in template:  # lanes along N
        weights = expected = 32 * rows
        loads = 3 * rows + tile_m  # codes, and a scale, which may be nested
    elif number("NUM_PER_THREAD") == 8:  # lanes along K: the scales are looked up among the lanes, too
        steps = number("STEPS")
        weights, expected = 8 * rows * steps, 9 * rows * steps
        loads = rows * steps + rows + steps * tile_m * (2 if fp32 else 1)
    else:  # any K: a code a lane
        weights = expected = rows
        loads = 5 * rows + tile_m  # a code, and a scale both ways, plain and nested
    found = [way for way in loops(blocks, target) if look_ups(way)]
    if not found:
        return []
    way = max(found, key=look_ups)
    if number("NUM_PER_THREAD") == 1 and "SPLIT_K" not in template:  # each load has a branch of its own, for the last k
        way = blocks[way[0].index : way[-1].index + 1]
    times = max(1, round(look_ups(way) / expected))  # the compiler may have unrolled further
    return [measure("loop", way, lanes * weights * times, loads * times, target)]


def ways_of_pass(template: dict[str, str | int], function: str, blocks: list[Block], target: Target) -> list[Way]:
    """The loop in which a pass stores, or loads where it stores nothing but sums; without one, the whole."""
    lanes, wide = int(template.get("SUBG_SIZE", 16)), int(template.get("NUM_PER_TH", 1))
    fp32, two = template.get("T") == "float", template.get("OPTIMIZER") in ("bnb::ADAM", "bnb::ADEMAMIX")
    reduces = function in ("kColumnStats", "kSumUnorm") or function.startswith("kPrecondition")
    streams = 1  # of the widest accesses
    if function.startswith("kOptimizer32bit"):
        states = 3 if template["OPTIMIZER"] == "bnb::ADEMAMIX" else 1 + two
        streams = states + fp32
    elif function.startswith("kPrecondition"):
        streams = 1 if template["OPTIMIZER"] == "bnb::ADEMAMIX" else 1 + two + fp32

    def width(instruction: Instruction) -> int:
        return instruction.loaded_bytes if reduces else instruction.stored_bytes

    widest = max((width(i) for b in blocks for i in b.instructions), default=0)
    if not widest:
        return []

    def accesses(way: Sequence[Block]) -> int:
        return sum(width(i) == widest for block in way for i in block.instructions)

    found = [way for way in loops(blocks, target) if accesses(way)]
    ends = {block.index for block in blocks if any(i.ends for i in block.instructions)}
    if found:  # the innermost of those with most accesses
        way, what = max(found, key=lambda way: (accesses(way), -len(way))), "loop"
    else:
        way, what, starts = [], "thread", [0]
        for block in blocks:
            if accesses([block]) and (part := shortest(blocks, starts, {block.index}, target)):
                way, starts = way + part, block.next
        way += shortest(blocks, starts, ends, target)
    elements = lanes * wide * max(1, accesses(way) // streams)
    return [measure(what, way, elements, len(way) * 100, target)]


def look_ups(way: Sequence[Block]) -> int:
    """Shuffles on a way."""
    return sum(i.is_look_up for block in way for i in block.instructions)


def ways_of_dequantise(blocks: list[Block], step: int, tile: int, target: Target) -> list[Way]:
    """The way of a sub-group's whole tile from entry to end; and the loop over its steps, if one is left."""
    widest = max((i.stored_bytes for b in blocks for i in b.instructions), default=0)

    def stores(way: Sequence[Block]) -> int:
        return sum(i.stored_bytes == widest for block in way for i in block.instructions)

    ends = {block.index for block in blocks if any(i.ends for i in block.instructions)}
    if not widest or not ends:
        return []
    for loop in loops(blocks, target):
        if steps := stores(loop):
            rounds = tile // (step * steps)
            around = measure("loop", loop, step * steps, 2 * steps, target)
            way = [
                *shortest(blocks, [0], {loop[0].index}, target)[:-1],
                *leave(blocks, loop, stores, rounds, ends, target),
            ]
            return [around, measure("thread", way, tile, 2 * rounds * steps + 1, target)]
    way, starts = [], [0]
    for block in blocks:
        if stores([block]) and stores(way) * step < tile and (part := shortest(blocks, starts, {block.index}, target)):
            way += part
            starts = block.next
    way += shortest(blocks, starts, ends, target)
    steps = stores(way)
    return [measure("thread", way, step * steps, 2 * steps + 1, target)] if steps else []


def leave(
    blocks: list[Block],
    loop: list[Block],
    stores: Callable[[Sequence[Block]], int],
    rounds: int,
    ends: set[int],
    target: Target,
) -> list[Block]:
    """So many times round a loop, and from there to the end."""
    for number in reversed(range(len(loop))):
        out = [b for b in loop[number].next if blocks[b] not in loop]
        if out and (rest := shortest(blocks, out, ends, target)):
            last = loop[: number + 1]
            full = rounds - 1 if stores(last) else rounds
            return [*loop * full, *last, *rest]
    return []


# ---- tools -----------------------------------------------------------------------------------------------------------
def missing_tools() -> str:
    """What is not installed, and how to install it; empty if all is there."""
    missing = [tool for tool in ("ocloc", "iga64") if not shutil.which(tool)]
    if not missing:
        return ""
    return f"{' and '.join(missing)} not installed (Debian, Ubuntu: apt-get install intel-opencl-icd libigc-tools)"


def run(command: Sequence[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a tool and keep what it says."""
    environment = {**os.environ, "IGC_EnableZEBinary": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@cache
def ocloc_release() -> str:
    """The package that ocloc is from and its version, if dpkg knows."""
    path = os.path.realpath(shutil.which("ocloc") or "")
    owner = run(["dpkg-query", "-S", path]).stdout.partition(":")[0] if shutil.which("dpkg-query") else ""
    return run(["dpkg-query", "-W", "-f", "${Package} ${Version}", owner]).stdout.strip() if owner else "ocloc"


def sections(elf: bytes) -> dict[str, bytes]:
    """The sections of an ELF file by name."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry, count, names_at = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, table + i * entry) for i in range(count)]
    names = elf[headers[names_at][4] :][: headers[names_at][5]]
    return {
        names[header[0] : names.index(b"\0", header[0])].decode(): elf[header[4] : header[4] + header[5]]
        for header in headers
    }


def kernel_infos(ze_info: str) -> dict[str, str]:
    """Symbol -> its part of the .ze_info section (YAML, of which a few numbers are wanted)."""
    kernels = ze_info.partition("\nkernels_misc_info:")[0]
    parts = re.split(r"^  - name: +", kernels, flags=re.M)[1:]
    return {part.split()[0].strip("'\""): part for part in parts}


def info_number(info: str, key: str, default: int = 0) -> int:
    """A number in such a part."""
    found = re.search(rf"^\s+{key}: +(\d+)", info, re.M)
    return int(found[1]) if found else default


def buffer_bytes(info: str, *usages: str) -> int:
    """Bytes a thread of memory of these usages: spill_fill_space, private_space, or single_space, one for both."""
    buffers = re.findall(r"- type: +\S+\s+usage: +(\S+)\s+size: +(\d+)", info)
    return sum(int(size) for usage, size in buffers if usage in usages)


def compile_spirv(spirv: bytes, target: Target, folder: Path) -> bytes:
    """The ELF file that ocloc makes of a SPIR-V module."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "module.spv").write_bytes(spirv)
    command = ["ocloc", "compile", "-spirv_input", "-file", "module.spv", "-device", target.device, "-output", "module"]
    done = run(command, folder)
    made = list(folder.glob("module_*.bin"))
    if done.returncode or len(made) != 1:
        raise RuntimeError(f"ocloc for {target.device}: {done.stdout.strip()} {done.stderr.strip()}")
    return made[0].read_bytes()


def disassemble(code: bytes, target: Target, folder: Path, name: str) -> str:
    """The assembly of a kernel."""
    file = folder / f"{name}.krn"
    file.write_bytes(code)
    done = run(["iga64", "-d", f"-p={target.platform}", str(file)])
    if done.returncode:
        raise RuntimeError(f"iga64 for {target.platform}: {done.stderr.strip()}")
    return done.stdout


def sources(devices: Sequence[str]) -> Iterator[tuple[str, dict[str, str], list[str], str]]:
    """Each source for each GPU of `devices`: its text, kernel -> family, options of the compiler, and the GPU."""
    from bitsandbytes_intel.runtime import catalogue

    # Arc A has XMX for sub-groups of 8 alone, and so no kernels for it.
    for kind, option, device in (("xmx16", "-DBNB_XMX", "pvc"), ("gpu16", "-DBNB_REGISTER_BYTES=32", "acm-g10")):
        if device not in devices:
            continue
        families: dict[str, dict[str, str]] = {}  # source -> kernel -> family
        for family in catalogue(kind):
            families.setdefault(family.source, {}).update(dict.fromkeys(family.kernels, family.name))
        for source, kernels in families.items():
            yield source, kernels, ["-DBNB_INTEL_GPU", option], device


def analyse(devices: Sequence[str] = tuple(TARGETS), jobs: int | None = None) -> list[Machine]:
    """Compile and count every kernel of the catalogue for the devices."""
    order: list[str] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        work = []
        for number, (source, kernels, options, device) in enumerate(sources(devices)):
            order += kernels
            for part, image in enumerate(sycl_jit.compile_sycl(source, list(kernels), sycl_jit.Format.SPIRV, options)):
                place = Path(folder) / f"{number}.{part}"
                work.append(pool.submit(_analyse_image, image, source, kernels, TARGETS[device], place))
        found = [machine for result in work for machine in result.result()]
    return sorted(found, key=lambda machine: (list(devices).index(machine.device), order.index(machine.name)))


def _analyse_image(
    image: sycl_jit.Image, source: str, families: dict[str, str], target: Target, folder: Path
) -> list[Machine]:
    """The kernels of one SPIR-V module for one target."""
    parts = sections(compile_spirv(image.code, target, folder))
    infos = kernel_infos(parts[".ze_info"].decode().rstrip("\0"))
    machines = []
    for number, (name, symbol) in enumerate(image.symbols.items()):
        info, code = infos[symbol], parts[f".text.{symbol}"]
        template = template_of(source, name)
        blocks = parse(disassemble(code, target, folder, str(number)))
        function = name.partition("<")[0].rpartition("::")[2]
        machines.append(
            Machine(
                device=target.device,
                family=families[name],
                name=name,
                template=template,
                simd=info_number(info, "simd_size"),
                registers=info_number(info, "grf_count", 128),
                spill=buffer_bytes(info, "spill_fill_space", "single_space"),
                private=buffer_bytes(info, "private_space"),
                local=info_number(info, "slm_size"),
                size=len(code),
                ways=ways_of(template, function, blocks, target),
            )
        )
    return machines


# ---- output ----------------------------------------------------------------------------------------------------------
COLUMNS = (
    "kernel",
    "SIMD",
    "registers",
    "spill",
    "private",
    "local",
    "code",
    "counted",
    "slots a weight",
    "loads",
    "gathers",
    "local accesses",
)


def lines_of(machines: Sequence[Machine]) -> list[tuple[str, ...]]:
    """The rows of the table."""
    lines: list[tuple[str, ...]] = []
    for machine in machines:
        kernel = f"{machine.function}<{machine.shape}>"
        first = (
            kernel,
            str(machine.simd),
            str(machine.registers),
            str(machine.spill),
            str(machine.private),
            str(machine.local),
            f"{machine.size / 1024:.1f} KB",
        )
        for way in machine.ways:
            counts = (str(way.loads), str(way.gathers), str(way.local))
            lines.append((*first, way.what, f"{way.slots_per_weight:.2f}", *counts))
        if not machine.ways:
            lines.append((*first, "", "", "", "", ""))
    return lines


def markdown(machines: Sequence[Machine]) -> str:
    """The tables for the documentation: of the kernels for which something is counted, and a word on the others."""
    parts = [f"Made with {ocloc_release()} and intel-sycl-rt {sycl_jit.release()}."]
    for device in dict.fromkeys(machine.device for machine in machines):
        mine = [m for m in machines if m.device == device]
        others = [m for m in mine if not m.ways]
        rows = [[f"`{line[0]}`", *line[1:]] for line in lines_of([m for m in mine if m.ways])]
        table = [list(COLUMNS), ["---"] * len(COLUMNS), *rows]
        parts.append(f"### {TARGETS[device].title}")
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in table))
        if others:
            parts.append(
                f"The other {len(others)} kernels spill {sum(m.spill for m in others)} bytes "
                f"and have {sum(m.private for m in others)} bytes of private memory."
            )
    return "\n\n".join(parts) + "\n"


def put(text: str, file: Path) -> None:
    """Write a file, or only what stands between its markers, if it has them."""
    begin, end = "<!-- tables: begin -->\n", "<!-- tables: end -->"
    old = file.read_text() if file.exists() else ""
    if begin in old and end in old:
        text = f"{old.partition(begin)[0]}{begin}\n{text}\n{end}{old.partition(end)[2]}"
    file.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", action="append", choices=list(TARGETS), help="only this (may be given again)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all counts here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here, between their markers")
    options = parser.parse_args()
    if missing := missing_tools():
        sys.exit(missing)

    machines = analyse(options.device or tuple(TARGETS))
    from rich.console import Console
    from rich.table import Table

    for device in options.device or TARGETS:
        table = Table(*COLUMNS, title=f"{TARGETS[device].title}, {ocloc_release()}")
        for line in lines_of([m for m in machines if m.device == device]):
            table.add_row(*line)
        Console(width=None if sys.stdout.isatty() else 200).print(table)
    if options.json:
        content = [asdict(machine) for machine in machines]
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if options.markdown:
        put(markdown(machines), options.markdown)


if __name__ == "__main__":
    main()
