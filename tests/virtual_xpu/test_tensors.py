"""Tensors: copies, views, in-place and out= forms, files, and what is refused."""

import copy
import io
import pickle

import pytest
import torch

from bitsandbytes_intel import virtual_xpu

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64]
DTYPES += [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("numel", [0, 1, 5, 300_000])
def test_copies_round_trip(dtype, numel):
    host = torch.randint(0, 2, (numel,)).to(dtype)
    device = host.to("xpu")
    assert device.device == torch.device("xpu:0")
    assert device.dtype == dtype
    assert torch.equal(device.cpu().view(torch.uint8), host.view(torch.uint8))
    assert torch.equal(device.clone().cpu().view(torch.uint8), host.view(torch.uint8))


@pytest.mark.parametrize("to_dtype", [torch.float16, torch.int32, torch.float64], ids=str)
def test_copies_convert_and_permute(to_dtype):
    host = torch.randn(6, 7, 8) * 10
    device = host.to("xpu")
    assert torch.equal(device.to(to_dtype).cpu(), host.to(to_dtype))
    assert torch.equal(device.permute(2, 0, 1).cpu(), host.permute(2, 0, 1))
    assert device.permute(2, 0, 1).cpu().stride() == host.permute(2, 0, 1).stride()
    out = torch.zeros(8, 7, 6, dtype=to_dtype, device="xpu").permute(2, 1, 0)
    out.copy_(host)
    assert torch.equal(out.cpu(), host.to(to_dtype))
    back = torch.zeros(6, 14, 8, dtype=to_dtype)[:, ::2]
    back.copy_(device)
    assert torch.equal(back, host.to(to_dtype))
    assert torch.equal(torch.zeros(3, 4, device="xpu").copy_(torch.arange(4.0)).cpu(), torch.arange(4.0).expand(3, 4))


def test_conjugate_and_negative_views():
    host = torch.randn(4, 5, dtype=torch.complex64)
    device = host.to("xpu")
    assert torch.equal(device.conj().cpu().resolve_conj(), host.conj().resolve_conj())
    assert torch.equal(device.conj().imag.cpu(), host.conj().imag)
    torch.testing.assert_close((device.mH @ device).cpu(), host.mH @ host)


def test_views_share_memory():
    base = torch.arange(24.0, device="xpu")
    views = [base.view(4, 6), base.reshape(2, 12), base[3:], base.unfold(0, 4, 2), base.as_strided((2, 2), (3, 1))]
    views += [base.view(torch.int32), base.unsqueeze(0), base.expand(2, 24), base.detach(), base.view(4, 6).t()]
    for view in views:
        assert view.untyped_storage().data_ptr() == base.data_ptr()
    assert virtual_xpu.fallback_counts() == {"aten::arange.start_out": 1}, "views run no kernel"
    views[0][1, 2] = 100
    assert base[8].item() == 100
    assert views[2].data_ptr() == base.data_ptr() + 12
    assert torch.equal(base.view(4, 6).t().contiguous().cpu(), base.cpu().view(4, 6).t())


def test_in_place_and_out():
    x = torch.arange(6.0, device="xpu")
    address = x.data_ptr()
    assert x.add_(1) is x
    assert x.mul_(2).data_ptr() == address
    x[x > 8] = 0
    assert x.tolist() == [2, 4, 6, 8, 0, 0]
    out = torch.empty(6, device="xpu")
    assert torch.add(x, 1, out=out) is out
    assert out.tolist() == [3, 5, 7, 9, 1, 1]
    out = torch.empty(0, device="xpu")
    torch.cat([x, x], out=out)
    assert out.tolist() == x.tolist() * 2
    values, indices = torch.empty(0, device="xpu"), torch.empty(0, dtype=torch.int64, device="xpu")
    torch.sort(x, descending=True, out=(values, indices))
    assert values.tolist() == [8, 6, 4, 2, 0, 0]
    assert indices[0].item() == 3
    with pytest.warns(UserWarning, match="An output with one or more elements was resized"):
        torch.mul(x, 2, out=torch.empty(2, device="xpu"))


def test_resize_and_set():
    x = torch.arange(6.0, device="xpu")
    x.resize_(2, 2)
    assert x.tolist() == [[0, 1], [2, 3]]
    x.resize_(100)
    assert x.shape == (100,)
    assert x[:6].tolist() == [0, 1, 2, 3, 4, 5]
    assert x.untyped_storage().nbytes() == 400
    y = torch.empty(0, device="xpu").set_(x.untyped_storage(), 2, (3,), (1,))
    assert y.tolist() == [2, 3, 4]
    assert y.data_ptr() == x.data_ptr() + 8
    assert y.set_().numel() == 0
    x.untyped_storage().resize_(0)
    assert x.untyped_storage().nbytes() == 0
    x.untyped_storage().resize_(400)
    z = torch.zeros(3, device="xpu")
    z.data = torch.ones(5, device="xpu")
    assert z.tolist() == [1] * 5


def test_operators_against_the_cpu():
    f = torch.nn.functional
    a, b = torch.randn(9, 16), torch.randn(16, 5)
    table, ids = torch.randn(11, 16), torch.tensor([3, 0, 10])
    q = torch.randn(2, 4, 6, 8)
    i8, j8 = torch.randint(-128, 128, (32, 64), dtype=torch.int8), torch.randint(-128, 128, (64, 32), dtype=torch.int8)
    image, kernel = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    mask = torch.rand(6, 6) > 0.3
    mask[:, 0] = True
    cases = [
        (lambda x, y: x @ y, a, b),
        (lambda x, y: torch.addmm(y, x, y.new_ones(16, 5)), a, torch.randn(5)),
        (lambda x, y: f.linear(x, y.t()), a, b),
        (lambda x, y: torch._int_mm(x, y), i8, j8),
        (lambda x, y: f.embedding(x, y), ids, table),
        (lambda x: f.layer_norm(x, (16,)), a),
        (lambda x: f.rms_norm(x, (16,)), a),
        (lambda x: f.gelu(x), a),
        (lambda x: f.softmax(x, -1), a),
        (lambda x: x.argmax(-1), a),
        (lambda x: torch.cat([x, x], 1), a),
        (lambda x, i: x[i], table, ids),
        (lambda x: x.topk(3).values, a),
        (lambda x: f.scaled_dot_product_attention(x, x, x, is_causal=True), q),
        (lambda x, m: f.scaled_dot_product_attention(x, x, x, attn_mask=m), q, mask),
        (lambda x: f.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True), q),
        (lambda x, w: f.conv2d(x, w, padding=1), image, kernel),
        (lambda x: torch.linalg.svdvals(x), a),
        (lambda x: x.nonzero(), a > 0),
        (lambda x: torch.fft.rfft(x), a),
    ]
    for function, *inputs in cases:
        torch.testing.assert_close(function(*(x.to("xpu") for x in inputs)).cpu(), function(*inputs))


