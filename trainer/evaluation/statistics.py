"""What may be believed about an evaluation: success with its interval, recall per label, and the best constant policy.

A single success figure misleads: a policy that never says "pass" can score 63 %. So success stands beside macro-recall and the best
constant policy, and two policies are compared on the same held-out tasks (`comparison`).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...envs.failures import Failure
from ...envs.registry import did_you_mean
from ...envs.types import Episode, Reward
from ...rollout.store.intervals import wilson_interval
from ...rollout.store.records import BestConstant, EvaluationResult, Mode

CHUNK = 2_000_000  # indices drawn at a time: 16 MB, whatever the number of tasks


class EvaluationFailed(RuntimeError):
    """So many episodes of an evaluation failed that those left say nothing about the policy."""


def resampled_means(seed: int, resamples: int, *arrays: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """The means of arrays, all `[n]`, over n places drawn with replacement, `[resamples]` each: of all the same places in one draw.

    Example: `resampled_means(0, 10_000, np.array([0.0, 1.0]))[0].mean()` is about 0.5.
    """
    n, generator = len(arrays[0]), np.random.default_rng(seed)
    found = tuple(np.empty(resamples) for _ in arrays)
    chunk = max(1, CHUNK // n)
    for start in range(0, resamples, chunk):
        stop = min(start + chunk, resamples)
        places = generator.integers(0, n, size=(stop - start, n))
        for means, values in zip(found, arrays, strict=True):
            means[start:stop] = values[places].mean(axis=1)
    return found


def exact_interval(wins: int, n: int) -> tuple[float, float]:
    """95 % interval of a share, `wins` of n independent trials (Clopper and Pearson 1934): it holds for every n, at 0 and n too.

    Example: `exact_interval(0, 10)` is (0.0, 0.308): none of ten leaves room for three in ten.
    """
    from scipy import stats

    assert 0 <= wins <= n
    assert n > 0
    low = float(stats.beta.ppf(0.025, wins, n - wins + 1)) if wins else 0.0
    high = float(stats.beta.ppf(0.975, wins + 1, n - wins)) if wins < n else 1.0
    return low, high


def confusion(pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """(expected, predicted) pairs counted: expected -> predicted -> episodes, both sorted."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for expected, predicted in pairs:
        counts[expected][predicted] += 1
    return {expected: dict(sorted(counts[expected].items())) for expected in sorted(counts)}


def recalls(counts: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Share of each expected label's episodes that the policy labelled so. Macro-recall is the plain mean of these."""
    return {label: row.get(label, 0) / sum(row.values()) for label, row in counts.items()}


def best_constant(pairs: Iterable[tuple[str, str]]) -> BestConstant | None:
    """The best policy that always answers alike, of (expected label, the answer that is labelled so) pairs, one for each episode; of two
    answers equally frequent, the alphabetically first. None where one answer is wanted everywhere, of which no policy could tell another.

    Example: `best_constant([("right", "40"), ("right", "50"), ("abstained", "no"), ("abstained", "no")])` always says "no", success 0.5.
    """
    counts = confusion(pairs)
    sizes = Counter[str]()
    for row in counts.values():
        sizes.update(row)
    if len(sizes) < 2:
        return None
    label = max(sorted(sizes), key=lambda answer: sizes[answer])
    recall = [row.get(label, 0) / sum(row.values()) for row in counts.values()]
    return BestConstant(label, sizes[label] / sizes.total(), math.fsum(recall) / len(recall))


def summarize(episodes: Sequence[Episode], success_part: str, mode: Mode = "sampled", error_budget: float = 1.0) -> EvaluationResult:
    """Summarise the episodes of one evaluation; failed ones are counted by kind and take no part in any mean.

    success_part names a reward part whose values lie in [0, 1]; an episode that lacks a part which others have has 0 of it. An episode
    that has an "expected" label but no "predicted" one counts as a wrong prediction ""; one with a "constant" label expects just that of a
    policy that always answers alike, others their "expected" one.

    Raises EvaluationFailed when no episode has a reward, or a share of them above `error_budget` failed; ValueError when the success part
    is missing or out of range.
    """
    scored = [(episode, episode.outcome) for episode in episodes if isinstance(episode.outcome, Reward)]
    failures = Counter(str(episode.outcome.kind) for episode in episodes if isinstance(episode.outcome, Failure))
    _check_failures(episodes, failures, error_budget)
    watch = SuccessWatch(success_part)
    by_task: defaultdict[str, list[float]] = defaultdict(list)
    for episode, reward in scored:
        by_task[episode.task.id].append(watch.value(episode, reward))
    watch.check()
    task_success = {task: math.fsum(values) / len(values) for task, values in by_task.items()}
    success = math.fsum(task_success.values()) / len(task_success)
    low, high = wilson_interval(success, len(task_success))
    rewarded = [episode for episode, _ in scored]
    labels = [e.labels for e in rewarded if "expected" in e.labels]
    counts = confusion((given["expected"], given.get("predicted", "")) for given in labels)
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
        parts=_means_of_parts([reward.parts for _, reward in scored]),
        metrics=_means(episode.metrics for episode in rewarded),
        confusion=counts,
        recall=recall,
        macro_recall=math.fsum(recall.values()) / len(recall) if recall else None,
        best_constant=best_constant((given["expected"], given.get("constant", given["expected"])) for given in labels),
        failures=dict(sorted(failures.items())),
        truncations=dict(sorted(Counter(str(e.truncation) for e in rewarded if e.truncation).items())),
    )


