"""A fleet of one engine, in this process: for what needs no learner and no cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ...envs.types import EpisodeGroup, Float32, Int32, Task
from ...rollout.weights import SyncReceipt
from ...rollout.worker import RolloutWorker, WorkerSetup
from ..models.importing import no_progress_bars

STALL_S = 600.0
"""Seconds in which no call of the engine, an environment or a reward ends, after which something is said to hang."""


class LoneFleet:
    """`trainer.loop.Fleet` over a worker that keeps the weights it has.

    Example: `for group in run_tasks(LoneFleet(worker), tasks, 1, 0.0): …`.
    """

    def __init__(self, worker: RolloutWorker, stall_s: float = STALL_S) -> None:
        self._worker, self._stall_s = worker, stall_s
        self._last, self._ended = time.monotonic(), 0

    def submit(self, tasks: Sequence[Task], group_size: int, temperature: float) -> None:
        self._last = time.monotonic()
        self._worker.submit(tasks, group_size, temperature)

    def poll(self) -> list[EpisodeGroup]:
        """Groups that finished, waiting a second for the first. Raises TimeoutError when no call has ended for `stall_s` seconds."""
        groups, progress = self._worker.sample(1.0), self._worker.progress
        if groups or progress.calls != self._ended:
            self._last, self._ended = time.monotonic(), progress.calls
        elif time.monotonic() - self._last > self._stall_s:
            calls = ", ".join(f"{count} of the {part}" for part, count in progress.under_way.items())
            raise TimeoutError(
                f"no call of the engine, an environment or a reward ended for {self._stall_s:g} s, with {progress.pending} episodes and "
                f"these calls under way: {calls or 'none'}"
            )
        return groups

    def sync(self, snapshot: Any) -> list[SyncReceipt]:
        raise NotImplementedError("a fleet without a learner gets no weights")

    def stop(self) -> None:
        self._worker.cancel()

    def score(self, sequences: Sequence[Int32]) -> Mapping[str, Sequence[Float32]]:
        return {self._worker.name: self._worker.score([ids.tolist() for ids in sequences])}


@contextmanager
def lone_fleet(setup: WorkerSetup, name: str, stall_s: float = STALL_S) -> Iterator[LoneFleet]:
    """Start the engine of a setup, and end it on the way out. Raises ValueError when the setup cannot be built."""
    with no_progress_bars():
        worker = RolloutWorker(setup, name)
    try:
        yield LoneFleet(worker, stall_s)
    finally:
        worker.close()
