"""The `burnish replay` command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.cli.needs import needs_training
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
    from burnish.inspector.replay import Divergence
    from burnish.inspector.stored import StoredEpisode

DIFFERS = 1
"""Exit code when an episode went otherwise than it did."""
SHOWN = 300
"""Characters of a value that the terminal shows."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("replay")(replay)


@dataclass(frozen=True, slots=True)
class Outcome:
    """An episode with what came of it: the first divergence, or why it was left out; neither when it went as recorded."""

    episode: StoredEpisode
    divergence: Divergence | None = None
    left_out: str | None = None

    def to_row(self) -> dict[str, Any]:
        row: dict[str, Any] = {**asdict(self.episode.moment), "episode": self.episode.id}
        row |= {"divergence": asdict(self.divergence)} if self.divergence else {}
        return row | ({"left_out": self.left_out} if self.left_out else {})


def replay(
    run_folder: RunArgument,
    rollout: Annotated[
        str | None, typer.Argument(metavar="[ROLLOUT]", help="Id of an episode, such as train-17/0.", show_default=False)
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every episode of the run, or of what the options choose.")] = False,
    phase: PhaseOption = None,
    step: StepOption = None,
    split: SplitOption = None,
    mode: ModeOption = None,
    plugin: PluginOption = None,
    trust: TrustOption = False,
    outward: Annotated[
        bool, typer.Option("--outward", help="Let the run folder name addresses to call, and variables and files with secrets to send.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Step through stored episodes against the real environment, and name the first answer that differs. Exits with 1 when one does."""
    needs_training("replay")
    from burnish.inspector.stored import Which, chosen
    from burnish.inspector.text import printable
    from burnish.run.recorded import players_of

    if (rollout is None) != all_:
        raise ValueError("give the id of one episode, such as train-17/0, or --all")
    with players_of(run_folder, plugin or (), outward, trust) as players:
        outcomes = [_played(episode, players) for episode in chosen(run_folder, Which(phase, step, split, mode, rollout))]
    if as_json:
        print_json(_row(outcomes))
    else:
        typer.echo("\n".join(printable(line) for line in _lines(outcomes, every=not all_)))
    if any(outcome.divergence for outcome in outcomes):
        raise typer.Exit(DIFFERS)


def _played(episode: StoredEpisode, players: Any) -> Outcome:
    from burnish.inspector.replay import play_again, why_not

    reason = why_not(episode)
    player = players.get(episode.task.environment)
    if player is None:
        reason = reason or f"the recipe blends no environment {episode.task.environment!r}"
    return Outcome(episode, left_out=reason) if reason else Outcome(episode, play_again(episode, player))


def _row(outcomes: list[Outcome]) -> dict[str, Any]:
    differ = [outcome.to_row() for outcome in outcomes if outcome.divergence]
    left_out = [outcome.to_row() for outcome in outcomes if outcome.left_out]
    same = len(outcomes) - len(differ) - len(left_out)
    return {"schema": 1, "replayed": same + len(differ), "same": same, "differ": differ, "left_out": left_out}


def _lines(outcomes: list[Outcome], every: bool) -> Iterator[str]:
    for outcome in outcomes:
        if outcome.divergence is not None:
            yield from _told(outcome.episode, outcome.divergence)
        elif every:
            yield f"{outcome.episode.where}: " + (outcome.left_out or f"the same, {_count(outcome.episode.turns + 1, 'step')}")
    row = _row(outcomes)
    reasons = {outcome.left_out.partition("(")[0].strip() for outcome in outcomes if outcome.left_out}
    left_out = f", {len(row['left_out'])} left out ({'; '.join(sorted(reasons))})" if reasons else ""
    yield f"{_count(row['replayed'], 'episode')} replayed: {row['same']} the same, {len(row['differ'])} differ{left_out}"


def _told(episode: StoredEpisode, found: Divergence) -> Iterator[str]:
    at = "at the reset" if found.step == 0 else f"at step {found.step}"
    if found.field == "failure":
        yield f"{episode.where}: fails {at}: {found.now}"
        return
    yield f"{episode.where}: differs {at}, in {found.field}"
    yield f"  recorded {_short(found.recorded)}"
    yield f"  now      {_short(found.now)}"


def _short(value: Any) -> str:
    said = json.dumps(value, ensure_ascii=False, default=str)
    return said if len(said) <= SHOWN else f"{said[:SHOWN]}… ({len(said):,} characters)"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
