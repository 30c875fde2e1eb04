"""The `burnish branch` command."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.cli.needs import needs_engine
from burnish.cli.options import (
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
    from burnish.envs.types import Episode
    from burnish.inspector.stored import StoredEpisode
    from burnish.run.branching import Branches

SHOWN = 100
"""Characters of what an attempt said that a line shows."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("branch")(branch)


def branch(
    run_folder: RunArgument,
    rollout: Annotated[str, typer.Argument(metavar="ROLLOUT", help="Id of an episode, such as train-17/0.", show_default=False)],
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="RECIPE", help="What plays and scores. Default: the run's own recipe, as it ran.", show_default=False),
    ] = None,
    turn: Annotated[int, typer.Option(min=1, help="The first turn that is said anew.")] = 1,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="How often.")] = 8,
    model: Annotated[
        str | None,
        typer.Option(metavar="CHECKPOINT", help="Who speaks. Default: the run's latest checkpoint that is promoted.", show_default=False),
    ] = None,
    phase: PhaseOption = None,
    step: StepOption = None,
    split: SplitOption = None,
    mode: ModeOption = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one field of the recipe.")] = None,
    plugin: PluginOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Continue a stored episode from one of its turns, several times, with this or another checkpoint, and score what comes of it."""
    needs_engine("branch")
    from burnish.cluster import check_played, services_of, worlds_of
    from burnish.inspector.stored import Which, chosen
    from burnish.inspector.text import printable
    from burnish.recipe.recorded import load_recipe
    from burnish.recipe.resolve import resolve
    from burnish.rollout.engine import make_engine
    from burnish.run.branching import branch as play
    from burnish.trainer.models.finding import verified_model

    found = list(chosen(run_folder, Which(phase, step, split, mode, rollout)))
    if len(found) > 1:
        places = "; ".join(one.where for one in found[:4])
        raise ValueError(f"{rollout} is there {len(found)} times ({places}); say which by --phase, --step, --split and --mode")
    run = resolve(load_recipe(recipe or run_folder, set_ or (), plugin or (), trust, run_folder))
    speaks = verified_model(model or _latest_there(run_folder))
    with tempfile.TemporaryDirectory(prefix="burnish-branch-") as logs, services_of(run.services, Path(logs)) as addresses:
        world = worlds_of(run).get(found[0].task.environment)
        check_played([world] if world else [], addresses, run.limits.check_s)
        played = play(run, addresses, speaks, found[0], turn, samples, lambda setup, _: make_engine(setup.engine, setup.model, "branch"))
    if as_json:
        print_json(_row(found[0], played, speaks))
    else:
        typer.echo("\n".join(printable(line) for line in _lines(found[0], played, speaks)))


def _latest_there(run: Path) -> Path:
    """Who speaks for a run: it as a whole, and where folders of it are gone, the latest promoted checkpoint that is there."""
    from burnish.inspector.text import printable
    from burnish.trainer.models.checkpoints import promoted_there

    record, gone = promoted_there(run)
    if gone and record:
        typer.echo(printable(f"the folder of {', '.join(gone)} is gone: {record.name} speaks"), err=True)
    return record.folder(run) if gone and record else run


def _row(episode: StoredEpisode, played: Branches, model: Path) -> dict[str, Any]:
    row = {"schema": 1, **asdict(episode.moment), "episode": episode.id, "turn": played.turn, "recorded_reward": episode.reward}
    return {**row, "model": str(model), "parted": played.parted, "attempts": [_attempt(one) for one in played.attempts]}


def _attempt(one: Episode) -> dict[str, Any]:
    reward = one.reward
    return {
        "reward": reward.total if reward else None,
        "parts": dict(reward.parts) if reward else {},
        "failure": _failure(one),
        "truncation": one.truncation,
        "messages": [message.to_dict() for message in one.messages],
    }


def _lines(episode: StoredEpisode, played: Branches, model: Path) -> Iterator[str]:
    was = "failed" if episode.reward is None else f"reward {episode.reward:.4g}"
    yield f"{episode.where}: {was} as recorded; from turn {played.turn} on, {len(played.attempts)} times"
    yield f"{model} speaks"
    if played.parted is not None:
        place, then, now = played.parted
        yield f"The environment answered otherwise than recorded (message {place}): {then[:SHOWN]!r} then, {now[:SHOWN]!r} now"
    for i, one in enumerate(played.attempts, start=1):
        said = " / ".join(message.text.strip() for message in one.messages if message.role == "assistant")
        cut = f"  (cut short by {one.truncation})" if one.truncation else ""
        yield f"  {i:>3}  {_ended(one):<8}  {said if len(said) <= SHOWN else f'…{said[-SHOWN:]}'}{cut}"
    rewards = [one.reward.total for one in played.attempts if one.reward]
    if rewards:
        yield f"mean {statistics.fmean(rewards):.4g} of {len(rewards)}, best {max(rewards):.4g}, worst {min(rewards):.4g}"


def _ended(one: Episode) -> str:
    return f"{one.reward.total:.4g}" if one.reward else str(_failure(one))


def _failure(one: Episode) -> str | None:
    from burnish.envs.failures import Failure

    return f"{one.outcome.kind.value}: {one.outcome.detail}" if isinstance(one.outcome, Failure) else None
