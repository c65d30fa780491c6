"""Compiles the virtual XPU at its first use, and keeps the result in the cache folder."""

from __future__ import annotations

import concurrent.futures
import hashlib
import logging
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

from .. import cache
from ..sycl import Sycl, find_sycl

_log = logging.getLogger("bitsandbytes_intel.virtual_xpu")

_SOURCES = pathlib.Path(__file__).parent / "csrc"
_SYCL_UNITS = ("queues",)
_TORCH_UNITS = ("aten", "fallback", "collectives", "capi", "device", "allocator")  # the slowest first
_FLAGS = ("-O1", "-fPIC", "-fvisibility=hidden", "-DNDEBUG")
_SYCL_FLAGS = ("-std=c++17", "-DSYCL_DISABLE_FSYCL_SYCLHPP_WARNING", "-w")
_TORCH_FLAGS = ("-std=c++20",)
_JOBS = 2  # a unit takes up to 1 GB of memory


def _compiler() -> list[str] | None:
    """The C++ compiler as a command; None where there is none and the user has named none."""
    named = os.environ.get("CXX")
    command = shlex.split(named) if named else ["g++"]
    program = shutil.which(command[0]) if command else None
    if program is not None:
        return [program, *command[1:]]
    if named:
        raise RuntimeError(f"the virtual XPU needs a C++ compiler, but CXX={named!r} cannot be found")
    return None


def _compiler_version(compiler: list[str]) -> str:
    try:
        command = [*compiler, "-dumpfullversion", "-dumpversion"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(
            f"the virtual XPU needs a C++ compiler, but `{shlex.join(compiler)}` does not work ({error}): install g++ "
            "(Debian, Ubuntu: `apt-get install g++`) or name another compiler in CXX"
        ) from error
    return done.stdout.strip()


def _torch_folder() -> pathlib.Path:
    import torch

    return pathlib.Path(torch.__file__).parent


def _sources_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(_SOURCES.iterdir()):
        if path.suffix in (".h", ".cpp"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _key(runtime: Sycl) -> str:
    """Names everything that a build depends on, but for the compiler."""
    import torch

    library = runtime.library.resolve()
    parts = [
        torch.__version__,
        str(torch.version.git_version),
        str(_torch_folder()),
        str(library),
        str(library.stat().st_size),
        str(library.stat().st_mtime_ns),
        repr((_FLAGS, _SYCL_FLAGS, _TORCH_FLAGS)),
        _sources_hash(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def library() -> pathlib.Path:
    """The compiled virtual XPU for this torch and this SYCL runtime; compiles it where the cache has none.

    Raises:
        RuntimeError: it cannot be compiled. The text holds the compiler's last lines or says what to install.
    """
    if not sys.platform.startswith("linux"):
        raise RuntimeError("the virtual XPU exists for Linux only")
    runtime = find_sycl()
    if runtime is None:
        raise RuntimeError("the virtual XPU needs the SYCL runtime and its headers: `pip install intel-sycl-rt`")
    compiler = _compiler()
    try:
        folder = cache.private_folder("virtual_xpu") / _key(runtime)
    except OSError as error:
        raise _unusable_cache(error) from error
    if compiler is None:
        # A machine without a compiler may use what another one has built into the same folder.
        for built in sorted(folder.glob("libvirtual_xpu-*.so")):
            return _trusted(built)
        raise RuntimeError(
            "the virtual XPU is compiled at its first use and found no C++ compiler: install g++ (Debian, Ubuntu: "
            "`apt-get install g++`) or name a compiler in CXX"
        )
    identity = hashlib.sha256(f"{shlex.join(compiler)}\0{_compiler_version(compiler)}".encode()).hexdigest()[:12]
    target = folder / f"libvirtual_xpu-{identity}.so"
    if target.is_file():
        return _trusted(target)

    import filelock  # here, not above: a cached start needs no lock

    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with filelock.FileLock(folder / "build.lock"):
            if not target.is_file():  # somebody else may have built it while we waited
                _build(compiler, runtime, target)
    except OSError as error:
        raise _unusable_cache(error) from error
    return _trusted(target)


def _trusted(library: pathlib.Path) -> pathlib.Path:
    """The same; RuntimeError if somebody else could have written it."""
    try:
        cache.check_trusted(library.parent)
        cache.check_trusted(library)
    except OSError as error:
        raise _unusable_cache(error) from error
    return library


def _unusable_cache(error: OSError) -> RuntimeError:
    return RuntimeError(f"the virtual XPU cannot use its cache folder ({error}): name another in BNB_INTEL_CACHE_DIR")


def _build(compiler: list[str], runtime: Sycl, target: pathlib.Path) -> None:
    import torch

    for leftover in target.parent.glob("build-*"):  # of a build that was killed: we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    start = time.monotonic()
    _log.info("compiling the virtual XPU into %s: once, and for up to two minutes", target)
    headers = _torch_folder() / "include"
    torch_flags = [
        *_TORCH_FLAGS,
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
        "-isystem", str(headers),
        "-isystem", str(headers / "torch" / "csrc" / "api" / "include"),
    ]  # fmt: skip
    sycl_flags = [*_SYCL_FLAGS, "-isystem", str(runtime.include)]
    # In the target's folder, so that the last step is a rename: a build that fails or is killed leaves nothing behind.
    with tempfile.TemporaryDirectory(prefix="build-", dir=target.parent) as temporary:
        work = pathlib.Path(temporary)

        def compile_unit(unit: str) -> pathlib.Path:
            flags = sycl_flags if unit in _SYCL_UNITS else torch_flags
            made = work / f"{unit}.o"
            _run([*compiler, *_FLAGS, *flags, "-c", str(_SOURCES / f"{unit}.cpp"), "-o", str(made)])
            return made

        with concurrent.futures.ThreadPoolExecutor(_JOBS) as pool:
            futures = [pool.submit(compile_unit, unit) for unit in (*_TORCH_UNITS, *_SYCL_UNITS)]
            try:
                objects = [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        torch_lib, sycl_lib = _torch_folder() / "lib", runtime.library.parent
        made = work / target.name
        _run(
            [
                *compiler, "-shared", "-o", str(made), *map(str, objects),
                f"-L{torch_lib}", "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10",
                f"-L{sycl_lib}", f"-l:{runtime.library.name}",
                f"-Wl,-rpath,{torch_lib}", f"-Wl,-rpath,{sycl_lib}", "-Wl,-z,defs", "-lpthread",
            ]
        )  # fmt: skip
        made.chmod(0o700)
        os.replace(made, target)
    _log.info("compiled the virtual XPU in %.0f s", time.monotonic() - start)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode != 0:
        import torch

        last = "\n".join(done.stdout.splitlines()[-30:])
        raise RuntimeError(
            f"the virtual XPU cannot be compiled with `{command[0]}` (exit status {done.returncode}) against torch "
            f"{torch.__version__}. It was written for torch 2.13 and needs a compiler of C++20 (g++ 11 or later) and "
            f"`pip install intel-sycl-rt intel-opencl-rt`. The compiler's last lines:\n{last}"
        )
