"""The fleet: env runners as Ray actors, where episodes run and weights arrive.

What may go wrong with a runner, and what becomes of it:
    it dies          Ray restarts it; it gets the current weights, and the tasks that it still owed, again
    it hangs         it does not answer a call within `answer_s`: it is killed, and then as above
    it is slow       it answers, but its episodes take long: nothing, until no group has finished anywhere for `stall_s`
    it is stale      it was restarted behind our back, so its engine holds other weights: it refuses tasks, and gets the weights first
    it stays away    it is not back within `restart_s`, or was restarted too often: FleetError, which ends the run
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from ..envs.types import EpisodeGroup, Float32, Int32, Task
from ..rollout.weights import StaleEngine, SyncReceipt

POLL_S = 1.0
"""Seconds one call of `sample` waits for a finished group."""
START_PING_S = 60.0
AHEAD = 2
"""Episodes given to a runner for each that it can run at once, so that it never waits for more."""


class FleetError(RuntimeError):
    """A runner stayed away, or none has finished anything for too long."""


@dataclass(frozen=True)
class FleetLimits:
    """Seconds that the fleet waits, and episodes that a runner runs at once.

    stall_s: without a finished group anywhere, until the run stops. answer_s: for a runner's answer to one call. sync_s: for one weight
    update, draining the engine included. restart_s: for a runner that died.
    """

    concurrency: int = 64
    stall_s: float = 600.0
    answer_s: float = 60.0
    sync_s: float = 600.0
    restart_s: float = 300.0


@dataclass(frozen=True)
class _Work:
    task: Task
    group_size: int
    temperature: float


@dataclass
class _Runner:
    """One runner: the tasks it owes by id, and calls under way with the time by which they must be answered."""

    index: int
    actor: Any
    owed: dict[str, _Work] = field(default_factory=dict)
    sampling: tuple[Any, float] | None = None
    submitted: list[tuple[Any, float]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"rollout-{self.index}"

    @property
    def episodes(self) -> int:
        return sum(work.group_size for work in self.owed.values())

    @property
    def calls(self) -> list[tuple[Any, float]]:
        return [*self.submitted, *([self.sampling] if self.sampling else [])]


class RayFleet:
    """Hands tasks to the runners that have room for them, gathers finished groups, and sends out weights.

    restarts: how often a runner was brought back.
    """

    def __init__(self, runners: Mapping[int, Any], limits: FleetLimits) -> None:
        self.limits = limits
        self.restarts = 0
        self._runners = [_Runner(index, actor) for index, actor in runners.items()]
        self._waiting: deque[_Work] = deque()
        self._last = time.monotonic()
        self._snapshot: Any = None
        self._version: int | None = None

    @property
    def runners(self) -> dict[int, Any]:
        """The actors by their number."""
        return {runner.index: runner.actor for runner in self._runners}

    @property
    def busy(self) -> bool:
        """Whether a task is waiting or under way."""
        return bool(self._waiting) or any(runner.owed for runner in self._runners)

    def submit(self, tasks: Sequence[Task], group_size: int, temperature: float) -> None:
        """Start `group_size` episodes of each task on whichever runner has room first."""
        if not self.busy:
            self._last = time.monotonic()
        self._waiting.extend(_Work(task, group_size, temperature) for task in tasks)
        self._hand_out()

    def poll(self) -> list[EpisodeGroup]:
        """Groups that finished since the last call, waiting up to `POLL_S` for the first.

        Raises FleetError when nothing has finished for `stall_s` seconds or a runner stays away; what broke a runner's own work passes.
        """
        found: list[EpisodeGroup] = []
        for runner in self._runners:
            if runner.owed and runner.sampling is None:
                self._ask(runner)
        calls = {call: runner for runner in self._runners for call, _ in runner.calls}
        if calls:
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=POLL_S)
            more, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
            for call in dict.fromkeys([*ready, *more]):
                found += self._answered(calls[call], call)
        for runner in self._runners:
            if any(time.monotonic() > deadline for _, deadline in runner.calls):
                self._replace(runner)
        self._hand_out()
        if found:
            self._last = time.monotonic()
        elif self.busy and time.monotonic() - self._last > self.limits.stall_s:
            owing = ", ".join(f"{runner.name} owes {len(runner.owed)} groups" for runner in self._runners if runner.owed)
            raise FleetError(f"no group finished for {self.limits.stall_s:g} s: {owing}")
        return found

    def sync(self, snapshot: Any) -> list[SyncReceipt]:
        """Send a snapshot (a reference in Ray's object store) to every runner; all have it when this returns.

        Raises what the sync itself raises (`rollout.weights.sync_weights`), FleetError when a runner stays away.
        """
        self._snapshot = snapshot
        calls = [(runner, self._send(runner)) for runner in self._runners]
        receipts = [self._receive(runner, call) for runner, call in calls]
        (self._version,) = {receipt.version for receipt in receipts}
        return receipts

    def score(self, sequences: Sequence[Int32]) -> dict[str, list[Float32]]:
        """See `loop.Fleet.score`. Raises FleetError when a runner does not answer within `sync_s`."""
        rows = [ids.tolist() for ids in sequences]
        calls = [(runner, runner.actor.score.options(name="rollout.score").remote(rows)) for runner in self._runners]
        found = {}
        for runner, call in calls:
            try:
                found[runner.name] = ray.get(call, timeout=self.limits.sync_s)
            except (GetTimeoutError, RayActorError) as error:
                raise FleetError(f"{runner.name} did not score the probe of the weight sync within {self.limits.sync_s:g} s") from error
            except RayTaskError as error:
                raise error.cause from error
        return found

    def stop(self) -> None:
        """Drop what is under way and waiting."""
        self._waiting.clear()
        calls = [runner.actor.cancel.remote() for runner in self._runners if runner.owed]
        for runner in self._runners:
            runner.owed, runner.sampling, runner.submitted = {}, None, []
        ray.wait(calls, num_returns=len(calls), timeout=self.limits.answer_s) if calls else None

    def _hand_out(self) -> None:
        """Give waiting tasks to the runners with the fewest episodes, as long as they have room."""
        given: dict[int, list[_Work]] = {}
        while self._waiting:
            runner = min(self._runners, key=lambda one: one.episodes)
            if runner.owed and runner.episodes + self._waiting[0].group_size > AHEAD * self.limits.concurrency:
                break
            work = self._waiting.popleft()
            runner.owed[work.task.id] = work
            given.setdefault(runner.index, []).append(work)
        for runner in self._runners:
            self._submit(runner, given.get(runner.index, []))

    def _submit(self, runner: _Runner, work: Sequence[_Work]) -> None:
        """One call per size and temperature; the runner refuses it unless its engine holds the fleet's weights."""
        for size, temperature in dict.fromkeys((one.group_size, one.temperature) for one in work):
            tasks = [one.task for one in work if (one.group_size, one.temperature) == (size, temperature)]
            call = runner.actor.submit.options(name="rollout.submit").remote(tasks, size, temperature, self._version)
            runner.submitted.append((call, time.monotonic() + self.limits.answer_s))

    def _ask(self, runner: _Runner) -> None:
        call = runner.actor.sample.options(name="rollout.sample").remote(POLL_S)
        runner.sampling = (call, time.monotonic() + POLL_S + self.limits.answer_s)

    def _answered(self, runner: _Runner, call: Any) -> Iterator[EpisodeGroup]:
        """The groups of an answer that the runner still owed; a runner that died or is stale is brought back."""
        if call not in [known for known, _ in runner.calls]:
            return  # the runner was replaced meanwhile, and what it owed was submitted again
        is_sample = runner.sampling is not None and runner.sampling[0] == call
        if is_sample:
            runner.sampling = None
        else:
            runner.submitted = [one for one in runner.submitted if one[0] != call]
        try:
            groups = ray.get(call, timeout=self.limits.answer_s) or []
        except RayActorError:
            self._bring_back(runner)
            return
        except RayTaskError as error:
            if isinstance(error.cause, StaleEngine):
                self._bring_back(runner)
                return
            raise error.cause from error
        for group in groups:
            if runner.owed.pop(group.task.id, None) is not None:
                yield group  # others were finished by an earlier life of the runner

    def _replace(self, runner: _Runner) -> None:
        """Kill a runner that does not answer; Ray starts it anew."""
        ray.kill(runner.actor, no_restart=False)
        self._bring_back(runner)

    def _bring_back(self, runner: _Runner) -> None:
        """Wait for a runner, give it the weights, and submit again what it owes. Raises FleetError when it does not come back."""
        runner.sampling, runner.submitted = None, []
        self._await(runner)
        if self._snapshot is not None:
            self._receive(runner, self._send(runner))
        work = list(runner.owed.values())
        ray.get(runner.actor.cancel.remote(), timeout=self.limits.answer_s)  # a stale one may have begun some of it
        self._submit(runner, work)

    def _send(self, runner: _Runner) -> Any:
        return runner.actor.update_weights.options(name="rollout.update_weights").remote(self._snapshot, self.limits.sync_s)

    def _receive(self, runner: _Runner, call: Any) -> SyncReceipt:
        """The receipt of one runner; one that died or hangs is brought back once, and gets the weights then."""
        try:
            receipt: SyncReceipt = ray.get(call, timeout=self.limits.sync_s)
            return receipt
        except RayTaskError as error:
            raise error.cause from error
        except GetTimeoutError:
            ray.kill(runner.actor, no_restart=False)
        except RayActorError:
            pass
        self._await(runner)
        try:
            receipt = ray.get(self._send(runner), timeout=self.limits.sync_s)
            return receipt
        except RayTaskError as error:
            raise error.cause from error
        except (GetTimeoutError, RayActorError) as error:
            raise FleetError(f"{runner.name} did not take new weights within {self.limits.sync_s:g} s, twice") from error

    def _await(self, runner: _Runner) -> None:
        """Wait until a runner that is being restarted answers. Raises FleetError when it does not within `restart_s`."""
        self.restarts += 1
        deadline = time.monotonic() + self.limits.restart_s
        while True:
            try:
                ray.get(runner.actor.ping.remote(), timeout=max(1.0, deadline - time.monotonic()))
                return
            except (RayActorError, GetTimeoutError) as error:
                if time.monotonic() > deadline:
                    raise FleetError(f"{runner.name} died and did not come back within {self.limits.restart_s:g} s: {error}") from error
                time.sleep(1.0)


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
