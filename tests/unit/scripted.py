"""Parts of a policy loop that do what they are told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from burnish.trainer.batch import TokenBatch
from burnish.trainer.objectives.measures import Measured
from burnish.trainer.objectives.objective import Objective


class ScriptedLearner:
    """Counts its calls; its log-probabilities are the engine's, less `off`. broken: numbers of the steps whose gradient is not finite.

    scales: what each step's learning rate was scaled by. places: where in the phase's schedule each step was.
    """

    def __init__(self, broken: Sequence[int] = ()) -> None:
        self.version, self.steps, self.broken, self.batches, self.off = 0, 0, broken, list[TokenBatch](), 0.0
        self.scales, self.places = list[float](), list[int | None]()

    def forward_backward(self, batch: TokenBatch, objective: Objective) -> Measured:
        self.batches.append(batch)
        nothing = np.zeros(len(batch.mask), np.float32)
        loss = float("nan") if self.steps + 1 in self.broken else 0.0
        return Measured(batch.sampler_logprobs - np.float32(self.off), nothing, {"ratio": nothing + 1}, {"loss": loss}, len(batch.mask))

    def score(self, batch: TokenBatch, temperature: float = 1.0, reference: bool = False) -> Measured:
        return Measured(np.full(len(batch.mask), -0.5, np.float32), np.zeros(len(batch.mask), np.float32))

    def step(self, scale: float = 1.0, phase_step: int | None = None) -> dict[str, float]:
        self.steps += 1
        self.scales.append(scale)
        self.places.append(phase_step)
        if self.steps in self.broken:
            raise FloatingPointError("update was not applied")
        self.version += 1
        return {"grad_norm": 1.0, "lr": 0.1, "seconds": 0.0}

    def discard(self) -> None:
        pass

    def snapshot(self) -> int:
        return self.version
