"""Reward plug-ins that price what an episode used."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..plugin import reward
from ..types import RewardInput


@reward("burnish/inspection-cost-v1")
def inspection_cost(
    episode: RewardInput, *, per_unit: Annotated[float, Field(ge=0)] = 0.1, cap: Annotated[float, Field(ge=0)] = 1.0
) -> float:
    """What the inspection cost, as a number in [-cap, 0]: -min(cap, per_unit * cost).

    cost is `metrics["cost"]` in the environment's own units, or the number of tool calls where the environment names no cost.
    Raises ValueError when the episode has neither.

    Example: cost 3.0 with per_unit 0.1 gives -0.3.
    """
    for metric in ("cost", "tool_calls"):
        if metric in episode.metrics:
            return 0.0 - min(cap, per_unit * episode.metrics[metric])
    raise ValueError(
        f"the environment reports neither 'cost' nor 'tool_calls' in its metrics (it has: {', '.join(sorted(episode.metrics)) or 'none'})"
    )
