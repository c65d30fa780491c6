"""``python -m bitsandbytes_intel``: what is here, which implementation answers, and whether our operators are right."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
