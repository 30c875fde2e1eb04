"""What plays episodes, as a loop and an evaluation see it: Ray actors (`fleet.py`), or one worker alone (`evaluation/alone.py`)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..envs.types import EpisodeGroup, Float32, Int32, Task
from ..rollout.weights import SyncReceipt


class Fleet(Protocol):
    """Runs episodes under the current weights. Every wait has a deadline that the fleet knows."""

    def submit(self, tasks: Sequence[Task], group_size: int, temperature: float) -> None:
        """Start `group_size` episodes of each task; returns at once."""
        ...

    def poll(self) -> list[EpisodeGroup]:
        """Groups that finished since the last call; waits a moment for the first. Raises when nothing has finished for too long."""
        ...

    def sync(self, snapshot: Any) -> list[SyncReceipt]:
        """Give every engine the weights that `PolicyLearner.snapshot` gave."""
        ...

    def stop(self) -> None:
        """Drop what is under way."""
        ...

    def score(self, sequences: Sequence[Int32]) -> Mapping[str, Sequence[Float32]]:
        """What each engine gives every token but the first of each sequence: by name, float32 `[length - 1]` per sequence."""
        ...


@dataclass(frozen=True)
class SharedFleet:
    """A fleet for whoever plays tasks beside those that are under way already. others: is given the groups of these as they finish.

    Example: `for group in run_tasks(SharedFleet(fleet, take_in), tasks, 1, 0.0): …`.
    """

    fleet: Fleet
    others: Callable[[EpisodeGroup], None]
    _mine: set[str] = field(default_factory=set)

    def submit(self, tasks: Sequence[Task], group_size: int, temperature: float) -> None:
        self._mine.update(task.id for task in tasks)
        self.fleet.submit(tasks, group_size, temperature)

    def poll(self) -> list[EpisodeGroup]:
        finished = self.fleet.poll()
        for group in finished:
            if group.task.id not in self._mine:
                self.others(group)
        return [group for group in finished if group.task.id in self._mine]

    def sync(self, snapshot: Any) -> list[SyncReceipt]:
        return self.fleet.sync(snapshot)

    def stop(self) -> None:
        """Drop everything that is under way, the others too."""
        self.fleet.stop()

    def score(self, sequences: Sequence[Int32]) -> Mapping[str, Sequence[Float32]]:
        return self.fleet.score(sequences)


def run_tasks(fleet: Fleet, tasks: Sequence[Task], group_size: int, temperature: float) -> Generator[EpisodeGroup, None, None]:
    """The group of every task, in the order they finish. Raises what the fleet raises; whoever stops early leaves nothing under way."""
    left = {task.id for task in tasks}
    fleet.submit(tasks, group_size, temperature)
    try:
        while left:
            for group in fleet.poll():
                if group.task.id in left:
                    left.remove(group.task.id)
                    yield group
    finally:
        if left:
            fleet.stop()
