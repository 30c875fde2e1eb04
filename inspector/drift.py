"""Drift: what became of the same tasks between two moments, of one run or of two: steps, checkpoints, evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..rollout.store.intervals import mean_interval
from ..rollout.store.moments import Moment
from ..rollout.store.records import EvaluationRecord, Mode
from .kept import kept_of
from .library import Library
from .runs import read_object

TASKS = ("environment", "environment_args", "tasks")
"""Fields of a config that say what a task's id stands for."""
SEEDED = ("seed", "train_seeds")
"""Fields of a config that say, beside those, what a task of training is that is called by its place alone."""
PLAYED = ("rollout.max_turns", "rollout.max_tokens_per_turn", "rollout.template_args")
"""Fields of a config that say how an episode of a task is played, beside `TEMPERATURE` where answers are sampled."""
TEMPERATURE = "rollout.temperature"


def first_difference(configs: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> str | None:
    """The first of these fields, which may be dotted, that two configs have not alike; None where they have them all alike."""
    first, *others = configs
    return next((field for field in fields if any(_setting(one, field) != _setting(first, field) for one in others)), None)


def played_by(mode: Mode) -> tuple[str, ...]:
    """Fields of a config in which two evaluations in one mode must be alike to be compared task by task."""
    return (*TASKS, *PLAYED, *((TEMPERATURE,) if mode == "sampled" else ()))


def _setting(config: Mapping[str, Any], field: str) -> Any:
    table, _, key = field.rpartition(".")
    found = config.get(table) if table else config
    return found.get(key) if isinstance(found, Mapping) else None


@dataclass(frozen=True, slots=True)
class RunMoment:
    """A moment of a run.

    Example: `str(RunMoment("nano-1", Moment("rft", 12, "heldout", "greedy")))` is `"nano-1/rft.000012.heldout.greedy"`.
    """

    run: str
    moment: Moment

    def __str__(self) -> str:
        return f"{self.run}/{self.moment.file.removesuffix('.parquet')}"

    @classmethod
    def read(cls, said: str, where: str) -> RunMoment:
        """What `str` wrote. Raises ValueError, beginning with `where`, for anything else."""
        run, _, name = said.rpartition("/")
        moment = Moment.of(Path(f"{name}.parquet"))
        if not run or moment is None or len(name) > 200:
            raise ValueError(f"{where}: {said[:80]!r} names no moment of a run; one reads RUN/rft.000012.heldout.sampled")
        return cls(run, moment)


def evaluation_place(run: str, record: EvaluationRecord) -> str:
    """Where the episodes of an evaluation are, as `RunMoment` writes it."""
    return str(RunMoment(run, Moment(record.phase, record.step, "heldout", record.result.mode)))


@dataclass(frozen=True, slots=True)
class Move:
    """A task's mean reward at both moments, and how many attempts each mean is of."""

    task: str
    before: float
    after: float
    attempts: tuple[int, int]

    @property
    def change(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class Drift:
    """What moved. moves: every task that was rewarded at both moments. unpaired: tasks that were at one only. alike: whether a task's id
    names the same task in both runs, as far as their configs say."""

    before: RunMoment
    after: RunMoment
    moves: tuple[Move, ...]
    unpaired: int
    alike: bool

    @cached_property
    def better(self) -> list[Move]:
        """The most improved first."""
        return sorted((move for move in self.moves if move.change > 0), key=lambda move: (-move.change, move.task))

    @cached_property
    def worse(self) -> list[Move]:
        """The most regressed first."""
        return sorted((move for move in self.moves if move.change < 0), key=lambda move: (move.change, move.task))

    @cached_property
    def mean_before(self) -> float:
        return math.fsum(move.before for move in self.moves) / len(self.moves)

    @cached_property
    def mean_after(self) -> float:
        return math.fsum(move.after for move in self.moves) / len(self.moves)

    @cached_property
    def change(self) -> float:
        return self.mean_after - self.mean_before

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean change over the tasks, None for fewer than two."""
        n = len(self.moves)
        if n < 2:
            return None
        spread = math.sqrt(math.fsum((move.change - self.change) ** 2 for move in self.moves) / (n - 1))
        return mean_interval(self.change, spread, n)


def drift_between(before: RunMoment, after: RunMoment, runs: Mapping[str, Path], stores: Mapping[str, Library]) -> Drift:
    """Compare two moments, task by task. runs, stores: the folder and the episodes of each run, by name.

    Raises ValueError when a moment has no stored episodes, with what is known of why, or a file cannot be read.
    """
    rewards = []
    for place in (before, after):
        found = stores[place.run].task_rewards(place.moment)
        if not found:
            why = kept_of(runs[place.run]).why_none(place.moment.phase, place.moment.step, place.moment.split)
            raise ValueError(f"{place} has no stored episodes{f'; {why}' if why else ''}")
        rewards.append({task: (mean, attempts) for task, mean, attempts in found if mean is not None})
    old, new = rewards
    configs = [read_object(runs[place.run], "config.json") for place in (before, after)]
    shared = sorted(old.keys() & new.keys())
    moves = tuple(Move(task, old[task][0], new[task][0], (old[task][1], new[task][1])) for task in shared)
    by_place = "train" in (before.moment.split, after.moment.split) and any(":" not in task for task in shared)
    alike = first_difference(configs, (*TASKS, *SEEDED) if by_place else TASKS) is None
    return Drift(before, after, moves, len(old.keys() ^ new.keys()), alike)
