"""Building a trajectory token by token: what the engine saw and sampled, nothing else."""

from __future__ import annotations

import numpy as np

from ..envs.types import Trajectory
from .engine.base import Generation


class TrajectoryBuilder:
    """Appends to one growing token sequence. Example: `builder = TrajectoryBuilder(prompt_ids); builder.sampled(generation)`."""

    def __init__(self, prompt_ids: list[int]) -> None:
        self.token_ids = list(prompt_ids)
        self._trainable = [False] * len(prompt_ids)
        self._logprobs = [0.0] * len(prompt_ids)
        self._versions = [-1] * len(prompt_ids)

    def __len__(self) -> int:
        return len(self.token_ids)

    def sampled(self, generation: Generation) -> None:
        """Append what the policy sampled: trainable, with its log-probabilities and weight versions."""
        assert len(generation.token_ids) == len(generation.logprobs) == len(generation.policy_version)
        self.token_ids += generation.token_ids.tolist()
        self._trainable += [True] * len(generation.token_ids)
        self._logprobs += generation.logprobs.tolist()
        self._versions += generation.policy_version.tolist()

    def observed(self, token_ids: list[int]) -> None:
        """Append tokens that the environment put into the context: never trained on."""
        self.token_ids += token_ids
        self._trainable += [False] * len(token_ids)
        self._logprobs += [0.0] * len(token_ids)
        self._versions += [-1] * len(token_ids)

    def build(self) -> Trajectory:
        return Trajectory(
            np.array(self.token_ids, np.int32),
            np.array(self._trainable, np.bool_),
            np.array(self._logprobs, np.float32),
            np.array(self._versions, np.int32),
        )
