"""Builds the shared libraries with the C++ compiler alone; pyproject.toml says the rest.

libbitsandbytes_intel_torch.so: the operators, on torch's stable ABI (headers of the target environment's torch).
libbitsandbytes_intel_cpu.so: the CPU kernels, each instruction set in files of its own.
libbitsandbytes_intel_xpu_syclN.so: kernel launch and the kernel runtime, on the SYCL runtime libsycl.so.N (headers of
intel-sycl-rt); one for each N that is built for.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
from typing import ClassVar

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = pathlib.Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
COMMON = ["-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-DNDEBUG"]
TORCH_TARGET = "0x020a000000000000"  # the oldest torch that the operators run with: 2.10
LINK = [f"-Wl,--version-script={CSRC / 'exports.map'}"]  # the C functions alone, none of the C++ templates
# What a library for every Linux from glibc 2.28 on needs: older versions of symbols, and newer symbols inside.
GLIBC = CSRC / "glibc_2_28"
PORTABLE = ["-include", str(GLIBC / "symbols.h")]


def site_packages() -> list[pathlib.Path]:
    """Where the environment that we build for keeps packages: also where pip builds in an environment of its own."""
    return [pathlib.Path(sysconfig.get_paths()[name]) for name in ("platlib", "purelib")]


def torch_folder() -> pathlib.Path:
    """The target environment's torch."""
    spec = importlib.util.find_spec("torch")
    candidates = [pathlib.Path(spec.origin).parent] if spec and spec.origin else []
    candidates += [packages / "torch" for packages in site_packages()]
    for folder in candidates:
        if (folder / "include" / "torch" / "csrc" / "stable" / "tensor.h").exists():
            return folder
    sys.exit(
        "bitsandbytes-intel needs torch 2.10 or newer in this environment before it is built "
        f"(looked for its headers in {', '.join(map(str, candidates))}): install torch first"
    )


def sycl_library(prefix: pathlib.Path) -> pathlib.Path | None:
    """lib/libsycl.so.N of a prefix, the newest, if its headers are there too."""
    found = [path for path in (prefix / "lib").glob("libsycl.so.*") if re.fullmatch(r"libsycl\.so\.\d+", path.name)]
    if not found or not (prefix / "include" / "sycl" / "sycl.hpp").exists():
        return None
    return max(found, key=lambda path: int(path.suffix[1:]))


def sycl_prefix() -> pathlib.Path | None:
    """The prefix that holds include/sycl and lib/libsycl.so.N: of the target environment, else of the build's own."""
    candidates = [pathlib.Path(sysconfig.get_paths()["data"]), pathlib.Path(sys.prefix)]
    candidates += [pathlib.Path(p).parents[2] for p in sys.path if p.endswith("site-packages")]
    for prefix in candidates:
        if sycl_library(prefix):
            return prefix
    return None


def with_includes(path: pathlib.Path, seen: set[pathlib.Path]) -> str:
    """A kernel file as one text: each of our own headers in the place of its first #include."""
    lines = []
    for line in path.read_text().splitlines():
        found = re.fullmatch(r'#include "(.+)"', line)
        if found:
            header = (path.parent / found[1]).resolve()
            if header not in seen:
                seen.add(header)
                lines.append(with_includes(header, seen))
        elif line != "#pragma once":
            lines.append(line)
    return "\n".join(lines)


def write_kernel_sources(folder: pathlib.Path) -> None:
    """xpu_sources.h: every kernel file as text for the run-time compiler."""
    lines = ["struct KernelSource { const char* stem; const char* text; };", "static const KernelSource kSources[] = {"]
    for path in sorted((CSRC / "xpu_kernels").glob("*.cpp")):
        lines.append(f'{{"{path.stem}", R"BNB_SOURCE({with_includes(path, set())})BNB_SOURCE"}},')
    (folder / "xpu_sources.h").write_text("\n".join([*lines, "};"]) + "\n")


class SharedLibrary(Extension):
    """A plain shared library in the package, not a Python module."""

    sycl: pathlib.Path | None = None  # of a prefix: libsycl.so.N


class PlatformWheel(bdist_wheel):
    """A wheel for every Python: the libraries know nothing of it."""

    def get_tag(self) -> tuple[str, str, str]:
        """py3, no ABI, the platform."""
        return "py3", "none", super().get_tag()[2]


