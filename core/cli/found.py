"""What a command found, for a person in lines and with `--json` for a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer

from burnish.cli.options import print_json


@dataclass(frozen=True, slots=True)
class Found:
    """lines: for a person, fit for a terminal. data: the same whole, as JSON takes it.

    Example: `Found(["3 rows: conversation"], {"rows": {"conversation": 3}})`.
    """

    lines: Sequence[str]
    data: Any

    def print(self, as_json: bool) -> None:
        """One value of JSON on stdout, or the lines."""
        if as_json:
            print_json(self.data)
        else:
            typer.echo("\n".join(self.lines))
