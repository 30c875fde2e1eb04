"""One step of reinforcement fine-tuning, engine- and cluster-agnostic: collect groups, choose what trains, update, prove the sync.

A `Fleet` runs episodes; a learner updates the policy. Both are Ray actors in production and plain objects in tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..envs.failures import Failure
from ..envs.types import Episode, EpisodeGroup, Task
from ..rollout.config import RolloutConfig
from ..rollout.store.ledger import DropReason, Ledger
from .data.tasks import TaskStream
from .phases.config import RFTPhaseConfig

EQUAL_REWARDS = 1e-6
MIN_FOR_BUDGET = 64
"""Episodes to issue before the error budget is judged: a share of very few says nothing."""


class Fleet(Protocol):
    """Runs episodes under the current weights."""

    def run(self, tasks: Sequence[Task], group_size: int, temperature: float) -> Iterator[EpisodeGroup]:
        """Yield the group of every task, in the order they finish."""
        ...


class ErrorBudgetSpent(RuntimeError):
    """More episodes failed than the recipe allows, or one failed in a way that stops the run."""


@dataclass
class PolicyProgress:
    """Where a run of policy steps is: steps done, tasks taken from the stream, and the books."""

    step: int = 0
    position: int = 0
    ledger: Ledger = field(default_factory=Ledger)


@dataclass(frozen=True)
class Batch:
    """Groups to train on, everything that was sampled for them, and how many rounds it took."""

    groups: tuple[EpisodeGroup, ...]
    sampled: tuple[EpisodeGroup, ...]
    rounds: int

    @property
    def episodes(self) -> list[Episode]:
        return [episode for group in self.sampled for episode in group.episodes]


def collect_batch(
    fleet: Fleet,
    progress: PolicyProgress,
    phase: RFTPhaseConfig,
    limits: RolloutConfig,
    stream: TaskStream,
    on_group: Callable[[EpisodeGroup], None] | None = None,
) -> Batch:
    """Sample tasks of the stream until `phase.groups_per_step` groups can be learned from, in at most 1 + `max_refills` rounds.

    Groups whose rewards are all equal teach nothing: they are dropped, and other tasks sampled in their place (dynamic sampling, DAPO,
    arXiv 2503.14476). Every episode is entered in the ledger; those that train stay open until `settle`. Raises ErrorBudgetSpent.
    """
    kept: list[EpisodeGroup] = []
    sampled: list[EpisodeGroup] = []
    rounds = 0
    while len(kept) < phase.groups_per_step and rounds <= phase.max_refills:
        tasks = stream(progress.position, phase.groups_per_step - len(kept))
        progress.position += len(tasks)
        rounds += 1
        for task in tasks:
            progress.ledger.issue(task.id, phase.group_size)
        for group in fleet.run(tasks, phase.group_size, limits.temperature):
            sampled.append(group)
            stop_if_asked(group, limits)
            reason = why_not(group, limits)
            if reason is None:
                kept.append(group)
            else:
                progress.ledger.drop_group(group, reason)
            if on_group is not None:
                on_group(group)
        check_budget(progress.ledger, kept, limits)
    kept.sort(key=lambda group: group.task.id)  # the order groups finish in must not decide the order of float sums
    return Batch(tuple(kept), tuple(sampled), rounds)


def why_not(group: EpisodeGroup, limits: RolloutConfig) -> DropReason | None:
    """Why a group cannot be learned from, or None when it can."""
    failures = [episode.outcome for episode in group.episodes if isinstance(episode.outcome, Failure)]
    if any(limits.action_for(failure.kind) == "drop" for failure in failures):
        return "failed_member"
    rewards = [episode.reward.total for episode in group.rewarded if episode.reward is not None]
    if len(rewards) < 2 or not group.comparable:
        return "too_few"
    return "zero_variance" if max(rewards) - min(rewards) < EQUAL_REWARDS else None


def stop_if_asked(group: EpisodeGroup, limits: RolloutConfig) -> None:
    """Raise ErrorBudgetSpent when an episode failed in a way that the recipe answers with "stop"."""
    for episode in group.episodes:
        if isinstance(episode.outcome, Failure) and limits.action_for(episode.outcome.kind) == "stop":
            raise ErrorBudgetSpent(f"episode {episode.id} failed and rollout.on_failure says stop: {episode.outcome}")


def check_budget(ledger: Ledger, kept: Sequence[EpisodeGroup], limits: RolloutConfig) -> None:
    """Raise ErrorBudgetSpent when the share of failed episodes exceeds the budget; `kept` are groups the ledger has not closed yet."""
    open_failures = [e.outcome.kind.value for group in kept for e in group.episodes if isinstance(e.outcome, Failure)]
    failed = ledger.masked + Counter(open_failures)
    if ledger.issued >= MIN_FOR_BUDGET and failed.total() > limits.error_budget * ledger.issued:
        causes = ", ".join(f"{count} {kind}" for kind, count in failed.most_common())
        raise ErrorBudgetSpent(
            f"{failed.total()} of {ledger.issued} episodes failed, "
            f"more than rollout.error_budget = {limits.error_budget:g} allows: {causes}"
        )


def rollout_metrics(batch: Batch, success: str) -> dict[str, float]:
    """What a step's episodes amount to: means over all rewarded episodes sampled, trained on or not."""
    rewarded = [episode for episode in batch.episodes if episode.reward is not None]
    metrics: dict[str, float] = {
        "episodes": float(len(batch.episodes)),
        "failed": float(len(batch.episodes) - len(rewarded)),
        "groups_trained": float(len(batch.groups)),
        "groups_sampled": float(len(batch.sampled)),
        "rounds": float(batch.rounds),
    }
    if not rewarded:
        return metrics
    totals = np.array([episode.reward.total for episode in rewarded if episode.reward is not None])
    metrics |= {"reward_mean": float(totals.mean()), "reward_std": float(totals.std())}
    parts = _means([episode.reward.parts for episode in rewarded if episode.reward is not None])
    metrics |= {f"reward/{name}": value for name, value in parts.items()}
    if success in parts:
        metrics["success"] = parts[success]
    metrics |= {f"episode/{name}": value for name, value in _means([episode.metrics for episode in rewarded]).items()}
    metrics["truncated"] = float(np.mean([episode.truncation is not None for episode in rewarded]))
    predicted = [episode.labels["predicted"] for episode in rewarded if "predicted" in episode.labels]
    metrics |= {f"predicted/{label}": predicted.count(label) / len(predicted) for label in sorted(set(predicted))}
    turns = [turn for episode in rewarded for turn in episode.turns]
    metrics["generate_seconds"] = float(np.mean([turn.generate_s for turn in turns])) if turns else 0.0
    metrics["env_seconds"] = float(np.mean([turn.env_s for turn in turns])) if turns else 0.0
    return metrics


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = sorted({name for row in rows for name in row})
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
