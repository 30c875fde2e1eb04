"""The policy loop: tasks go to a fleet, groups of episodes come back, the learner steps on them, and the new weights go out.

One step, in order:
    collect   takes tasks from the stream, waits for the fleet's groups, and puts another task in the place of each group that teaches
              nothing, while the rest is still under way; ends when enough groups were kept, or no more may be tried
    update    makes advantages and the batch, waits for the learner's gradients, has every engine prove its weights, lets the learner step;
              once, or for each of several minibatches and epochs, with what the learner scored before the first as the old policy
    sync      hands the new weights to the fleet, which admits no episode under older ones

A `Fleet` and a `PolicyLearner` are Ray actors in production and plain objects in tests; Ray is not imported here.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np

from ..envs.failures import Failure
from ..envs.types import EpisodeGroup, Float32, Int32, Task
from ..rollout.config import RolloutConfig
from ..rollout.store.ledger import DropReason, Ledger
from ..rollout.weights import PARITY_BOUNDS, ParityBound, SyncProof, SyncProofError, SyncReceipt, too_far
from .batch import Int64, TokenBatch
from .data.tasks import TaskStream
from .metrics import Collected, rollout_metrics
from .objectives.config import ObjectiveConfig
from .objectives.measures import Measured, check_probe, compare_engines, joined, mismatch, probe_of
from .objectives.objective import Objective, objective_of
from .objectives.registry import find_advantage
from .objectives.shaping import shaped, without_cut_short
from .updates import UpdatedPhase, credit, expectations, parts, share

EQUAL = 2e-5
"""Rewards of a group count as equal when they differ by no more than this share of the largest: what rounding may make of equal ones."""
MIN_FOR_BUDGET = 64
"""Episodes to judge the error budget on: a share of very few says nothing."""
BUDGET_STEPS = 4
"""Steps that the error budget looks back on, this one included."""
MAX_IDLE_STEPS = 5
"""Steps in a row without a group to learn from after which there is nothing to learn."""
MAX_APART = 3
"""Steps in a row in which an engine's sampled tokens may be too far from the learner's log-probabilities, before it ends the run."""
MAX_SKIPPED = 2
"""Steps in a row in which an update is skipped because it is not finite, before another ends the run."""


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


class PolicyLearner(Protocol):
    """The primitives of `trainer.learner.Learner`."""

    @property
    def version(self) -> int: ...
    def forward_backward(self, batch: TokenBatch, objective: Objective) -> Measured: ...
    def score(self, batch: TokenBatch, temperature: float = 1.0, reference: bool = False) -> Measured: ...
    def step(self, scale: float = 1.0) -> dict[str, float]: ...
    def discard(self) -> None: ...
    def snapshot(self) -> Any: ...


class ErrorBudgetSpent(RuntimeError):
    """More episodes failed than the recipe allows, or one failed in a way that stops the run."""


class GroupedPhase(UpdatedPhase, Protocol):
    """What a loop reads of a phase's table (`phases.rft.RFTPhaseConfig`)."""

    @property
    def group_size(self) -> int: ...
    @property
    def max_refills(self) -> int: ...
    @property
    def equal_groups(self) -> Literal["drop", "keep"]: ...
    @property
    def objective(self) -> ObjectiveConfig: ...


@dataclass(frozen=True)
class LoopSettings:
    """What a loop is told. success: the reward part reported as success. parity: how far engines may be from the learner."""

    phase: GroupedPhase
    limits: RolloutConfig
    success: str
    parity: ParityBound = PARITY_BOUNDS["float32"]


