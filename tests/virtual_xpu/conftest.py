"""The virtual XPU's own tests: they need a CPU build of torch, intel-sycl-rt and intel-opencl-rt."""

import importlib.metadata
import os
import pathlib
import subprocess
import sys

import pytest
import torch

import bitsandbytes_intel
from bitsandbytes_intel import virtual_xpu

_HERE = pathlib.Path(__file__).parent
_failure = None
_skip = None
if torch._C._has_xpu and not virtual_xpu.is_enabled():
    _skip = "this torch has real XPU support"
else:
    try:
        virtual_xpu.enable()
    except RuntimeError as error:
        _failure = str(error)  # for the tests to report: raised here it would end the whole session
        for package in ("intel-sycl-rt", "intel-opencl-rt"):
            try:
                importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                _skip = f"{package} is not installed"


def pytest_collection_modifyitems(items):
    if _skip is not None:
        for item in items:
            if _HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=_skip))


@pytest.fixture(autouse=True)
def _fresh():
    if _failure is not None:
        pytest.fail(_failure)
    torch.manual_seed(0)
    virtual_xpu.reset_fallback_counts()
    yield
    torch.xpu.synchronize()


@pytest.fixture
def python():
    """Runs code in a new interpreter, in which the package can be imported and the device is not yet enabled."""

    def run(code, *, enable=True, timeout=120, **env):
        environment = {**os.environ, "BNB_INTEL_AUTOLOAD": "0", **env}
        environment.pop("BNB_INTEL_VIRTUAL_XPU", None)
        source = str(pathlib.Path(bitsandbytes_intel.__file__).parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source, environment.get("PYTHONPATH")]))
        start = "import torch\nfrom bitsandbytes_intel import virtual_xpu\n"
        start += "virtual_xpu.enable()\n" if enable else ""
        return subprocess.run(
            [sys.executable, "-c", start + code], env=environment, capture_output=True, text=True, timeout=timeout
        )

    return run
