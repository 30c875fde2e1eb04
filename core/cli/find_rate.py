"""The `burnish find-rate` command, and its page."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.cli.answer import answer
from burnish.cli.needs import needs_training
from burnish.cli.options import JsonOption, PluginOption, RecipeArgument, SetOption

if TYPE_CHECKING:
    from burnish.trainer.phases.rate_range import RateRange

PhaseOption = Annotated[str | None, typer.Option(metavar="NAME", help="A supervised phase. Default: the first.", show_default=False)]
StepsOption = Annotated[int, typer.Option(min=2, help="Updates from the lowest rate to the highest.")]
LowOption = Annotated[float, typer.Option(help="The lowest rate.")]
HighOption = Annotated[float, typer.Option(help="The highest rate.")]
ROWS = 16
"""Of the table at most; it always has the lowest loss and the last."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("find-rate")(find_rate)


def find_rate(
    recipe: RecipeArgument,
    phase: PhaseOption = None,
    steps: StepsOption = 60,
    low: LowOption = 1e-6,
    high: HighOption = 0.1,
    set_: SetOption = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Which learning rate? Train a supervised phase at rates that grow from update to update, until one breaks it; nothing is kept."""
    needs_training("find-rate")

    from burnish.inspector.text import printable, printable_json
    from burnish.recipe.load import load_config
    from burnish.recipe.resolve import resolve
    from burnish.run.display import StepBar, new_console, say
    from burnish.run.rate_range import find_rate as test
    from burnish.run.rate_range import supervised_phase
    from burnish.trainer.models.finding import find_model, is_source
    from burnish.trainer.phases.rate_range import rates

    tried = rates(low, high, steps)
    config = load_config(recipe, set_ or (), plugin or ())
    if is_source(config.model):
        find_model(config.model, may_import=True)
    run = resolve(config)
    table = supervised_phase(run, phase)
    console = new_console(stderr=as_json)
    if table.name != run.phases[0].name:
        say(console, f"{table.name} begins with {run.model} as it is; the phases before it do not run here")
    with StepBar(console, "rates", len(tried)) as bar:
        for found in test(run, table, tried, lambda line: say(console, line)):
            if found.tried:
                bar.advance(f"rate {found.tried[-1].rate:.1e}  loss {found.tried[-1].loss:.3f}")
    if as_json:
        answer(printable_json(row_of(table.name, found)))
        return
    key = f"phases.{table.name}.lr" if config.phases else f"{table.name}.lr"
    typer.echo("\n".join(printable(line) for line in page(key, table.lr, found)))


def row_of(phase: str, found: RateRange) -> dict[str, Any]:
    """What was found as JSON takes it; a loss that was not finite is null."""
    tried = [{"rate": one.rate, "loss": one.loss if math.isfinite(one.loss) else None} for one in found.tried]
    broke = None if found.broke is None else found.broke.rate
    row = {"phase": phase, "start": found.start, "tried": tried, "trained_too": found.trained_too}
    return {**row, "lowest": found.lowest.rate, "broke": broke, "suggested": found.suggested}


def page(key: str, asked: float | None, found: RateRange) -> Iterator[str]:
    """The losses by rate, and what they say. key, asked: the recipe's key of the rate, and what it has."""
    whose = "examples of which some were trained too, since there are too few" if found.trained_too else "examples that were not trained"
    yield f"{key}: the loss on {whose}, {found.start:.3f} before the first update"
    yield ""
    every = max(1, math.ceil(len(found.tried) / ROWS))
    top = max([found.start, *(one.loss for one in found.tried if math.isfinite(one.loss))])
    for number, one in enumerate(found.tried):
        if number % every == 0 or one in (found.lowest, found.tried[-1]):
            bar = "#" * round(40 * one.loss / top) if math.isfinite(one.loss) else "not finite"
            mark = "  lowest" if one == found.lowest else "  broke" if one == found.broke else ""
            yield f"  {one.rate:8.1e}  {one.loss:7.3f}  {bar}{mark}"
    yield ""
    if found.suggested is not None and found.broke is not None:
        has = "" if asked is None else f" (the recipe has {asked:g})"
        yield f"{found.broke.rate:.1e} broke it; a tenth of that is a rate to begin with{has}:"
        yield f"  --set {key}={found.suggested:g}"
    elif found.broke is not None:
        yield f"nothing was learned before {found.broke.rate:.1e} broke it; start from a lower rate with --low"
    else:
        yield f"no rate broke it; go on to higher ones with --high, above {found.tried[-1].rate:g}"
