"""A reward that is always 1, so that no group teaches anything."""

from __future__ import annotations

from burnish.rewards.plugin import reward
from burnish.rewards.types import RewardInput


@reward("tests/always-one-v1")
def always_one(episode: RewardInput) -> float:
    return 1.0
