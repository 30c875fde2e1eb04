"""The `burnish data …` commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from burnish.cli.needs import needs_engine, needs_episodes, needs_training
from burnish.cli.options import JsonOption, PluginOption, StallOption, TrustOption

PlacesArgument = Annotated[
    list[str], typer.Argument(metavar="PLACE…", help="Files of rows, folders of them, or URLs of files.", show_default=False)
]
UseOption = Annotated[
    Literal["any", "cpt", "sft", "tasks"], typer.Option("--for", help="What the rows are meant for; any takes each for what it is.")
]
NameArgument = Annotated[str | None, typer.Argument(metavar="[CATALOG]", help="An id or a folder; all without.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands to their group."""
    commands: dict[str, Callable[..., None]] = {
        "check": check,
        "stats": stats,
        "dedup": dedup,
        "contamination": contamination,
        "blend": blend,
        "trace": trace,
        "catalog": catalog,
        "replay": replay,
    }
    for name, command in commands.items():
        app.command(name)(command)


def check(
    places: PlacesArgument,
    use: UseOption = "any",
    rejects: Annotated[
        Path | None, typer.Option("--rejects", metavar="FILE", help="Write the unfit rows' places and reasons to this new file.")
    ] = None,
    max_rejects: Annotated[int, typer.Option("--max-rejects", min=0, help="Unfit rows that are few enough.")] = 0,
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="FILE", help="A guardrail policy that every row must keep.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the rows that are fit to this new .jsonl file.")] = None,
    label: Annotated[
        bool, typer.Option("--label", help="Write to --out what the policy says of each row, under metadata.guardrail, and leave none out.")
    ] = False,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every row: what form it has, and what is unfit, by file, line and field. Exits with 1 when too much is."""
    from burnish.cli.data import check_rows
    from burnish.cli.guard import load_detectors

    load_detectors(plugin, policy)
    found, rejected = check_rows(places, use, rejects, policy, out, label)
    found.print(as_json)
    if rejected > max_rejects:
        raise typer.Exit(1)


def stats(
    places: PlacesArgument,
    model: Annotated[str | None, typer.Option(help="Count tokens as this model's tokenizer has them.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Rows, characters, tokens and languages, by their scripts, of each place."""
    if model is not None:
        needs_training("data stats --model")
    from burnish.cli.data import row_stats

    row_stats(places, model).print(as_json)


def dedup(
    places: PlacesArgument,
    near: Annotated[
        float | None, typer.Option("--near", metavar="SHARE", help="Also find rows as similar as this, such as 0.8.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the rows that say something new to this new .jsonl file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Rows that say what an earlier one says."""
    from burnish.cli.data import dedup_rows

    dedup_rows(places, near, out).print(as_json)


def contamination(
    places: PlacesArgument,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="PLACE", help="Rows of an evaluation; repeat for several.", show_default=False),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", metavar="ID|FILE", help="A suite, of those that `burnish suites` lists; repeatable.", show_default=False),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A recipe: its held-out tasks and rows, and its suites of [retention].", show_default=False),
    ] = None,
    words: Annotated[int, typer.Option("--words", min=1, help="How many words in a row count as overlap.")] = 13,
    plugin: PluginOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Rows of an evaluation that stand in what is trained on. Exits with 1 when there are any."""
    if not against and not suite and recipe is None:
        raise ValueError("data contamination needs what is measured: --against PLACE, --suite ID or --recipe FILE")
    if plugin and not suite:
        raise ValueError("--plugin has no effect without --suite; a recipe names its own")
    if trust and recipe is None:
        raise ValueError("--trust has no effect without --recipe")
    if suite or recipe is not None:
        needs_training(f"data contamination {'--suite' if suite else '--recipe'}")
    from burnish.cli.data import contaminated_rows
    from burnish.envs.registry import load_plugin

    for file in plugin or ():
        load_plugin(file)
    found, count = contaminated_rows(places, against or (), words, suite or (), recipe, trust)
    found.print(as_json)
    if count:
        raise typer.Exit(1)


def blend(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (*.toml).", show_default=False)],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one field of the recipe.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What every source of a recipe's blends has, and how often each of its rows would be seen."""
    needs_training("data blend")
    from burnish.cli.data import blends

    blends(recipe, set_ or ()).print(as_json)


def trace(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)],
    step: Annotated[int, typer.Argument(metavar="STEP", min=1, help="A step of the phase, from 1.", show_default=False)],
    phase: Annotated[
        str | None, typer.Option(help="The name of a phase; without, the run's last one with that step.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """The rows that a step was trained on; of reinforcement, its tasks with their rollouts and the parts of their rewards."""
    needs_episodes("data trace")
    from burnish.cli import data

    data.trace(run, step, phase).print(as_json)


def catalog(
    name: NameArgument = None,
    show: Annotated[int, typer.Option("--show", min=0, help="Rows of each set to print.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """The catalogs of curated data, or the sets of one: their digests, licences and data cards."""
    from burnish.cli.data import catalogs

    catalogs(name, show).print(as_json)


def replay(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model that answers: a folder, a name, a run.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The catalog folder to write, which must not exist.", show_default=False)],
    prompts: Annotated[
        str | None, typer.Option(metavar="PLACE", help="Rows whose questions are asked; burnish's own without.", show_default=False)
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many answers to keep.")] = 500,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer; a longer one is not kept.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="Of sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of prompts and sampling.")] = 0,
    stall_s: StallOption = None,
    as_json: JsonOption = False,
) -> None:
    """A model's own answers to general questions, as a catalog to blend with: it rehearses what it could do before."""
    needs_engine("data replay")
    from burnish.cli.data_replay import replay as answered
    from burnish.trainer.evaluation.alone import STALL_S

    answered(model, out, prompts, count, max_tokens, temperature, seed, stall_s or STALL_S).print(as_json)
