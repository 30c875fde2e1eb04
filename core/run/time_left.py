"""How long a run will still take, by what it has just seen: the episodes of an evaluation, and a pass of the learner over some of them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from burnish.envs.types import Episode, EpisodeGroup
from burnish.recipe.pace import Pace
from burnish.recipe.plan import BETWEEN, PhasePlan, Plan, context_per_episode, duration, measurements
from burnish.session import Session
from burnish.trainer.batch import GroupBatch

SCORED_TOKENS = 2048
"""Tokens that the learner is timed on: seconds with the largest models that train on a CPU."""


def time_left_line(plan: Plan, session: Session, phase: str, episodes: Sequence[Episode], seconds: float) -> str | None:
    """What an evaluation says of the rest of the run; None where nothing is left to train, or no episode was rewarded.

    phase: the one that was evaluated, "base" before any. seconds: that the episodes took together.
    """
    left = phases_left(plan, phase)
    pace = seen_pace(plan, session, episodes, seconds) if left else None
    if pace is None:
        return None
    whole = sum(one.at(pace) for one in left)
    of_each = ", ".join(f"{one.name} {duration(one.at(pace))}" for one in left)
    per_episode = pace.sampled_share * plan.run.rollout.sampled_tokens
    return (
        f"about {duration(whole)} left ({of_each}): {len(episodes)} episodes sampled {per_episode:.0f} tokens each, "
        f"{pace.tokens_per_second:.0f} tokens/s, and the learner made {pace.learner_flops / 1e9:.0f} GFLOP/s of some of them"
    )


def phases_left(plan: Plan, phase: str) -> list[PhasePlan]:
    """Of a plan, what comes after the phase and its first evaluation, retention left out. Empty after the last phase."""
    names = [one.name for one in plan.run.phases]
    after = names[names.index(phase) + 1 :] if phase in names else names
    training = [one for one in plan.phases if one.name in after]
    if not training:
        return []
    table = plan.run.evaluation
    modes = len(table.modes)
    passes = modes - 1 + table.after * modes * len(after)
    evaluated = [one for one in plan.phases if one.name == "evaluation"]
    all_passes = modes * (table.before + table.after * len(names))  # of the plan of a whole run, which a resumed one is not
    if plan.done is not None:
        all_passes = modes * table.after * (len(names) - names.index(plan.done.phase)) - len(plan.done.measured)
    measured = [PhasePlan(one.name, one.work, 0, 0, None, amount=one.amount.part(passes / all_passes)) for one in evaluated if passes]
    return training + _between(plan, after) + measured


def _between(plan: Plan, after: Sequence[str]) -> list[PhasePlan]:
    """Of a plan's measurements in the course of phases, those of the phases that come after."""
    counts = measurements(plan.run, plan.done)
    left, planned = sum(counts[name] for name in after), [one for one in plan.phases if one.name == BETWEEN]
    return [PhasePlan(one.name, one.work, 0, 0, None, amount=one.amount.part(left / sum(counts.values()))) for one in planned if left]


def seen_pace(plan: Plan, session: Session, episodes: Sequence[Episode], seconds: float) -> Pace | None:
    """The pace of these episodes, which took so many seconds together, and of the learner's forward pass over some of them, at two
    operations per parameter and token. None without rewarded ones."""
    played = [episode for episode in episodes if episode.reward is not None and episode.trajectories and _is_finite(episode)]
    if not played or seconds <= 0:
        return None
    sampled = sum(int(trajectory.trainable.sum()) for episode in played for trajectory in episode.trajectories)
    tokens = sum(len(trajectory) for episode in played for trajectory in episode.trajectories)
    scored: list[Episode] = []
    for episode in played:
        if sum(len(trajectory) for one in scored for trajectory in one.trajectories) < SCORED_TOKENS:
            scored.append(episode)
    _score(session, played[:1])  # the first pass makes room
    began = time.monotonic()
    passed = _score(session, scored)
    took = time.monotonic() - began
    run = plan.run
    return Pace(
        tokens_per_second=max(sampled, 1) / seconds,
        learner_flops=2 * plan.model.parameters * passed / took,
        sampled_share=sampled / len(played) / run.rollout.sampled_tokens,
        context_share=tokens / len(played) / context_per_episode(run),
    )


def _is_finite(episode: Episode) -> bool:
    return all(np.isfinite(trajectory.logprobs[trajectory.trainable]).all() for trajectory in episode.trajectories)


def _score(session: Session, episodes: Sequence[Episode]) -> int:
    """Let the learner go over the episodes; returns their tokens."""
    groups = GroupBatch(tuple(EpisodeGroup(episode.task, (episode,)) for episode in episodes))
    batch = groups.train(np.zeros(len(groups.tokens.mask)))
    session.score(batch, session.recipe.rollout.temperature)
    return len(batch.mask)