class SuccessWatch:
    """The values of the part that is called success, one episode after the other: what is wrong with it is said as soon as it shows.

    An episode that lacks the part has 0 of it: an environment may give it on its last step only, which an episode that was cut short never
    reached. But when none of the first `LOOKED_AT` episodes has it, it is misspelt, or given so rarely that it must be declared.

    Example: `SuccessWatch("verdict.correct").value(episode, reward)` is 1.0.
    """

    LOOKED_AT = 32

    def __init__(self, part: str) -> None:
        self._part = part
        self._seen = 0
        self._found = False
        self._names: set[str] = set()

    def value(self, episode: Episode, reward: Reward) -> float:
        """Success of one episode. Raises ValueError when it lies outside [0, 1], and as `check` does once enough were looked at."""
        self._seen += 1
        self._names |= reward.parts.keys()
        self._found = self._found or self._part in reward.parts
        if self._seen == self.LOOKED_AT:
            self.check()
        value = reward.parts.get(self._part, 0.0)
        if not 0 <= value <= 1:
            what = f"reward part {self._part!r} of episode {episode.id} is {value}"
            raise ValueError(f"success: {what}; a part that counts as success lies between 0 and 1")
        return float(value)

    def check(self) -> None:
        """Raise ValueError when no episode so far has the part."""
        if not self._found:
            none = f"none of {self._seen} episodes has a" if self._seen > 1 else "the episode has no"
            kind, _, name = self._part.partition(".")
            close, fix = did_you_mean(self._part, sorted(self._names)), "what gives it must give it with every episode, as 0 at the least"
            if kind == "env":
                fix = f'an environment that gives it only now and then declares it: reward_parts = ("{name}",)'
            then = f" {fix[0].upper()}{fix[1:]}" if close.endswith("?") else f"; {fix}"
            raise ValueError(f"success: {none} reward part {self._part!r}{close}{then if name else ''}")


def _check_failures(episodes: Sequence[Episode], failures: Mapping[str, int], error_budget: float) -> None:
    failed = [episode.outcome for episode in episodes if isinstance(episode.outcome, Failure)]
    if len(failed) < len(episodes) and len(failed) <= error_budget * len(episodes):
        return
    if not episodes:
        raise EvaluationFailed("nothing was evaluated: there are no episodes")
    kinds = ", ".join(f"{count} {kind}" for kind, count in failures.items())
    limit = "" if len(failed) == len(episodes) else f", more than evaluation.error_budget = {error_budget:g} allows"
    raise EvaluationFailed(
        f"this evaluation is no result: {len(failed)} of {len(episodes)} episodes failed{limit} ({kinds}); the first: {failed[0].line}"
    )


def _means_of_parts(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each part, 0 in the rows that lack it."""
    names = sorted({name for row in rows for name in row})
    return {name: math.fsum(row.get(name, 0.0) for row in rows) / len(rows) for name in names}


def _means(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each name over the rows that have it."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            values[name].append(float(value))
    return {name: math.fsum(numbers) / len(numbers) for name, numbers in sorted(values.items())}
