"""The package: which XPU library is chosen, what the libraries show, and what the wheel is called.

The wheel itself is built and tried by ``make wheel``.
"""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

import pytest

from bitsandbytes_intel import cpu, runtime, sycl

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """An environment with these libsycl.so.N, and an installation with XPU libraries for those."""

    def make(present: list[int], built: list[int]) -> pathlib.Path:
        prefix, package = tmp_path / "prefix", tmp_path / "package"
        for folder in (prefix / "lib", prefix / "include" / "sycl", package):
            folder.mkdir(parents=True)
        (prefix / "include" / "sycl" / "sycl.hpp").touch()
        for major in present:
            (prefix / "lib" / f"libsycl.so.{major}").touch()
            (prefix / "lib" / f"libsycl.so.{major}.0.0").touch()
        for major in built:
            (package / f"libbitsandbytes_intel_xpu_sycl{major}.so").touch()
        monkeypatch.setattr(sycl, "lib_folders", lambda: [prefix / "lib"])
        monkeypatch.setattr(sycl, "_is_loaded", lambda name: False)
        monkeypatch.setattr(runtime, "_PACKAGE", package)
        return package

    return make


@pytest.mark.parametrize(("present", "built", "chosen"), [([8], [8, 9], 8), ([9], [8, 9], 9), ([8, 9, 10], [10], 10)])
def test_the_library_for_the_sycl_runtime_that_is_here(environment, present, built, chosen) -> None:
    package = environment(present, built)
    assert runtime.xpu_library() == package / f"libbitsandbytes_intel_xpu_sycl{chosen}.so"


def test_a_sycl_runtime_that_is_loaded_comes_first(environment, monkeypatch) -> None:
    """Torch's XPU build has loaded its own; a second one beside it could not take its queues."""
    environment([8, 9], [8, 9])
    monkeypatch.setattr(sycl, "_is_loaded", lambda name: name == "libsycl.so.8")
    assert runtime.xpu_library().name == "libbitsandbytes_intel_xpu_sycl8.so"


def test_the_loaded_sycl_runtime_is_seen(xpu) -> None:
    runtime.library()
    found = sycl.find_sycl()
    assert found is not None
    assert sycl._is_loaded(found.library.name)
    assert not sycl._is_loaded("libsycl.so.1")


def test_another_sycl_runtime_is_an_error_that_says_what_was_looked_for(environment) -> None:
    package = environment([10], [8, 9])
    with pytest.raises(runtime.KernelError) as caught:
        runtime.xpu_library()
    text = str(caught.value)
    assert "libsycl.so.10" in text
    assert f"libbitsandbytes_intel_xpu_sycl10.so is not in {package}" in text
    assert "serves libsycl.so.8, libsycl.so.9" in text


def test_no_sycl_runtime_is_an_error_that_names_the_folders(environment, tmp_path) -> None:
    environment([], [8, 9])
    with pytest.raises(runtime.KernelError, match=r"libsycl\.so\.N in .*prefix/lib.*pip install intel-sycl-rt"):
        runtime.xpu_library()


def test_no_xpu_library_is_an_error(environment) -> None:
    environment([9], [])
    with pytest.raises(runtime.KernelError, match=r"xpu_syclN\.so was not built with this installation"):
        runtime.xpu_library()


@pytest.mark.parametrize("library", [cpu.LIBRARY, runtime.TORCH_LIBRARY, runtime.xpu_library()], ids=lambda p: p.stem)
def test_the_libraries_show_c_functions_and_nothing_else(library: pathlib.Path) -> None:
    shown = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    names = [line.split()[-1].partition("@")[0] for line in shown.splitlines()]
    assert names
    assert [name for name in names if not re.fullmatch(r"(bnb_|c)[a-z][a-z0-9_]*", name)] == []


def test_the_wheels_tags_and_metadata() -> None:
    """As setuptools reads them from setup.py and pyproject.toml."""
    code = """
import distutils.core, json, setuptools
project = distutils.core.run_setup("setup.py", stop_after="init")
project.parse_config_files()
wheel = project.get_command_obj("bdist_wheel")
wheel.ensure_finalized()
names = ("extras_require", "install_requires", "entry_points", "package_data")
print(json.dumps([wheel.get_tag(), str(project.python_requires), {name: getattr(project, name) for name in names}]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    (python, abi, platform), requires, metadata = json.loads(done.stdout.splitlines()[-1])
    assert (python, abi) == ("py3", "none")
    assert platform.endswith("x86_64")
    assert requires == ">=3.10"
    assert {"torch>=2.10", "bitsandbytes>=0.50"} <= set(metadata["install_requires"])
    assert {"virtual-xpu", "model", "test", "bench", "lint", "wheel"} <= set(metadata["extras_require"])
    assert {"bitsandbytes.backends", "torch.backends", "console_scripts"} <= set(metadata["entry_points"])
    assert "py.typed" in metadata["package_data"]["bitsandbytes_intel"]