class BuildLibraries(build_ext):
    """Compiles and links the libraries; each compiler call is plain enough to repeat by hand."""

    user_options: ClassVar = [
        *build_ext.user_options,
        ("only=", None, "libraries to build, of torch,cpu,xpu"),
        ("sycl=", None, "prefixes of the SYCL runtimes to build for, separated by commas [the environment's]"),
        ("portable", None, "make libraries that run on any Linux from glibc 2.28 on"),
    ]
    boolean_options: ClassVar = [*build_ext.boolean_options, "portable"]

    def initialize_options(self) -> None:
        """All libraries, unless told otherwise."""
        super().initialize_options()
        self.only, self.sycl, self.portable = "", "", False

    def finalize_options(self) -> None:
        """Leave out what was not asked for, and name the XPU library after its SYCL runtime."""
        wanted = self.only.split(",") if self.only else []
        extensions: list[SharedLibrary] = []
        for extension in self.distribution.ext_modules:
            if wanted and extension.name.partition("_intel_")[2].partition("_")[0] not in wanted:
                continue
            extensions += self.for_sycl(extension) if extension.name.endswith("_xpu") else [extension]
        self.distribution.ext_modules = extensions
        super().finalize_options()

    def for_sycl(self, extension: SharedLibrary) -> list[SharedLibrary]:
        """The XPU library once for each SYCL runtime."""
        prefixes = [pathlib.Path(each) for each in self.sycl.split(",") if each]
        if not prefixes:
            prefixes = [prefix for prefix in [sycl_prefix()] if prefix]
            if not prefixes:
                print("no SYCL headers (intel-sycl-rt): building without the XPU library", file=sys.stderr)
        made = []
        for prefix in prefixes:
            runtime = sycl_library(prefix)
            if runtime is None:
                sys.exit(f"--sycl: {prefix} has no lib/libsycl.so.N with include/sycl/sycl.hpp")
            one = SharedLibrary(
                f"{extension.name}_sycl{runtime.suffix[1:]}", extension.sources, depends=extension.depends
            )
            one.sycl = runtime
            made.append(one)
        return made

    def get_ext_filename(self, name: str) -> str:
        """The package's folder and the library's name, without Python's suffix."""
        return os.path.join(*name.split(".")) + ".so"

    def build_extension(self, extension: Extension) -> None:
        """One library: its objects in parallel, then the link."""
        name = extension.name.rsplit(".", 1)[1]
        work = pathlib.Path(self.build_temp).resolve() / name
        work.mkdir(parents=True, exist_ok=True)
        if name.endswith("_torch"):
            torch = torch_folder()
            flags = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", "-isystem", str(torch / "include")]
            links = [f"-L{torch / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu", "-ldl"]
        elif name.endswith("_cpu"):
            # Products are rounded as CUDA's are: fused only where a kernel says so.
            flags, links = ["-O3", "-ffp-contract=off", "-Wno-maybe-uninitialized", "-Wno-uninitialized"], []
        else:
            write_kernel_sources(work)
            prefix = extension.sycl.parents[1]
            flags = ["-DSYCL_DISABLE_FSYCL_SYCLHPP_WARNING", "-DCL_TARGET_OPENCL_VERSION=300", "-w", f"-I{work}",
                     "-isystem", str(prefix / "include")]  # fmt: skip
            links = [str(extension.sycl), "-ldl"]
        sources = list(extension.sources)
        if self.portable:
            flags = [*flags, *PORTABLE]
            sources.append(str((GLIBC / "symbols.cpp").relative_to(ROOT)))
        compiler = (os.environ.get("CXX") or "g++").split()
        jobs = []
        for source in sources:
            made = work / ("_".join(pathlib.Path(source).with_suffix("").parts[2:]) + ".o")
            jobs.append((made, [*compiler, *COMMON, *flags, "-c", str(ROOT / source), "-o", str(made)]))
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda job: self.run_compiler(job[1]), jobs))
        target = pathlib.Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.run_compiler([*compiler, "-shared", *LINK, *(str(made) for made, _ in jobs), "-o", str(target), *links])

    def run_compiler(self, command: list[str]) -> None:
        """Run one command; its failure ends the build with what it printed."""
        if self.verbose:
            print(" ".join(command))
        try:
            subprocess.run(command, check=True)
        except FileNotFoundError:
            sys.exit(f"no C++ compiler {command[0]!r}: install g++ (apt-get install g++) or name another in CXX")
        except subprocess.CalledProcessError as error:
            sys.exit(f"the compiler failed with status {error.returncode}: {' '.join(command)}")

    def get_outputs(self) -> list[str]:
        """The libraries that were built."""
        return [path for path in super().get_outputs() if os.path.exists(path)]

    def copy_extensions_to_source(self) -> None:
        """For an editable installation; a library that was left out is not missed."""
        self.extensions = [e for e in self.extensions if os.path.exists(self.get_ext_fullpath_built(e))]
        super().copy_extensions_to_source()

    def get_ext_fullpath_built(self, extension: Extension) -> str:
        """Where build_extension has put a library that is not built in place."""
        return os.path.join(self.build_lib, self.get_ext_filename(extension.name))


def library(name: str, folder: str) -> SharedLibrary:
    """A library of every source in a folder of csrc."""
    sources = [str(path.relative_to(ROOT)) for path in sorted((CSRC / folder).rglob("*.cpp"))]
    headers = [str(path.relative_to(ROOT)) for path in sorted(CSRC.rglob("*")) if path.suffix in (".h", ".cpp")]
    return SharedLibrary(f"bitsandbytes_intel.libbitsandbytes_intel_{name}", sources, depends=headers)


setup(
    ext_modules=[library("torch", "torch"), library("cpu", "cpu"), library("xpu", "xpu_ops")],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": PlatformWheel},
)
