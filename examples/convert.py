"""Quantise a model once and save it, so that it loads in 4 or 8 bits from then on, on any device."""

from __future__ import annotations

import pathlib

import common


def size(folder: pathlib.Path) -> int:
    """The bytes of the weights in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def main() -> None:
    """Load, save, and say how large it is."""
    parser = common.parser(__doc__)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="the folder to save it in")
    options = parser.parse_args()
    if options.output.exists() and any(options.output.iterdir()):
        parser.error(f"--output must be a new or an empty folder, got {options.output}")
    model, tokenizer = common.load(options)
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    print(f"{options.output}: {size(options.output) / 1e6:.1f} MB, {model.num_parameters() / 1e6:.1f} M parameters")
    print(f"next: python chat.py --model {options.output}")


if __name__ == "__main__":
    main()