def test_factories_and_default_device():
    for make in (torch.zeros, torch.ones, torch.rand, torch.empty):
        assert make(3, device="xpu").device.type == "xpu"
    assert torch.tril_indices(3, 3, device="xpu").tolist() == torch.tril_indices(3, 3).tolist()
    assert torch.tensor([1, 2], device="xpu").tolist() == [1, 2]
    torch.set_default_device("xpu")
    try:
        assert torch.arange(3).device.type == "xpu"
        assert torch.nn.Linear(2, 2).weight.device.type == "xpu"
    finally:
        torch.set_default_device(None)


def test_deterministic_mode_fills_fresh_memory():
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(50, device="xpu").isnan().all()
        assert torch.empty_strided((5, 5), (1, 5), device="xpu").isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_inference_mode():
    x = torch.ones(3, device="xpu")
    with torch.inference_mode():
        y = x.clone().mul_(2)
        y[0] = 7
        x.add_(1)
    assert (x + y.clone()).tolist() == [9, 4, 4]


def test_save_load_and_copies_of_objects():
    x = torch.randn(4, 5, device="xpu")
    views = {"base": x, "row": x[1]}
    buffer = io.BytesIO()
    torch.save(views, buffer)
    for location, device in ((None, "xpu"), ("cpu", "cpu"), ("xpu", "xpu")):
        buffer.seek(0)
        loaded = torch.load(buffer, map_location=location)
        assert loaded["base"].device.type == device
        assert torch.equal(loaded["base"].cpu(), x.cpu())
        loaded["base"][1] = 7
        assert loaded["row"].tolist() == [7] * 5, "tensors that shared their memory still do"
    assert torch.equal(pickle.loads(pickle.dumps(x)).cpu(), x.cpu())
    twin = copy.deepcopy(torch.nn.Parameter(x))
    assert twin.device == x.device
    assert twin.data_ptr() != x.data_ptr()
    assert torch.equal(twin, x)
    assert torch.nn.Parameter(x.cpu()).to("xpu").is_leaf is False
    assert torch.randn(3).xpu().device.type == "xpu"
    assert str(x)
    assert torch.equal(torch.from_dlpack(x), x)
    with pytest.raises(TypeError, match="can't convert xpu"):
        x.numpy()


