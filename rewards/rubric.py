"""The one place where rewards compose: the environment's own reward plus scorers, each with a weight, into the total that trains."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar, cast

from ..envs.failures import EpisodeFailure, Failure, FailureKind
from ..envs.types import Reward
from ..rpc.pauses import growing_pause
from .calling.caller import together
from .terms import Term, standardised
from .types import GroupScorer, InvalidScore, RewardInput, Score, Scorer, compares

T = TypeVar("T")

ENV_PART = "env"
MAX_BACKOFF_S = 60.0
NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]+")

EXPLANATION = "explanation"
"""The label that holds why a scorer gave its value: of the scorer NAME, an episode keeps it as `NAME.explanation`."""
SECONDS = "/judge_seconds"
"""What the metrics of an episode end with that say how long each scorer took, after its name."""


class Scored(NamedTuple):
    """The reward of one episode, and by scorer the labels that it gave, `EXPLANATION` among them, and the seconds that it took."""

    reward: Reward
    labels: dict[str, Mapping[str, str]]
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Judged:
    """An episode that every scorer but those of the group has judged. scores: by the name of the scorer. seconds: of each, from when it
    was asked until it had judged: waits for its turn and further attempts are in it."""

    episode: RewardInput
    scores: Mapping[str, Score]
    seconds: Mapping[str, float] = field(default_factory=dict)


class Rubric:
    """Weighs scorers: total = env_weight * env + sum of weight * value. A weight of 0 only watches; a `Term` in its place also clips,
    normalises and gates.

    Every part is recorded unweighted, as the scorer gave it: "env" and "env.<part>" from the environment, "<name>" and "<name>.<part>"
    from a scorer. retries: further attempts after a scorer's failure, waiting backoff_s, then twice as long, and so on up to a minute.
    max_concurrent: calls in flight per scorer that has no limit of its own.

    `judge` scores one episode as soon as it ends; `score_group` adds what compares the attempts at one task and makes the totals. `score`
    is both for an episode by itself.

    Example: `Rubric([(verdict, Term(gate=0.5, cap=0.0)), (make_scorer("burnish/inspection-cost-v1"), 0.2)], env_weight=0.0)`.
    """

    def __init__(
        self,
        entries: Sequence[tuple[Scorer | GroupScorer, float | Term]],
        env_weight: float = 1.0,
        *,
        retries: int = 2,
        backoff_s: float = 0.5,
        max_concurrent: int = 64,
    ) -> None:
        """Raises ValueError when names collide or a weight or limit makes no sense."""
        _check_names([scorer.name for scorer, _ in entries])
        weights = {ENV_PART: env_weight, **{scorer.name: term.weight if isinstance(term, Term) else term for scorer, term in entries}}
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
        self._terms = {scorer.name: term if isinstance(term, Term) else Term(term) for scorer, term in entries}
        self._groups: list[GroupScorer] = [scorer for scorer, _ in entries if compares(scorer)]
        self._singles: list[Scorer] = [cast(Scorer, scorer) for scorer, _ in entries if not compares(scorer)]
        self._env_weight = env_weight
        self._retries = retries
        self._backoff_s = backoff_s
        limited = [scorer.name for scorer, _ in entries if not hasattr(scorer, "max_concurrent")]  # the others limit themselves
        self._slots = {name: asyncio.Semaphore(max_concurrent) for name in limited}

    @property
    def compares(self) -> bool:
        """Whether a total depends on the other attempts at the task, so that it is known only when the group is complete."""
        return bool(self._groups) or any(term.normalize == "group" for term in self._terms.values())

    @property
    def min_members(self) -> int:
        """Judged attempts that a group needs for every part of its rewards; with fewer, the parts that compare them are left out."""
        return max((scorer.min_members for scorer in self._groups), default=1)

    async def score(self, episode: RewardInput) -> Scored:
        """The reward of one episode by itself and the labels its scorers gave. Raises EpisodeFailure as `judge` does."""
        (result,) = await self.score_group([await self.judge(episode)])
        if isinstance(result, Failure):
            raise EpisodeFailure(result)
        return result

    async def judge(self, episode: RewardInput) -> Judged:
        """Ask every scorer that judges single episodes.

        Raises EpisodeFailure once a scorer has failed all its attempts (the others are cancelled), or when the environment's reward is
        not finite (ENV_ERROR).
        """
        env_values = _env_values(episode)
        bad = [name for name, value in env_values.items() if not math.isfinite(value)]
        if bad:
            raise EpisodeFailure(
                Failure(FailureKind.ENV_ERROR, "environment", f"reward {bad[0]} of task {episode.task.id} is {env_values[bad[0]]}")
            )
        names = [one.name for one in self._singles]
        found = await together([_timed(partial(self._judge_by, one, episode)) for one in self._singles])
        scores = {name: score for name, (score, _) in zip(names, found, strict=True)}
        return Judged(episode, scores, {name: seconds for name, (_, seconds) in zip(names, found, strict=True)})

    async def _judge_by(self, scorer: Scorer, episode: RewardInput) -> Score:
        async def call() -> Score:
            return await scorer.score(episode)

        return await self._attempt(scorer.name, call)

    async def score_group(self, members: Sequence[Judged]) -> list[Scored | Failure]:
        """The rewards of all judged attempts at one task, in order.

        A group reward that fails all its attempts is the failure of every member; an item of its result that is no score, a value outside
        its declared range, and a sum that overflows are the failure of that member. A group reward that needs more members than there
        are adds no part.
        """
        scores: list[dict[str, Score]] = [dict(member.scores) for member in members]
        seconds: list[dict[str, float]] = [dict(member.seconds) for member in members]
        failures: dict[int, Failure] = {}
        scorers = [one for one in self._groups if len(members) >= one.min_members]
        episodes = [member.episode for member in members]
        found = await together([_timed(partial(self._compare, one, episodes)) for one in scorers])
        for scorer, (results, took) in zip(scorers, found, strict=True):
            for i, result in enumerate(results):
                if isinstance(result, Failure):
                    failures.setdefault(i, result)
                else:
                    scores[i][scorer.name], seconds[i][scorer.name] = result, took
        shaped: dict[int, dict[str, float]] = {}
        for i, member in enumerate(members):
            if i not in failures:
                try:
                    shaped[i] = self._shape(scores[i])
                except InvalidScore as error:
                    failures[i] = _failed(member.episode, str(error))
        self._standardise(shaped)
        return [
            failures[i] if i in failures else self._compose(member.episode, scores[i], shaped[i], seconds[i])
            for i, member in enumerate(members)
        ]

    async def _compare(self, scorer: GroupScorer, episodes: Sequence[RewardInput]) -> Sequence[Score | Failure]:
        async def call() -> Sequence[Score | Failure]:
            return await scorer.score_group(episodes)

        try:
            return await self._attempt(scorer.name, call, lambda results: any(isinstance(one, Failure) for one in results))
        except EpisodeFailure as error:
            return [error.failure] * len(episodes)

    async def _attempt(self, name: str, call: Callable[[], Awaitable[T]], incomplete: Callable[[T], bool] = lambda result: False) -> T:
        for attempt in range(self._retries + 1):
            try:
                async with self._slots.get(name, contextlib.nullcontext()):
                    result = await call()
                if attempt == self._retries or not incomplete(result):
                    return result
            except EpisodeFailure as error:
                failure = error.failure
                if failure.kind is FailureKind.CANCELLED:
                    raise
                if attempt == self._retries:
                    detail = f"{failure.detail} ({attempt + 1} attempts)" if attempt else failure.detail
                    raise EpisodeFailure(Failure(failure.kind, failure.culprit, detail)) from error
            await asyncio.sleep(growing_pause(attempt, self._backoff_s, MAX_BACKOFF_S))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _shape(self, scores: Mapping[str, Score]) -> dict[str, float]:
        shaped = {}
        for name, score in scores.items():
            try:
                shaped[name] = self._terms[name].shaped(score.value)
            except InvalidScore as error:
                raise InvalidScore(f"reward {name!r}: {error}") from error
        return shaped

    def _standardise(self, members: Mapping[int, dict[str, float]]) -> None:
        """Replace what is normalised within the group, over the members that have a value."""
        for name, term in self._terms.items():
            if term.normalize == "group":
                rows = [values for values in members.values() if name in values]
                for values, value in zip(rows, standardised([values[name] for values in rows]), strict=True):
                    values[name] = value

    def _compose(
        self, episode: RewardInput, scores: Mapping[str, Score], shaped: Mapping[str, float], seconds: dict[str, float]
    ) -> Scored | Failure:
        parts = {name: float(value) for name, value in _env_values(episode).items()}
        given = {name: scores[name] for name in self._terms if name in scores}  # in the order of the rubric
        for name, score in given.items():
            parts[name] = score.value
            parts |= {f"{name}.{part}": value for part, value in score.parts.items()}
        total = sum((self._terms[name].weight * shaped[name] for name in given), start=self._env_weight * episode.env_reward)
        if not math.isfinite(total):
            return _failed(episode, f"the weighted sum overflows: {parts}")
        size = abs(self._env_weight * episode.env_reward)
        size += sum(self._terms[name].size(score.value, shaped[name]) for name, score in given.items())
        uncapped = total
        for name, score in given.items():
            total = self._terms[name].capped(total, score.value)
        if total != uncapped:
            size = abs(total)  # a cap is a number of its own, whatever it cut off
        labels = {name: _said(score) for name, score in given.items() if score.labels or score.explanation}
        turns = {name: score.turns for name, score in given.items() if score.turns}
        return Scored(Reward(total, parts, turns, self._credit(turns), size), labels, seconds)

    def _credit(self, turns: Mapping[str, tuple[float, ...]]) -> tuple[float, ...]:
        """What each turn earned: of the scorers that judge turns and whose value is only weighed. What is clipped or normalised as a whole
        belongs to no turn."""
        rows = {name: values for name, values in turns.items() if self._terms[name].only_weighs}
        longest = max(map(len, rows.values()), default=0)
        return tuple(sum(self._terms[name].weight * values[i] for name, values in rows.items() if i < len(values)) for i in range(longest))


async def _timed(call: Callable[[], Awaitable[T]]) -> tuple[T, float]:
    """What the call returns, and the seconds until then."""
    started = time.monotonic()
    return await call(), time.monotonic() - started


def _said(score: Score) -> Mapping[str, str]:
    return {**score.labels, EXPLANATION: score.explanation} if score.explanation else score.labels


def _env_values(episode: RewardInput) -> dict[str, float]:
    return {ENV_PART: episode.env_reward, **{f"{ENV_PART}.{name}": value for name, value in episode.env_parts.items()}}


def _failed(episode: RewardInput, detail: str) -> Failure:
    return Failure(FailureKind.REWARD_INVALID, "rubric", f"task {episode.task.id}: {detail}")


def named_labels(scorers: Mapping[str, Mapping[str, str]], environment: Mapping[str, str], success: str) -> dict[str, str]:
    """The labels of an episode: of whoever gives the part `success` under their own names, of others as "GIVER.NAME", so that recall and
    success are of the same judgement. With no success, the first scorer that gives a name has it, and the environment after them.
    Explanations, and labels whose names hold a dot, always have their giver's name first: it holds no dot, so that no label can take the
    place of another giver's.
    """
    owner, labels = success.partition(".")[0], dict[str, str]()
    for giver, given in (*scorers.items(), (ENV_PART, environment)):
        for name, label in given.items():
            own = giver == owner if owner else name not in labels
            labels[name if own and name != EXPLANATION and "." not in name else f"{giver}.{name}"] = label
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