@dataclass
class PolicyProgress:
    """Where a run of policy steps is: steps done, tasks taken from the stream, and the books.

    idle, skipped, apart: steps in a row that had nothing to learn from, in which an update was not finite, or in which an engine's
    log-probabilities were too far from the learner's. recent: episodes, and failures by kind, of the steps that the error budget looks at.
    """

    step: int = 0
    position: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    idle: int = 0
    skipped: int = 0
    apart: int = 0
    recent: deque[tuple[int, Counter[str]]] = field(default_factory=lambda: deque(maxlen=BUDGET_STEPS))

    def row(self) -> dict[str, Any]:
        """Everything as JSON, for a checkpoint. `from_row` reads it back."""
        own = {name: getattr(self, name) for name in ("step", "position", "idle", "skipped", "apart")}
        return {**own, "ledger": self.ledger.row(), "recent": [[episodes, dict(failed)] for episodes, failed in self.recent]}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> PolicyProgress:
        """The inverse of `row`. Raises LedgerError when the stored books do not balance."""
        return cls(
            row["step"],
            row["position"],
            Ledger.from_row(row["ledger"]),
            row.get("idle", 0),
            row.get("skipped", 0),
            row.get("apart", 0),
            deque([(episodes, Counter(failed)) for episodes, failed in row.get("recent", ())], maxlen=BUDGET_STEPS),
        )


@dataclass(frozen=True)
class Step:
    """What one step did. batch and measured: what was trained on and what was measured per token of it, None when nothing was."""

    metrics: Mapping[str, float]
    collected: Collected
    batch: TokenBatch | None = None
    measured: Measured | None = None


