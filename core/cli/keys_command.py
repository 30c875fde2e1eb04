"""The `burnish keys …` commands: who may ask a served model, for what, and how much of it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from burnish.cli.answer import answer
from burnish.cli.options import JsonOption

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A keys file (*.toml), for `burnish serve --keys`.", show_default=False)]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Of the key: it is counted and logged under it.", show_default=False)]
LIMITS = ("requests_per_minute", "tokens_per_minute", "parallel", "budget_tokens")


def register(app: typer.Typer) -> None:
    """Add the commands to their group."""
    app.command("new")(new)
    app.command("list")(list_keys)
    app.command("revoke")(revoke)


def new(
    file: FileArgument,
    name: NameArgument,
    models: Annotated[list[str] | None, typer.Option("--model", help="A model that it may ask for. Default: all.")] = None,
    routes: Annotated[
        list[str] | None,
        typer.Option("--route", help="It may call: chat, completions, models, guardrail, feedback, metrics. Default: chat, models."),
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Requests in any 60 seconds.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Tokens read and written in any 60 seconds.")] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="Answers written at a time.")] = None,
    budget_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens in all.")] = None,
    expires: Annotated[str, typer.Option(metavar="WHEN", help="90d, 12h, 4w, or a date such as 2027-01-01.", show_default=False)] = "",
) -> None:
    """Make a key and print it, once: the file has its SHA-256 only."""
    from burnish.serving.key_files import new_key, read_expiry

    said: dict[str, Any] = {"models": tuple(models) if models else None}
    said |= {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    said |= {"parallel": parallel, "budget_tokens": budget_tokens}
    said |= {"routes": tuple(routes)} if routes else {}
    said |= {"expires": read_expiry(expires, datetime.now(UTC))} if expires else {}
    typer.echo(new_key(file, name, **said))


def list_keys(file: FileArgument, as_json: JsonOption = False) -> None:
    """Say of every key what it may, what it has spent, and until when it lets in."""
    from burnish.cli.models import table_lines
    from burnish.inspector.text import printable, printable_json
    from burnish.serving.keys import read_keys
    from burnish.serving.spending import Spending, spending_file

    keys, now = read_keys(file), datetime.now(UTC)
    spending = Spending(file) if spending_file(file).exists() else None
    spent = {name: spending.of(key) if spending is not None else 0 for name, key in keys.items()}
    if as_json:
        rows = [
            {
                "name": name,
                "state": key.ended(now) or "valid",
                "spent_tokens": spent[name],
                **key.model_dump(mode="json", exclude={"sha256"}),
            }
            for name, key in keys.items()
        ]
        answer(printable_json(rows))
        return
    table = [
        (
            name,
            key.ended(now) or "valid",
            "all" if key.models is None else ", ".join(key.models),
            ", ".join(key.routes),
            *(str(getattr(key, limit) or "") for limit in LIMITS),
            str(spent[name]),
            f"{key.expires.astimezone(UTC):%Y-%m-%d %H:%M}" if key.expires is not None else "",
        )
        for name, key in keys.items()
    ]
    head = ("name", "", "models", "routes", "requests/min", "tokens/min", "parallel", "budget", "spent", "expires (UTC)")
    typer.echo(printable("\n".join(table_lines(head, table))))


def revoke(file: FileArgument, name: NameArgument) -> None:
    """Have a key let nobody in any more, from the next request on; services that use the file need no restart."""
    from burnish.serving.key_files import revoke as write_down

    write_down(file, name)
    typer.echo(f"{name} lets nobody in any more")
