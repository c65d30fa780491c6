"""A Llama of 0.8 B parameters in 4 bits: loading, decoding, prefill and a QLoRA step, upstream's kernels and ours.

Each side runs in a process of its own (:func:`measure` starts it, :func:`main` is what it runs), so that neither finds
the other's memory, layouts or threads. The weights are random: speed and memory do not depend on them.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

SIDES = ("upstream", "ours")
PROMPT = 128  # tokens of the prompt
TRAINED = 256  # tokens of a training step
_DECODED = 32  # tokens at most, beyond the first; fewer where they take long
_LONG = 6.0  # seconds that one measurement may take, once it has three samples
# What holds upstream to an instruction set: oneDNN's name for what torch's own products may use.
_ONEDNN = {
    "scalar": "SSE41",
    "avx2": "AVX2",
    "avx512": "AVX512_CORE",
    "avx512_vnni": "AVX512_CORE_VNNI",
    "avx512_bf16": "AVX512_CORE_BF16",
    "amx": "AVX512_CORE_AMX",
}


@dataclass(frozen=True)
class Size:
    """The dimensions of a Llama whose head shares the embedding's table."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int


SIZES = {
    "0.8B": Size(2048, 16, 32, 8, 5632, 32000),
    "0.2B": Size(2048, 3, 32, 8, 5632, 8192),
    "tiny": Size(128, 2, 4, 2, 384, 512),
}


class WorkerFailed(RuntimeError):
    """A side's process ended without a result; the text is the end of what it wrote."""


