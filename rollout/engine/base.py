"""The generation engine as the rollout sees it: token ids in, token ids out.

The weight-update vocabulary (pause, start, update, finish with a version, resume) is vLLM's own for native weight transfer, so that
an engine on GPUs and an engine on this laptop's CPU are driven alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ...envs.types import Float32, Int32, StopReason


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One call of the policy.

    prompt_token_ids: the whole context so far, exactly as sampled and appended. seed: None lets the engine draw one. score_prompt: give the
    log-probabilities of the prompt's own tokens too. max_seconds: that the answer may take, as `Generation.seconds` counts them.
    Sampling is from the untruncated distribution (top-p 1, no top-k): anything else would bias the policy ratio.

    Example: `GenerateRequest("train-17/0/1", [1, 5, 9], max_tokens=32, temperature=1.0, stop_token_ids=(2,), seed=7)`.
    """

    request_id: str
    prompt_token_ids: list[int]
    max_tokens: int
    temperature: float
    stop_token_ids: tuple[int, ...]
    seed: int | None = None
    score_prompt: bool = False
    max_seconds: float = math.inf


class OutOfTime(Exception):
    """An answer takes longer than `GenerateRequest.max_seconds`, of an engine that samples on: the policy's doing, and no failure."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What was sampled, T tokens: int32 `[T]` ids (the stop token included), float32 `[T]` log-probabilities under the sampling
    distribution, int32 `[T]` weight versions, why it stopped, and the seconds it took, those in which weights changed left out."""

    token_ids: Int32
    logprobs: Float32
    policy_version: Int32
    stop_reason: StopReason
    seconds: float


class Engine(Protocol):
    """An inference engine serving one policy.

    Every method but `weight_version` raises `EpisodeFailure` (ENGINE_LOST, ENGINE_ERROR, ENGINE_TIMEOUT) naming the engine when it
    cannot do its work. Cancelling `generate` aborts the request inside the engine.

    An engine knows how many tokens it has sampled, for all requests together, and so tells whether it is slow or hangs: `generate` and
    `score` raise ENGINE_TIMEOUT when for some time none was (`gate.Gate.answered`). They wait for no other reason without an end.
    """

    @property
    def name(self) -> str: ...

    @property
    def max_context(self) -> int:
        """Longest sequence, prompt and sampled tokens together."""
        ...

    @property
    def weight_version(self) -> int:
        """Version given to the last finished weight update; 0 for the weights the engine was started with."""
        ...

    async def generate(self, request: GenerateRequest) -> Generation:
        """Sample one continuation. Raises OutOfTime, besides, when that takes longer than the request allows."""
        ...

    async def pause_generation(self, finish: bool = True) -> None:
        """Hold new requests back, and wait until nothing is in flight, or, unless `finish`, sample no further token of what is."""
        ...

    async def start_weight_update(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Announce what `update_weights` will bring. Raises ValueError when that is not the whole model; nothing is changed then."""
        ...

    async def update_weights(self, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
        """Load all tensors, one after the other as they come, under their Hugging Face `state_dict` names, `lm_head.weight` of tied models
        included; once for each update. An array must stay as it is until this returns. bfloat16 is `layout.BFLOAT16`."""
        ...

    async def finish_weight_update(self, version: int) -> Mapping[str, str]:
        """Clear caches made under the old weights, then answer to `version`, with which what is in flight goes on.

        Returns the checksum (`layout.checksum`) of every tensor, taken as it was loaded.
        """
        ...

    async def refuse_generation(self, reason: str) -> None:
        """Fail every request until a whole weight update: what the engine holds is not known."""
        ...

    async def resume_generation(self) -> None: ...

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[Float32]:
        """Log-probabilities, at temperature 1, of every token but the first given those before it: float32 `[length - 1]` per sequence."""
        ...

    async def close(self) -> None: ...
