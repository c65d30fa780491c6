"""QLoRA: train an adapter on a frozen model in 4 or 8 bits, with an optimizer of 8-bit states that are paged."""

from __future__ import annotations

import pathlib

import bitsandbytes as bnb
import common
import peft
import torch
import tqdm


def adapted(model: torch.nn.Module, rank: int) -> peft.PeftModel:
    """The model with a LoRA adapter on every linear layer, ready to be trained with activation checkpointing."""
    model = peft.prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config).train()


def main() -> None:
    """Train, and save the adapter; merge it where asked."""
    parser = common.parser(__doc__)
    common.training_options(parser, 4, "sequences in a step")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("adapter"), help="the adapter's folder")
    parser.add_argument("--merge", type=pathlib.Path, help="a folder for the model with the adapter merged into it")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model, tokenizer = common.load(options)
    data = common.blocks(tokenizer, common.text(options.data), options.length)
    model = adapted(model, options.rank)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # On the CPU a paged optimizer keeps its states in plain memory, and warns; there, AdamW8bit is the same.
    kind = bnb.optim.PagedAdamW8bit if options.device == "xpu" else bnb.optim.AdamW8bit
    optimizer = kind(trained, lr=options.lr)
    order = torch.Generator().manual_seed(options.seed)
    progress = tqdm.trange(options.steps, desc="training", unit="step")
    first = last = None
    for _ in progress:
        batch = data[torch.randint(len(data), (options.batch,), generator=order)].to(options.device)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        last = loss.item()
        first = last if first is None else first
        progress.set_postfix(loss=f"{last:.4f}")
    if first is not None:
        print(f"loss {first:.4f} -> {last:.4f}")
    model.save_pretrained(options.output)
    print(f"{options.output}: the adapter; peft.PeftModel.from_pretrained(model, ...) puts it on the model again")
    if options.merge:
        model.merge_and_unload().save_pretrained(options.merge)
        tokenizer.save_pretrained(options.merge)
        print(f"{options.merge}: the model with it; next: python chat.py --model {options.merge}")


if __name__ == "__main__":
    main()
