"""Collecting episodes: many in flight at once over one engine, gathered into groups."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from ..envs.failures import Failure
from ..envs.types import Episode, EpisodeGroup, Task
from .conversation import EpisodeParts
from .ended import all_ended, together
from .episode import Played, play_with_retries, reward_together

Progress = Callable[[Episode], None]


async def collect(
    parts: EpisodeParts,
    tasks: Sequence[Task],
    group_size: int,
    temperature: float,
    on_episode: Progress | None = None,
    slots: asyncio.Semaphore | None = None,
) -> AsyncIterator[EpisodeGroup]:
    """Run `group_size` episodes of every task, `limits.concurrency` at a time, and yield each group as soon as it is whole.

    slots: places that this shares with other collections of the same worker, instead of `limits.concurrency` of its own.

    Failed episodes are part of their group, with their `Failure` as outcome. Where rewards compare the episodes of a group, they are
    given, and `on_episode` is called, when its last member has ended. Closing the iterator cancels what is in flight, and waits for it.
    """
    places = slots or asyncio.Semaphore(parts.limits.concurrency)

    async def play(task: Task, sample: int) -> Played:
        async with places:
            return await play_with_retries(parts.of(task), task, sample, temperature)

    async def reward(task: Task, played: Sequence[Played]) -> tuple[Episode, ...]:
        with parts.meter.running("rewards"):
            rewarded = await reward_together(parts.of(task), played)
        episodes = tuple(replace(episode, engine=parts.engine.name, actor=parts.actor, node=parts.node) for episode in rewarded)
        for episode in episodes:
            if on_episode is not None:
                on_episode(episode)
        return episodes

    async def one(task: Task, sample: int) -> Episode:
        return (await reward(task, [await play(task, sample)]))[0]

    async def group(task: Task) -> EpisodeGroup:
        samples, rubric = range(group_size), parts.of(task).rubric
        if not rubric.compares:
            return EpisodeGroup(task, tuple(await together(one(task, sample) for sample in samples)))
        played = await together(play(task, sample) for sample in samples)
        judged = sum(not isinstance(member.judged, Failure) for member in played)
        return EpisodeGroup(task, await reward(task, played), comparable=judged >= rubric.min_members)

    running = [asyncio.ensure_future(group(task)) for task in tasks]
    try:
        for finished in asyncio.as_completed(running):
            yield await finished
    finally:
        for future in running:
            future.cancel()
        await all_ended(running)
