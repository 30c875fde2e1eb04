"""The `burnish regrade` command, and its page."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from burnish.cli.needs import needs_training
from burnish.cli.options import (
    ArgOption,
    JsonOption,
    ModeOption,
    PhaseOption,
    PluginOption,
    RunArgument,
    SplitOption,
    StepOption,
    TrustOption,
    print_json,
)

if TYPE_CHECKING:
    from burnish.inspector.regrade import Graded, Regrade, RewardSpread, RubricOf

FAILED = 1
"""Exit code when an episode could not be scored."""

FLIPPED = 5
"""Groups whose advantages flipped that the page names."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("regrade")(regrade)


def regrade(
    run_folder: RunArgument,
    reward: Annotated[str | None, typer.Option("--reward", metavar="ID", help="An id of `burnish rewards list`.")] = None,
    verifier: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="A verifier that runs, instead of a reward.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="RECIPE", help="All rewards of a recipe, weighed as it says. Default: the run's own, as it ran.")
    ] = None,
    verifier_id: Annotated[str, typer.Option(metavar="ID", help="Which verifier of a server that has several.", show_default=False)] = "",
    arg: ArgOption = None,
    plugin: PluginOption = None,
    trust: TrustOption = False,
    against: Annotated[str | None, typer.Option(metavar="PART", help="Compare with this part of the reward, not the total.")] = None,
    phase: PhaseOption = None,
    step: StepOption = None,
    split: SplitOption = None,
    mode: ModeOption = None,
    limit: Annotated[int, typer.Option(min=0, help="How many disagreements to name.")] = 10,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a row for every episode to this .jsonl file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Score stored episodes with another reward, or again with the run's own: what it disagrees on, and what training would have seen.
    Exits with 1 when one fails."""
    needs_training("regrade")
    from burnish.inspector.regrade import compared
    from burnish.inspector.regrade import regrade as grade
    from burnish.inspector.stored import Which, chosen
    from burnish.inspector.text import printable

    _check_one(reward, verifier, recipe, verifier_id, arg or (), trust)
    if out is not None and out.exists():
        raise ValueError(f"{out} is there already, and results are never overwritten; give another --out")
    episodes = list(chosen(run_folder, Which(phase, step, split, mode)))
    with _rubric(reward, verifier, verifier_id, recipe, arg or (), plugin or (), run_folder, trust) as rubric_of:
        graded, left_out = grade(episodes, rubric_of, against)
    found, run = compared(graded, left_out, limit), run_folder.resolve().name
    if out is not None:
        out.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in found.rows(graded, run)))
    if as_json:
        print_json(found.to_row(run))
    else:
        typer.echo("\n".join(printable(line) for line in page(found, graded, against or "the total")))
    if found.failed:
        raise typer.Exit(FAILED)


def _check_one(reward: str | None, verifier: str | None, recipe: Path | None, verifier_id: str, args: Sequence[str], trust: bool) -> None:
    given = [name for name, value in (("--reward", reward), ("--verifier", verifier), ("--recipe", recipe)) if value is not None]
    if len(given) > 1:
        raise ValueError(f"give one of --reward ID, --verifier HOST:PORT and --recipe RECIPE, not {' and '.join(given)}")
    used = given[0] if given else "the run's own recipe"
    if args and reward is None:
        raise ValueError(f"--arg has no effect with {used}: it is an option of a reward")
    if trust and given and recipe is None:
        raise ValueError(f"--trust has no effect with {used}: nothing that the run names is run")
    if verifier_id and verifier is None:
        raise ValueError(f"--verifier-id has no effect with {used}")


@contextmanager
def _rubric(
    reward: str | None,
    verifier: str | None,
    verifier_id: str,
    recipe: Path | None,
    args: Sequence[str],
    plugins: Sequence[Path],
    run_folder: Path,
    trust: bool,
) -> Iterator[RubricOf]:
    """What scores: one reward or verifier alone, or the rubrics of a recipe, the run's own where none is given: its environment's and
    those of what it blends. Its services are started for it."""
    from burnish.cli.arguments import parse_arguments
    from burnish.cluster import check_played, services_of
    from burnish.envs.registry import load_plugin
    from burnish.rewards.build import make_rubric
    from burnish.rewards.config import RewardConfig

    for plugin in plugins:
        load_plugin(plugin)
    if verifier is not None or reward is not None:
        if verifier is not None:
            one = RewardConfig(verifier=verifier, verifier_id=verifier_id or None, name="verifier")
        else:
            one = RewardConfig(use=reward, args=parse_arguments(args))
        check_played([("", {}, [one])], {})
        rubric = make_rubric([one], 0.0, retries=2)
        yield lambda environment: rubric
        return
    from burnish.recipe.recorded import load_recipe
    from burnish.recipe.resolve import resolve
    from burnish.rpc.address import service_references, with_addresses

    run = resolve(load_recipe(recipe or run_folder, (), plugins, trust, run_folder))
    for name in run.plugins:
        load_plugin(name)
    used = {name for entry in run.rewards for name in service_references(entry.verifier)}
    services = {name: service for name, service in run.services.items() if name in used}
    with tempfile.TemporaryDirectory(prefix="burnish-regrade-") as logs, services_of(services, Path(logs)) as addresses:
        check_played([("", {}, run.rewards)], addresses, run.limits.check_s)
        rewards = [entry.model_copy(update={"verifier": with_addresses(entry.verifier, addresses)}) for entry in run.rewards]
        rubrics = {"": make_rubric(rewards, run.environment.weight, run.rollout.retries)}
        blended = {one.called for table in run.reinforced for one in table.blend}
        yield {**{name: make_rubric((), 1.0, run.rollout.retries) for name in blended}, **rubrics}.get


def page(found: Regrade, graded: Sequence[Graded], against: str) -> Iterator[str]:
    """The comparison on one page, a line at a time."""
    left = [*([f"{found.failed} could not be scored"] if found.failed else []), *(f"{n} {why}" for why, n in found.left_out.items())]
    of = "" if found.trained == found.episodes else f", {found.trained:,} of them of training"
    yield f"{found.episodes:,} episodes scored again{of}, compared with {against}" + (f" (left out: {', '.join(left)})" if left else "")
    if found.episodes:
        said = "one of the two is constant" if found.correlation is None else f"{found.correlation:+.3f}"
        yield f"{'rank correlation':<20}{said} (Spearman)"
        yield from _training(found)
    if found.disagreements:
        yield "largest disagreements"
        width = max(len(one.episode.where) for one, _ in found.disagreements)
        for one, apart in found.disagreements:
            yield f"  {one.episode.where:<{width}}  was {one.was:<8.4g} now {one.now:<8.4g} {apart:.0%} apart"
    yield from _failures(graded)


def _training(found: Regrade) -> Iterator[str]:
    if found.was is None or found.now is None:
        yield f"{'training saw':<20}none of these episodes"
        return
    yield f"{'training saw':<20}{_side(found.was, found.groups)}"
    yield f"{'would have seen':<20}{_side(found.now, found.groups)}"
    flipped = len(found.flipped)
    share = f" ({flipped / found.both_teach:.1%})" if found.both_teach else ""
    yield f"{'flipped':<20}an advantage has the other sign in {flipped:,} of {found.both_teach:,} groups that teach under both{share}"
    yield from (f"  {group.where}" for group in found.flipped[:FLIPPED])
    if flipped > FLIPPED:
        yield f"  and {flipped - FLIPPED:,} more, which --json names"


def _side(seen: RewardSpread, groups: int) -> str:
    return f"mean {seen.mean:.4g}, deviation {seen.deviation:.4g}, {seen.teaching:,} of {groups:,} groups teach"


def _failures(graded: Sequence[Graded]) -> Iterator[str]:
    failed = [one for one in graded if one.failure is not None]
    if failed:
        yield f"{len(failed):,} could not be scored, the first: {failed[0].episode.where}: {failed[0].failure}"
