"""The policy loop: tasks go to a fleet, groups of episodes come back, the learner steps on them, and the new weights go out.

One step, in order:
    gather        takes tasks from the stream, waits for the fleet's groups, and puts another task in the place of each group that teaches
                  nothing, while the rest is still under way; ends when enough groups were kept, or no more may be tried
    learn         makes advantages and the batch, waits for the learner's gradients, has every engine prove its weights, lets the learner
                  step; once, or for each of several minibatches and epochs, with what the learner scored before the first as the old policy
    hand out      gives the new weights to the fleet, which admits no episode under older ones

`rollouts` says what the fleet does while the learner learns (`schedule/admission.py`):
    sync          nothing: the next step's tasks are issued under the weights that this one made
    one_step_off  it plays the next step's tasks, issued before `learn`; the new weights go out when those have finished
    async         it plays what it has, for this and later steps; the new weights go out at once, in the middle of episodes

A `Fleet` and a `PolicyLearner` are Ray actors in production and plain objects in tests; Ray is not imported here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np

from ..envs.types import EpisodeGroup, Task
from ..rollout.config import RolloutConfig
from ..rollout.weights import PARITY_BOUNDS, ParityBound, SyncProof, SyncProofError, SyncReceipt, too_far
from .batch import TokenBatch
from .data.tasks import TaskStream
from .demonstrations import Demonstrations
from .objectives.config import ObjectiveConfig
from .objectives.measures import Measured, check_probe, compare_engines, probe_of
from .objectives.objective import Objective, objective_of
from .objectives.registry import find_advantage
from .objectives.shaping import shaped, without_cut_short
from .playing import Fleet, SharedFleet
from .schedule.account import Account
from .schedule.admission import Admission, Rollouts, Waiting
from .schedule.beside import beside
from .schedule.groups import failures_of, oldest_version, stop_if_asked, why_not
from .schedule.metrics import Collected, rollout_metrics
from .schedule.progress import Issued, PolicyProgress
from .updates import Learned, PolicyLearner, UpdatedPhase, Updates

MAX_IDLE_STEPS = 5
"""Steps in a row without a group to learn from after which there is nothing to learn."""
MAX_APART = 3
"""Steps in a row in which an engine's sampled tokens may be too far from the learner's log-probabilities, before it ends the run."""
MAX_SKIPPED = 2
"""Steps in a row in which an update is skipped because it is not finite, before another ends the run."""


class GroupedPhase(UpdatedPhase, Protocol):
    """What a loop reads of a phase's table (`phases.rft.RFTPhaseConfig`). staleness: of the oldest token, in moves of the weights. blended:
    names of the environments whose tasks are blended with the recipe's own."""

    @property
    def steps(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def group_size(self) -> int: ...
    @property
    def max_refills(self) -> int: ...
    @property
    def equal_groups(self) -> Literal["drop", "keep"]: ...
    @property
    def rollouts(self) -> Rollouts: ...
    @property
    def staleness(self) -> int: ...
    @property
    def objective(self) -> ObjectiveConfig: ...
    @property
    def replay(self) -> object | None: ...
    @property
    def blended(self) -> Sequence[str]: ...
    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class LoopSettings:
    """What a loop is told. success: the reward part reported as success. parity: how far engines may be from the learner. declared:
    sizes of reward parts, as far as the recipe says (`rewards.config.declared_sizes`). measured_every: after how many steps the policy is
    measured, each time; None for never."""

    phase: GroupedPhase
    limits: RolloutConfig
    success: str
    parity: ParityBound = PARITY_BOUNDS["float32"]
    declared: Mapping[str, float] = field(default_factory=dict)
    measured_every: int | None = None


@dataclass(frozen=True)
class Step:
    """What one step did. batch and measured: what was trained on and what was measured per token of it, None when nothing was."""

    metrics: Mapping[str, float]
    collected: Collected
    batch: TokenBatch | None = None
    measured: Measured | None = None


class PolicyLoop:
    """Policy steps over a fleet and a learner.

    on_group: called with every group as it finishes. beside: runs the learner's part of a step, and something else until it is done.
    Example: `PolicyLoop(fleet, learner, settings, stream).step().metrics["loss"]`.
    """

    def __init__(self, fleet: Fleet, learner: PolicyLearner, settings: LoopSettings, stream: TaskStream) -> None:
        """Raises ValueError when the objective names an advantage that is unknown or misfit, or what does not fit the limits."""
        self.fleet, self.learner, self.settings, self.stream = fleet, learner, settings, stream
        self.updates = self._updates_of(settings)
        self.on_group: Callable[[EpisodeGroup], None] | None = None
        self.beside = beside
        self.probe: TokenBatch | None = None
        self.proofs: list[SyncProof] = []
        self.account = Account()
        self._cause = ""  # of the last failure
        self._owes_weights = False  # the learner's, to the engines
        self._go_on_from(PolicyProgress())

    @property
    def objective(self) -> Objective:
        """What the learner minimises."""
        return self.updates.objective

    @property
    def progress(self) -> PolicyProgress:
        """Where the run is. Another may be put in its place: what was under way is dropped, and what that one has open is issued again."""
        return self._progress

    @progress.setter
    def progress(self, progress: PolicyProgress) -> None:
        if self.admission.under_way:
            self.fleet.stop()
        self._go_on_from(progress)

    def _go_on_from(self, progress: PolicyProgress) -> None:
        phase = self.settings.phase
        tries = phase.groups_per_step * (1 + phase.max_refills)
        self._progress = progress
        self.admission = Admission(phase.groups_per_step, tries, phase.staleness, phase.rollouts, progress.open, again=dict(progress.open))

    def take(self, phase: GroupedPhase, demonstrations: Demonstrations | None = None, measured_every: int | None = None) -> None:
        """Let the next steps be those of `phase`, with what is learned beside its episodes and the steps between two measurements;
        `begin_phase` follows where it is another than before. The position goes on. Raises ValueError as the constructor does."""
        self.settings = replace(self.settings, phase=phase, measured_every=measured_every)
        self.updates = replace(self._updates_of(self.settings), demonstrations=demonstrations)
        self.progress = self._progress

    def begin_phase(self) -> None:
        """Count the steps of another phase, in books of its own. The position goes on; what was left open is dropped as surplus."""
        self.end_phase()
        self.progress.begin_phase()

    def end_phase(self) -> None:
        """No further step of this phase follows, be it its last or not: what is still open is dropped as surplus, and the engines get the
        learner's weights if a step has left that to the next."""
        if self.admission.under_way:
            self.fleet.stop()
        self.progress.give_up()
        self._go_on_from(self.progress)
        if self._owes_weights:
            self.sync()

    def _updates_of(self, settings: LoopSettings) -> Updates:
        phase, limits = settings.phase, settings.limits
        asked = phase.objective.within(limits.sampled_tokens)
        advantage = find_advantage(asked.advantage, asked.advantage_args)
        return Updates(advantage, asked, objective_of(asked, limits.temperature, phase.updates), phase, limits.temperature)

    def step(self) -> Step:
        """One step. Raises ErrorBudgetSpent, and what fleet, learner and the sync proof raise."""
        started, phase, progress = time.perf_counter(), self.settings.phase, self.progress
        if phase.replay is not None and self.updates.demonstrations is None:
            raise ValueError("rft.replay asks for demonstrations, and this loop was given none; see PolicyLoop.take")
        if self.learner.version not in progress.versions[-1:]:  # the first step, or one after updates that were made by others
            progress.moved(self.learner.version, phase.staleness)
        self._gather()
        self.close_ended()
        collected = self.admission.take()
        for one in self.admission.training.values():
            self._mask(one)
        progress.check_anything_came(collected.sampled, self.settings.limits, self._cause)
        sampled_s = time.perf_counter() - started
        metrics = rollout_metrics(collected, phase.groups_per_step, self.settings.success, phase.blended)
        metrics["rollout_seconds"] = sampled_s
        if self._owes_weights:
            metrics |= self._hand_out()
        if self._issues_ahead:
            self._admit()
        learned = None
        if collected.groups:
            learned = self._learn(collected.groups)
            self._settle_books(collected.groups, learned)
            metrics |= {f"learner/{name}": value for name, value in learned.metrics.items()} | self._staleness(learned.batch)
        progress.idle = 0 if learned is not None else progress.idle + 1
        if self.updates.demonstrations is not None:
            metrics |= self.updates.demonstrations.metrics(progress.sequences)
        self.admission.trained()
        if learned is not None and learned.updates:
            progress.moved(self.learner.version, phase.staleness)
            self._owes_weights = True
            if not (phase.rollouts == "one_step_off" and progress.open):
                metrics |= self._hand_out()
        progress.step += 1
        if self.exhausted or progress.step == phase.steps:
            self.end_phase()
        elif phase.rollouts == "async":
            self._admit()
        progress.ledger.check(in_flight=len(progress.open) * phase.group_size)
        metrics["step_seconds"] = time.perf_counter() - started
        metrics["episodes_per_second"] = metrics["episodes"] / (sampled_s if phase.rollouts == "sync" else metrics["step_seconds"])
        return Step(metrics, collected, *((learned.batch, learned.measured) if learned is not None else ()))

    def sync(self) -> list[SyncReceipt]:
        """Give the learner's weights to every engine, and have each prove that it computes with them, once there is a `probe` for that.

        Raises SyncProofError naming the engine that does not.
        """
        with self.account.learning():
            snapshot, version = self.learner.snapshot(), self.learner.version
        receipts = self.fleet.sync(snapshot)
        for receipt in receipts:
            if receipt.version != version:
                raise SyncProofError(f"engine {receipt.engine} took over version {receipt.version}, and the learner is at {version}")
        if self.probe is not None:
            probe = self.probe
            with self.account.learning():
                ours = self.learner.score(probe).logprobs
            scored = self.fleet.score(probe.sequences)
            self.proofs += [check_probe(probe, ours, name, rows, version, self.settings.parity) for name, rows in scored.items()]
        self._owes_weights = False
        return receipts

    def settle(self) -> None:
        """Wait until nothing is under way, and give the engines the learner's weights if a step has left that to the next: for an
        evaluation, or anything else that wants the fleet for itself. What has finished waits for the next step, which trains on it, and so
        does what a checkpoint has left open, which that step issues again."""
        while self.admission.under_way:
            self._take_in(self.fleet.poll(), refill=self.settings.phase.rollouts != "async")
        if self._owes_weights:
            self.sync()

    def between_steps(self) -> Fleet:
        """The fleet, for who wants it between two steps with the learner's weights. Where weights change in the middle of episodes, those
        under way are played on beside; elsewhere they finish first, as with `settle`. The next step has what finished meanwhile."""
        if self.settings.phase.rollouts != "async" or self._owes_weights:
            self.settle()
        self.account.pause()
        return SharedFleet(self.fleet, lambda group: self._take_in([group], refill=False))

    @property
    def exhausted(self) -> bool:
        """Whether for `MAX_IDLE_STEPS` steps no group had anything to teach: the task is solved, out of reach, or the policy collapsed."""
        return self.progress.idle >= MAX_IDLE_STEPS

    @property
    def _issues_ahead(self) -> bool:
        """Whether this step issues the tasks of the next. Not before a checkpoint, so that a resumed run is the one that was not broken
        off: what it goes on with was sampled under the weights that it has. Nor before a measurement, which may make one, and wants the
        engines."""
        phase, step = self.settings.phase, self.progress.step + 1
        stops = (phase.checkpoint_every, self.settings.measured_every or phase.checkpoint_every)
        return phase.rollouts == "one_step_off" and step != phase.steps and all(step % every for every in stops)

    def _gather(self) -> None:
        """Wait until the step has what it trains on."""
        progress = self.progress
        progress.begin_step()
        self._admit()
        while True:
            self._drop_stale()
            if self.admission.is_ready(progress.moves):
                return
            self._take_in(self.fleet.poll())

    def _admit(self) -> None:
        """Start as many tasks as there is room for: those to be issued again, then others from the stream, entered in the books."""
        progress, phase, admission = self.progress, self.settings.phase, self.admission
        count = admission.room(phase.steps - progress.step)
        for name in list(admission.again)[: max(0, count)]:
            position = admission.again.pop(name).position
            self._submit(position, 1)
            progress.open[name] = Issued(position, progress.moves)
            admission.issued, count = admission.issued + 1, count - 1
        if count < 1:
            return
        for number, task in enumerate(self._submit(progress.position, count)):
            progress.ledger.issue(task.id, phase.group_size)
            progress.open[task.id] = Issued(progress.position + number, progress.moves)
        progress.position += count
        admission.issued += count

    def _submit(self, position: int, count: int) -> Sequence[Task]:
        tasks = self.stream(position, count)
        self.fleet.submit(tasks, self.settings.phase.group_size, self.settings.limits.temperature)
        return tasks

    def _take_in(self, finished: Sequence[EpisodeGroup], refill: bool = True) -> None:
        """Keep the groups that can be learned from, and put others in the place of the rest."""
        progress, settings, overlong = self.progress, self.settings, self.updates.asked.overlong
        for one in finished:
            group = shaped(one, overlong)
            progress.note(group)
            self._cause = failures[-1].line if (failures := failures_of(group)) else self._cause
            learned, cut_short = without_cut_short(group, overlong)
            reason = why_not(learned, settings.limits, settings.phase.equal_groups == "keep", settings.declared)
            self.admission.waiting[group.task.id] = Waiting(learned, cut_short, group)
            if reason is not None:
                self.admission.drop(group.task.id, reason)
                if refill:
                    self._admit()
            if self.on_group is not None:
                self.on_group(group)
            stop_if_asked(group, settings.limits)
        progress.check_budget(settings.limits, self._cause)

    def close_ended(self) -> None:
        """Enter in the books, for the step that takes them or is broken off, the groups that have finished and will not be trained."""
        for one, reason in self.admission.ended.values():
            self._mask(one)
            self.progress.ledger.drop_group(one.learned, reason)

    def _mask(self, one: Waiting) -> None:
        for episode in one.cut_short:
            self.progress.ledger.drop(episode, "cut_short")

    def _drop_stale(self) -> None:
        """Drop what has become too old. Admission keeps that from happening, unless others move the weights too: it is a backstop.

        Where nothing may be old, old tokens are those of an engine that missed an update, which ends the run.
        """
        staleness = self.settings.phase.staleness
        if staleness == 0:
            return
        for task, one in list(self.admission.waiting.items()):
            if self.progress.age(oldest_version(one.learned)) > staleness:
                self.admission.drop(task, "stale")
                self._admit()

    def _learn(self, groups: tuple[EpisodeGroup, ...]) -> Learned:
        """The learner's part of the step; where rollouts go on meanwhile, what finishes is taken in as it comes."""

        def work() -> Learned:
            with self.account.learning():
                may_skip = self.progress.skipped < MAX_SKIPPED
                progress = self.progress
                return self.updates.learn(self.learner, groups, progress.step, self._judge, may_skip, progress.sequences)

        return work() if self.settings.phase.rollouts == "sync" else self.beside(work, self._meanwhile)

    def _meanwhile(self) -> bool:
        if not self.admission.under_way:
            return False
        self._take_in(self.fleet.poll())
        return True

    def _settle_books(self, groups: tuple[EpisodeGroup, ...], learned: Learned) -> None:
        """Close the groups that were trained, and those whose update was left out."""
        progress = self.progress
        self.probe = self.probe or probe_of(learned.batch.sequences)
        progress.skipped = progress.skipped + 1 if learned.skipped else 0
        progress.sequences += learned.sequences
        for number, group in enumerate(groups):
            if number in learned.trained:
                progress.ledger.settle((group,))
            else:
                progress.ledger.drop_group(group, "non_finite")

    def _staleness(self, batch: TokenBatch) -> dict[str, float]:
        """How often the weights had moved since the trained tokens were sampled, on average and at most."""
        sampled_by, counts = np.unique(batch.policy_version[batch.mask], return_counts=True)
        ages = np.array([self.progress.age(int(version)) for version in sampled_by], np.float64)
        return {"learner/staleness_mean": float(np.average(ages, weights=counts)), "learner/staleness_max": float(ages.max())}

    def _hand_out(self) -> dict[str, float]:
        """The new weights, on their way to the engines."""
        started = time.perf_counter()
        receipts = self.sync()
        spent = self.account.handed_out(receipts, self.progress.step)
        sent = {"sync_seconds": time.perf_counter() - started, "sync_megabytes": sum(receipt.bytes for receipt in receipts) / 1e6}
        return {**spent, **sent, "engines": float(len(receipts)), "weight_version": float(receipts[0].version)}

    def _judge(self, batch: TokenBatch, measured: Measured) -> None:
        """Raise SyncProofError for tokens of weights that they may not be of at once, and for log-probabilities too far apart when that
        lasts."""
        bound, progress = self.settings.parity.at(self.settings.limits.temperature), self.progress
        older = progress.versions[:-1]
        proofs = compare_engines(batch, measured.logprobs, self.learner.version, bound, older)
        if older and not proofs:
            return  # nothing was sampled by the learner's own weights
        apart = [one for one in proofs if not one.holds]
        progress.apart = progress.apart + 1 if apart else 0
        if progress.apart >= MAX_APART:
            raise SyncProofError(f"for {progress.apart} steps, {too_far(apart[0])}")
