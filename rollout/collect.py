"""Collecting episodes: many in flight at once over one engine, gathered into groups."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from ..envs.types import Episode, EpisodeGroup, Task
from .episode import EpisodeParts, run_with_retries

Progress = Callable[[Episode], None]


async def collect(
    parts: EpisodeParts, tasks: Sequence[Task], group_size: int, temperature: float, on_episode: Progress | None = None
) -> AsyncIterator[EpisodeGroup]:
    """Run `group_size` episodes of every task, `limits.concurrency` at a time, and yield each group as soon as it is whole.

    Failed episodes are part of their group, with their `Failure` as outcome. Closing the iterator cancels what is in flight.
    """
    slots = asyncio.Semaphore(parts.limits.concurrency)

    async def one(task: Task, sample: int) -> Episode:
        async with slots:
            episode = await run_with_retries(parts, task, sample, temperature)
        if on_episode is not None:
            on_episode(episode)
        return episode

    async def group(task: Task) -> EpisodeGroup:
        return EpisodeGroup(task, tuple(await asyncio.gather(*(one(task, sample) for sample in range(group_size)))))

    running = [asyncio.ensure_future(group(task)) for task in tasks]
    try:
        for finished in asyncio.as_completed(running):
            yield await finished
    finally:
        for future in running:
            future.cancel()
        await asyncio.gather(*running, return_exceptions=True)
