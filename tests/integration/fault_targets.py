"""Verifiers for the fault matrix. Each gives an attempt its own number, unless its fault comes first."""

from __future__ import annotations

import asyncio
from collections import Counter

from burnish.rewards.remote.service import verifier
from burnish.rewards.types import RewardInput

asked: Counter[str] = Counter()


def number(episode: RewardInput) -> float:
    """Attempt 2 of a task is worth 2, whatever try it is: "train-3/2" and "train-3/2~1" alike."""
    return float(episode.episode_id.partition("/")[2].partition("~")[0])


@verifier("faults/steady-v1")
async def steady(episode: RewardInput) -> float:
    """Takes 0.2 s."""
    await asyncio.sleep(0.2)
    return number(episode)


@verifier("faults/slow-v1")
async def slow(episode: RewardInput) -> float:
    """Takes ten times the deadline for attempt 0."""
    await asyncio.sleep(20.0 if number(episode) == 0 else 0.0)
    return number(episode)


@verifier("faults/flapping-v1")
async def flapping(episode: RewardInput) -> float:
    """Fails the first time it is asked about an episode."""
    asked[episode.episode_id] += 1
    if asked[episode.episode_id] == 1:
        raise OSError("the gauge is rebooting")
    return number(episode)


@verifier("faults/broken-v1")
async def broken(episode: RewardInput) -> float:
    """Raises on attempt 0, says NaN of attempt 1."""
    if number(episode) == 0:
        raise KeyError("verdict")
    return float("nan") if number(episode) == 1 else number(episode)
