"""Continuing a stored episode from one of its turns: what else could this policy, or another checkpoint, have said from there?

The environment is played anew with the recorded words up to that turn, so it has to answer as it did; where it does not, that is said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from burnish.envs.types import Episode, EpisodeGroup, Message, Task
from burnish.inspector.replay import spoken_at
from burnish.inspector.stored import StoredEpisode
from burnish.recipe.resolve import ResolvedRun
from burnish.rewards.calling.threads import Daemons
from burnish.rollout.collect import collect
from burnish.rollout.conversation import EpisodeParts
from burnish.rollout.engine.base import Engine, GenerateRequest, Generation
from burnish.rollout.renderers import Renderer
from burnish.rollout.worker import WorkerSetup, episode_parts

MakeEngine = Callable[[WorkerSetup, Renderer], Engine]


@dataclass(frozen=True, slots=True)
class Branches:
    """Continuations of an episode.

    turn: the first that is not the recorded one, from 1. attempts: the continued episodes, whole. parted: the first message before that
    turn in which an attempt differs from the record, as (its place, the record's, the attempt's); None when all began as recorded.
    """

    turn: int
    attempts: tuple[Episode, ...]
    parted: tuple[int, str, str] | None


def branch(
    run: ResolvedRun, addresses: Mapping[str, str], model: Path, episode: StoredEpisode, turn: int, samples: int, make: MakeEngine
) -> Branches:
    """Play `samples` episodes that say what the recorded one said before `turn`, and then what the model says.

    addresses: of the recipe's services. make: the engine. Raises ValueError when the episode has no such turn, its messages are not
    those of its turns, or its recipe's environment is another one.
    """
    if not 1 <= turn <= episode.turns:
        raise ValueError(f"--turn {turn}: the policy spoke {episode.turns} times in {episode.id}; give a turn from 1 to {episode.turns}")
    if samples < 1:
        raise ValueError(f"--samples {samples}: give at least 1")
    if len(spoken_at(episode)) != episode.turns:
        raise ValueError(f"{episode.id} cannot be continued: its messages and its turns do not fit together")
    said, before = _said_before(episode, turn)
    setup = run.worker_setup(model, addresses, seed=run.seed)

    def engine(renderer: Renderer) -> Engine:
        recorded = [renderer.encode(words) for words in said]
        return cast(Engine, _FirstRecorded(make(setup, renderer), recorded))

    parts = episode_parts(setup, engine, Daemons("branch"))
    known = {"", *parts.others}
    if episode.task.environment not in known:
        raise ValueError(f"{episode.id} is of the environment {episode.task.environment!r}, which the recipe does not blend")
    least = parts.of(episode.task).rubric.min_members
    group = asyncio.run(_played(parts, replace(episode.task, id=f"branch-{episode.task.id}"), max(samples, least)))
    return Branches(turn, group.episodes, _parted(before, group.episodes))


async def _played(parts: EpisodeParts, task: Task, samples: int) -> EpisodeGroup:
    try:
        async for group in collect(parts, [task], samples, parts.limits.temperature):
            return group
    finally:
        await parts.engine.close()
    raise AssertionError("one task makes one group")


def _said_before(episode: StoredEpisode, turn: int) -> tuple[list[str], tuple[Message, ...]]:
    """What the policy said in the turns before, and the messages up to where it spoke in `turn`."""
    spoken = spoken_at(episode)
    return [episode.messages[i].text for i in spoken[: turn - 1]], episode.messages[: spoken[turn - 1]]


def _parted(before: Sequence[Message], attempts: Sequence[Episode]) -> tuple[int, str, str] | None:
    for attempt in attempts:
        for i, message in enumerate(before):
            now = attempt.messages[i].to_dict() if i < len(attempt.messages) else {}
            if now != message.to_dict():
                return i, message.text, attempt.messages[i].text if now else "nothing"
    return None


class _FirstRecorded:
    """An engine whose first turns are the recorded ones; everything else is that of the engine below."""

    def __init__(self, below: Engine, recorded: Sequence[Sequence[int]]) -> None:
        self._below, self._recorded = below, recorded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)

    async def generate(self, request: GenerateRequest) -> Generation:
        turn = int(request.request_id.rpartition("/")[2])
        if turn >= len(self._recorded):
            return await self._below.generate(request)
        ids = np.array([*self._recorded[turn], *request.stop_token_ids[:1]], np.int32)
        return Generation(ids, np.zeros(len(ids), np.float32), np.zeros(len(ids), np.int32), "stop", 0.0)
