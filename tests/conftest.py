"""What every test shares: the device, reference vectors, new interpreters, hypothesis profiles.

Where torch has no real XPU, the tests run on the virtual one, which must be asked for before torch is imported.
Compiled kernels and the virtual XPU's library are kept in the user's own cache folder: a test that wants an empty one
asks for the fixture ``python`` with ``cache``.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator


def _torch_has_xpu() -> bool:
    spec = importlib.util.find_spec("torch")
    return spec is not None and any(pathlib.Path(spec.origin).parent.glob("lib/libtorch_xpu.*"))


if not _torch_has_xpu():
    os.environ.setdefault("BNB_INTEL_VIRTUAL_XPU", "1")  # 0: the CPU's tests alone can run
    if os.environ["BNB_INTEL_VIRTUAL_XPU"] == "1" and "torch" in sys.modules:  # a plugin of pytest's was first
        from bitsandbytes_intel import virtual_xpu

        virtual_xpu.enable()

import bitsandbytes  # noqa: E402, F401
import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import vectors  # noqa: E402
from helpers import share_virtual_xpu  # noqa: E402

from bitsandbytes_intel import cpu, env, ops  # noqa: E402

# The first call of an operator may build a kernel, so a deadline would hold for nothing.
_COMMON = {"deadline": None, "derandomize": True, "print_blob": True}
hypothesis.settings.register_profile("default", max_examples=30, **_COMMON)
hypothesis.settings.register_profile("nightly", max_examples=1_000, **{**_COMMON, "derandomize": False})
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_report_header() -> str:
    name = torch.xpu.get_device_name(0) if torch.xpu.is_available() else "none"
    return f"xpu: {name}; kernels: {env.cache_dir()}"


@pytest.fixture(scope="session")
def xpu() -> str:
    """The device xpu, with our operators registered on it."""
    assert torch.xpu.is_available(), "there is no XPU, and the virtual one did not start"
    assert "xpu" in ops.registered(), ops.failures()
    return "xpu"


@pytest.fixture(scope="session", params=["xpu", *(f"cpu-{isa}" for isa in cpu.isas())])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device under test with our operators on it: the XPU, and the CPU with each of its instruction sets."""
    name, _, isa = request.param.partition("-")
    if name == "xpu":
        yield request.getfixturevalue("xpu")
        return
    assert name in ops.registered(), ops.failures()
    with cpu.using(isa):
        yield name


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small work on one thread: threads that wait for each other take long on a machine that is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def reference_vectors() -> vectors.Vectors:
    """Inputs and outputs of bitsandbytes' CUDA kernels; see data/README.md."""
    return vectors.load()


@pytest.fixture
def quiet(xpu: str) -> Iterator[None]:
    """For whole models: one thread, no log lines of bitsandbytes, and an XPU beside the CPU."""
    import programs

    with programs.quiet():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tiny Llama, saved."""
    import programs

    return programs.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def python(tmp_path):
    """Runs code in a new interpreter: ``python(code, cache=None, check=True, timeout=…, **environment)``.

    With ``cache`` (a folder), kernels are kept there, and the virtual XPU's library comes from the user's own cache.
    An environment variable that is given as None is unset.
    """

    def run(code: str, *args: str, cache=None, check=True, timeout=240, **environment) -> subprocess.CompletedProcess:
        env_of_child = {**os.environ, "PYTHONFAULTHANDLER": "1"}
        if cache is not None:
            share_virtual_xpu(pathlib.Path(cache))
            env_of_child["BNB_INTEL_CACHE_DIR"] = str(cache)
        for name, value in environment.items():
            env_of_child.pop(name, None)
            if value is not None:
                env_of_child[name] = str(value)
        done = subprocess.run(
            [sys.executable, "-c", code, *args], env=env_of_child, capture_output=True, text=True, timeout=timeout
        )
        if check and done.returncode:
            pytest.fail(f"exit status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}")
        return done

    return run
