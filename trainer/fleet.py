"""The fleet: RLlib's group of env runners as the place where episodes run and weights arrive."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from ..envs.types import EpisodeGroup, Task
from ..rollout.weights import SyncReceipt

POLL_S = 1.0
"""Seconds one call of `sample` may wait for a finished group."""


START_PING_S = 60.0


class FleetError(RuntimeError):
    """A runner stayed silent past its deadline, or none is left."""


@dataclass
class RayFleet:
    """Spreads tasks over env runners, collects finished groups, and sends out weights.

    A runner that dies is restarted by Ray; it is given the current weights and the tasks it still owed. stall_s: seconds without a
    finished episode anywhere after which the run stops. sync_s: seconds one weight update may take.
    """

    runners: Mapping[int, Any]
    stall_s: float
    sync_s: float
    engines: dict[str, str] = field(default_factory=dict)
    restarts: int = 0
    _snapshot: Any = None

    def run(self, tasks: Sequence[Task], group_size: int, temperature: float) -> Iterator[EpisodeGroup]:
        """Yield every task's group as it finishes. Raises FleetError when nothing finishes for `stall_s` seconds."""
        owed: dict[int, dict[str, Task]] = {index: {} for index in self.runners}
        for i, task in enumerate(tasks):
            owed[list(owed)[i % len(owed)]][task.id] = task
        for index, mine in owed.items():
            self._submit(index, list(mine.values()), group_size, temperature)
        last = time.monotonic()
        while any(owed.values()):
            busy = [index for index, mine in owed.items() if mine]
            for index, groups in self._poll(busy, owed, group_size, temperature):
                for group in groups:
                    if owed[index].pop(group.task.id, None) is None:
                        continue  # a runner that restarted had finished it already
                    last = time.monotonic()
                    self.engines |= {episode.id: f"rollout-{index}" for episode in group.episodes}
                    yield group
            if time.monotonic() - last > self.stall_s:
                waiting = ", ".join(f"rollout-{index} owes {len(mine)} groups" for index, mine in owed.items() if mine)
                raise FleetError(f"no group finished for {self.stall_s:g} s: {waiting}")

    def sync(self, snapshot: Any) -> list[SyncReceipt]:
        """Send a snapshot (a reference in Ray's object store) to every runner; all have it when this returns."""
        self._snapshot = snapshot
        calls = {index: self._send(runner) for index, runner in self.runners.items()}
        return [self._receive(index, call) for index, call in calls.items()]

    def stop(self) -> None:
        """Ask every runner to drop what it is doing."""
        for runner in self.runners.values():
            runner.cancel.remote()

    def _send(self, runner: Any) -> Any:
        return runner.update_weights.options(name="rollout.update_weights").remote(self._snapshot, self.sync_s)

    def _receive(self, index: int, call: Any) -> SyncReceipt:
        try:
            receipt: SyncReceipt = ray.get(call, timeout=self.sync_s)
        except GetTimeoutError as error:
            raise FleetError(f"rollout-{index} did not take new weights within {self.sync_s:g} s") from error
        except RayActorError:
            self._revive(index)
            return self._receive(index, self._send(self.runners[index]))
        except RayTaskError as error:
            raise error.cause from error
        return receipt

    def _submit(self, index: int, tasks: list[Task], group_size: int, temperature: float) -> None:
        if tasks:
            self.runners[index].submit.options(name="rollout.submit").remote(tasks, group_size, temperature)

    def _poll(
        self, busy: list[int], owed: Mapping[int, Mapping[str, Task]], group_size: int, temperature: float
    ) -> Iterator[tuple[int, list[EpisodeGroup]]]:
        calls = {index: self.runners[index].sample.options(name="rollout.sample").remote(POLL_S) for index in busy}
        for index, call in calls.items():
            try:
                yield index, ray.get(call, timeout=self.stall_s)
            except GetTimeoutError as error:
                raise FleetError(f"rollout-{index} did not answer within {self.stall_s:g} s") from error
            except RayTaskError as error:
                raise error.cause from error
            except RayActorError:
                self._revive(index)
                self._submit(index, list(owed[index].values()), group_size, temperature)

    def _revive(self, index: int) -> None:
        """Wait for Ray to restart a runner and give it the current weights. Raises FleetError when it does not come back."""
        self.restarts += 1
        deadline = time.monotonic() + self.sync_s
        while time.monotonic() < deadline:
            try:
                ray.get(self.runners[index].ping.remote(), timeout=max(1.0, deadline - time.monotonic()))
                break
            except RayActorError:
                time.sleep(1.0)
            except GetTimeoutError:
                continue
        else:
            raise FleetError(f"rollout-{index} died and did not come back within {self.sync_s:g} s")
        if self._snapshot is not None:
            ray.get(self._send(self.runners[index]), timeout=self.sync_s)


def raise_why_runners_died(group: Any, error: Exception) -> NoReturn:
    """Raise what ended the first env runner that did not start: ValueError when the user can put it right, FleetError otherwise."""
    for index, runner in group._worker_manager.actors().items():
        try:
            ray.get(runner.ping.remote(), timeout=START_PING_S)
        except RayActorError as died:
            last = [line.strip() for line in str(died).splitlines() if line.strip()][-1]
            name, _, text = last.partition(": ")
            if name.rpartition(".")[2] == "ValueError":
                raise ValueError(text) from died
            raise FleetError(f"rollout-{index} did not start: {last}") from died
    raise error
