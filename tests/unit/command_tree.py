"""The commands of `burnish`, for tests that go through all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main

from burnish.cli.main import app


def _leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    groups = getattr(command, "commands", None)
    if groups is None:
        yield " ".join(path), command
    for name, one in (groups or {}).items():
        yield from _leaves(one, (*path, name))


def commands() -> dict[str, Any]:
    """Every command by its name, such as "models show"."""
    return dict(_leaves(typer.main.get_command(app)))