def test_safetensors_round_trip(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    x = torch.randn(4, 5, device="xpu")
    safetensors.save_file({"x": x}, tmp_path / "x.safetensors")
    loaded = safetensors.load_file(tmp_path / "x.safetensors", device="xpu")["x"]
    assert loaded.device == x.device
    assert torch.equal(loaded, x)


def test_pinned_memory():
    pinned = torch.randn(100).pin_memory()
    assert pinned.is_pinned()
    assert not torch.randn(3).is_pinned()
    assert not torch.randn(3, device="xpu").is_pinned()
    assert torch.equal(pinned.to("xpu", non_blocking=True).cpu(), pinned)


def test_counts_fallbacks():
    assert virtual_xpu.is_enabled()
    assert virtual_xpu.fallback_counts() == {}
    x = torch.empty(4, 4, device="xpu")
    assert virtual_xpu.fallback_counts() == {}
    x @ x
    x @ x
    assert virtual_xpu.fallback_counts() == {"aten::mm.out": 2}
    virtual_xpu.reset_fallback_counts()
    assert virtual_xpu.fallback_counts() == {}


def test_only_aten_borrows_cpu_kernels():
    with torch.library._scoped_library("vxpu_test", "FRAGMENT") as library:
        library.define("only_cpu(Tensor x) -> Tensor")
        library.impl("only_cpu", lambda x: x + 1, "CPU")
        library.define("composite(Tensor x) -> Tensor")
        library.impl("composite", lambda x: x + 1, "CompositeExplicitAutograd")
        assert torch.ops.vxpu_test.only_cpu(torch.zeros(1)).item() == 1
        with pytest.raises(NotImplementedError, match=r"Could not run 'vxpu_test::only_cpu'.*'XPU' backend"):
            torch.ops.vxpu_test.only_cpu(torch.zeros(1, device="xpu"))
        assert torch.ops.vxpu_test.composite(torch.zeros(1, device="xpu")).item() == 1
    with pytest.raises(NotImplementedError, match="XPU"):
        torch.empty(2, layout=torch.sparse_coo, device="xpu")


def test_refuses_mixed_devices():
    device, host = torch.ones(3, device="xpu"), torch.ones(3)
    for function in (
        lambda: device + host,
        lambda: device.add_(host),
        lambda: host.add_(device),
        lambda: torch.mm(device[None], host[:, None]),
        lambda: torch.cat([device, host]),
        lambda: torch.add(host, host, out=device),
        lambda: torch.nn.functional.embedding(host.long(), device[:, None]),
    ):
        with pytest.raises(RuntimeError, match=r"(?i)same device"):
            function()
    assert (device + torch.tensor(2.0)).tolist() == [3, 3, 3], "a CPU scalar goes with every device"
    assert device[torch.tensor([0, 2])].tolist() == [1, 1], "and so do indices"
    device[torch.tensor([True, False, False])] = 5
    assert device.tolist() == [5, 1, 1]
