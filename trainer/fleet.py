"""The fleet: env runners as Ray actors, where episodes run and weights arrive.

What may go wrong with a runner, and what becomes of it:
    it dies          alone or with its node: Ray restarts it where there is room; it gets the weights, and the tasks that it owed, again
    it hangs         it does not answer a call within `answer_s`: it is killed, and then as above
    its engine dies  the runner lives, and every episode of a group fails: it is killed, and then as above
    its engine hangs it samples no token for `engine.request_timeout_s`, so every episode under way fails: it is killed, and then as above
    its envs hang    more calls of environments than `rollout/hung.py` allows are past their deadline: it is killed, and then as above
    its loop ends    the event loop that plays its episodes, by a fault of ours: it says so, is killed, and then as above
    it is slow       it answers, and its engine samples, but its episodes take long: nothing, until for `stall_s` no call has ended anywhere
    it is stale      it was restarted behind our back, whenever that was: every call names the life of the runner that is meant and the
                     weights, and the answer to new weights says whose it is; it gets the weights, and the tasks that it owed, again
    it is replaced   while new weights go out: what it owed is submitted again, under those
    it stops late    it has not dropped its work within `cancel_s` and `answer_s` when it is told to: it is killed, and then as above
    its node is lost and others may go on without it: they play what it owed, and another joins once there is room
    its node goes    the cluster says that it is about to: it leaves, as above
    it stays away    it is not back within `restart_s`, or Ray says that it never will be: it has left, as above, where others may go on
                     without it; otherwise FleetError, which ends the run
    it dies often    more than `restarts` times within `restart_window_s`, at whosever hands: FleetError, too
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayError, RayTaskError

from ..envs.types import EpisodeGroup, Float32, Int32, Task
from ..rollout.hung import WorkerUnfit
from ..rollout.weights import StaleEngine, SyncReceipt
from .marks import mark
from .nodes import lost_node
from .owing import Runner, Work, lost_engine, waits, why_engine_is_lost
from .restarts import Restarts
from .runners import FleetError, last_line
from .turnover import Held, RunnerSource, Turnover

log = logging.getLogger("burnish.trainer.fleet")
T = TypeVar("T")

POLL_S = 0.1
"""Seconds one call of `sample` waits for a finished group. A runner does one thing after the other: new weights wait behind it."""
AHEAD = 2
"""Episodes given to a runner for each that it can run at once, so that it never waits for more."""
NO_ANSWER = "it did not answer"
LOOK_S = 1.0
"""Between two looks at whether a runner is back, or its node gone."""
TRIES = 2
"""How often a runner is asked for what must not fail, being brought back in between."""


@dataclass(frozen=True)
class FleetLimits:
    """Seconds that the fleet waits, and episodes that a runner runs at once.

    stall_s: in which no call of an engine, an environment or a reward ends anywhere, until the run stops. answer_s: for a runner's answer
    to one call. sync_s: for one weight update, with the answers that end before it. restart_s: for a runner that died. cancel_s: beside
    answer_s, for dropping what is under way, its environments closed. restarts: of one runner within restart_window_s. min_runners: how
    many the fleet goes on with where others are lost, max_runners: how many it has where the cluster has room; None for as many as it
    begins with.
    """

    concurrency: int = 64
    stall_s: float = 600.0
    answer_s: float = 60.0
    sync_s: float = 600.0
    restart_s: float = 300.0
    cancel_s: float = 90.0
    restarts: int = 10
    restart_window_s: float = 3600.0
    min_runners: int | None = None
    max_runners: int | None = None

    @property
    def close_s(self) -> float:
        """Seconds that a runner may take to end: for dropping what is under way, and for its engine to close."""
        return 2 * self.cancel_s


_FIXED = "the number of these runners is fixed; they have places that were reserved for them"


class _Gone(Exception):
    """A runner is gone for good, and the others go on without it."""


class RayFleet:
    """Hands tasks to the runners that have room for them, gathers finished groups, and sends out weights.

    source: where further runners come from; without one, their number is fixed. restarts: how often a runner was brought back. Raises
    ValueError for limits that would have it change all the same.
    """

    def __init__(self, runners: Mapping[int, Any], limits: FleetLimits, source: RunnerSource | None = None) -> None:
        self.limits = limits
        self.restarts = 0
        self._runners = [self._runner(index, actor) for index, actor in runners.items()]
        self._turnover = Turnover(source) if source is not None else None
        self._least, self._wanted = limits.min_runners or len(runners), limits.max_runners or len(runners)
        if source is None and not self._least == self._wanted == len(runners):
            raise ValueError(f"min_runners and max_runners have no effect: {_FIXED}")
        self._waiting: deque[Work] = deque()
        self._last, self._ended = time.monotonic(), 0
        self._snapshot: Any = None
        self._version: int | None = None

    @property
    def runners(self) -> dict[int, Any]:
        """The actors by their number."""
        return {runner.index: runner.actor for runner in self._runners}

    def _runner(self, index: int, actor: Any) -> Runner:
        return Runner(index, actor, Restarts(self.limits.restarts, self.limits.restart_window_s))

    def scale(self, runners: int) -> None:
        """Have so many runners from now on: others join when the cluster has room for them, or some leave, those whose node is about to go
        before those that came last, which finish what they play. Raises ValueError for less than one, and where their number is fixed."""
        if runners < 1:
            raise ValueError(f"{runners} runners play nothing; give at least 1")
        if self._turnover is None:
            raise ValueError(_FIXED)
        self._least, self._wanted = min(self._least, runners), runners
        self._let_come_and_go()  # it may be long until something is played

    def close(self) -> None:
        """Have nobody come any more; who has left is gone when this returns."""
        if self._turnover is not None:
            self._turnover.close()

    @property
    def busy(self) -> bool:
        """Whether a task is waiting or under way."""
        return bool(self._waiting) or any(runner.owed for runner in self._runners)

    def submit(self, tasks: Sequence[Task], group_size: int, temperature: float) -> None:
        """Start `group_size` episodes of each task on whichever runner has room first.

        Raises ValueError for a task whose id is under way already: its groups could not be told apart.
        """
        known = {work.task.id for work in self._waiting} | {id for runner in self._runners for id in runner.owed}
        for task in tasks:
            if task.id in known:
                raise ValueError(f"task {task.id} is under way already; give each attempt at a task an id of its own")
            known.add(task.id)
        if not self.busy:
            self._last = time.monotonic()
        self._waiting.extend(Work(task, group_size, temperature) for task in tasks)
        self._let_come_and_go()
        self._hand_out()

    def poll(self) -> list[EpisodeGroup]:
        """Groups that finished since the last call, waiting up to `POLL_S` for the first.

        Raises FleetError when nothing is under way, no call has ended for `stall_s` seconds, or a runner stays away; what broke a runner's
        own work passes.
        """
        if not self.busy:
            raise FleetError("no task is under way, so no group can finish")
        self._let_come_and_go()
        found: list[EpisodeGroup] = []
        for runner in self._runners:
            if runner.lost_work and runner.owed:
                with self._or_without(runner):
                    if runner.life is None:  # it came back while there was nothing for it to do
                        self._give_weights(runner)
                    self._give_again(runner)
            if runner.owed and runner.sampling is None:
                self._ask(runner)
        calls = {call: runner for runner in self._runners for call, _ in runner.calls}
        if calls:
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=POLL_S)
            more, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
            for call in dict.fromkeys([*ready, *more]):
                found += self._answered(calls[call], call)
        for runner in self._runners:
            if runner.is_late():
                self._replace(runner)
        self._hand_out()
        if found:
            self._last = time.monotonic()
        elif self.busy and time.monotonic() - self._last > self.limits.stall_s and (stalled := self._stalled()):
            raise FleetError(f"no call of an engine, an environment or a reward ended for {self.limits.stall_s:g} s: {stalled}")
        return found

    def _stalled(self) -> str:
        """What the runners owe and wait for, where no call has ended since this was last asked; "" where one has."""
        owing = [runner for runner in self._runners if runner.owed]
        try:
            said = ray.get([runner.actor.progress.remote() for runner in owing], timeout=self.limits.answer_s)
        except (RayError, GetTimeoutError):
            return ""  # of a runner that does not answer, the deadlines of its calls tell
        ended = sum(progress.calls for progress in said)
        if ended != self._ended:
            self._ended, self._last = ended, time.monotonic()
            return ""
        return "; ".join(waits(runner, progress) for runner, progress in zip(owing, said, strict=True)) or "no runner has a task"

    def sync(self, snapshot: Any) -> list[SyncReceipt]:
        """Send a snapshot (`LearnerGroup.snapshot`) to every runner; all have it when this returns.

        Raises what the sync itself raises (`rollout.weights.sync_weights`), FleetError when a runner stays away.
        """
        self._snapshot = snapshot
        with mark("sync"):
            answers = self._all(self._send, "did not take new weights")
        for runner, receipt in answers:
            self._met(runner, receipt)
        (self._version,) = {receipt.version for _, receipt in answers}
        return [receipt for _, receipt in answers]

    def score(self, sequences: Sequence[Int32]) -> dict[str, list[Float32]]:
        """See `loop.Fleet.score`. A runner that died since the weights went out gets them again first; FleetError when it stays away."""
        rows = [ids.tolist() for ids in sequences]

        def ask(runner: Runner) -> Any:
            return runner.actor.score.options(name="rollout.score").remote(rows, self._version, runner.life)

        return {runner.name: scored for runner, scored in self._all(ask, "did not score the probe of the weight sync")}

    def stop(self) -> None:
        """Drop what is under way and waiting. A runner that has not by then is replaced. Raises FleetError when it stays away.

        One that comes back is owed nothing, and gets its weights with the next that it is given: those of before may be gone with the node
        of a learner that died.
        """
        self._waiting.clear()
        calls = [(runner, runner.actor.cancel.remote()) for runner in self._runners if runner.owed]
        for runner in self._runners:
            runner.owed, runner.sampling, runner.submitted, runner.lost_work = {}, None, [], False
        deadline = time.monotonic() + self.limits.cancel_s + self.limits.answer_s
        for runner, call in calls:
            with self._or_without(runner):
                try:
                    ray.get(call, timeout=max(0.0, deadline - time.monotonic()))
                except RayActorError as error:
                    self._await(runner, last_line(error))
                except (RayError, GetTimeoutError) as error:
                    self._kill(runner, why := f"it did not drop its work: {last_line(error)}")
                    self._await(runner, why)

    @property
    def _staying(self) -> list[Runner]:
        return [runner for runner in self._runners if not runner.leaving]

    def _let_come_and_go(self) -> None:
        """Part with the runners that are too many, or whose node is about to go, and take in those that have come."""
        if self._turnover is None:
            return
        self._choose_who_leaves(self._turnover)
        for runner in self._runners:
            if self._can_spare(runner) and (why := self._turnover.about_to_go(runner.node)):
                self._part_with(runner, why)
            elif runner.leaving and not runner.owed:
                self._part_with(runner, "since fewer are asked for")
        held = Held(self._snapshot, self._version, self._give) if self._version is not None else None
        for joined in self._turnover.look(self._wanted - len(self._staying), held):
            runner = self._runner(joined.index, joined.actor)
            if joined.receipt is not None:
                self._met(runner, joined.receipt)
            self._runners = [*self._runners, runner]
            log.warning("%s has joined: %s", runner.name, self._count())

    def _choose_who_leaves(self, turnover: Turnover) -> None:
        """Of those that are too many, the ones whose node is about to go, and then the last that came. All others stay, also one that was
        to leave until another was lost."""
        ranked = sorted(self._runners, key=lambda one: turnover.about_to_go(one.node) != "")
        for place, runner in enumerate(ranked):
            runner.leaving = place >= self._wanted

    def _can_spare(self, runner: Runner) -> bool:
        """Whether the others may go on without it. One of them that is leaving stays then."""
        return runner.leaving or len(self._runners) > self._least

    def _part_with(self, runner: Runner, why: str, lost: bool = False) -> None:
        """Let a runner leave. Others play what it owes, before anything else, and all of it: what it has begun is no one's."""
        assert self._turnover is not None, "the number of runners is fixed"
        self._runners = [one for one in self._runners if one is not runner]
        self._waiting.extendleft(reversed(runner.owed.values()))
        runner.owed, runner.sampling, runner.submitted = {}, None, []
        self._choose_who_leaves(self._turnover)
        self._turnover.end(runner.index, runner.actor, lost)
        log.warning("%s has left, %s: %s", runner.name, why, self._count())

    def _count(self) -> str:
        count = len(self._runners)
        return f"{count} engine{'s' if count > 1 else ''}"

    @contextmanager
    def _or_without(self, runner: Runner) -> Iterator[None]:
        """What is done with a runner. One that turns out to be gone for good has left, and the block ends there."""
        try:
            yield
        except _Gone as gone:
            self._part_with(runner, str(gone), lost=True)

    def _all(self, ask: Callable[[Runner], Any], what: str) -> list[tuple[Runner, Any]]:
        """What every runner answers to a call that must not fail, as `_insist` has it; those that are gone for good are left out."""
        answers = []
        for runner, call in [(runner, ask(runner)) for runner in self._runners]:
            with self._or_without(runner):
                answers.append((runner, self._insist(runner, call, ask, what)))
        return answers

    def _hand_out(self) -> None:
        """Give waiting tasks to the runners with the fewest episodes, as long as they have room."""
        given: dict[int, list[Work]] = {}
        while self._waiting:
            runner = min(self._staying, key=lambda one: one.episodes)
            if runner.owed and runner.episodes + self._waiting[0].group_size > AHEAD * self.limits.concurrency:
                break
            work = self._waiting.popleft()
            runner.owed[work.task.id] = work
            given.setdefault(runner.index, []).append(work)
        for runner in self._runners:
            if not runner.lost_work:  # otherwise it gets all that it owes with the next poll
                self._submit(runner, given.get(runner.index, []))

    def _submit(self, runner: Runner, work: Sequence[Work]) -> None:
        """One call per size and temperature; the runner refuses it unless its engine holds the fleet's weights."""
        for size, temperature in dict.fromkeys((one.group_size, one.temperature) for one in work):
            tasks = [one.task for one in work if (one.group_size, one.temperature) == (size, temperature)]
            call = runner.actor.submit.options(name="rollout.submit").remote(tasks, size, temperature, self._version, runner.life)
            runner.submitted.append((call, time.monotonic() + self.limits.answer_s))

    def _ask(self, runner: Runner) -> None:
        call = runner.actor.sample.options(name="rollout.sample").remote(POLL_S, runner.life)
        runner.sampling = (call, time.monotonic() + POLL_S + self.limits.answer_s)

    def _answered(self, runner: Runner, call: Any) -> Iterator[EpisodeGroup]:
        """The groups of an answer that the runner still owed; a runner that died, is stale or has lost its engine is brought back."""
        if call not in [known for known, _ in runner.calls]:
            return  # the runner was replaced meanwhile, and what it owed was submitted again
        if runner.sampling is not None and runner.sampling[0] == call:
            runner.sampling = None
        else:
            runner.submitted = [one for one in runner.submitted if one[0] != call]
        try:
            groups = ray.get(call, timeout=self.limits.answer_s) or []
        except RayTaskError as error:
            if isinstance(error.cause, WorkerUnfit):
                self._replace(runner, str(error.cause))
                return
            if not isinstance(error.cause, StaleEngine):
                raise error.cause from error
            self._bring_back(runner, str(error.cause))
            return
        except (RayError, GetTimeoutError) as error:  # it died, or its node did with the answer
            self._bring_back(runner, last_line(error))
            return
        lost = {group.task.id: said for group in groups if (said := why_engine_is_lost(group))}
        for group in groups:
            if group.task.id not in lost and runner.owed.pop(group.task.id, None) is not None:
                yield group  # others were finished by an earlier life of the runner
        owed = [said for task, said in lost.items() if task in runner.owed]
        if owed:
            self._replace(runner, owed[0])

    def _replace(self, runner: Runner, why: str = NO_ANSWER) -> None:
        """Kill a runner that does not answer, or whose engine or environments are gone or hang, and bring it back."""
        self._kill(runner, why)
        self._bring_back(runner, why)

    def _kill(self, runner: Runner, why: str) -> None:
        """End a runner; Ray starts it anew."""
        log.warning("%s is replaced: %s", runner.name, why)
        ray.kill(runner.actor, no_restart=False)

    def _bring_back(self, runner: Runner, why: str) -> None:
        """Wait for a runner, give it the weights, and submit again what it owes. Raises FleetError when it does not come back."""
        runner.sampling, runner.submitted = None, []
        with self._or_without(runner):
            self._await(runner, why)
            self._give_weights(runner)
            # A stale one may have begun some of what it owes.
            self._insist(runner, runner.actor.cancel.remote(), lambda one: one.actor.cancel.remote(), "did not drop its work")
            self._give_again(runner)
        self._last = time.monotonic()

    def _give_weights(self, runner: Runner) -> None:
        """Give a runner that has none the weights of all others."""
        if self._snapshot is not None:
            self._met(runner, self._insist(runner, self._send(runner), self._send, "did not take the weights"))

    def _give_again(self, runner: Runner) -> None:
        """Submit what a runner owes that has the weights and none of its work."""
        runner.sampling, runner.submitted, runner.lost_work = None, [], False
        self._submit(runner, list(runner.owed.values()))

    def _send(self, runner: Runner) -> Any:
        return self._give(runner.actor)

    def _give(self, actor: Any) -> Any:
        return actor.update_weights.options(name="rollout.update_weights").remote(self._snapshot, self.limits.sync_s)

    def _met(self, runner: Runner, receipt: SyncReceipt) -> None:
        """Note the life in which a runner has taken the weights. In another than was known it has lost what it was given."""
        if runner.life is not None and runner.life != receipt.life:
            log.warning("%s was restarted since it was last heard of", runner.name)
            self._count_restart(runner, "it was restarted since it was last heard of")
            runner.lost_work = True
        runner.life, runner.node = receipt.life, receipt.node

    def _insist(self, runner: Runner, call: Any, again: Callable[[Runner], Any], what: str) -> Any:
        """The answer of a call that must not fail: when the runner died, hangs, is stale or lost its engine, it is made once more after the
        runner was brought back. Raises FleetError when that fails too, and what else broke the call."""
        for attempt in range(1, TRIES + 1):
            try:
                if attempt > 1:
                    if self._snapshot is not None and again != self._send:
                        self._met(runner, ray.get(self._send(runner), timeout=self.limits.sync_s))
                    call = again(runner)
                return ray.get(call, timeout=self.limits.sync_s)
            except RayTaskError as error:
                if not isinstance(error.cause, StaleEngine | TimeoutError | WorkerUnfit) and not lost_engine(error.cause):
                    raise error.cause from error
                cause, alive = error.cause, not isinstance(error.cause, StaleEngine)
            except GetTimeoutError as error:
                cause, alive = error, True
            except RayError as error:
                cause, alive = error, False
            late = f" within {self.limits.sync_s:g} s" if isinstance(cause, TimeoutError) else ""
            why = f"it {what}{late}: {last_line(cause)}"
            if attempt == TRIES:
                if self._can_spare(runner):
                    raise _Gone(why)
                raise FleetError(f"{runner.name} {what}{late}, {TRIES} times: {last_line(cause)}") from cause
            if alive:
                self._kill(runner, why)
            self._await(runner, why)
        raise AssertionError("unreachable: the last try returns or raises")

    def _await(self, runner: Runner, why: str) -> None:
        """Wait until a runner that is being restarted answers. Raises FleetError when it does not within `restart_s`, or never will, or
        was restarted too often, and _Gone where the others may go on without it and it does not, or its node is lost. why: what became of
        it."""
        if runner.leaving:
            raise _Gone(why)
        self._count_restart(runner, why)
        runner.lost_work, runner.life = True, None
        deadline, dead, call = time.monotonic() + self.limits.restart_s, 0, runner.actor.ping.remote()
        while True:
            try:
                ray.get(call, timeout=LOOK_S)
                if gone := lost_node(runner.node):
                    log.warning("%s is back on another: %s", runner.name, gone)
                runner.node = ""  # where it is it says with the weights; should it be lost before, the node of before is not why
                return
            except (RayActorError, GetTimeoutError) as error:
                dead = dead + 1 if isinstance(error, ActorDiedError) else 0  # one that Ray restarts is unavailable
                self._check_away(runner, why, error, dead > 1, time.monotonic() > deadline)
                if isinstance(error, RayActorError):
                    time.sleep(LOOK_S)
                    call = runner.actor.ping.remote()

    def _check_away(self, runner: Runner, why: str, error: Exception, dead: bool, late: bool) -> None:
        """Raise FleetError for a runner that is dead, or late, and _Gone instead where the others may go on without it; also at once where
        its node is lost."""
        gone = lost_node(runner.node)
        if self._can_spare(runner) and (gone or dead or late):
            raise _Gone(gone or why)
        if dead:
            raise FleetError(f"{runner.name} died and is not started again ({gone or why}): {last_line(error)}") from error
        if late:
            away = f"{runner.name} died and did not come back within {self.limits.restart_s:g} s"
            raise FleetError(f"{away} ({gone or why}): {last_line(error)}") from error

    def _count_restart(self, runner: Runner, why: str) -> None:
        """Raises FleetError when it is one too many. why: it was restarted."""
        self.restarts += 1
        if too_many := runner.restarts.count():
            raise FleetError(f"{runner.name} {too_many} ({lost_node(runner.node) or why})")
