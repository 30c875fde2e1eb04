"""The `burnish feedback …` commands: what clients said of a served model's answers, as data to train on."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from burnish.cli.needs import needs_training
from burnish.cli.options import JsonOption, PluginOption, print_json

StoreArgument = Annotated[
    Path, typer.Argument(metavar="STORE", help="The folder of [service.feedback] in a deployment file.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands to their group."""
    app.command("show")(show)
    app.command("export")(export)
    app.command("delete")(delete)


def show(store: StoreArgument, as_json: JsonOption = False) -> None:
    """Count what was said of each version's answers."""
    needs_training("feedback show")
    from burnish.cli.models import table_lines
    from burnish.inspector.text import printable
    from burnish.serving.feedback.export import opinions
    from burnish.serving.feedback.store import open_store

    counted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for one in opinions(open_store(store).feedback()):
        found = {"answers": True, "up": one.rating == "up", "down": one.rating == "down", "corrected": one.correction is not None}
        found |= {"failed": bool(one.failed), "conversations": one.last.asked is not None}
        counted[one.last.served_by or one.last.model or "unknown"].update(name for name, is_so in found.items() if is_so)
    names = ("answers", "up", "down", "corrected", "failed", "conversations")
    if as_json:
        print_json([{"version": version, **{name: counts[name] for name in names}} for version, counts in sorted(counted.items())])
        return
    rows = [(version, *(f"{counts[name]:,}" for name in names)) for version, counts in sorted(counted.items())]
    typer.echo(printable("\n".join(table_lines(("version", *names), rows))) if rows else f"{store} has no feedback")


def export(
    store: StoreArgument,
    form: Annotated[
        Literal["sft", "preference", "rft", "document"],
        typer.Option("--as", help="Corrections to imitate, pairs for [dpo], tasks for [tasks], or texts for [cpt].", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="A new .jsonl file.", show_default=False)],
    policy: Annotated[
        str, typer.Option("--policy", metavar="FILE", help="A guardrail policy that every row must keep.", show_default=False)
    ] = "",
    key: Annotated[list[str] | None, typer.Option("--key", help="Only from this key; repeat for several.", show_default=False)] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Only on answers of this model or version; repeat for several.", show_default=False)
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], metavar="DATE", help="Only what came on this day (UTC) or later.", show_default=False),
    ] = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write feedback as rows that training reads: corrections, preference pairs, tasks, or texts."""
    needs_training("feedback export")
    from burnish.cli.guard import load_detectors
    from burnish.envs.row_files import new_file
    from burnish.guardrails.guard import Guard
    from burnish.guardrails.policy import load_policy
    from burnish.inspector.text import printable
    from burnish.serving.feedback.export import export as exported
    from burnish.serving.feedback.store import open_store

    if out.suffix != ".jsonl":
        raise ValueError(f"--out {out}: rows are written as lines of JSON; give a name that ends in .jsonl")
    load_detectors(plugin, policy)
    guard = Guard(load_policy(policy)) if policy else None
    first = since.strftime("%Y-%m-%d") if since is not None else ""
    wanted = (
        row
        for row in open_store(store).feedback()
        if (not key or row.key in key) and (not model or row.model in model or row.served_by in model) and row.time >= first
    )
    made = exported(wanted, form, guard)
    with new_file(out) as lines:
        assert lines is not None, "a file was named"
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in made.rows)
    if as_json:
        print_json({"file": str(out), "rows": len(made.rows), "unsuited": made.unsuited, "left_out": made.left_out})
        return
    said = [f"{out}: {len(made.rows):,} rows", f"{made.unsuited:,} answers have feedback that makes no {form} row"]
    said += [f"{count:,} left out: {why}" for why, count in made.left_out.most_common()]
    typer.echo("\n".join(printable(line) for line in said))


def delete(
    store: StoreArgument,
    ids: Annotated[list[str], typer.Argument(metavar="ID…", help="Ids of answers, as clients got them.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Let go of answers and of all feedback on them, for ever. Exits with 1 when there is nothing of one of them."""
    needs_training("feedback delete")
    from burnish.serving.feedback.store import open_store

    opened = open_store(store)
    removed = {id: opened.delete({id}) for id in ids}
    if as_json:
        print_json({"deleted": removed})
    else:
        typer.echo("\n".join(f"{id}: {count} rows deleted" for id, count in removed.items()))
    if not all(removed.values()):
        raise typer.Exit(1)
