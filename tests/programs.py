"""Tiny models for the tests of whole programs, and the programs in examples/ as processes."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing here needs a hub

import pytest
import torch
import transformers
from bitsandbytes.nn import Linear4bit, Linear8bitLt

import bitsandbytes_intel
from bitsandbytes_intel import reference

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
DEVICES = ("cpu", "xpu")
VOCABULARY = 96

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """One thread, which is faster for tiny models, and none of bitsandbytes' log lines."""
    threads, log = torch.get_num_threads(), logging.getLogger("bitsandbytes")
    level = log.level
    torch.set_num_threads(1)
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        log.setLevel(level)


def llama(folder: pathlib.Path, width: int = 64, inner: int = 128, seed: int = 0) -> pathlib.Path:
    """Save a Llama of two layers with random weights; returns the folder."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.1,  # larger than a real one's, so that a layer's errors show
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder


def ids(rows: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Random token ids, on the CPU."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def load(folder: pathlib.Path, device: str, dtype: torch.dtype = torch.float32, **how: Any) -> Any:
    """A causal model on a device; `how` is BitsAndBytesConfig's, and may be empty."""
    more = {"quantization_config": transformers.BitsAndBytesConfig(**how)} if how else {}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, device_map=device, dtype=dtype, **more).eval()


def four_bit(**more: Any) -> dict[str, Any]:
    """How a 4-bit model is usually loaded; computing in float32."""
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.float32,
        **more,
    }


def weight_of(layer: torch.nn.Module) -> torch.Tensor:
    """What the weight of a quantised layer stands for, by the reference: fp32, on the CPU."""
    if isinstance(layer, Linear8bitLt):
        statistics = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
        return layer.weight.data.cpu().float() * (statistics.cpu().float()[:, None] / 127)
    state = layer.weight.quant_state
    absmax = state.absmax.cpu()
    if state.nested:
        inner = state.state2
        absmax = reference.dequantize_blockwise(
            absmax, inner.absmax.cpu(), inner.code.cpu(), inner.blocksize, torch.float32
        )
        absmax = absmax + state.offset.float().cpu()
    packed = layer.weight.data.cpu().view(torch.uint8)
    return reference.dequantize_4bit(packed, absmax, state.blocksize, state.quant_type, state.shape, torch.float32)


def plain(folder: pathlib.Path, quantised: torch.nn.Module) -> torch.nn.Module:
    """The same model with fp32 layers of torch, and the weights that the quantised one's stand for; on the CPU."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    layers = dict(model.named_modules())
    count = 0
    for name, layer in quantised.named_modules():
        if isinstance(layer, (Linear4bit, Linear8bitLt)):
            layers[name].weight.data.copy_(weight_of(layer))
            count += 1
    assert count == 14, "two layers of seven linear layers each"
    return model


def logits(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Of a batch of tokens: fp32, on the CPU."""
    with torch.no_grad():
        return model(input_ids=tokens.to(model.device), use_cache=False).logits.float().cpu()


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference by the norm of what was expected."""
    return float(((result - expected).norm() / expected.norm()).detach())


def run(*command: str, timeout: float = 240, **environment: str) -> str:
    """Run a command with this interpreter's environment, and this package; returns its standard output."""
    source = str(pathlib.Path(bitsandbytes_intel.__file__).parents[1])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if done.returncode:
        pytest.fail(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
    return done.stdout
