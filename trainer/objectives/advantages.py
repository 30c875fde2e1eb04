"""Advantages: how much better each member of a group did than its fellows.

Each takes the rewards of one group, float64 `[G]` (members that failed are absent, not zero), and gives float64 `[G]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Advantage = Callable[[Float64], Float64]


def group_normalised(rewards: Float64, eps: float = 1e-6) -> Float64:
    """GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1.2): (r - mean) / (std + eps), with the population's standard deviation.

    A group whose rewards are all equal says nothing about what to prefer: exactly zeros.
    """
    if len(rewards) == 0 or np.ptp(rewards) == 0.0:
        return np.zeros_like(rewards)
    normalised: Float64 = (rewards - rewards.mean()) / (rewards.std() + eps)
    return normalised


def group_centred(rewards: Float64) -> Float64:
    """Dr. GRPO (Liu et al. 2025, arXiv 2503.20783, section 3.2): r - mean.

    Without the division, a group that differs only in a small part of the reward (the price of a tool call) weighs as little as that
    part does, instead of as much as a group in which some succeed and others fail. `[0, 0, 1, 1]` gives `[-0.5, -0.5, 0.5, 0.5]`.
    """
    centred: Float64 = rewards - rewards.mean() if len(rewards) and np.ptp(rewards) else np.zeros_like(rewards)
    return centred


ADVANTAGES: Mapping[str, Advantage] = MappingProxyType({"grpo": group_normalised, "dr_grpo": group_centred})
