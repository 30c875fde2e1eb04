"""Weights on their way from the learner to the engines, and the proof that they arrived.

Three checks, for three ways of going wrong:
    arrival    the engine answers for the version and for a checksum of every tensor, taken as its loader consumes them
    effect     the engine scores a fixed probe as the learner does: what was loaded is what it computes with
    use        the tokens of every step were sampled under the right version, and got about the log-probabilities that the learner gives
               them; this mismatch is a metric, and fatal only when it lasts

Log-probabilities are judged by mean and quantile, never by a maximum: that grows with the number of tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Protocol

import numpy as np

from ..envs.failures import EpisodeFailure
from ..envs.types import Float32, Int32
from .busy import Busy
from .engine.base import Engine
from .engine.layout import checksum, shapes_of

QUANTILE = 0.9


@dataclass(frozen=True, slots=True)
class ParityBound:
    """How far learner and engine may be apart: mean and 90 % quantile of |learner - engine| over tokens, each token's difference in units
    of max(1, -log p), since rounding grows with the size of the number.

    Example: `PARITY_BOUNDS["float32"]`.
    """

    mean: float
    quantile: float

    def at(self, temperature: float) -> ParityBound:
        """The bound for log-probabilities at a sampling temperature: dividing logits by it multiplies their differences."""
        factor = 1.0 / min(temperature, 1.0)
        return ParityBound(self.mean * factor, self.quantile * factor)


PARITY_BOUNDS: Mapping[str, ParityBound] = MappingProxyType(
    {"float32": ParityBound(5e-5, 1.5e-4), "bfloat16": ParityBound(0.02, 0.05), "float16": ParityBound(0.005, 0.015)}
)
"""By the coarser dtype of learner and engine. What equal weights give was measured for float32 and bfloat16 (docs/design.md); float16 is
taken from its precision relative to theirs."""


class StaleEngine(RuntimeError):
    """An engine holds other weights than those that work was meant for, or its runner has begun a new life, without what the one before was
    given: it was restarted, or missed an update. Sync it first."""


class SyncProofError(RuntimeError):
    """An engine does not hold the weights it should. The run must stop: what it samples is not the policy that is trained."""


class Weights(Protocol):
    """All weights of one policy version, to be taken in once: a `WeightSnapshot`, or what arrives of a shipment (`transport/`).

    manifest: `checksum` of each tensor under its Hugging Face `state_dict` name, made where the tensors come from; whole once all have
    come. bytes: of all tensors, or as many as have come.
    """

    @property
    def version(self) -> int: ...
    @property
    def manifest(self) -> Mapping[str, str]: ...
    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of every tensor, known before any comes."""
        ...

    @property
    def bytes(self) -> int: ...
    @property
    def delta(self) -> bool:
        """Whether only what changed was fetched of some."""
        ...

    def stream(self) -> Iterable[tuple[str, np.ndarray]]:
        """Every tensor by name."""
        ...


@dataclass(frozen=True, slots=True)
class WeightSnapshot:
    """All weights of one policy version, in memory.

    version: number of updates that made it. tensors: arrays under Hugging Face `state_dict` names, `lm_head.weight` of tied models
    included. manifest: `checksum` of each, made where the tensors come from.

    Example: `snapshot(3, learner.weights())`.
    """

    version: int
    tensors: Mapping[str, np.ndarray]
    manifest: Mapping[str, str]
    delta: ClassVar[bool] = False

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.tensors.values())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return shapes_of(self.manifest)

    def stream(self) -> Iterable[tuple[str, np.ndarray]]:
        return self.tensors.items()


@dataclass(frozen=True, slots=True)
class SyncReceipt:
    """One engine took over one version: how many tensors, how many bytes came for it, and seconds for draining it and for the whole.

    delta: whether only what changed came of some. busy: how long the engine and what it plays with had something to do, by then. life: of
    the runner that the engine is in, which a restart changes. node: Ray's id of the one it is on.

    Example: `SyncReceipt("engine-0", 3, 39, 15_000_000, drain_s=0.4, seconds=0.5)`.
    """

    engine: str
    version: int
    tensors: int
    bytes: int
    drain_s: float
    seconds: float
    busy: Busy = field(default_factory=Busy)
    delta: bool = False
    life: str = ""
    node: str = ""


@dataclass(frozen=True, slots=True)
class SyncProof:
    """How far learner and engine are apart: over how many tokens, the largest difference, and mean and 90 % quantile in the units of
    `ParityBound`.

    Example: `SyncProof("engine-0", 3, 1024, max_difference=3.1e-5, mean=2e-6, quantile=5e-6, bound=PARITY_BOUNDS["float32"])`.
    """

    engine: str
    version: int
    tokens: int
    max_difference: float
    mean: float
    quantile: float
    bound: ParityBound

    @property
    def holds(self) -> bool:
        return self.mean <= self.bound.mean and self.quantile <= self.bound.quantile


def snapshot(version: int, tensors: Mapping[str, np.ndarray]) -> WeightSnapshot:
    """The tensors with their manifest. The arrays are not copied: do not write to them while the snapshot is in use."""
    return WeightSnapshot(version, tensors, {name: checksum(array) for name, array in tensors.items()})


