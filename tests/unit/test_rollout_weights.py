"""The manifest, the order of a sync, and the parity proof."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.rollout.engine.base import GenerateRequest
from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.engine.layout import BLOCK, checksum
from burnish.rollout.weights import (
    PARITY_BOUNDS,
    SyncProofError,
    WeightSnapshot,
    check_parity,
    compare_logprobs,
    snapshot,
    sync_weights,
    verify_manifest,
)

pytestmark = pytest.mark.unit

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}
ASK = GenerateRequest("t/0", [1], 4, 1.0, (2,))


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_checksum_is_type_shape_and_two_sums_of_words() -> None:
    # As 64-bit words 1, 2, 3: 1 + 2 + 3, and 0 * 1 + 1 * 2 + 2 * 3.
    assert checksum(np.array([1, 2, 3], np.uint64)) == f"uint64[3]:{6:016x}{8:016x}"
    assert checksum(np.array([2**64 - 1, 2, 2**63], np.uint64)) == f"uint64[3]:{2**63 + 1:016x}{2:016x}", "modulo 2^64"
    # Ten bytes are a word, and a rest that is the second: 258 is 02 01.
    assert checksum(np.array([1, 0, 0, 0, 0, 0, 0, 0, 2, 1], np.uint8)) == f"uint8[10]:{1 + 258:016x}{258:016x}"
    assert checksum(np.zeros(0, np.float32)) == f"float32[0]:{0:032x}"
    assert checksum(TENSORS["a"]) != checksum(TENSORS["a"].reshape(3, 2))
    assert checksum(TENSORS["a"].T) == checksum(np.ascontiguousarray(TENSORS["a"].T))


@pytest.mark.parametrize("words", [3, BLOCK - 1, 2 * BLOCK + 5])
def test_checksum_tells_any_bit_and_any_two_words_exchanged(words: int) -> None:
    random = np.random.default_rng(words)
    array = random.integers(0, 2**63, words, dtype=np.uint64).view(np.float32)[:-1]  # a rest of four bytes
    before = checksum(array)
    for at in {0, len(array) // 2, len(array) - 1}:
        changed = array.copy()
        changed.view(np.uint32)[at] ^= 1 << int(random.integers(32))
        assert checksum(changed) != before
    for first, second in ((0, 2), (1, len(array) // 2 * 2 - 2)):
        exchanged = array.copy()
        exchanged[first], exchanged[second] = array[second], array[first]
        assert checksum(exchanged) != before


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        ({"a": TENSORS["a"]}, "missing b"),
        ({**TENSORS, "c": TENSORS["b"]}, "unannounced c"),
        ({**TENSORS, "b": f32(1, 1, 1, 1.0001)}, "changed b"),
        ({**TENSORS, "b": TENSORS["b"].astype(np.float64)}, "changed b"),
        ({"a": f32(0), "c": f32(0)}, r"missing b; unannounced c; changed a"),
    ],
)
def test_manifest_names_what_was_not_loaded(loaded: dict[str, np.ndarray], message: str) -> None:
    sent = snapshot(3, TENSORS)
    verify_manifest(sent, sent.manifest, "e0")
    with pytest.raises(SyncProofError, match=f"engine e0: the weights of version 3 .*{message}"):
        verify_manifest(sent, {name: checksum(array) for name, array in loaded.items()}, "e0")


async def test_sync_gives_a_receipt() -> None:
    engine = ScriptedEngine([[2]], name="e0", shapes={"a": (2, 3), "b": (4,)})
    receipt = await sync_weights(engine, snapshot(5, TENSORS))
    assert (receipt.engine, receipt.version, receipt.tensors, receipt.bytes) == ("e0", 5, 2, 40)
    assert engine.weights.keys() == TENSORS.keys()
    assert (await engine.generate(ASK)).policy_version.tolist() == [5]


async def test_an_engine_that_loaded_something_else_does_not_serve() -> None:
    engine = ScriptedEngine([[2]], name="e0")
    with pytest.raises(SyncProofError, match=r"not loaded as the learner sent them .missing b"):
        await sync_weights(engine, WeightSnapshot(2, {"a": TENSORS["a"]}, snapshot(2, TENSORS).manifest))
    with pytest.raises(EpisodeFailure, match=r"engine_error in e0.*missing b"):
        await engine.generate(ASK)
    await sync_weights(engine, snapshot(2, TENSORS))
    assert (await engine.generate(ASK)).policy_version.tolist() == [2]


async def test_an_engine_does_not_serve_after_half_an_update() -> None:
    engine = ScriptedEngine([[2]], name="e0", shapes={"a": (2, 3), "b": (4,)})
    with pytest.raises(ValueError, match="missing b"):
        await sync_weights(engine, snapshot(1, {"a": TENSORS["a"]}))
    with pytest.raises(EpisodeFailure, match="engine_error in e0"):
        await engine.generate(ASK)
    await sync_weights(engine, snapshot(1, TENSORS))
    assert (await engine.generate(ASK)).policy_version.tolist() == [1]


async def test_an_error_between_start_and_finish_fails_requests_at_once() -> None:
    class Unreachable(ScriptedEngine):
        async def update_weights(self, tensors: object) -> None:
            raise ConnectionError("cable cut")

    engine = Unreachable([[2]], name="e0")
    with pytest.raises(ConnectionError):
        await sync_weights(engine, snapshot(1, TENSORS))
    with pytest.raises(EpisodeFailure) as failure:
        await engine.generate(ASK)
    assert failure.value.failure.kind == FailureKind.ENGINE_ERROR


async def test_an_engine_that_keeps_its_old_version_is_found_out() -> None:
    class Deaf(ScriptedEngine):
        async def finish_weight_update(self, version: int) -> Mapping[str, str]:
            return await super().finish_weight_update(version - 1)

    with pytest.raises(SyncProofError, match="engine e0 answers to version 6 after an update to 7"):
        await sync_weights(Deaf([[2]], name="e0"), snapshot(7, TENSORS))


VERSIONS = np.full(100, 3, np.int32)
SAID = np.full(100, -1.0, np.float32)


def test_parity_within_the_bound_is_a_proof() -> None:
    proof = check_parity("e0", 3, f32(-1.0, -2.0), f32(-1.0, -2.0001), np.array([3, 3], np.int32))
    assert (proof.engine, proof.version, proof.tokens, proof.bound) == ("e0", 3, 2, PARITY_BOUNDS["float32"])
    assert proof.max_difference == pytest.approx(1e-4, rel=0.01)
    assert proof.mean == pytest.approx(0.25e-4, rel=0.01)  # the improbable token counts in units of its -log p
    assert proof.quantile == pytest.approx(0.45e-4, rel=0.01)


def test_one_token_that_is_off_is_no_reason_to_end_a_run_but_a_tenth_of_them_is() -> None:
    one, many = SAID.copy(), SAID.copy()
    one[7] -= 0.003
    assert check_parity("e0", 3, SAID, one, VERSIONS).max_difference == pytest.approx(0.003, rel=0.01)
    many[:11] -= 0.0003
    with pytest.raises(SyncProofError, match=r"engine e0: .* of 100 tokens of version 3 differ .* 0.0003 at the 90 % quantile"):
        check_parity("e0", 3, SAID, many, VERSIONS)


def test_a_little_everywhere_is_caught_by_the_mean() -> None:
    with pytest.raises(SyncProofError, match=r"by 6e-05 on average"):
        check_parity("e0", 3, SAID, SAID - np.float32(6e-5), VERSIONS)


def test_a_low_temperature_multiplies_differences() -> None:
    cool = PARITY_BOUNDS["float32"].at(0.5)
    assert (cool.mean, cool.quantile) == (1e-4, 3e-4)
    assert PARITY_BOUNDS["float32"].at(2.0) == PARITY_BOUNDS["float32"]


@pytest.mark.parametrize(
    ("learner", "engine", "versions", "message"),
    [
        (f32(-1, -2), f32(-1, -2), [3, 2], r"1 of 2 tokens were sampled by version 2 and not by 3"),
        (f32(-1, -2), f32(-1, -2), [-1, 4], r"2 of 2 tokens were sampled by version -1, 4"),
        (f32(-1, -2), f32(-1, np.nan), [3, 3], r"1 of 2 log-probabilities of version 3 are not finite"),
        (f32(-1, -2), f32(-1, -np.inf), [3, 3], r"1 of 2 .* not finite"),
        (f32(-1, -np.inf), f32(-1, -np.inf), [3, 3], r"1 of 2 .* not finite"),
        (f32(), f32(), [], "no token of version 3"),
    ],
)
def test_what_admits_of_no_degree(learner: np.ndarray, engine: np.ndarray, versions: list[int], message: str) -> None:
    with pytest.raises(SyncProofError, match=message):
        compare_logprobs("e0", 3, learner, engine, np.array(versions, np.int32), PARITY_BOUNDS["float32"])


def test_a_log_probability_of_the_learner_that_is_not_finite_is_no_engines_fault() -> None:
    with pytest.raises(FloatingPointError, match=r"the learner's log-probabilities of 1 of 2 tokens .* version 3: .* no engine"):
        compare_logprobs("e0", 3, f32(-1, np.nan), f32(-1, -2), np.array([3, 3], np.int32), PARITY_BOUNDS["float32"])
