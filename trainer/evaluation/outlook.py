"""What the episodes of a start policy say about training it: whether it ever succeeds, whether groups differ, what gets in the way.

Pure functions over episodes. `probe.py` plays them, `advice.py` says what the numbers mean.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...envs.failures import Failure
from ...envs.types import Episode, EpisodeGroup
from ...rewards.rubric import EXPLANATION
from ...rewards.terms import rounding
from ...rollout.replay import Replayed
from ...rollout.store.records import BestConstant, EvaluationResult
from ..schedule.groups import NOTHING, rewards_of, size_of, totals
from .statistics import summarize

SAME = 1e-6
"""Rewards count as the same verdict when they differ by no more than this share of the larger: what a float32 on the way may do."""
SHOWN = 3
"""Examples that a report names."""
UNREADABLE_METRICS = ("malformed_calls", "unreadable_actions")
"""Episode metrics that count what the environment could not read: `envs.tool_env`, `envs.text.adapter`."""


@dataclass(frozen=True, slots=True)
class Share:
    """A share of n tasks, with its 95 % Wilson interval. Example: `Share(0.25, 0.07, 0.59, 8)`."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class PartRange:
    """A part of the reward over all episodes: its least, mean and largest value. Example: `PartRange(0.0, 0.4, 1.0)`."""

    low: float
    mean: float
    high: float

    @property
    def constant(self) -> bool:
        return self.high - self.low <= SAME * max(abs(self.low), abs(self.high))


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of n calls: the median, and what 95 % stay below. Example: `Latency(0.8, 1.9, 640)`."""

    median: float
    p95: float
    n: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """What was seen: of all episodes, what a step would sample and train on; of those in the recipe's own environment, the rest, as a
    step's metrics have it (`schedule.metrics.rollout_metrics`). Without a blend, they are all its own.

    Of all: episodes, sampled ones, in groups of group_size. failures: kind -> episodes. teaching: share of groups whose rewards differ, so
    that there is an advantage to learn; teaching_half: what that would be with groups of half the size.

    Of its own: sampled, greedy: success, a mean over tasks; greedy is None when nothing was played so. best_constant: the best policy that
    always says the same, None without labels. pass_at: k -> the success to expect from the best of k attempts, over the tasks that have so
    many. teaching_own: as `teaching`; teaching_success: share of groups whose success differs. all_failed, all_succeeded: shares of groups
    with success 0, or 1, throughout. parts: of the reward, unweighted. unreadable: what -> share of episodes with it. truncations: limit ->
    share of episodes that it cut short. latencies: "engine" and "environment" per turn, "verifier" per episode.
    """

    episodes: int
    group_size: int
    groups: int
    sampled: Share
    greedy: Share | None
    best_constant: BestConstant | None
    failures: Mapping[str, int]
    pass_at: Mapping[int, float]
    teaching: float
    teaching_half: float
    teaching_own: float
    teaching_success: float
    all_failed: float
    all_succeeded: float
    parts: Mapping[str, PartRange]
    unreadable: Mapping[str, float]
    truncations: Mapping[str, float]
    latencies: Mapping[str, Latency]


@dataclass(frozen=True, slots=True)
class AskedAgain:
    """What playing episodes again gave. other_answers: the environment said something else; changed: it said the same, and the reward or
    a label is another; failed: no reward the second time. examples: of what changed, in words."""

    episodes: int = 0
    other_answers: int = 0
    changed: int = 0
    failed: int = 0
    examples: Sequence[str] = field(default=())


def outlook(
    sampled: Sequence[EpisodeGroup],
    greedy: Sequence[Episode],
    success: str,
    learned: Sequence[EpisodeGroup] | None = None,
    declared: Mapping[str, float] = NOTHING,
) -> Outlook:
    """Everything that follows from the episodes alone.

    success: the reward part that counts. learned: the groups as a step learns from them (`objectives.shaping`), where that differs.
    declared: as `schedule.groups.why_not` takes it.

    Raises EvaluationFailed when no episode of the recipe's own environment has a reward, ValueError when the success part is missing or
    out of range.
    """
    own = [group for group in sampled if not group.task.environment]
    episodes = [episode for group in own for episode in group.episodes]
    result = summarize(episodes, success)
    alone = [episode for episode in greedy if not episode.task.environment]
    failures = Counter(str(one.outcome.kind) for group in sampled for one in group.episodes if isinstance(one.outcome, Failure))
    size = max(len(group.episodes) for group in sampled)
    successes = [[_success(episode, success) for episode in group.rewarded] for group in own if group.rewarded]
    learned = sampled if learned is None else learned
    rewards = [(group, totals(group), size_of(rewards_of(group), declared)) for group in learned]
    teaching = [(group, differ(values, len(values), size)) for group, values, size in rewards]
    return Outlook(
        episodes=sum(len(group.episodes) for group in sampled),
        group_size=size,
        groups=len(sampled),
        sampled=_share(result),
        greedy=_share(summarize(alone, success, "greedy")) if alone else None,
        best_constant=result.best_constant,
        failures=dict(sorted(failures.items())),
        pass_at={k: best_of(enough, k) for k in _powers(size) if (enough := [one for one in successes if len(one) >= k])},
        teaching=_mean([share for _, share in teaching]),
        teaching_half=_mean([differ(values, max(2, len(values) // 2), size) for _, values, size in rewards]),
        teaching_own=_mean([share for group, share in teaching if not group.task.environment]),
        teaching_success=_mean([differ(values, len(values), 1.0) for values in successes]),
        all_failed=_mean([max(values) <= 0 for values in successes]),
        all_succeeded=_mean([min(values) >= 1 for values in successes]),
        parts=part_ranges(episodes),
        unreadable=unreadable(episodes),
        truncations={limit: count / result.rewarded for limit, count in result.truncations.items()},
        latencies=latencies(episodes),
    )


def best_of(successes: Sequence[Sequence[float]], k: int) -> float:
    """The mean over tasks of the success to expect from the best of k attempts, without bias: the mean over all sets of k of the n made.

    For successes of 0 and 1 it is pass@k as Chen et al. (2021, arXiv 2107.03374, equation 1) estimate it, `1 - C(n - c, k) / C(n, k)` of n
    attempts of which c succeed. Raises ValueError when a task has fewer than k attempts.

    Example: `best_of([[1, 0, 0, 0]], 2)` is 0.5.
    """
    found = []
    for values in successes:
        n = len(values)
        if n < k:
            raise ValueError(f"the best of {k} attempts cannot be told from {n}; give k at most the number of attempts")
        ways = [math.comb(i, k - 1) for i in range(n)]  # sets of k in which the value of rank i, from the worst, is the best
        found.append(sum(way * value for way, value in zip(ways, sorted(values), strict=True)) / math.comb(n, k))
    return math.fsum(found) / len(found)


def differ(rewards: Sequence[float], k: int, size: float = 0.0) -> float:
    """The share of all sets of k attempts whose rewards are not all equal: how likely a group of k is to teach anything.

    Equal is what `schedule.groups.why_not` calls equal, size what it takes. Fewer than two attempts never teach.

    Example: `differ([1, 0, 0, 0], 2)` is 0.5.
    """
    n = len(rewards)
    if n < 2 or k < 2:
        return 0.0
    tolerance = rounding(rewards, size)
    sizes: list[int] = []
    first = -math.inf
    for value in sorted(rewards):
        if value - first > tolerance:
            sizes.append(0)
            first = value
        sizes[-1] += 1
    return 1.0 - sum(math.comb(size, k) for size in sizes) / math.comb(n, k)


def part_ranges(episodes: Iterable[Episode]) -> dict[str, PartRange]:
    """Least, mean and largest value of each part of the reward, 0 in the episodes that lack it."""
    rows = [episode.reward.parts for episode in episodes if episode.reward is not None]
    names = sorted({name for row in rows for name in row})
    columns = {name: [row.get(name, 0.0) for row in rows] for name in names}
    return {name: PartRange(min(values), math.fsum(values) / len(values), max(values)) for name, values in columns.items()}


def unreadable(episodes: Sequence[Episode]) -> dict[str, float]:
    """Shares of the rewarded episodes in which something could not be read: by each metric that counts such turns, where the environment
    has it; and "no answer" where there is a truth to compare with and no label was read."""
    rewarded = [episode for episode in episodes if episode.reward is not None]
    shares = {}
    for name in UNREADABLE_METRICS:
        counts = [episode.metrics[name] for episode in rewarded if name in episode.metrics]
        if counts:
            shares[name.replace("_", " ")] = _mean([count > 0 for count in counts])
    truths = {episode.labels["expected"] for episode in rewarded if "expected" in episode.labels}
    labelled = [episode for episode in rewarded if "expected" in episode.labels]
    if labelled:
        shares["no answer"] = _mean([episode.labels.get("predicted", "") not in truths for episode in labelled])
    return shares


def latencies(episodes: Sequence[Episode]) -> dict[str, Latency]:
    """Of the engine and the environment per turn, of the scorers that judge single episodes per episode."""
    turns = [turn for episode in episodes for turn in episode.turns]
    judged = [episode.metrics["judge_seconds"] for episode in episodes if "judge_seconds" in episode.metrics]
    columns = {"engine": [turn.generate_s for turn in turns], "environment": [turn.env_s for turn in turns], "verifier": judged}
    return {name: latency(values) for name, values in columns.items() if values}


def latency(seconds: Sequence[float]) -> Latency:
    """Median and 95 % quantile. Example: `latency([1.0, 3.0]).median` is 2.0."""
    median, p95 = np.quantile(seconds, (0.5, 0.95))
    return Latency(float(median), float(p95), len(seconds))


def asked_again(played: Sequence[Replayed]) -> AskedAgain:
    """What playing episodes again says about environment and scorers."""
    failed = [one for one in played if isinstance(one.again.outcome, Failure)]
    others = [one for one in played if not one.same_answers]
    same = [one for one in played if one.same_answers and one.again.reward is not None]
    found = [(one, what) for one in same if (what := _change(one)) is not None]
    examples = [f"episode {one.first.id}: {what}" for one, what in found[:SHOWN]]
    left = SHOWN - len(examples)
    examples += [f"episode {one.first.id}: {one.again.outcome.line}" for one in failed[:left] if isinstance(one.again.outcome, Failure)]
    return AskedAgain(len(played), len([one for one in others if one not in failed]), len(found), len(failed), tuple(examples))


def _change(one: Replayed) -> str | None:
    """What is another in the verdict of the second time, None when nothing is."""
    first, again = one.first.reward, one.again.reward
    assert first is not None and again is not None
    before, after = {**first.parts, "the total": first.total}, {**again.parts, "the total": again.total}
    for name in before | after:
        old, new = before.get(name, 0.0), after.get(name, 0.0)
        if abs(old - new) > SAME * max(abs(old), abs(new)):
            return f"{name} was {old:g}, and is {new:g}"
    for name in (name for name in {**one.first.labels, **one.again.labels} if not name.endswith(f".{EXPLANATION}")):
        said, says = one.first.labels.get(name), one.again.labels.get(name)
        if said != says:
            return f"label {name} was {said!r}, and is {says!r}"
    return None


def _share(result: EvaluationResult) -> Share:
    return Share(result.success, result.success_low, result.success_high, len(result.task_success))


def _success(episode: Episode, part: str) -> float:
    assert episode.reward is not None
    return float(episode.reward.parts.get(part, 0.0))


def _powers(n: int) -> list[int]:
    """1, 2, 4, … up to n, and n itself. Example: 6 -> [1, 2, 4, 6]."""
    return sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | {n})


def _mean(values: Sequence[float | bool]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