class PolicyLoop:
    """Policy steps over a fleet and a learner.

    on_group: called with every group as it finishes. Example: `PolicyLoop(fleet, learner, settings, stream).step().metrics["loss"]`.
    """

    def __init__(self, fleet: Fleet, learner: PolicyLearner, settings: LoopSettings, stream: TaskStream) -> None:
        """Raises ValueError when the objective names an advantage that is unknown or misfit, or what does not fit the limits."""
        objective = settings.phase.objective.within(settings.limits.sampled_tokens)
        self.fleet, self.learner, self.settings, self.stream = fleet, learner, settings, stream
        self.advantage = find_advantage(objective.advantage, objective.advantage_args)
        self.asked, self.objective = objective, objective_of(objective, settings.limits.temperature, settings.phase.updates)
        self.progress = PolicyProgress()
        self.on_group: Callable[[EpisodeGroup], None] | None = None
        self.probe: TokenBatch | None = None
        self.proofs: list[SyncProof] = []
        self._cause = ""  # of the last failure

    def step(self) -> Step:
        """One step. Raises ErrorBudgetSpent, and what fleet, learner and the sync proof raise."""
        started = time.perf_counter()
        collected = self._collect()
        sampled_s = time.perf_counter() - started
        metrics = {**rollout_metrics(collected, self.settings.phase.groups_per_step, self.settings.success), "rollout_seconds": sampled_s}
        metrics["episodes_per_second"] = metrics["episodes"] / sampled_s
        batch = measured = None
        if collected.groups:
            self.progress.idle = 0
            updated, batch, measured = self._update(collected.groups)
            metrics |= updated
        else:
            self.progress.idle += 1
        self.progress.ledger.check()
        self.progress.step += 1
        metrics["step_seconds"] = time.perf_counter() - started
        return Step(metrics, collected, batch, measured)

    def sync(self) -> list[SyncReceipt]:
        """Give the learner's weights to every engine, and have each prove that it computes with them, once there is a `probe` for that.

        Raises SyncProofError naming the engine that does not.
        """
        receipts, version = self.fleet.sync(self.learner.snapshot()), self.learner.version
        for receipt in receipts:
            if receipt.version != version:
                raise SyncProofError(f"engine {receipt.engine} took over version {receipt.version}, and the learner is at {version}")
        if self.probe is not None:
            ours, probe = self.learner.score(self.probe).logprobs, self.probe
            scored = self.fleet.score(probe.sequences)
            self.proofs += [check_probe(probe, ours, name, rows, version, self.settings.parity) for name, rows in scored.items()]
        return receipts

    @property
    def exhausted(self) -> bool:
        """Whether for `MAX_IDLE_STEPS` steps no group had anything to teach: the task is solved, out of reach, or the policy collapsed."""
        return self.progress.idle >= MAX_IDLE_STEPS

    def _collect(self) -> Collected:
        progress, phase, limits = self.progress, self.settings.phase, self.settings.limits
        kept, sampled, dropped = list[EpisodeGroup](), list[EpisodeGroup](), Counter[str]()
        progress.recent.append((0, Counter()))
        under_way = self._issue(phase.groups_per_step)
        to_try = phase.groups_per_step * phase.max_refills
        while under_way:
            for finished in self.fleet.poll():
                group = shaped(finished, self.asked.overlong)
                under_way -= 1
                sampled.append(group)
                self._count_failures(group)
                learned, cut_short = without_cut_short(group, self.asked.overlong)
                for episode in cut_short:
                    progress.ledger.drop(episode, "cut_short")
                reason = why_not(learned, limits, phase.equal_groups == "keep")
                if reason is None:
                    kept.append(learned)
                else:
                    dropped[reason] += 1
                    progress.ledger.drop_group(learned, reason)
                    if to_try:
                        to_try -= 1
                        under_way += self._issue(1)
                if self.on_group is not None:
                    self.on_group(group)
                stop_if_asked(group, limits)
            self._check_budget()
        self._check_anything_came(sampled)
        for groups in (kept, sampled):  # the order they finish in must not decide the order of float sums
            groups.sort(key=lambda group: group.task.id)
        return Collected(tuple(kept), tuple(sampled), dropped)

    def _issue(self, count: int) -> int:
        """Take tasks from the stream, enter them in the books, and start them."""
        progress, size = self.progress, self.settings.phase.group_size
        tasks = self.stream(progress.position, count)
        progress.position += len(tasks)
        for task in tasks:
            progress.ledger.issue(task.id, size)
        self.fleet.submit(tasks, size, self.settings.limits.temperature)
        return len(tasks)

    def _update(self, groups: tuple[EpisodeGroup, ...]) -> tuple[dict[str, float], TokenBatch, Measured]:
        """The step's optimizer updates on the groups, and the new weights on their way."""
        progress, ledger, version = self.progress, self.progress.ledger, self.learner.version
        limits, phase = self.settings.limits, self.settings.phase
        score = partial(self.learner.score, temperature=limits.temperature)
        batch, scored, kl = credit(groups, self.advantage, self.asked, phase, score)
        if scored is not None:
            self._judge(batch, scored)
        passes, stepped, trained = list[tuple[Int64, Measured]](), list[dict[str, float]](), set[int]()
        left, skipped = parts(batch, phase, progress.step), 0
        for part, at in left:
            found = self.learner.forward_backward(part, self.objective)
            passes.append((at, found))
            if scored is None:
                try:
                    self._judge(batch, found)
                except BaseException:
                    self.learner.discard()  # nothing of this batch may reach a later step
                    raise
            self.probe = self.probe or probe_of(batch.sequences)
            try:
                stepped.append(self.learner.step(share(len(groups), phase)))
            except FloatingPointError:
                if progress.skipped >= MAX_SKIPPED:
                    raise
                skipped = 1 + sum(1 for _ in left)  # the rest of the step is left out with it
                break
            trained |= set(part.group.tolist())
        progress.skipped = progress.skipped + 1 if skipped else 0
        measured = passes[0][1] if scored is None else joined(batch, scored, passes)
        measured = measured if kl is None else replace(measured, tokens={**measured.tokens, "reference_kl": kl})
        metrics = {**measured.means(batch), **mismatch(batch, measured.logprobs, version), **expectations(batch)}
        metrics |= {"tokens": float(batch.tokens), "packed_tokens": float(measured.packed_tokens), "updates": float(len(stepped))}
        if skipped:  # what was not finite is why, and has no place in a row of numbers
            metrics = {name: value for name, value in metrics.items() if math.isfinite(value)} | {"updates_skipped": float(skipped)}
        for number, group in enumerate(groups):
            if number in trained:
                ledger.settle((group,))
            else:
                ledger.drop_group(group, "non_finite")
        if not stepped:
            return _named(metrics), batch, measured
        metrics |= {name: float(np.mean([row[name] for row in stepped])) for name in stepped[-1]}
        metrics["seconds"] = measured.seconds + sum(row["seconds"] for row in stepped)
        started = time.perf_counter()
        receipts = self.sync()
        after = {"sync_seconds": time.perf_counter() - started, "weight_version": float(receipts[0].version)}
        return {**_named(metrics), **after}, batch, measured

    def _judge(self, batch: TokenBatch, measured: Measured) -> None:
        """Raise SyncProofError for tokens of other weights at once, and for log-probabilities too far apart when that lasts."""
        bound = self.settings.parity.at(self.settings.limits.temperature)
        apart = [one for one in compare_engines(batch, measured.logprobs, self.learner.version, bound) if not one.holds]
        self.progress.apart = self.progress.apart + 1 if apart else 0
        if self.progress.apart >= MAX_APART:
            raise SyncProofError(f"for {self.progress.apart} steps, {too_far(apart[0])}")

    def _count_failures(self, group: EpisodeGroup) -> None:
        episodes, failed = self.progress.recent[-1]
        failures = [episode.outcome for episode in group.episodes if isinstance(episode.outcome, Failure)]
        failed.update(failure.kind.value for failure in failures)
        self._cause = failures[-1].line if failures else self._cause
        self.progress.recent[-1] = (episodes + len(group.episodes), failed)

    def _check_budget(self) -> None:
        """Raise ErrorBudgetSpent when too large a share of the episodes of the last steps failed."""
        limits = self.settings.limits
        episodes, failed = 0, Counter[str]()
        for count, kinds in self.progress.recent:
            episodes, failed = episodes + count, failed + kinds
        if episodes >= MIN_FOR_BUDGET and failed.total() > limits.error_budget * episodes:
            causes = ", ".join(f"{count} {kind}" for kind, count in failed.most_common())
            raise ErrorBudgetSpent(
                f"{failed.total()} of the last {episodes} episodes failed, "
                f"more than rollout.error_budget = {limits.error_budget:g} allows: {causes}; "
                f"the last one: {self._cause}"
            )

    def _check_anything_came(self, sampled: Sequence[EpisodeGroup]) -> None:
        """Raise ErrorBudgetSpent when every episode of the step failed, few as they may be: nothing was learned of the policy."""
        failed = Counter(
            episode.outcome.kind.value for group in sampled for episode in group.episodes if isinstance(episode.outcome, Failure)
        )
        if self.settings.limits.error_budget < 1 and failed.total() == sum(len(group.episodes) for group in sampled):
            causes = ", ".join(f"{count} {kind}" for kind, count in failed.most_common())
            raise ErrorBudgetSpent(
                f"all {failed.total()} episodes of step {self.progress.step + 1} failed: {causes}; one of them: {self._cause}"
            )


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


