"""What an update measured per token, and what is reported of it: means, maxima, and the proof that engines held the learner's weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...envs.types import Bool, Float32, Int32
from ...rollout.weights import ParityBound, SyncProof, check_parity, compare_logprobs
from ..batch import Float64, Int64, TokenBatch, plain_batch


@dataclass(frozen=True, eq=False)
class Measured:
    """What a pass over a `TokenBatch` found, on the CPU.

    logprobs, entropy: float32 `[N]`, 0 where not trained. tokens: further values per token by name, float32 `[N]`, what the loss
    reports (ratio, clip_fraction). terms: each term of the loss, and `loss`, their sum, as it was minimised. packed_tokens: how many
    tokens were computed. seconds: of the pass.
    """

    logprobs: Float32
    entropy: Float32
    tokens: Mapping[str, Float32] = field(default_factory=dict)
    terms: Mapping[str, float] = field(default_factory=dict)
    packed_tokens: int = 0
    seconds: float = 0.0

    def means(self, batch: TokenBatch) -> dict[str, float]:
        """loss, each further term as `loss/<name>` where there are several, entropy, and the means of `tokens` over the trained tokens."""
        terms = {f"loss/{name}": value for name, value in self.terms.items() if name != "loss"} if len(self.terms) > 2 else {}
        rows = {"entropy": self.entropy, **self.tokens}
        return {"loss": self.terms["loss"], **terms, **{name: float(values[batch.mask].mean()) for name, values in rows.items()}}


def joined(batch: TokenBatch, scored: Measured, passes: Sequence[tuple[Int64, Measured]]) -> Measured:
    """One report of a step of several updates: log-probabilities and entropies as they were before the first, what the loss gave each
    token in the last pass over it, and the mean of the terms. passes: where each minibatch's tokens are in the batch, and what it found.
    Of a step that ended before every minibatch had its pass, values per token are left out: they would be those of some tokens only.
    """
    tokens: dict[str, Float32] = {}
    passed = np.zeros(len(batch.mask), bool)
    for at, found in passes:
        passed[at] = True
        for name, values in found.tokens.items():
            tokens.setdefault(name, np.zeros(len(batch.mask), np.float32))[at] = values
    terms = {name: float(np.mean([found.terms.get(name, 0.0) for _, found in passes])) for name in passes[0][1].terms}
    all_found = [scored, *(found for _, found in passes)]
    packed, seconds = sum(found.packed_tokens for found in all_found), sum(found.seconds for found in all_found)
    return Measured(scored.logprobs, scored.entropy, tokens if passed.all() else {}, terms, packed, seconds)


def mismatch(batch: TokenBatch, logprobs: Float32, version: int) -> dict[str, float]:
    """How far the engines' log-probabilities are from the learner's, over the trained tokens.

    Of turns that weights `version` sampled, if there are any: parity_max and parity_mean, |learner - engine|, and mismatch_kl, the k3
    estimate of KL(engine || learner). Of the others, if there are any: drift_kl, the same estimate of KL(policy that sampled || learner).
    stale_fraction: share of tokens that were sampled by other weights than `version`.
    """
    fresh = fresh_tokens(batch, version)
    found = {"stale_fraction": float((batch.policy_version[batch.mask] != version).mean())}
    if fresh.any():
        log_ratio = _log_ratio(batch, logprobs, fresh)
        apart = np.abs(log_ratio)
        found |= {"parity_max": float(apart.max()), "parity_mean": float(apart.mean()), "mismatch_kl": _kl(log_ratio)}
    if (batch.mask & ~fresh).any():
        found["drift_kl"] = _kl(_log_ratio(batch, logprobs, batch.mask & ~fresh))
    return found


def fresh_tokens(batch: TokenBatch, version: int) -> Bool:
    """Bool `[N]`: trained tokens of turns that weights `version` sampled from beginning to end.

    A turn in which weights changed has a context that the older ones may have computed, whatever its later tokens were sampled by.
    """
    turn = batch.sequence.astype(np.int64) * (int(batch.turn.max(initial=0)) + 1) + np.maximum(batch.turn, 0)
    older = np.bincount(turn[batch.mask], batch.policy_version[batch.mask] != version, minlength=int(turn.max(initial=-1)) + 1)
    fresh: Bool = batch.mask & (older[turn] == 0)
    return fresh


def compare_engines(batch: TokenBatch, logprobs: Float32, version: int, bound: ParityBound, older: Collection[int] = ()) -> list[SyncProof]:
    """How far each engine's log-probabilities of its own tokens are from the learner's, `[N]`, under weights `version`.

    older: versions that may have sampled tokens too; those prove nothing, and an engine that has no others is left out.

    Raises SyncProofError when tokens were sampled by other weights (`rollout.weights.compare_logprobs`), ValueError when an episode does
    not say which engine sampled it.
    """
    if not all(batch.engines) or len(batch.engines) != len(batch.lengths):
        raise ValueError("a trajectory does not say which engine sampled it, so no weight sync can be proved; set Episode.engine")
    names = np.array(batch.engines)[batch.sequence]
    compared = batch.mask & (fresh_tokens(batch, version) | ~np.isin(batch.policy_version, [version, *older])) if older else batch.mask
    found = []
    for engine in dict.fromkeys(batch.engines):
        at = compared & (names == engine)
        if older and not at.any():
            continue
        found.append(compare_logprobs(engine, version, logprobs[at], batch.sampler_logprobs[at], batch.policy_version[at], bound))
    return found


def _log_ratio(batch: TokenBatch, logprobs: Float32, at: Bool) -> Float64:
    ratio: Float64 = logprobs[at].astype(np.float64) - batch.sampler_logprobs[at].astype(np.float64)
    return ratio


def _kl(log_ratio: Float64) -> float:
    return float((np.expm1(log_ratio) - log_ratio).mean())


PROBE_SEQUENCES, PROBE_TOKENS = 4, 48


def probe_of(sequences: Sequence[Int32]) -> TokenBatch:
    """A few short sequences to compare engines and learner on: the heads of the first ones given, every token but the first trained.

    Heads are shorter than the longest sequence: that fits an engine's context, which has room for one more token where it scores.
    """
    length = min(PROBE_TOKENS, max(2, max(map(len, sequences)) - 1))
    heads = [np.asarray(ids[:length], np.int32) for ids in sequences if len(ids) > 1][:PROBE_SEQUENCES]
    return plain_batch([(ids, np.arange(len(ids)) > 0) for ids in heads])


def check_probe(probe: TokenBatch, learner: Float32, engine: str, scored: Sequence[Float32], version: int, bound: ParityBound) -> SyncProof:
    """The proof that `engine` computes with the learner's weights; `learner` float32 `[N]`, `scored` float32 `[length - 1]` a sequence.

    Raises SyncProofError when it does not.
    """
    theirs = np.concatenate(scored)
    return check_parity(engine, version, learner[probe.mask], theirs, np.full(len(theirs), version, np.int32), bound)


def per_trajectory(batch: TokenBatch, measured: Measured) -> list[dict[str, Float32]]:
    """What was measured of each sequence of the batch, to be stored or shown with its episode: arrays of its length by name.

    mask (0 or 1), advantage, weight, sampler_logprobs, logprobs (the learner's, before the step), entropy, policy_version, turn, and what
    the loss reports (ratio, clip_fraction). Sequences are in the order of the batch: groups, their rewarded episodes, their trajectories.
    """
    columns = {
        "mask": batch.mask,
        "advantage": batch.advantages,
        "weight": batch.weights,
        "sampler_logprobs": batch.sampler_logprobs,
        "logprobs": measured.logprobs,
        "entropy": measured.entropy,
        "policy_version": batch.policy_version,
        "turn": batch.turn,
        **({} if batch.values is None or batch.returns is None else {"value": batch.values, "return": batch.returns}),
        **measured.tokens,
    }
    pieces = {name: np.split(values.astype(np.float32, copy=False), batch.offsets[1:-1]) for name, values in columns.items()}
    return [{name: rows[m] for name, rows in pieces.items()} for m in range(len(batch.lengths))]
