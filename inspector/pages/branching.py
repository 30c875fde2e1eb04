"""The command that continues an episode from one of its turns: to be copied into a shell, as the pages start nothing."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...trainer.models.checkpoints import CheckpointRecord, recorded_checkpoints
from ..alarms import LETTERS
from ..text import cut
from .runs import RunLine

SAMPLES = 8
"""How often it continues the episode."""


@dataclass(frozen=True, slots=True)
class Branching:
    """A command and what it was made of. turn: the first that is said anew, of `turns`, from 1. speaks: the name of the checkpoint that
    does, "" for the run's latest that was not refused promotion. checkpoints: those that were saved, the latest first. gone: the names of
    those that cannot be chosen, as their folder is not there. problem: why they cannot be read, "" where they can."""

    command: str
    turn: int
    turns: int
    speaks: str
    checkpoints: Sequence[CheckpointRecord]
    gone: Sequence[str]
    problem: str


def branching_of(
    line: RunLine,
    found: Mapping[str, Any],
    turn: int | None = None,
    speaks: str = "",
    checkpoints: Sequence[CheckpointRecord] = (),
    problem: str = "",
) -> Branching | None:
    """For a whole episode, from its last turn unless told; None where the policy said nothing.

    Raises ValueError when there is no such turn, or no checkpoint of that name, or its folder is gone.
    """
    turns = len(found["turns"] or ())
    if not turns:
        return None
    turn = turns if turn is None else turn
    if not 1 <= turn <= turns:
        raise ValueError(f"turn: the episode has none of number {turn}; give one from 1 to {turns}")
    chosen = next((one for one in checkpoints if one.name == speaks), None)
    if speaks and chosen is None:
        raise ValueError(f"checkpoint: the run has none that is called {speaks[:80]!r}{f': {problem}' if problem else ''}")
    gone = [one.name for one in checkpoints if not one.is_there(line.path)]
    if speaks in gone:
        raise ValueError(f"checkpoint: the folder of {speaks} is gone; choose another")
    return Branching(_command(line, found, turn, chosen), turn, turns, speaks, checkpoints, gone, problem)


def checkpoints_of(line: RunLine) -> tuple[list[CheckpointRecord], str]:
    """The checkpoints of a run, the latest first, and why they cannot be read, "" where they can."""
    try:
        return recorded_checkpoints(line.path)[::-1], ""
    except (OSError, ValueError) as error:
        return [], cut(str(error), LETTERS)


def _command(line: RunLine, found: Mapping[str, Any], turn: int, speaks: CheckpointRecord | None) -> str:
    """For a shell where this process was started: what a stranger's run calls its own is quoted there, and no option."""
    here, path = Path.cwd(), line.path.absolute()
    run = os.fsencode(path.relative_to(here) if path.is_relative_to(here) else path).decode(errors="replace")
    place = ["--phase", found["phase"], "--step", str(found["step"]), "--split", found["split"], "--mode", found["mode"]]
    model = [f"--model={speaks.folder(Path(run))}"] if speaks else []
    return shlex.join(["burnish", "branch", *place, "--turn", str(turn), "-n", str(SAMPLES), *model, "--", run, found["episode"]])
