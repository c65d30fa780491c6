"""Talk with a model in 4 or 8 bits: ``python chat.py --model FOLDER`` and then line by line, or one ``--prompt``."""

from __future__ import annotations

import common
import torch
import transformers


def main() -> None:
    """Ask, answer, until the input ends."""
    parser = common.parser(__doc__)
    parser.add_argument("--prompt", help="ask this one thing, and end")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.7, help="0: always the most likely token")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model, tokenizer = common.load(options)
    streamer = transformers.TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    how = {"do_sample": True, "temperature": options.temperature} if options.temperature > 0 else {"do_sample": False}
    messages: list[dict[str, str]] = []
    while True:
        try:
            question = options.prompt or input("> ")
        except (EOFError, KeyboardInterrupt):
            return
        messages.append({"role": "user", "content": question})
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        result = model.generate(**inputs, max_new_tokens=options.max_new_tokens, streamer=streamer, **how)
        answer = tokenizer.decode(result[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        messages.append({"role": "assistant", "content": answer})
        if options.prompt:
            return


if __name__ == "__main__":
    main()
