"""Building the trajectories of an episode token by token: what the engine saw and sampled, nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..envs.types import Trajectory
from .engine.base import Generation


class TrajectoryBuilder:
    """Appends to one growing token sequence, until the next one is opened.

    Example: `builder = TrajectoryBuilder(prompt_ids); builder.sampled(generation)`.
    """

    def __init__(self, prompt_ids: Sequence[int] = ()) -> None:
        self._done: list[Trajectory] = []
        self._trainable: list[bool] = []
        self.open(prompt_ids)

    def __len__(self) -> int:
        """Tokens of the sequence that grows now."""
        return len(self.token_ids)

    def open(self, prompt_ids: Sequence[int]) -> None:
        """Begin a sequence. One that holds nothing sampled is forgotten: there is nothing in it to learn."""
        self._done = list(self.build())
        self.token_ids = list(prompt_ids)
        self._trainable = [False] * len(prompt_ids)
        self._logprobs = [0.0] * len(prompt_ids)
        self._versions = [-1] * len(prompt_ids)

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

    def build(self) -> tuple[Trajectory, ...]:
        """Every sequence that holds something sampled, in order."""
        return (*self._done, self._current()) if any(self._trainable) else tuple(self._done)

    def _current(self) -> Trajectory:
        return Trajectory(
            np.array(self.token_ids, np.int32),
            np.array(self._trainable, np.bool_),
            np.array(self._logprobs, np.float32),
            np.array(self._versions, np.int32),
        )
