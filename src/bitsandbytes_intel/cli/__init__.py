"""The command line, ``python -m bitsandbytes_intel``. The library itself never prints; this package alone does."""

from __future__ import annotations


def main() -> None:
    """The program. Its exit status is 0, 1 or 2: see the end of ``--help``."""
    from .app import app

    app()
