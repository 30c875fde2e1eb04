"""What `--json` prints stands alone on stdout: whatever else is printed while the command works, by whomever, goes to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import TextIO

import typer

_kept: ContextVar[TextIO | None] = ContextVar("_kept", default=None)


def stdout_for_json(context: typer.Context, wanted: bool) -> bool:
    """The callback of every `--json`: from here to the end of the command, only `answer` writes to stdout."""
    if wanted:
        context.find_root().with_resource(_aside())
    return wanted


def answer(text: str) -> None:
    """Print what a program reads: to the stdout that the command began with."""
    typer.echo(text, file=_kept.get())


def unread() -> None:
    """Nobody reads stdout any more: what is buffered, and what would still be printed there, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), (_kept.get() or sys.stdout).fileno())


@contextmanager
def _aside() -> Iterator[None]:
    own = sys.stdout is sys.__stdout__
    token = _kept.set(_moved() if own else sys.stdout)  # another one is of a caller in this process, who reads no descriptor
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _kept.reset(token)


def _moved() -> TextIO:
    """Stdout at another descriptor, which no child has. Descriptor 1 is stderr from now on and stays so: C libraries, children and
    what is done at exit write to it."""
    if sys.stdout is None:  # closed, as by `>&-`: descriptor 1 may be any file
        return open(os.devnull, "w")
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2 if sys.stderr is not None else os.open(os.devnull, os.O_WRONLY), 1)
    return open(kept, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
