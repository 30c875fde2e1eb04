"""The `burnish tune` command, and its table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from burnish.cli.needs import needs_engine
from burnish.cli.options import json_option, print_json

if TYPE_CHECKING:
    from burnish.run.tuning import Tuned

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (*.toml).", show_default=False)]
SpaceOption = Annotated[
    list[str],
    typer.Option(
        "--space",
        metavar="FILE|KEY=…",
        help="What varies: rft.lr={low=1e-6, high=1e-4, log=true}, or rft.group_size=[4, 8], or a file.",
    ),
]
TrialsOption = Annotated[int, typer.Option(min=1, help="Trials of every combination of listed values.")]
ConcurrentOption = Annotated[int, typer.Option(min=1, help="Trials at a time.")]
PhaseOption = Annotated[str | None, typer.Option(help="The phase that trials are compared in. Default: the last.", show_default=False)]
MetricOption = Annotated[
    str | None,
    typer.Option(help="A metric of that phase's rows. Default: success for reinforcement, loss for others.", show_default=False),
]
ModeOption = Annotated[
    Literal["max", "min"] | None, typer.Option(help="Whether more is better. Default: min for a loss, max for others.", show_default=False)
]
PruneOption = Annotated[bool, typer.Option("--prune/--no-prune", help="End trials early that fall behind.")]
GraceOption = Annotated[
    int | None,
    typer.Option(min=1, help="The step of the first comparison. Default: a quarter of the phase.", show_default=False),
]
KeepOption = Annotated[int, typer.Option(min=2, help="One of so many goes on, at that step and at each multiple by this number.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the values that are drawn.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one field of the recipe in every trial.")]
PluginOption = Annotated[
    list[Path] | None, typer.Option("--plugin", metavar="FILE", help="A Python file that registers environments or rewards.")
]
RunDirOption = Annotated[
    Path | None, typer.Option("--run-dir", metavar="DIR", help="Where the trials' runs go. Default: runs/NAME-tune-DATE-TIME.")
]


JsonOption = Annotated[bool, json_option("Print JSON instead of the table; progress goes to stderr.")]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("tune")(tune)


def tune(
    recipe: RecipeArgument,
    space: SpaceOption,
    trials: TrialsOption = 1,
    concurrent: ConcurrentOption = 1,
    phase: PhaseOption = None,
    metric: MetricOption = None,
    mode: ModeOption = None,
    prune: PruneOption = True,
    grace: GraceOption = None,
    keep: KeepOption = 2,
    seed: SeedOption = 0,
    set_: SetOption = None,
    plugin: PluginOption = None,
    run_dir: RunDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search values for keys of a recipe: each trial is a run of it, and those that fall behind are ended early (ray.tune, ASHA)."""
    needs_engine("tune")
    from rich.console import Console

    from burnish.inspector.text import printable
    from burnish.run import tuning
    from burnish.run.display import new_console
    from burnish.run.space import read_space

    search = tuning.Search(trials, concurrent, phase, metric, mode, prune, grace, keep, seed)
    arguments = [part for override in set_ or () for part in ("--set", override)]
    arguments += [part for file in plugin or () for part in ("--plugin", str(file))]
    console = Console(stderr=True) if as_json else new_console()
    found = tuning.tune(recipe, read_space(space), search, console, arguments, run_dir)
    if as_json:
        print_json({**found.to_row(), "folder": str(found.folder), "best": None if found.best is None else found.best.number})
    else:
        typer.echo("\n".join(printable(line) for line in page(found)))
    if all(one.state == "failed" for one in found.trials):
        raise RuntimeError(f"all {len(found.trials)} trials failed; the first: {found.trials[0].why}")


def page(found: Tuned) -> Iterator[str]:
    """The trials from best to worst, those that were pruned after those that ran to their end, and the best as a command."""
    from burnish.cli.models import table_lines

    sign = -1.0 if found.mode == "max" else 1.0
    order = ("finished", "pruned", "runs", "waits", "interrupted", "failed")
    trials = sorted(found.trials, key=lambda one: (order.index(one.state), one.score is None, sign * (one.score or 0.0), one.number))
    rows = [
        (str(one.number), one.state, str(one.step), "-" if one.score is None else f"{one.score:.4g}", ", ".join(one.overrides), one.why)
        for one in trials
    ]
    yield ""
    yield from table_lines(("trial", "", "step", found.metric, "with", ""), rows)
    if found.best is not None:
        yield ""
        yield f"best: trial {found.best.number}, {found.folder / f'trial-{found.best.number}'}; to run the recipe so:"
        yield f"  {found.command}"
