"""The one place where rewards compose: the environment's own reward plus scorers, each with a weight, into the total that trains."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import Sequence

from ..envs.failures import EpisodeFailure, Failure, FailureKind
from ..envs.types import Reward
from .types import RewardInput, Score, Scorer

ENV_PART = "env"
NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]+")


class Rubric:
    """Weighs scorers: total = env_weight * env + sum of weight * value. A weight of 0 only watches.

    Every part is recorded unweighted: "env" and "env.<part>" from the environment, "<name>" and "<name>.<part>" from a scorer.
    retries: further attempts after a scorer's failure, waiting backoff_s, then twice as long, and so on.
    max_concurrent: calls in flight per scorer that has no limit of its own.

    Example: `Rubric([(verdict, 1.0), (make_scorer("burnish/inspection-cost-v1"), 0.2)], env_weight=0.0)`.
    """

    def __init__(
        self,
        entries: Sequence[tuple[Scorer, float]],
        env_weight: float = 1.0,
        *,
        retries: int = 2,
        backoff_s: float = 0.5,
        max_concurrent: int = 64,
    ) -> None:
        """Raises ValueError when names collide or a weight or limit makes no sense."""
        _check_names([scorer.name for scorer, _ in entries])
        weights = {ENV_PART: env_weight, **{scorer.name: weight for scorer, weight in entries}}
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"the weight of reward {name!r} must be a finite number, not {weight!r}")
        if not any(weights.values()):
            raise ValueError(
                "every reward has weight 0, so nothing would be trained; give a weight to the environment's reward or to a scorer"
            )
        if retries < 0 or backoff_s < 0 or max_concurrent < 1:
            raise ValueError(
                f"rubric limits need retries >= 0, backoff_s >= 0, max_concurrent >= 1; got {retries}, {backoff_s}, {max_concurrent}"
            )
        self._entries = tuple(entries)
        self._env_weight = env_weight
        self._retries = retries
        self._backoff_s = backoff_s
        limited = [scorer.name for scorer, _ in entries if not hasattr(scorer, "max_concurrent")]  # the others limit themselves
        self._slots = {name: asyncio.Semaphore(max_concurrent) for name in limited}

    async def score(self, episode: RewardInput) -> tuple[Reward, dict[str, str]]:
        """The reward of one episode and the labels its scorers gave.

        Raises EpisodeFailure once a scorer has failed all its attempts (the others are cancelled), when the environment's reward is
        not finite (ENV_ERROR), or when two scorers disagree about a label (REWARD_INVALID).
        """
        env_values = {ENV_PART: episode.env_reward, **{f"{ENV_PART}.{name}": value for name, value in episode.env_parts.items()}}
        bad = [name for name, value in env_values.items() if not math.isfinite(value)]
        if bad:
            raise EpisodeFailure(
                Failure(FailureKind.ENV_ERROR, "environment", f"reward {bad[0]} of task {episode.task.id} is {env_values[bad[0]]}")
            )
        scores = await self._all_scores(episode)
        parts = {name: float(value) for name, value in env_values.items()}
        terms = [self._env_weight * episode.env_reward]
        for (scorer, weight), score in zip(self._entries, scores, strict=True):
            parts[scorer.name] = score.value
            parts |= {f"{scorer.name}.{name}": value for name, value in score.parts.items()}
            terms.append(weight * score.value)
        total = sum(terms)
        if not math.isfinite(total):
            raise EpisodeFailure(Failure(FailureKind.REWARD_INVALID, "rubric", f"the weighted sum overflows: {parts}"))
        return Reward(total, parts), self._merge_labels(scores)

    async def _all_scores(self, episode: RewardInput) -> list[Score]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._attempt(scorer, episode)) for scorer, _ in self._entries]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the first to fail cancelled the rest
        return [task.result() for task in tasks]

    async def _attempt(self, scorer: Scorer, episode: RewardInput) -> Score:
        for attempt in range(self._retries + 1):
            try:
                async with self._slots.get(scorer.name, contextlib.nullcontext()):
                    return await scorer.score(episode)
            except EpisodeFailure as error:
                failure = error.failure
                if failure.kind is FailureKind.CANCELLED:
                    raise
                if attempt == self._retries:
                    detail = f"{failure.detail} ({attempt + 1} attempts)" if attempt else failure.detail
                    raise EpisodeFailure(Failure(failure.kind, failure.culprit, detail)) from error
            await asyncio.sleep(self._backoff_s * 2**attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _merge_labels(self, scores: Sequence[Score]) -> dict[str, str]:
        labels: dict[str, str] = {}
        giver: dict[str, str] = {}
        for (scorer, _), score in zip(self._entries, scores, strict=True):
            for name, label in score.labels.items():
                if labels.setdefault(name, label) != label:
                    detail = f"{giver[name]} says label {name} is {labels[name]!r}, {scorer.name} says {label!r}"
                    raise EpisodeFailure(Failure(FailureKind.REWARD_INVALID, "rubric", detail))
                giver.setdefault(name, scorer.name)
        return labels


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if not NAME_PATTERN.fullmatch(name):
            raise ValueError(f"reward name {name!r} may hold letters, digits, '-' and '_' only; parts follow it after a dot")
        if name in (ENV_PART, "total"):
            raise ValueError(
                f"reward name {name!r} is taken: {ENV_PART!r} is the environment's own reward, 'total' the weighted sum; choose another"
            )
        if names.count(name) > 1:
            raise ValueError(f"two rewards are called {name!r}; give one of them another name")
