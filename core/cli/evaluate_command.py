"""The `burnish evaluate` and `burnish suites` commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from burnish.cli.answer import answer
from burnish.cli.needs import needs_engine, needs_training
from burnish.cli.options import PluginOption, StallOption, ThreadsOption, TrustOption, json_option, refuse_idle

if TYPE_CHECKING:
    from rich.console import Console

    from burnish.trainer.evaluation.suites.measure import Asking
    from burnish.trainer.evaluation.suites.suite import Suite

CheckpointArgument = Annotated[
    str | None, typer.Argument(metavar="[CHECKPOINT]", help="A run, a checkpoint, a model folder, or a name under models/.")
]
RecipeArgument = Annotated[Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe, whose held-out tasks are measured.")]
SuiteOption = Annotated[
    list[str] | None, typer.Option("--suite", metavar="ID|FILE", help="A suite: an id of `burnish suites`, or a file (*.toml).")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one field of the recipe.")]
PlatformOption = Annotated[
    Literal["auto", "cpu", "gpu"] | None, typer.Option(help="Instead of the recipe's own platform.", show_default=False)
]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write results and every sample into this new folder.")]
SamplesOption = Annotated[
    int | None,
    typer.Option(min=1, help="Answers to each item; more than one are sampled, and give pass@k. Default: 1.", show_default=False),
]
TemperatureOption = Annotated[float | None, typer.Option(min=0, help="Of answers. Default: 0 for one, 1 for several.", show_default=False)]
ItemsOption = Annotated[int | None, typer.Option(min=1, help="Items of each suite. Default: as many as the suite says.")]
JsonOption = Annotated[bool, json_option("Print JSON instead; progress goes to stderr.")]
CompareOption = Annotated[
    tuple[str, str] | None,
    typer.Option("--compare", metavar="A B", help="Two folders of results, or two checkpoints with --suite: what became of each item."),
]
ShowOption = Annotated[int, typer.Option("--show", min=0, help="Items to print of a suite that is named.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("evaluate")(evaluate)
    app.command("suites")(suites)


def evaluate(
    checkpoint: CheckpointArgument = None,
    recipe: RecipeArgument = None,
    suite: SuiteOption = None,
    out: OutOption = None,
    samples: SamplesOption = None,
    temperature: TemperatureOption = None,
    items: ItemsOption = None,
    compare: CompareOption = None,
    as_json: JsonOption = False,
    threads: ThreadsOption = None,
    stall_s: StallOption = None,
    set_: SetOption = None,
    plugin: PluginOption = None,
    platform: PlatformOption = None,
    trust: TrustOption = False,
) -> None:
    """Measure a checkpoint by suites or on the held-out tasks of a recipe, or compare two evaluations item by item."""
    if compare is None and checkpoint is None:
        raise ValueError("evaluate needs a CHECKPOINT, or --compare with two evaluations")
    if compare is not None and (checkpoint is not None or recipe is not None):
        raise ValueError("--compare says what is compared; leave CHECKPOINT and RECIPE out")
    asked = {"samples": samples, "temperature": temperature, "items": items, "threads": threads, "stall_s": stall_s}
    if recipe is not None:
        refuse_idle({**asked, "json": as_json}, "beside a RECIPE, which says how it is measured; leave it out, or name a --suite instead")
        _by_recipe(str(checkpoint), recipe, suite, out, set_, plugin, platform, trust)
        return
    if set_ or platform or trust:
        raise ValueError("--set, --platform and --trust are of a RECIPE; there is none")

    from burnish.run.display import new_console

    console = new_console(stderr=as_json)
    if compare is not None and not suite:
        refuse_idle(
            {**asked, "out": out, "plugin": plugin},
            "on two folders of results, which are only read; name a --suite to measure two checkpoints",
        )
        _compared(compare, as_json, console)
        return
    needs_engine("evaluate")
    from burnish.envs.registry import load_plugin
    from burnish.trainer.evaluation.suites.finding import find_suites
    from burnish.trainer.evaluation.suites.measure import Asking

    for file in plugin or ():
        load_plugin(file)
    if not suite:
        raise ValueError("evaluate needs a RECIPE or --suite; `burnish suites` lists those that are here")
    count = samples or 1
    asking = Asking(items, count, temperature if temperature is not None else float(count > 1))
    _by_suites(compare or (str(checkpoint),), find_suites(suite), asking, out, console, plugin or [], threads or 1, stall_s, as_json)


def suites(
    id: Annotated[str | None, typer.Argument(metavar="[ID|FILE]", help="Only this one, and what it asks.")] = None,
    show: ShowOption = 3,
    plugin: PluginOption = None,
) -> None:
    """List the suites that `burnish evaluate` and recipes can name, or show one."""
    needs_training("suites")
    from burnish.envs.registry import load_plugin
    from burnish.inspector.text import printable
    from burnish.trainer.evaluation.suites.finding import find_suite
    from burnish.trainer.evaluation.suites.suite import SUITES

    for file in plugin or ():
        load_plugin(file)
    if id is None:
        for listed in SUITES.list():
            typer.echo(printable(f"{listed.id}  {find_suite(listed.id).about}"))
        return
    for line in _shown(find_suite(id), show):
        typer.echo(printable(line))


def _shown(suite: Suite, count: int) -> list[str]:
    """A suite in words, and its first items."""
    lines = [f"{suite.id}: {suite.about}"]
    if suite.tasks is None:
        assert suite.texts is not None
        texts = suite.texts(suite.items)
        return [*lines, f"{len(texts)} texts, read for their perplexity", *(one.text for one in texts[:count])]
    judged = ", ".join(str(one.use or one.verifier) for one in suite.rewards) or "itself"
    tasks = suite.tasks(suite.items)
    lines.append(
        f"{len(tasks)} items, played by {suite.environment}, judged by {judged}; right from {suite.right:g}, chance {suite.chance:.0%}, "
        f"at most {suite.max_turns} turns of {suite.max_tokens} tokens"
    )
    for task in tasks[:count]:
        said = " / ".join(message.text for message in task.prompt) or f"seed {task.seed}"
        lines.append(f"{task.id}: {said!r} {dict(task.data)}")
    return lines


def _by_recipe(
    checkpoint: str,
    recipe: Path,
    suite: list[str] | None,
    out: Path | None,
    set_: list[str] | None,
    plugin: list[Path] | None,
    platform: Literal["auto", "cpu", "gpu"] | None,
    trust: bool,
) -> None:
    if suite or out:
        raise ValueError("a RECIPE's held-out tasks go to a run folder; give either a RECIPE or --suite (with --out)")
    needs_engine("evaluate")
    from burnish.recipe.recorded import load_recipe
    from burnish.recipe.resolve import resolve
    from burnish.run.pipeline import evaluate_checkpoint

    evaluate_checkpoint(resolve(load_recipe(recipe, set_ or (), plugin or (), trust, platform=platform)), checkpoint)


def _compared(folders: tuple[str, str], as_json: bool, console: Console) -> None:
    needs_training("evaluate --compare")
    from burnish.run import suites
    from burnish.run.display import say

    changes = suites.compare_folders(Path(folders[0]), Path(folders[1]))
    if as_json:
        answer(suites.as_json([one.to_row() for one in changes]))
        return
    for one in changes:
        say(console, one.line)


def _by_suites(
    checkpoints: tuple[str, ...],
    found: tuple[Suite, ...],
    asking: Asking,
    out: Path | None,
    console: Console,
    plugins: list[Path],
    threads: int,
    stall_s: float | None,
    as_json: bool,
) -> None:
    """Measure one checkpoint, or two and what became of each suite from the first to the second."""
    from burnish.run import suites
    from burnish.run.display import say

    one_of_two = len(checkpoints) > 1
    measured = []
    for place, checkpoint in zip("ab", checkpoints, strict=False):
        folder = out / place if out is not None and one_of_two else out
        measured.append(suites.evaluate_suites(checkpoint, found, asking, folder, console, plugins, threads, stall_s))
    if one_of_two:
        before, after = ({scores.suite: scores for scores in one} for one in measured)
        changes = suites.changes_between(before, after)
        rows = [one.to_row() for one in changes]
        for one in changes if not as_json else ():
            say(console, one.line)
    else:
        rows = [scores.result().to_row() for scores in measured[0]]
    if as_json:
        answer(suites.as_json(rows))
    elif out is not None:
        say(console, f"results and every sample: {out}")
