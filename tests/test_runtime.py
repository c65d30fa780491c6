"""The kernel runtime: catalogue, build, the two kept formats, and what it says when something is missing."""

import ctypes
import dataclasses
import os
import pathlib

import pytest

from bitsandbytes_intel import ops, runtime, sycl

FAMILY = "gemv_4bit/float32/any"


@pytest.fixture(scope="module")
def opened():
    queue = runtime.new_queue()
    yield runtime.open_device(queue)
    runtime.library().bnb_xpu_delete_queue(queue)


def test_a_device_is_described(opened):
    assert opened.kind in runtime.KINDS
    assert opened.backend
    assert opened.name
    assert runtime.describe(opened.index) == opened
    assert runtime.open_device(runtime.new_queue()).index == opened.index


@pytest.mark.parametrize("kind", runtime.KINDS)
def test_catalogue(kind):
    families = runtime.catalogue(kind)
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    for family in families:
        assert family.kernels
        assert all(name.split("<")[0].split("::")[-1] in family.source for name in family.kernels)


def test_catalogue_of_an_unknown_kind():
    with pytest.raises(ValueError, match="cpu, gpu16, gpu32, xmx16, mma32, got 'tpu'"):
        runtime.catalogue("tpu")


def test_keys_differ_with_everything_that_matters(opened):
    family = runtime.catalogue(opened.kind)[0]
    keys = {runtime.key(opened, family)}
    for field in ("kind", "backend", "name", "version", "driver"):
        keys.add(runtime.key(dataclasses.replace(opened, **{field: "another"}), family))
    keys.add(runtime.key(opened, dataclasses.replace(family, source=family.source + " ")))
    keys.add(runtime.key(opened, dataclasses.replace(family, kernels=("another",))))
    assert len(keys) == 8
    assert runtime.key(dataclasses.replace(opened, index=opened.index + 1), family) in keys


def test_build_a_second_time(opened):
    assert runtime.build(opened, FAMILY) in {"present", "loaded", "compiled"}
    assert runtime.build(opened, FAMILY) == "present"


def test_unknown_family(opened):
    with pytest.raises(runtime.KernelError, match="no kernel family 'nonsense'"):
        runtime.compile_family(opened.index, "nonsense")


def test_unknown_device():
    with pytest.raises(runtime.KernelError, match="no opened device 63"):
        runtime.compile_family(63, FAMILY)


@pytest.mark.parametrize("kept", [b"", b"bnbxpu01", b"nonsense, and long enough to be something"])
def test_loading_nonsense(opened, kept):
    with pytest.raises(runtime.KernelError):
        runtime.load_family(opened.index, FAMILY, kept)


@pytest.mark.parametrize("spirv", [False, True], ids=["best", "spirv"])
def test_a_kept_build_is_loaded_by_another_process(spirv, python, tmp_path):
    """Both formats give kernels that compute the same."""
    compile_it = f"""
from bitsandbytes_intel import runtime
device = runtime.open_device(runtime.new_queue())
open({str(tmp_path / "kept")!r}, "wb").write(runtime.compile_family(device.index, {FAMILY!r}, spirv={spirv}))
"""
    load_it = f"""
import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import torch, guarded, helpers
from bitsandbytes_intel import runtime
kernels = guarded.Kernels()
runtime.load_family(kernels.device.index, {FAMILY!r}, open({str(tmp_path / "kept")!r}, "rb").read())
assert runtime.build(kernels.device, {FAMILY!r}) == "present"
w = helpers.Weight.random(10, 33)
A, out = torch.randn(1, 33), torch.empty(1, 10)
kernels.product("gemv_4bit", torch.float32, 1, 10, 33, A.data_ptr(), w.packed.data_ptr(), [w.absmax.data_ptr()], None,
                "nf4", out.data_ptr(), 64, None)
helpers.check_product(out, A, w.exact())
"""
    python(compile_it, BNB_INTEL_VIRTUAL_XPU=None)
    python(load_it, BNB_INTEL_VIRTUAL_XPU=None)
    content = (tmp_path / "kept").read_bytes()
    assert content.startswith(b"bnbxpu01")
    if spirv:
        assert content[8] == 2


@pytest.mark.parametrize("kind", ["gpu16", "gpu32"])
def test_spirv_for_offline_compilers(opened, kind):
    modules = runtime.spirv(opened.index, FAMILY, kind)
    assert modules
    assert all(module[:4] == b"\x03\x02\x23\x07" for module in modules)


def test_c_entries_return_messages():
    """A wrong argument is a status and a text, never an exception across C."""
    lib, message = runtime.library(), ctypes.create_string_buffer(500)
    queue = runtime.new_queue()
    arguments = [None, None, None, None, ctypes.c_int64(64), ctypes.c_int64(1), ctypes.c_void_p(queue)]
    assert lib.cdequantize_blockwise(9, 0, *arguments, message, 500) == 1
    assert b"dtype 9" in message.value
    assert lib.cdequantize_blockwise(0, 7, *arguments, message, 500) == 1
    assert b"data_type 7" in message.value


def test_a_missing_library_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "_PACKAGE", tmp_path)
    with pytest.raises(runtime.KernelError, match=r"was not built.*[Ii]nstall"):
        runtime.library.__wrapped__()


def test_a_broken_library_says_why(monkeypatch, tmp_path):
    (tmp_path / runtime.xpu_library().name).write_bytes(b"no library")
    monkeypatch.setattr(runtime, "_PACKAGE", tmp_path)
    with pytest.raises(runtime.KernelError, match=r"does not load: .*(invalid ELF|too short)"):
        runtime.library.__wrapped__()


def test_a_missing_sycl_runtime_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sycl, "find_sycl", lambda: None)
    with pytest.raises(runtime.KernelError, match="pip install intel-sycl-rt"):
        runtime.library.__wrapped__()


def test_the_users_choice_of_opencl_devices_is_kept(monkeypatch):
    monkeypatch.setenv("OCL_ICD_FILENAMES", "/of/the/user.so")
    sycl.show_cpu_device()
    assert os.environ["OCL_ICD_FILENAMES"] == "/of/the/user.so"


def test_find_sycl():
    found = sycl.find_sycl()
    assert found is not None
    assert found.library.name == f"libsycl.so.{found.major}"
    assert (found.include / "sycl" / "sycl.hpp").is_file()


class Deletions:
    """Our library for the XPU, which counts the queues that are given back."""

    def __init__(self, library):
        self._library, self.queues = library, []

    def __getattr__(self, name):
        return getattr(self._library, name)

    def bnb_xpu_delete_queue(self, queue):
        self.queues.append(queue)
        self._library.bnb_xpu_delete_queue(queue)


def test_a_first_device_that_is_no_cpu_keeps_no_queue(opened, monkeypatch):
    counted = Deletions(runtime.library())
    monkeypatch.setattr(runtime, "library", lambda: counted)
    monkeypatch.setattr(runtime, "open_device", lambda queue: dataclasses.replace(opened, kind="gpu16", name="Arc"))
    with pytest.raises(runtime.KernelError, match="first device is Arc, and no CPU"), ops.sycl_on_cpu():
        pass
    assert len(counted.queues) == 1
