"""How long a run takes, at a pace: that of two idle cores, this machine's by a short measurement, or what a run itself has seen.

A first run of a model in an environment has no earlier one to go by. Two short measurements stand in for it:

- before anything starts, a second of matrix products on this machine. What learner and engine make of such a rate, and how long episodes
  are beside the longest that the recipe allows, are rough figures from other recipes, and said to be;
- after the first evaluation of the run: its own episodes, and a pass of the learner over some of them.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

ENGINE_POINTS = ((4e6, 3500.0), (135e6, 100.0))
"""(parameters, sampled tokens per second) measured with vLLM on two cores; a power law joins them."""
LEARNER_FLOPS = 1e11
"""Floating-point operations per second of forward and backward passes on two cores."""
SYNC_S_PER_PARAMETER = 5e-9
"""Seconds per parameter to hand new weights to the engine."""
LEARNER_SHARE = 0.4
"""Of the rate of large matrix products, what the learner makes: 0.50 of 364 GFLOP/s with 3.4 M parameters on two free cores with AVX-512,
0.11 to 0.33 there beside six other busy programs."""
ENGINE_SHARE = 0.1
"""Of that rate, what the engine makes, at two operations per parameter and sampled token: the points above beside `LEARNER_FLOPS`."""
EPISODE_SHARE = 0.4
"""How long episodes are beside the longest: the inspections of docs/learning.md took 3.0 to 3.6 of 8 turns."""
MEASURED_S = 1.0
PRODUCT = 1024
"""Rows and columns of the matrices that are multiplied."""


@dataclass(frozen=True, slots=True)
class Pace:
    """tokens_per_second: sampled, by all engines. learner_flops: operations per second of the learner. sampled_share, context_share: of
    the tokens of the longest episode that the recipe allows, how many one has; sampled ones, and all of them.

    Example: `Pace(3500.0, 1e11)`.
    """

    tokens_per_second: float
    learner_flops: float
    sampled_share: float = 1.0
    context_share: float = 1.0


@dataclass(frozen=True, slots=True)
class Amount:
    """What a phase does, with episodes at their longest. sampled_tokens: by the engines. operations: floating-point ones of the learner.
    synced: parameters that go to engines. played: whether the learner goes over episodes, not over examples.

    Example: `Amount(sampled_tokens=35_000, operations=2e11).seconds(Pace(3500.0, 1e11))` is 12.
    """

    sampled_tokens: float = 0.0
    operations: float = 0.0
    synced: float = 0.0
    played: bool = False

    def seconds(self, pace: Pace) -> float:
        learned = pace.context_share if self.played else 1.0
        sampling = pace.sampled_share * self.sampled_tokens / pace.tokens_per_second
        return sampling + learned * self.operations / pace.learner_flops + self.synced * SYNC_S_PER_PARAMETER

    def part(self, share: float) -> Amount:
        """A share of it."""
        scaled = {name: share * getattr(self, name) for name in ("sampled_tokens", "operations", "synced")}
        return replace(self, **scaled)


def engine_tokens_per_second(parameters: int) -> float:
    """Sampling rate on two cores: the power law through `ENGINE_POINTS`."""
    (small, fast), (large, slow) = ENGINE_POINTS
    exponent = math.log(slow / fast) / math.log(large / small)
    return float(fast * (parameters / small) ** exponent)


def on_two_cores(parameters: int) -> Pace:
    """The pace of the bound: two idle cores, and every episode as long as it may be."""
    return Pace(engine_tokens_per_second(parameters), LEARNER_FLOPS)


def estimated(parameters: int, flops: float) -> Pace:
    """The pace to expect of a machine that makes so many operations per second in large matrix products."""
    return Pace(ENGINE_SHARE * flops / (2 * parameters), LEARNER_SHARE * flops, EPISODE_SHARE, EPISODE_SHARE)


def machine_flops(seconds: float = MEASURED_S) -> float:
    """Floating-point operations per second of matrix products in float32 on this machine's CPU, as busy as it is now. Imports torch."""
    import torch

    with torch.inference_mode():
        a, b = torch.randn(PRODUCT, PRODUCT), torch.randn(PRODUCT, PRODUCT)
        torch.mm(a, b)  # the first makes threads and room
        count, began = 0, time.monotonic()
        while time.monotonic() - began < seconds:
            torch.mm(a, b)
            count += 1
        return 2 * PRODUCT**3 * count / (time.monotonic() - began)
