"""What the examples share: their common options, loading a model in 4 or 8 bits, and a tiny model to try them on."""

from __future__ import annotations

import argparse
import atexit
import pathlib
import shutil
import tempfile

import tokenizers
import torch
import transformers

# The user's turn, and where the answer begins: what the tiny model's tokenizer makes of a conversation.
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every example has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--model", help="a folder or a name on the hub; without it, a tiny random model made on the spot")
    made.add_argument("--device", choices=("cpu", "xpu"), default="xpu" if torch.xpu.is_available() else "cpu")
    made.add_argument("--bits", type=int, choices=(4, 8), default=4, help="of a weight")
    made.add_argument("--quant-type", choices=("nf4", "fp4"), default="nf4", help="of 4-bit weights")
    made.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="to compute in")
    made.add_argument("--seed", type=int, default=0)
    return made


def training_options(made: argparse.ArgumentParser, batch: int, of_batch: str) -> None:
    """Add the options that training has; `batch` sequences in a step, if it is not told otherwise."""
    made.add_argument("--data", type=pathlib.Path, help="a text file to learn from; without it, one sentence")
    made.add_argument("--steps", type=int, default=100)
    made.add_argument("--batch", type=int, default=batch, help=of_batch)
    made.add_argument("--length", type=int, default=128, help="tokens in a sequence")
    made.add_argument("--rank", type=int, default=16)
    made.add_argument("--lr", type=float, default=2e-4)


def quantization(options: argparse.Namespace, **more: object) -> transformers.BitsAndBytesConfig:
    """How bitsandbytes shall quantise, from the options."""
    if options.bits == 8:
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=options.quant_type,
        bnb_4bit_use_double_quant=True,  # the blocks' scales in 8 bits: 0.4 bits less for each weight
        bnb_4bit_compute_dtype=getattr(torch, options.dtype),
        **more,
    )


def load(
    options: argparse.Namespace, device: str | None = None, **more: object
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """The model of the options, quantised, and its tokenizer. A checkpoint that is quantised already stays as it is."""
    place = options.model or tiny_model(options.seed)
    config = transformers.AutoConfig.from_pretrained(place)
    quantised = getattr(config, "quantization_config", None) is not None
    model = transformers.AutoModelForCausalLM.from_pretrained(
        place,
        device_map={"": device or options.device},
        dtype=getattr(torch, options.dtype),
        **({} if quantised else {"quantization_config": quantization(options, **more)}),
    )
    return model, transformers.AutoTokenizer.from_pretrained(place)


def tiny_model(seed: int = 0) -> pathlib.Path:
    """A folder with a Llama of two layers and random weights, and a tokenizer of bytes. It goes when the program ends.

    It answers nonsense: it is for trying a program out where no hub can be reached.
    """
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tiny-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    plain = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder


def blocks(tokenizer: transformers.PreTrainedTokenizerBase, text: str, length: int) -> torch.Tensor:
    """A text as token ids, [blocks, length]; what is left at its end goes. A short one is repeated to fill a block."""
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    if len(ids) == 0:
        raise SystemExit("the text to learn from is empty")
    ids = ids.repeat(-(-length // len(ids)))
    return ids[: len(ids) // length * length].view(-1, length)


def text(path: pathlib.Path | None) -> str:
    """The text to learn from: a file's, or a few lines that a tiny model can learn."""
    return path.read_text() if path else "The quick brown fox jumps over the lazy dog.\n" * 64
