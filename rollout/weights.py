"""Weights on their way from the learner to the engines, and the proof that they arrived.

Two independent checks. The manifest: a checksum of every tensor, made by the learner and compared where the tensors are received.
Parity: learner and engine must give this step's own tokens the same log-probabilities. Measured in float32 on CPU the two agree to
5e-5, while an engine that missed an update at learning rate 3e-6 is off by a median of 8e-4; the bound lies between.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ..envs.failures import EpisodeFailure
from ..envs.types import Float32, Int32
from .engine.base import Engine

PARITY_BOUND = 2e-4
"""Largest |learner - engine| log-probability that passes in float32."""


class StaleEngine(RuntimeError):
    """An engine holds other weights than those that work was meant for: it was restarted, or missed an update. Sync it first."""


class SyncProofError(RuntimeError):
    """An engine does not hold the weights it should. The run must stop: what it samples is not the policy that is trained."""


@dataclass(frozen=True, slots=True)
class WeightSnapshot:
    """All weights of one policy version.

    version: number of updates that made it. tensors: arrays under Hugging Face `state_dict` names, `lm_head.weight` of tied models
    included. manifest: `checksum` of each, made where the tensors come from.

    Example: `snapshot(3, learner.weights())`.
    """

    version: int
    tensors: Mapping[str, np.ndarray]
    manifest: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SyncReceipt:
    """One engine took over one version: how many tensors and bytes, and seconds for draining it and for the whole.

    Example: `SyncReceipt("engine-0", 3, 39, 15_000_000, drain_s=0.4, seconds=0.5)`.
    """

    engine: str
    version: int
    tensors: int
    bytes: int
    drain_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class SyncProof:
    """Learner and engine agree: over how many tokens, and how far apart they were at most and on average (in nats).

    Example: `SyncProof("engine-0", 3, tokens=1024, max_difference=3.1e-5, mean_difference=2e-6, bound=2e-4)`.
    """

    engine: str
    version: int
    tokens: int
    max_difference: float
    mean_difference: float
    bound: float


def checksum(array: np.ndarray) -> str:
    """Type, shape and CRC-32 of the contents: `float32[256,64]:1a2b3c4d`. About 0.14 s for 0.5 GB."""
    contents = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return f"{array.dtype}[{','.join(map(str, array.shape))}]:{zlib.crc32(contents.data):08x}"


def snapshot(version: int, tensors: Mapping[str, np.ndarray]) -> WeightSnapshot:
    """The tensors with their manifest. The arrays are not copied: do not write to them while the snapshot is in use."""
    return WeightSnapshot(version, tensors, {name: checksum(array) for name, array in tensors.items()})


def verify_manifest(weights: WeightSnapshot, engine: str) -> None:
    """Raise SyncProofError naming the engine and the tensors that are missing, unannounced, or not as they were sent."""
    manifest, tensors = weights.manifest, weights.tensors
    missing, extra = sorted(manifest.keys() - tensors.keys()), sorted(tensors.keys() - manifest.keys())
    changed = sorted(name for name, array in tensors.items() if name in manifest and checksum(array) != manifest[name])
    kinds = {"missing": missing, "unannounced": extra, "changed": changed}
    found = [f"{kind} {', '.join(names[:5])}" for kind, names in kinds.items() if names]
    if found:
        raise SyncProofError(
            f"engine {engine}: the weights of version {weights.version} did not arrive as the learner sent them ({'; '.join(found)}); "
            "nothing was loaded. Check the memory and transport between them, then restore the last checkpoint"
        )


async def sync_weights(engine: Engine, weights: WeightSnapshot) -> SyncReceipt:
    """Give `engine` the snapshot: verify, pause, start, update, finish, resume.

    An error before anything is loaded leaves the engine serving what it had. Once the update has started, the engine resumes only if it
    finished; otherwise it stays closed, and its requests fail instead of being sampled from unknown weights.

    Raises SyncProofError when the tensors are not those of the manifest, ValueError when they are not the whole model, EpisodeFailure
    when the engine cannot do its work.
    """
    verify_manifest(weights, engine.name)
    started = time.perf_counter()
    await engine.pause_generation()
    drained = time.perf_counter()
    try:
        await engine.start_weight_update()
        await engine.update_weights(weights.tensors.items())
        await engine.finish_weight_update(weights.version)
    except BaseException:
        with suppress(EpisodeFailure):  # it refuses to resume, which fails the requests held back instead of leaving them to time out
            await engine.resume_generation()
        raise
    await engine.resume_generation()
    if engine.weight_version != weights.version:
        raise SyncProofError(f"engine {engine.name} answers to version {engine.weight_version} after an update to {weights.version}")
    size = sum(array.nbytes for array in weights.tensors.values())
    return SyncReceipt(engine.name, weights.version, len(weights.tensors), size, drained - started, time.perf_counter() - started)


def check_parity(
    engine: str, version: int, learner_logprobs: Float32, engine_logprobs: Float32, versions: Int32, bound: float = PARITY_BOUND
) -> SyncProof:
    """Prove that `engine` sampled with the learner's weights of `version`.

    learner_logprobs, engine_logprobs: float `[N]` of the same sampled tokens, under the weights before this step's update.
    versions: int32 `[N]`, what the engine says it sampled each token with.

    bound: largest difference of a token with a probability of at least 1/e. Rounding grows with the size of the number, so a less
    probable token may differ by `bound` times its -log p.

    Raises SyncProofError when a version differs, a log-probability is not finite, a difference is larger, or there is no token.
    """
    assert learner_logprobs.shape == engine_logprobs.shape == versions.shape, "one entry per token in each array"
    tokens = len(versions)
    if tokens == 0:
        raise SyncProofError(f"engine {engine}: this step has no token of version {version} from it, so nothing is proved")
    strangers = sorted({int(v) for v in np.unique(versions)} - {version})
    if strangers:
        raise SyncProofError(
            f"engine {engine}: {int((versions != version).sum())} of {tokens} tokens were sampled by version "
            f"{', '.join(map(str, strangers[:5]))} and not by {version}; it missed a weight update. Sync it before it generates"
        )
    with np.errstate(invalid="ignore"):  # -inf minus -inf is NaN, and a violation below
        difference = np.abs(learner_logprobs.astype(np.float64) - engine_logprobs.astype(np.float64))
    beyond = ~(np.isfinite(difference) & (difference <= bound * np.maximum(1.0, -learner_logprobs)))
    worst = float(difference.max())
    if beyond.any():
        raise SyncProofError(
            f"engine {engine}: log-probabilities of {tokens} tokens of version {version} differ from the learner's by up to {worst:.3g} "
            f"(bound {bound:g}, {int(beyond.sum())} tokens beyond it). It samples from other weights than those trained: "
            "stop the run, check that every tensor reaches the engine, and resume from the last checkpoint"
        )
    return SyncProof(engine, version, tokens, worst, float(difference.mean()), bound)