def measure(
    side: str, size: str, *, threads: int, isa: str | None = None, quant_type: str = "nf4", train: bool = True
) -> Iterator[dict[str, Any]]:
    """Run one side in a process of its own.

    Args:
        side: ``"upstream"`` or ``"ours"``.
        size: a name of :data:`SIZES`.
        threads: of torch.
        isa: hold both our kernels and oneDNN to this instruction set, and upstream to the layout that it uses without
            AVX512-BF16 if this has none: what a CPU without more would do.
        quant_type: ``"nf4"`` or ``"fp4"``.
        train: also measure a QLoRA step, which needs ``peft``.

    Yields:
        ``{"stage": text}`` as it goes on, then ``{"result": figures}``: seconds, tokens a second, bytes.

    Raises:
        WorkerFailed: the process died.
    """
    task = {"side": side, "size": size, "threads": threads, "isa": isa, "quant_type": quant_type, "train": train}
    environment = {
        **os.environ,
        "BNB_INTEL_AUTOLOAD": str(int(side == "ours")),
        "BNB_INTEL_VIRTUAL_XPU": "0",
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
    }
    if isa is not None:
        environment.update(BNB_INTEL_ISA=isa, ONEDNN_MAX_CPU_ISA=_ONEDNN[isa])
    worker = subprocess.Popen(
        [sys.executable, "-m", __name__, json.dumps(task)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    finished = False
    try:
        for line in worker.stdout:
            if line.startswith("{"):
                message = json.loads(line)
                finished |= "result" in message
                yield message
    finally:
        if not finished:
            worker.kill()
        _, errors = worker.communicate()
    if not finished:
        raise WorkerFailed(f"the process for {side} ended without a result: {errors[-2000:].strip() or 'no message'}")


def _say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


class _Memory:
    """The memory of this process, from the kernel; Linux."""

    @staticmethod
    def _status(name: str) -> int:
        with open("/proc/self/status") as lines:
            for line in lines:
                if line.startswith(name + ":"):
                    return int(line.split()[1]) << 10
        raise RuntimeError(f"/proc/self/status has no {name}")

    @classmethod
    def now(cls) -> int:
        """Resident bytes."""
        return cls._status("VmRSS")

    @classmethod
    def peak(cls) -> int:
        """The most resident bytes since :meth:`reset`."""
        return cls._status("VmHWM")

    @staticmethod
    def reset() -> None:
        """Begin a new peak."""
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")


def build(size: Size, quant_type: str = "nf4", seed: int = 0) -> Any:
    """A Llama in bfloat16 with random weights, its layers' products in 4 bits with nested statistics, on the CPU.

    It is made as ``from_pretrained`` makes it: the layers stand on the device meta, then get their weights one by one,
    each quantised as it comes, so that the full weights never lie in memory together.
    """
    import torch
    import transformers
    from bitsandbytes.nn import Linear4bit, Params4bit

    config = transformers.LlamaConfig(
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        intermediate_size=size.intermediate,
        vocab_size=size.vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    with torch.device("meta"):
        model: Any = transformers.LlamaForCausalLM(config)
        model = model.to(torch.bfloat16)
    model.tie_weights()
    noise = torch.randn(size.hidden * size.intermediate + 64 * size.layers).to(torch.bfloat16) * size.hidden**-0.5
    taken = 0
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is torch.nn.Linear and layer is not model.lm_head:
                with torch.device("meta"):
                    small = Linear4bit(
                        layer.in_features, layer.out_features, bias=False, compute_dtype=torch.bfloat16,
                        compress_statistics=True, quant_type=quant_type,
                    )  # fmt: skip
                begin = taken % (64 * size.layers)  # other weights for each layer, at no cost
                taken += 1
                weight = noise[begin : begin + layer.weight.numel()].view(layer.weight.shape)
                quantised: Any = Params4bit(
                    weight, requires_grad=False, compress_statistics=True, quant_type=quant_type, module=small
                )
                small.weight = quantised.to("cpu")
                setattr(parent, name, small)
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta and not name.startswith("lm_head"):
            parent = model.get_submodule(name.rpartition(".")[0])
            made = torch.ones(parameter.shape, dtype=torch.bfloat16)
            if made.dim() == 2:
                made.normal_(std=size.hidden**-0.5)
            # Trainable, as from_pretrained leaves them: of a frozen head, torch's product of the last token copies all.
            setattr(parent, name.rpartition(".")[2], torch.nn.Parameter(made))
    model.tie_weights()
    rotary = model.model.rotary_emb  # its buffers are calculated, not loaded
    model.model.rotary_emb = type(rotary)(config)
    model.generation_config.pad_token_id = 0
    return model.eval()


def _times(run: Callable[[], object], most: int = 5) -> list[float]:
    """Seconds of runs after one that warms up."""
    run()
    found: list[float] = []
    begun = time.perf_counter()
    while len(found) < most and (len(found) < 3 or time.perf_counter() - begun < _LONG):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def _decode(model: Any, tokens: Any) -> list[float]:
    """Seconds of each token that ``generate`` makes after the first."""
    import torch

    stamps: list[float] = []

    def stamp(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        stamps.append(time.perf_counter())
        late = len(stamps) > 3 and stamps[-1] - stamps[0] > _LONG
        return torch.full((ids.shape[0],), late, dtype=torch.bool)

    model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=_DECODED + 1,
        eos_token_id=None,
        do_sample=False,
        stopping_criteria=[stamp],
    )
    return [later - earlier for earlier, later in itertools.pairwise(stamps)]


def qlora(model: Any, vocabulary: int, length: int = TRAINED) -> Callable[[], float]:
    """One training step of LoRA adapters (rank 16) on every 4-bit layer, with AdamW8bit; returns the loss."""
    import bitsandbytes as bnb
    import peft
    import torch

    model = peft.get_peft_model(
        model, peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    ).train()
    optimizer = bnb.optim.AdamW8bit([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    tokens = torch.randint(0, vocabulary, (1, length))

    def step() -> float:
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Measure the side that answers in this process; the figures of :func:`measure`."""
    size = SIZES[task["size"]]
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(task["threads"])
    import bitsandbytes as bnb

    from .. import cpu, ops

    ours = "cpu" in ops.registered()
    if ours != (task["side"] == "ours"):
        raise RuntimeError(f"{task['side']} does not answer here: {ops.failures().get('cpu', 'no reason known')}")
    before = _Memory.now()
    _Memory.reset()
    _say(stage="loading")
    start = time.perf_counter()
    model = build(size, task["quant_type"])
    figures: dict[str, Any] = {
        "load_s": time.perf_counter() - start,
        "load_peak_bytes": _Memory.peak() - before,
        "parameters": sum(
            parameter.quant_state.shape.numel() if hasattr(parameter, "quant_state") else parameter.numel()
            for parameter in model.parameters()
        ),
    }
    repacks = False
    if not ours:
        less = task["isa"] is not None and list(_ONEDNN).index(task["isa"]) < list(_ONEDNN).index("avx512_bf16")
        for layer in model.modules():
            if isinstance(layer, bnb.nn.Linear4bit):
                if less:
                    layer.support_avx512bf16_for_cpu = False
                repacks = layer.support_avx512bf16_for_cpu
    figures["layout"] = "repacked by upstream" if repacks else "as quantised"
    figures["isa"] = list(cpu.isas())[-1] if task["isa"] is None else task["isa"]
    prompt = torch.randint(0, size.vocabulary, (1, PROMPT))
    with torch.inference_mode():
        _say(stage="decoding")
        _Memory.reset()
        model.generate(prompt[:, :8], attention_mask=torch.ones_like(prompt[:, :8]), max_new_tokens=2, do_sample=False)
        seconds = _decode(model, prompt)
        figures["decode_ms"] = [1e3 * each for each in seconds]
        figures["decode_tokens_per_s"] = 1 / statistics.median(seconds)
        _say(stage="prefill")
        seconds = _times(lambda: model(prompt, use_cache=True, logits_to_keep=1))
        figures["prefill_s"] = statistics.median(seconds)
        figures["layers_s"] = statistics.median(_times(lambda: model.model(prompt, use_cache=True)))
        figures["prefill_tokens_per_s"] = PROMPT / figures["prefill_s"]
        figures["run_peak_bytes"] = _Memory.peak() - before
    if task["train"]:
        _say(stage="training")
        if repacks:  # in a layout that cannot be trained
            del model
            model = build(size, task["quant_type"])
        _Memory.reset()
        step = qlora(model, size.vocabulary)
        losses: list[float] = []
        seconds = _times(lambda: losses.append(step()), most=3)
        figures["qlora_step_s"] = statistics.median(seconds)
        figures["qlora_losses"] = losses
        figures["qlora_peak_bytes"] = _Memory.peak() - before
    return figures


def main() -> None:
    """What a side's process runs: the task in JSON as its argument, a JSON object a line on standard output."""
    _say(result=run(json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
