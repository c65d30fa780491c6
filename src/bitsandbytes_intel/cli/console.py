"""What the commands print: tables for a terminal or a log, or JSON; log lines and progress on standard error."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

HELD, FAILED, UNUSABLE = 0, 1, 2
_LOG_WIDTH = 160  # where there is no terminal to ask
_WAITS = ("compiling ", "compiled the virtual XPU")  # how the log begins to say that something takes time


class Unusable(Exception):
    """Nothing can be checked here; the text says why and what to do. Exit status 2."""


def _console(*, stderr: bool) -> Console:
    made = Console(stderr=stderr, highlight=False, soft_wrap=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=_LOG_WIDTH)


@dataclass
class Output:
    """Where a command's results go: to ``data`` always, and to standard output unless it is to carry JSON."""

    json: bool = False
    verbose: bool = False
    data: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._out = _console(stderr=False)
        self.log = _console(stderr=True)

    def table(self, title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
        """A table: lines on a terminal, Markdown in a log, so that it can be pasted into a bug report."""
        style = box.SIMPLE_HEAD if self._out.is_terminal else box.MARKDOWN
        made = Table(title=title, box=style)
        for column in columns:
            made.add_column(column, justify="right" if column in right else "left", overflow="fold")
        return made

    def show(self, what: Table | str = "") -> None:
        """Print a table with an empty line before it, or a line."""
        if not self.json:
            if isinstance(what, Table):
                title, what.title = what.title, None  # rich would fold it to the table's width
                self._out.print()
                self._out.print(title or "", style="bold", markup=False)
            self._out.print(what, markup=False)

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """A spinner while something takes its time; in a log, builds say so themselves (see :func:`reporting`)."""
        if self.log.is_terminal:
            with self.log.status(text):
                yield
        else:
            yield

    def finish(self, held: bool) -> None:
        """The end of a command: its JSON, if that is wanted, and its exit status."""
        self.data["ok"] = held
        self._dump()
        raise typer.Exit(HELD if held else FAILED)

    def stop(self, error: Exception) -> None:
        """The end of a command that could not do its work."""
        self.data["ok"] = False
        self.data["error"] = str(error)
        self._dump()
        self.log.print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(UNUSABLE)

    def _dump(self) -> None:
        if self.json:
            print(json.dumps(self.data, indent=2))


@contextlib.contextmanager
def reporting(out: Output) -> Iterator[Output]:
    """Around a command: logging, and one clear line for an environment that is at fault."""
    with _logging(out):
        try:
            yield out
        except Unusable as error:
            out.stop(error)
        except BrokenPipeError:  # the reader of a pipe has left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None


@contextlib.contextmanager
def _logging(out: Output) -> Iterator[None]:
    """Warnings always; that something is being compiled always, since it takes time; everything of ours with ``-v``."""
    handler: logging.Handler
    if out.log.is_terminal:  # through rich, which keeps spinners and bars below the log lines
        handler = RichHandler(console=out.log, show_path=False, show_time=out.verbose, show_level=out.verbose)
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s" if out.verbose else "%(message)s"))
    else:
        handler = logging.StreamHandler()
        form = "%(asctime)s %(levelname)s %(name)s: %(message)s" if out.verbose else "%(message)s"
        handler.setFormatter(logging.Formatter(form))
    if not out.verbose:
        handler.addFilter(_matters)
    ours = logging.getLogger("bitsandbytes_intel")
    before = ours.handlers[:], ours.level, ours.propagate
    ours.handlers[:] = [handler]
    ours.setLevel(logging.DEBUG if out.verbose else logging.INFO)
    ours.propagate = False
    if not out.verbose:
        # Other packages' advice at import, of no use here: that Triton or kernels is missing, that PyTorch stands in.
        for name in (
            "bitsandbytes.backends.cpu.ops",
            "bitsandbytes.backends.xpu.ops",
            "torch.utils.flop_counter",
        ):
            logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:  # a program that calls a command keeps its own logging
        ours.handlers[:], ours.propagate = before[0], before[2]
        ours.setLevel(before[1])


def _matters(record: logging.LogRecord) -> bool:
    """Of the log without ``-v``: what is wrong, and what makes the user wait."""
    return record.levelno >= logging.WARNING or str(record.msg).startswith(_WAITS)
