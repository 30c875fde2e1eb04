"""The `burnish new` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

KindArgument = Annotated[
    Literal["reward", "environment", "verifier", "tools"], typer.Argument(metavar="reward|environment|verifier|tools", show_default=False)
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="As my-team/answer-length, or answer-length.", show_default=False)]
DirOption = Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where the package's folder goes.")]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("new")(new)


def new(kind: KindArgument, name: NameArgument, dir: DirOption = Path()) -> None:
    """Write a package that can be installed: code to change, tests that pass, a recipe."""
    from burnish.cli.scaffold import new_component

    typer.echo(new_component(kind, name, dir))
