"""What 4 and 8 bits cost two real models, with our operators and with CUDA's arithmetic in plain torch.

The models are the sentence encoder all-MiniLM-L6-v2, and a language model of bytes that is trained here, on the
sources of Python's own standard library. Each is quantised and run three times: by our operators, by the functions of
:mod:`bitsandbytes_intel.reference`, which do what CUDA's kernels do, and by bitsandbytes' own operators for the CPU.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor, nn

from .. import ops, reference, repacking

KINDS = ("nf4", "fp4", "int8")
IMPLEMENTATIONS = ("ours", "CUDA's codes", "upstream")
# Of two roundings of the same codes, either may be nearer to full precision by chance.
ROOM = 0.005
_WINDOW = 128  # bytes
_REFERENCES = (
    "quantize_4bit",
    "quantize_blockwise",
    "dequantize_4bit",
    "dequantize_blockwise",
    "gemm_4bit",
    "int8_linear_matmul",
    "int8_vectorwise_quant",
    "int8_mm_dequant",
    "int8_scaled_mm",
    "int8_mixed_scaled_mm",
)


@dataclass(frozen=True)
class Cost:
    """What one kind of quantisation by one implementation made of a model."""

    model: str
    kind: str
    implementation: str
    error: float  # of the output, relative to full precision's: the norm of the difference over the norm
    perplexity: float | None  # for a byte
    same_codes: bool | None  # whether every code is that of the reference


@contextlib.contextmanager
def answering(implementation: str) -> Iterator[None]:
    """Let one implementation answer for the CPU: a name of :data:`IMPLEMENTATIONS`."""
    if implementation == "ours":
        yield
        return
    ops.unregister()
    library = None
    try:
        if implementation == "CUDA's codes":
            repacking.install()  # bitsandbytes' own layout for CPUs is for its own operator
            library = torch.library.Library("bitsandbytes", "IMPL")
            for name in _REFERENCES:
                library.impl(name, getattr(reference, name), "CPU", allow_override=True)
        yield
    finally:
        if library is not None:
            library._destroy()
            repacking.uninstall()
        ops.register()


def quantised(model: nn.Module, kind: str, keep: tuple[str, ...] = ()) -> nn.Module:
    """A copy of a float32 model with its linear layers in 4 or 8 bits, quantised on the CPU by whoever answers."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # a line for each product
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is not nn.Linear or name in keep:
                continue
            shape, bias = (layer.in_features, layer.out_features), layer.bias is not None
            new: nn.Module
            if kind == "int8":
                new = bnb.nn.Linear8bitLt(*shape, bias=bias, has_fp16_weights=False, threshold=6.0)
            else:
                new = bnb.nn.Linear4bit(*shape, bias=bias, compute_dtype=torch.float32, quant_type=kind)
            new.load_state_dict(layer.state_dict())
            setattr(parent, name, new.to("cpu"))
    return model.eval()


def codes(model: nn.Module) -> list[Tensor]:
    """The codes of every quantised layer."""
    kinds = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
    return [layer.weight.data.view(torch.uint8) for layer in model.modules() if isinstance(layer, kinds)]


def source_text() -> tuple[Tensor, Tensor]:
    """Bytes to train on and bytes to test on, uint8: the sources of the standard library, every tenth held out."""
    files = sorted(pathlib.Path(os.__file__).parent.glob("*.py"))
    texts = [file.read_bytes() for file in files]
    parts = [b"".join(t for i, t in enumerate(texts) if (i % 10 == 5) == held_out) for held_out in (False, True)]
    return torch.frombuffer(bytearray(parts[0]), dtype=torch.uint8), torch.frombuffer(
        bytearray(parts[1]), dtype=torch.uint8
    )


def train_language_model(steps: int, advance: Callable[[], None], width: int = 256) -> nn.Module:
    """A Llama of four layers that predicts the next byte; the same one at each call with the same steps."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        num_hidden_layers=4,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        intermediate_size=3 * width,
        max_position_embeddings=2 * _WINDOW,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).train()
    text, _ = source_text()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps + 1)
    for _ in range(steps):
        begins = torch.randint(0, len(text) - _WINDOW, (16,))
        batch = torch.stack([text[b : b + _WINDOW] for b in begins.tolist()]).long()
        model(input_ids=batch, labels=batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        advance()
    return model.eval()


@torch.no_grad()
def read(model: nn.Module, windows: Tensor) -> tuple[Tensor, float]:
    """The logits for windows of held-out text, ``[windows, bytes, 256]``, and the perplexity of a byte."""
    logits = torch.cat([model(input_ids=part).logits for part in windows.split(8)])
    losses = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten())
    return logits, math.exp(losses)


def held_out(windows: int) -> Tensor:
    """Windows of held-out text, evenly spread, int64 ``[windows, bytes]``."""
    _, text = source_text()
    every = (len(text) - _WINDOW) // windows
    return torch.stack([text[i * every : i * every + _WINDOW] for i in range(windows)]).long()


@torch.no_grad()
def encode(model: nn.Module, tokenizer: Any, sentences: list[str]) -> Tensor:
    """The encoder's output for each sentence, token by token, ``[tokens, width]``."""
    return torch.cat([model(**tokenizer(each, return_tensors="pt")).last_hidden_state[0] for each in sentences])


def costs(
    name: str,
    full: nn.Module,
    output: Callable[[nn.Module], tuple[Tensor, float | None]],
    advance: Callable[[], None],
    implementations: tuple[str, ...] = IMPLEMENTATIONS,
) -> tuple[float | None, list[Cost]]:
    """Quantise a model in each way, and compare what it makes with full precision.

    Args:
        name: of the model.
        full: the model in float32.
        output: what a model makes, and its perplexity if it has one.
        advance: called after each of the ways.
        implementations: of :data:`IMPLEMENTATIONS`, the reference before those whose codes are compared with it.

    Returns:
        the perplexity of full precision, and the costs.
    """
    expected, perplexity = output(full)
    found = []
    for kind in KINDS:
        right: list[Tensor] | None = None
        for implementation in sorted(implementations, key=lambda each: each != "CUDA's codes"):
            with answering(implementation):
                small = quantised(full, kind, keep=("lm_head",))
                made = codes(small)
                actual, its_perplexity = output(small)
            if right is None:
                right = made
            same = all(torch.equal(a, b) for a, b in zip(made, right, strict=True))
            error = float((actual - expected).norm() / expected.norm())
            found.append(Cost(name, kind, implementation, error, its_perplexity, same))
            advance()
    return perplexity, found


def no_worse(found: list[Cost]) -> list[tuple[str, float, float]]:
    """Of each model and kind, for the error and the perplexity: what it is, ours, and the most that it may be."""
    checks = []
    by = {(each.model, each.kind, each.implementation): each for each in found}
    for (model, kind, implementation), ours in by.items():
        if implementation != "ours":
            continue
        cuda = by[model, kind, "CUDA's codes"]
        checks.append((f"{model}, {kind}: error", ours.error, cuda.error * (1 + ROOM)))
        if ours.perplexity is not None and cuda.perplexity is not None:
            checks.append((f"{model}, {kind}: perplexity", ours.perplexity, cuda.perplexity * (1 + ROOM)))
    return checks
