"""What may be believed about an evaluation: recall per label, the best constant policy, intervals, and paired comparisons.

A single success figure misleads: a policy that never says "pass" can score 63 %. So success stands beside macro-recall and the best
constant policy, and two policies are compared on the same held-out tasks.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ...envs.failures import Failure
from ...envs.registry import did_you_mean
from ...envs.types import Episode, Reward
from ...rollout.store.records import BestConstant, Comparison, EvaluationResult, Mode

__all__ = ["BestConstant", "Comparison", "EvaluationResult", "compare", "paired_bootstrap", "summarize"]

CHUNK = 2_000_000  # indices drawn at a time: 16 MB, whatever the number of tasks
Z_95 = 1.959964  # standard normal quantile of 0.975


def paired_bootstrap(before: ArrayLike, after: ArrayLike, seed: int = 0, resamples: int = 10_000) -> Comparison:
    """Bootstrap the mean of after - before, both `[n]` over the same tasks in the same order, drawing tasks with replacement.

    The p-value is (1 + resamples with a mean difference <= 0) / (1 + resamples), so it is never zero. Efron and Tibshirani (1993),
    An Introduction to the Bootstrap, chapters 13 and 16; used for systems on one test set by Koehn (2004).
    Raises ValueError on different lengths, fewer than two tasks, or values that are not finite.
    """
    old, new = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if old.ndim != 1 or old.shape != new.shape:
        raise ValueError(f"a paired comparison needs one value per task on both sides; got shapes {old.shape} and {new.shape}")
    n = len(old)
    if n < 2:
        raise ValueError(f"a paired comparison needs at least two tasks, got {n}")
    differences = new - old
    if not np.isfinite(differences).all():
        raise ValueError("a paired comparison needs finite values; leave failed episodes out instead")
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    chunk = max(1, CHUNK // n)
    for start in range(0, resamples, chunk):
        stop = min(start + chunk, resamples)
        means[start:stop] = differences[generator.integers(0, n, size=(stop - start, n))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    # Summing equal and opposite differences may leave 1e-17 instead of 0, which counts as "not better".
    not_better = int((means <= 1e-12).sum())
    return Comparison(float(differences.mean()), float(low), float(high), (1 + not_better) / (1 + resamples), n)


def compare(before: EvaluationResult, after: EvaluationResult, seed: int = 0) -> Comparison:
    """Paired bootstrap of success over the tasks that both evaluations scored.

    Raises ValueError when the two differ in mode or success part, or share fewer than two tasks.
    """
    for what, old, new in (("mode", before.mode, after.mode), ("success part", before.success_part, after.success_part)):
        if old != new:
            raise ValueError(f"evaluations of a different {what} cannot be compared: {old!r} and {new!r}")
    shared = sorted(before.task_success.keys() & after.task_success.keys())
    unpaired = len(before.task_success.keys() ^ after.task_success.keys())
    result = paired_bootstrap([before.task_success[task] for task in shared], [after.task_success[task] for task in shared], seed)
    return Comparison(result.difference, result.low, result.high, result.p_value, result.n, unpaired)


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share over n independent trials (Wilson 1927). Unlike a bootstrap it keeps its width at 0 and 1.

    Also holds, conservatively, when each trial is a mean within [0, 1] instead of 0 or 1.
    """
    assert n > 0
    assert 0 <= share <= 1
    centre = (share + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def confusion(pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """(expected, predicted) pairs counted: expected -> predicted -> episodes, both sorted."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for expected, predicted in pairs:
        counts[expected][predicted] += 1
    return {expected: dict(sorted(counts[expected].items())) for expected in sorted(counts)}


def recalls(counts: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Share of each expected label's episodes that the policy labelled so. Macro-recall is the plain mean of these."""
    return {label: row.get(label, 0) / sum(row.values()) for label, row in counts.items()}


def best_constant(counts: Mapping[str, Mapping[str, int]]) -> BestConstant:
    """The best policy that always answers alike; of two labels equally frequent, the alphabetically first."""
    sizes = {label: sum(row.values()) for label, row in sorted(counts.items())}
    label = max(sizes, key=lambda name: sizes[name])
    return BestConstant(label, sizes[label] / sum(sizes.values()), 1 / len(sizes))


def summarize(episodes: Sequence[Episode], success_part: str, mode: Mode = "sampled") -> EvaluationResult:
    """Summarise the episodes of one evaluation; failed ones are counted by kind and take no part in any mean.

    success_part names a reward part whose values lie in [0, 1]. An episode that has an "expected" label but no "predicted" one
    counts as a wrong prediction "". Raises ValueError when there is no rewarded episode, or the success part is missing or out of range.
    """
    scored = [(episode, episode.outcome) for episode in episodes if isinstance(episode.outcome, Reward)]
    failed = [episode.outcome for episode in episodes if isinstance(episode.outcome, Failure)]
    failures = Counter(str(failure.kind) for failure in failed)
    if not scored:
        kinds = ", ".join(f"{count} {kind}" for kind, count in failures.items()) or "no episodes at all"
        cause = f"; the first one: {failed[0].line}" if failed else ""
        raise ValueError(f"nothing to evaluate: none of {len(episodes)} episodes has a reward ({kinds}){cause}")
    by_task: defaultdict[str, list[float]] = defaultdict(list)
    for episode, reward in scored:
        by_task[episode.task.id].append(_success(episode, reward, success_part))
    task_success = {task: math.fsum(values) / len(values) for task, values in by_task.items()}
    success = math.fsum(task_success.values()) / len(task_success)
    low, high = wilson_interval(success, len(task_success))
    rewarded = [episode for episode, _ in scored]
    counts = confusion((e.labels["expected"], e.labels.get("predicted", "")) for e in rewarded if "expected" in e.labels)
    recall = recalls(counts)
    return EvaluationResult(
        mode=mode,
        success_part=success_part,
        episodes=len(episodes),
        rewarded=len(scored),
        success=success,
        success_low=low,
        success_high=high,
        reward=float(np.mean([reward.total for _, reward in scored])),
        turns=float(np.mean([len(episode.turns) for episode in rewarded])),
        tokens=float(np.mean([sum(int(t.trainable.sum()) for t in episode.trajectories) for episode in rewarded])),
        task_success=task_success,
        parts=_means(reward.parts for _, reward in scored),
        metrics=_means(episode.metrics for episode in rewarded),
        confusion=counts,
        recall=recall,
        macro_recall=math.fsum(recall.values()) / len(recall) if recall else None,
        best_constant=best_constant(counts) if counts else None,
        failures=dict(sorted(failures.items())),
        truncations=dict(sorted(Counter(str(e.truncation) for e in rewarded if e.truncation).items())),
    )


def _success(episode: Episode, reward: Reward, part: str) -> float:
    if part not in reward.parts:
        raise ValueError(f"episode {episode.id} has no reward part {part!r} to call success{did_you_mean(part, sorted(reward.parts))}")
    value = reward.parts[part]
    if not 0 <= value <= 1:
        raise ValueError(f"reward part {part!r} of episode {episode.id} is {value}; a part that counts as success lies between 0 and 1")
    return float(value)


def _means(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each name over the rows that have it."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            values[name].append(float(value))
    return {name: math.fsum(numbers) / len(numbers) for name, numbers in sorted(values.items())}
