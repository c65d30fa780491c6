"""Transformers with bitsandbytes on cpu and xpu: load, generate, save, load what CUDA quantised."""

from __future__ import annotations

import json

import bitsandbytes.functional as F
import programs
import pytest
import torch
import transformers
import vectors
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from helpers import FLOATS, QUANT_TYPES, exactly_equal, short
from programs import DEVICES, four_bit, ids, load, logits, relative_error
from safetensors.torch import save_file

EIGHT_BIT = {"load_in_8bit": True, "llm_int8_threshold": 2.0}  # low enough that tiny models have outliers

pytestmark = pytest.mark.usefixtures("quiet")


def how(bits):
    return four_bit() if bits == 4 else EIGHT_BIT


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_4_bit_model_against_fp32_of_its_weights(folder, quant_type, nested, dtype, device):
    settings = four_bit(bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=nested, bnb_4bit_compute_dtype=dtype)
    model = load(folder, device, **settings)
    assert {layer.weight.device.type for layer in model.modules() if isinstance(layer, Linear4bit)} == {device}
    expected = programs.plain(folder, model)
    # Activations and results of each of 14 products are rounded to the compute dtype.
    bound = 14 * torch.finfo(dtype).eps
    for tokens in (ids(), ids(1, 1), ids(1, 70)):  # a prompt, a token, more rows than the small kernels take
        assert relative_error(logits(model, tokens), logits(expected, tokens)) < bound


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize(("width", "inner"), [(72, 269), (144, 272), (360, 360)], ids=str)
def test_widths_that_are_no_multiple_of_the_blocksize(tmp_path, width, inner, quant_type, device):
    """1152 x 4304 by 16 and 2880 x 2880 by 8, and a width that is a multiple of 16 alone: blocks straddle rows."""
    folder = programs.llama(tmp_path, width, inner)
    model = load(folder, device, **four_bit(bnb_4bit_quant_type=quant_type))
    expected = programs.plain(folder, model)
    assert relative_error(logits(model, ids()), logits(expected, ids())) < 1e-5
    full = transformers.AutoModelForCausalLM.from_pretrained(folder)
    quantised, whole = (dict(each.named_modules())["model.layers.0.mlp.down_proj"].weight for each in (expected, full))
    assert relative_error(quantised, whole) < (0.11 if quant_type == "nf4" else 0.14)


@pytest.mark.parametrize("threshold", [0.0, 2.0])
@pytest.mark.parametrize("device", DEVICES)
def test_8_bit_model_against_fp32_of_its_weights(folder, device, threshold):
    model = load(folder, device, torch.float16, load_in_8bit=True, llm_int8_threshold=threshold)
    expected = logits(programs.plain(folder, model), ids())
    error = relative_error(logits(model, ids()), expected)
    assert error < 0.03  # of activations in 8 bits
    if device == "xpu":
        other = load(folder, "cpu", torch.float16, load_in_8bit=True, llm_int8_threshold=threshold)
        assert relative_error(logits(model, ids()), logits(other, ids())) < error


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", [4, 8])
def test_generate(folder, bits, device):
    model = load(folder, device, **how(bits))
    start = ids().to(device)
    mask = torch.ones_like(start)
    greedy = model.generate(start, attention_mask=mask, max_new_tokens=10, do_sample=False).cpu()
    assert greedy.shape == (2, 22)
    if bits == 4:
        expected = programs.plain(folder, model)
        exactly_equal(greedy, expected.generate(ids(), attention_mask=mask.cpu(), max_new_tokens=10, do_sample=False))
    sampled = []
    for _ in range(2):
        torch.manual_seed(1)
        sampled.append(model.generate(start, attention_mask=mask, max_new_tokens=10, do_sample=True).cpu())
    exactly_equal(*sampled)
    assert not torch.equal(sampled[0], greedy)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "settings",
    [four_bit(), four_bit(bnb_4bit_use_double_quant=False, bnb_4bit_quant_type="fp4"), EIGHT_BIT],
    ids=["nf4", "fp4", "int8"],
)
def test_saved_and_loaded_on_both_devices(folder, tmp_path, settings, device):
    """Also on a CPU with AVX512-BF16 after eval, where bitsandbytes alone would have changed the weight."""
    model = load(folder, device, **settings)
    expected = logits(model, ids())
    model.save_pretrained(tmp_path)
    before = {name: value.cpu() for name, value in model.state_dict().items()}
    for where in DEVICES:
        again = load(tmp_path, where)
        after = again.state_dict()
        assert before.keys() == after.keys()
        for name, value in before.items():
            exactly_equal(after[name], value)
        if where == device:
            exactly_equal(logits(again, ids()), expected)
        else:
            assert relative_error(logits(again, ids()), expected) < (1e-5 if "load_in_4bit" in settings else 0.02)


