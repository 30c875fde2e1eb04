"""Reward plug-ins as scorers of a rubric, one class per level. Whatever goes wrong is a typed failure naming plug-in and task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...envs.failures import EpisodeFailure, Failure, FailureKind
from ..declaration import RewardPlugin
from ..types import InvalidScore, RewardInput, Score, Scorer, TurnInput, exact_sum, turns_of
from .batches import Batcher
from .cache import ScoreCache
from .caller import Caller, Fault, together
from .processes import reference


def _caller(plugin: RewardPlugin, options: Mapping[str, Any]) -> Caller:
    isolated = reference("reward", plugin.id, plugin.function) if plugin.isolation == "process" else None
    return Caller(plugin.id, plugin.function, options, plugin.timeout_s, plugin.max_concurrent, isolated)


class EpisodeScorer:
    """A plug-in of level "episode": one call per episode."""

    def __init__(self, plugin: RewardPlugin, name: str, options: Mapping[str, Any]) -> None:
        self.name = name
        self.max_concurrent = plugin.max_concurrent
        self._caller = _caller(plugin, options)
        self._cache: ScoreCache[Score] = ScoreCache(plugin.cache)

    async def score(self, episode: RewardInput) -> Score:
        """Raises EpisodeFailure: REWARD_TIMEOUT, REWARD_ERROR or REWARD_INVALID with the plug-in's id as culprit."""
        try:
            return await self._cache.once([episode], lambda: self._judge(episode))
        except Fault as fault:
            raise EpisodeFailure(self._caller.failure(fault, episode.task.id)) from fault

    async def _judge(self, episode: RewardInput) -> Score:
        return self._caller.read(await self._caller.call(episode), episode)


class TurnScorer(EpisodeScorer):
    """A plug-in of level "turn": one call per turn, all turns of an episode at once; the value is their sum, 0 of a policy that a limit
    cut short before it had said anything."""

    async def _judge(self, episode: RewardInput) -> Score:
        scores = await together([self._judge_turn(turn) for turn in turns_of(episode)])
        try:
            return sum_of_turns(scores)
        except InvalidScore as error:
            raise self._caller.invalid(str(error)) from error

    async def _judge_turn(self, turn: TurnInput) -> Score:
        try:
            return self._caller.read(await self._caller.call(turn))
        except Fault as fault:
            raise Fault(fault.kind, f"turn {turn.index}: {fault}") from fault


def _whole(results: Sequence[Score | Failure]) -> bool:
    return not any(isinstance(result, Failure) for result in results)


def sum_of_turns(scores: Sequence[Score]) -> Score:
    """The scores of an episode's turns as one: values and parts add up, a later label replaces an earlier one, and each explanation is a
    line of its own.

    Raises InvalidScore when a sum is beyond what a number can hold.
    """
    values = tuple(score.value for score in scores)
    names = list(dict.fromkeys(name for score in scores for name in score.parts))
    parts = {name: exact_sum((score.parts.get(name, 0.0) for score in scores), f"part {name!r} over the turns") for name in names}
    labels = {name: label for score in scores for name, label in score.labels.items()}
    said = "\n".join(f"turn {i}: {score.explanation}" for i, score in enumerate(scores, start=1) if score.explanation)
    return Score(exact_sum(values, "the turns"), parts, labels, values, said)


class BatchScorer:
    """A plug-in of level "batch": one call for whatever is ready together."""

    def __init__(self, plugin: RewardPlugin, name: str, options: Mapping[str, Any]) -> None:
        self.name = name
        self.max_concurrent = plugin.max_concurrent
        self._caller = _caller(plugin, options)
        self._batcher = Batcher(self._judge, plugin.max_batch, plugin.max_wait_s, plugin.max_concurrent)
        self._cache: ScoreCache[Score] = ScoreCache(plugin.cache)

    async def score(self, episode: RewardInput) -> Score:
        """Raises EpisodeFailure as `EpisodeScorer.score` does; a call that fails as a whole fails every episode of its batch."""
        return await self._cache.once([episode], lambda: self._batcher.submit(episode))

    async def _judge(self, episodes: Sequence[RewardInput]) -> Sequence[Score | Failure]:
        try:
            return self._caller.read_all(await self._caller.call(list(episodes)), episodes)
        except Fault as fault:
            return [self._caller.failure(fault, episode.task.id) for episode in episodes]
        except EpisodeFailure as error:
            return [error.failure for _ in episodes]


class PluginGroupScorer:
    """A plug-in of level "group": one call for all judged attempts at one task."""

    def __init__(self, plugin: RewardPlugin, name: str, options: Mapping[str, Any]) -> None:
        self.name = name
        self.max_concurrent = plugin.max_concurrent
        self.min_members = plugin.min_members
        self._caller = _caller(plugin, options)
        self._cache: ScoreCache[Sequence[Score | Failure]] = ScoreCache(plugin.cache, keep=_whole)

    async def score_group(self, episodes: Sequence[RewardInput]) -> Sequence[Score | Failure]:
        """Raises EpisodeFailure when the call fails as a whole; otherwise an item that cannot be judged is a failure of its own."""
        task = episodes[0].task.id
        if len(episodes) < self.min_members:
            few = Fault(FailureKind.REWARD_INVALID, f"{len(episodes)} members, but it compares at least {self.min_members}")
            raise EpisodeFailure(self._caller.failure(few, task))
        try:
            return await self._cache.once(episodes, lambda: self._judge(episodes))
        except Fault as fault:
            raise EpisodeFailure(self._caller.failure(fault, task)) from fault

    async def _judge(self, episodes: Sequence[RewardInput]) -> Sequence[Score | Failure]:
        return self._caller.read_all(await self._caller.call(list(episodes)), episodes)


def scorer_for(plugin: RewardPlugin, name: str, options: Mapping[str, Any]) -> Scorer:
    """The scorer of a plug-in that judges single episodes; its options must have been checked."""
    if plugin.level == "batch":
        return BatchScorer(plugin, name, options)
    return TurnScorer(plugin, name, options) if plugin.level == "turn" else EpisodeScorer(plugin, name, options)
