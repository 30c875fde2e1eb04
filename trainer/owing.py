"""One runner as the fleet sees it: what it owes, which calls of it are under way, and when its engine is gone."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import ray

from ..envs.failures import EpisodeFailure, Failure, FailureKind
from ..envs.types import EpisodeGroup, Task
from ..rollout.worker import Progress
from .restarts import Restarts

GONE = (FailureKind.ENGINE_LOST, FailureKind.ENGINE_TIMEOUT)
"""What an engine's calls fail with that is gone, or answers no more."""


@dataclass(frozen=True)
class Work:
    task: Task
    group_size: int
    temperature: float


@dataclass
class Runner:
    """One runner: the tasks it owes by id, calls under way with the time by which they must be answered, and whether it was restarted since
    it was given what it owes. life: that it had when it got the weights, None before. node: on which it then was, "" before, and once it
    is back after it was lost. leaving: it is given nothing more, and leaves once it owes nothing."""

    index: int
    actor: Any
    restarts: Restarts
    owed: dict[str, Work] = field(default_factory=dict)
    sampling: tuple[Any, float] | None = None
    submitted: list[tuple[Any, float]] = field(default_factory=list)
    lost_work: bool = False
    life: str | None = None
    node: str = ""
    leaving: bool = False

    @property
    def name(self) -> str:
        return f"rollout-{self.index}"

    @property
    def episodes(self) -> int:
        return sum(work.group_size for work in self.owed.values())

    @property
    def calls(self) -> list[tuple[Any, float]]:
        return [*self.submitted, *([self.sampling] if self.sampling else [])]

    def is_late(self) -> bool:
        """Whether a call is past its deadline. An answer that only was not read yet is not late."""
        late = [call for call, deadline in self.calls if time.monotonic() > deadline]
        answered, _ = ray.wait(late, num_returns=len(late), timeout=0) if late else ([], [])
        return len(answered) < len(late)


def lost_engine(error: object) -> bool:
    """Whether an engine is gone, or answers no more."""
    return isinstance(error, EpisodeFailure) and error.failure.kind in GONE


def why_engine_is_lost(group: EpisodeGroup) -> str:
    """What the last member failed of, where all did because the engine is gone or answers no more; "" otherwise. One that is only slow
    fails no episode."""
    failures = [episode.outcome for episode in group.episodes if isinstance(episode.outcome, Failure) and episode.outcome.kind in GONE]
    return failures[-1].line if failures and len(failures) == len(group.episodes) else ""


def waits(runner: Runner, progress: Progress) -> str:
    calls = ", ".join(f"{count} of the {part}" for part, count in progress.under_way.items())
    return f"{runner.name} owes {len(runner.owed)} groups, calls under way: {calls or 'none'}"