def verify_manifest(weights: Weights, loaded: Mapping[str, str], engine: str) -> None:
    """Raise SyncProofError naming the engine and the tensors that it did not load, loaded unannounced, or loaded otherwise than sent.

    loaded: `checksum` of every tensor as the engine's loader consumed it. A manifest that grows lacks what no loader asked for, so that
    what was announced is asked for, too.
    """
    manifest, announced = weights.manifest, weights.shapes.keys()
    missing, extra = sorted((announced | manifest.keys()) - loaded.keys()), sorted(loaded.keys() - (announced & manifest.keys()))
    changed = sorted(name for name, sum_ in loaded.items() if manifest.get(name, sum_) != sum_)
    kinds = {"missing": missing, "unannounced": extra, "changed": changed}
    found = [f"{kind} {', '.join(names[:5])}" for kind, names in kinds.items() if names]
    if found:
        raise SyncProofError(
            f"engine {engine}: the weights of version {weights.version} were not loaded as the learner sent them ({'; '.join(found)}). "
            "Check the memory and transport between them, then resume from the last checkpoint"
        )


async def sync_weights(engine: Engine, weights: Weights, finish: bool = True) -> SyncReceipt:
    """Give `engine` the weights: pause, start, update, finish, verify what was loaded, resume.

    finish: whether what is under way ends before that; otherwise it stands still meanwhile, and goes on under the new weights.

    The engine resumes only with a whole and verified update; otherwise it stays closed, and its requests fail instead of being sampled
    from unknown weights.

    Raises SyncProofError when what it loaded is not what was sent, ValueError when that is not the whole model, EpisodeFailure when the
    engine cannot do its work.
    """
    started = time.perf_counter()
    await engine.pause_generation(finish)
    drained = time.perf_counter()
    try:
        await engine.start_weight_update(weights.shapes)
        await engine.update_weights(weights.stream())
        verify_manifest(weights, await engine.finish_weight_update(weights.version), engine.name)
    except BaseException as error:
        await engine.refuse_generation(f"{type(error).__name__}: {error}")
        with suppress(EpisodeFailure):  # it refuses to resume, which fails the requests held back instead of leaving them to time out
            await engine.resume_generation()
        raise
    await engine.resume_generation()
    if engine.weight_version != weights.version:
        raise SyncProofError(f"engine {engine.name} answers to version {engine.weight_version} after an update to {weights.version}")
    seconds = drained - started, time.perf_counter() - started
    return SyncReceipt(engine.name, weights.version, len(weights.manifest), weights.bytes, *seconds, delta=weights.delta)


def compare_logprobs(
    engine: str, version: int, learner_logprobs: Float32, engine_logprobs: Float32, versions: Int32, bound: ParityBound
) -> SyncProof:
    """How far `engine` is from the learner's weights of `version`; whether that is near enough is `SyncProof.holds`.

    learner_logprobs, engine_logprobs: float `[N]` of the same tokens, under the weights before this step's update. versions: int32 `[N]`,
    what the engine says it sampled each token with.

    Raises SyncProofError for what admits of no degree: another version, a log-probability of the engine that is not finite, no token at
    all; FloatingPointError for one of the learner that is not finite, which says nothing of the engine.
    """
    assert learner_logprobs.shape == engine_logprobs.shape == versions.shape, "one entry per token in each array"
    tokens = len(versions)
    if tokens == 0:
        raise SyncProofError(f"engine {engine}: there is no token of version {version} from it, so nothing is proved")
    strangers = sorted({int(v) for v in np.unique(versions)} - {version})
    if strangers:
        raise SyncProofError(
            f"engine {engine}: {int((versions != version).sum())} of {tokens} tokens were sampled by version "
            f"{', '.join(map(str, strangers[:5]))} and not by {version}; it missed a weight update. Sync it before it generates"
        )
    ours, theirs = learner_logprobs.astype(np.float64), engine_logprobs.astype(np.float64)
    infinite = int((~np.isfinite(theirs)).sum())
    if infinite:
        raise SyncProofError(f"engine {engine}: {infinite} of {tokens} log-probabilities of version {version} are not finite")
    check_learner(learner_logprobs, version)
    difference = np.abs(ours - theirs)
    relative = difference / np.maximum(1.0, -ours)
    return SyncProof(
        engine, version, tokens, float(difference.max()), float(relative.mean()), float(np.quantile(relative, QUANTILE)), bound
    )


def check_learner(logprobs: Float32, version: int) -> None:
    """Raise FloatingPointError when one of the learner's log-probabilities of trained tokens, float `[N]`, is not finite."""
    infinite = int((~np.isfinite(logprobs)).sum())
    if infinite:
        raise FloatingPointError(
            f"the learner's log-probabilities of {infinite} of {len(logprobs)} tokens are not finite under weights of version {version}: "
            "its computation overflows, and no engine is to blame. Lower the learning rate, and resume from a checkpoint before it"
        )


def check_parity(
    engine: str,
    version: int,
    learner_logprobs: Float32,
    engine_logprobs: Float32,
    versions: Int32,
    bound: ParityBound = PARITY_BOUNDS["float32"],
) -> SyncProof:
    """`compare_logprobs`, and SyncProofError when they are too far apart."""
    proof = compare_logprobs(engine, version, learner_logprobs, engine_logprobs, versions, bound)
    if not proof.holds:
        raise SyncProofError(too_far(proof))
    return proof


def too_far(proof: SyncProof) -> str:
    """What to say of an engine that is too far from the learner."""
    return (
        f"engine {proof.engine}: log-probabilities of {proof.tokens} tokens of version {proof.version} differ from the learner's by "
        f"{proof.mean:.2g} on average and {proof.quantile:.2g} at the 90 % quantile (at most {proof.bound.mean:g} and "
        f"{proof.bound.quantile:g} under equal weights). It computes with other weights than those trained: "
        "stop the run, check that every tensor reaches the engine, and resume from the last checkpoint"
    )