def why_not(group: EpisodeGroup, limits: RolloutConfig, equal_teach: bool = False) -> DropReason | None:
    """Why a group cannot be learned from, or None when it can. equal_teach: whether one whose rewards are all equal can."""
    failures = [episode.outcome for episode in group.episodes if isinstance(episode.outcome, Failure)]
    if any(limits.action_for(failure.kind) == "drop" for failure in failures):
        return "failed_member"
    rewards = [episode.reward.total for episode in group.rewarded if episode.reward is not None]
    if len(rewards) < 2 or not group.comparable:
        return "too_few"
    if not any(trajectory.trainable.any() for episode in group.rewarded for trajectory in episode.trajectories):
        return "no_tokens"
    if equal_teach:
        return None
    return "zero_variance" if max(rewards) - min(rewards) <= EQUAL * max(map(abs, rewards)) else None


def stop_if_asked(group: EpisodeGroup, limits: RolloutConfig) -> None:
    """Raise ErrorBudgetSpent when an episode failed in a way that the recipe answers with "stop"."""
    for episode in group.episodes:
        if isinstance(episode.outcome, Failure) and limits.action_for(episode.outcome.kind) == "stop":
            raise ErrorBudgetSpent(f"episode {episode.id} failed and rollout.on_failure says stop: {episode.outcome}")


def _named(metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"learner/{name}": value for name, value in metrics.items()}