@pytest.mark.parametrize("to", [("xpu", "cpu"), ("cpu", "xpu")], ids="-".join)
def test_a_model_moves(folder, to):
    model = load(folder, to[0], **four_bit())
    expected = logits(model, ids())
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    model.to(to[1])
    assert relative_error(logits(model, ids()), expected) < 1e-5
    model.to(to[0])
    exactly_equal(logits(model, ids()), expected)
    for name, value in model.state_dict().items():
        exactly_equal(value, state[name])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("storage", FLOATS, ids=short)
def test_quant_storage(folder, storage, device):
    """FSDP's: the same bytes under another dtype."""
    plain, stored = (load(folder, device, **four_bit(bnb_4bit_quant_storage=each)) for each in (torch.uint8, storage))
    one, other = (model.model.layers[0].mlp.up_proj.weight for model in (plain, stored))
    assert other.dtype == storage
    exactly_equal(other.data.view(torch.uint8).flatten(), one.data.flatten())
    exactly_equal(logits(stored, ids()), logits(plain, ids()))


def test_xpu_memory_is_no_more_than_the_weights(folder):
    """Transformers warms up the allocator with one large block: it is of the quantised size, and used."""
    torch.xpu.empty_cache()
    before = torch.xpu.memory_allocated()
    model = load(folder, "xpu", **four_bit())
    held = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    # Each tensor is rounded up; the statistics that the state dict packs together are tensors of their own.
    assert torch.xpu.memory_allocated() - before < 2 * held + 512 * 8 * len(model.state_dict())


class OneLayer(transformers.PreTrainedModel):
    """A model of one linear layer, for weights that CUDA quantised."""

    config_class = transformers.PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(config.k, config.n, bias=config.with_bias)
        self.post_init()

    def forward(self, x):
        return self.layer(x)

    def _init_weights(self, module):
        """Nothing: every weight is in the checkpoint."""


def checkpoint(folder, n, k, tensors, dtype, quantization):
    """A folder as save_pretrained leaves it."""
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    config = {
        "n": n,
        "k": k,
        "with_bias": "layer.bias" in tensors,
        "architectures": ["OneLayer"],
        "dtype": short(dtype),
        "quantization_config": transformers.BitsAndBytesConfig(**quantization).to_dict(),
    }
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", vectors.names("gemm_4bit"))
def test_a_checkpoint_that_cuda_quantised_to_4_bits(tmp_path, reference_vectors, name, device):
    case = reference_vectors.cases[name]
    a, t = case.arguments, case.tensors
    state = F.QuantState(
        absmax=t["absmax"],
        shape=torch.Size((a["N"], a["K"])),
        code=F.get_4bit_type(a["quant_type"], device="cpu"),
        blocksize=a["blocksize"],
        quant_type=a["quant_type"],
        dtype=case.dtype,
    )
    if a["nested"]:
        state.state2 = F.QuantState(absmax=t["absmax"], code=t["absmax_code"], blocksize=256, dtype=torch.float32)
        state.absmax, state.offset, state.nested = t["absmax_8bit"], t["absmax_offset"], True
    tensors = {f"layer.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    tensors["layer.weight"] = t["B"]
    if "bias" in t:
        tensors["layer.bias"] = t["bias"]
    settings = four_bit(
        bnb_4bit_quant_type=a["quant_type"],
        bnb_4bit_use_double_quant=a["nested"],
        bnb_4bit_compute_dtype=case.dtype,
        llm_int8_skip_modules=["none"],
    )
    checkpoint(tmp_path, a["N"], a["K"], tensors, case.dtype, settings)
    model = OneLayer.from_pretrained(tmp_path, device_map=device, dtype=case.dtype).eval()
    assert isinstance(model.layer, Linear4bit)
    with torch.no_grad():
        vectors.check_against_cuda(model(t["A"].to(device)).cpu(), case)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", vectors.names("int8"))
def test_a_checkpoint_that_cuda_quantised_to_8_bits(tmp_path, reference_vectors, name, device):
    case = reference_vectors.cases[name]
    a, t = case.arguments, case.tensors
    tensors = {
        "layer.weight": t["CB"],
        "layer.SCB": t["SCB"],
        "layer.weight_format": torch.tensor(0, dtype=torch.uint8),
        "layer.bias": t["bias"],
    }
    settings = {
        "load_in_8bit": True,
        "llm_int8_threshold": a["threshold"],
        "llm_int8_skip_modules": ["none"],
    }
    checkpoint(tmp_path, a["N"], a["K"], tensors, case.dtype, settings)
    model = OneLayer.from_pretrained(tmp_path, device_map=device, dtype=case.dtype).eval()
    assert isinstance(model.layer, Linear8bitLt)
    with torch.no_grad():
        result = model(t["A"].to(device)).cpu()
    if a["threshold"]:
        torch.testing.assert_close(result, t["mixed"], rtol=4e-3, atol=2e-2)
    else:
        torch.testing.assert_close(result, t["scaled_mm"], rtol=2e-3, atol=2e-3)
