"""The manifest, the order of a sync, and the parity proof."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.rollout.engine.base import GenerateRequest
from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.weights import SyncProofError, WeightSnapshot, check_parity, checksum, snapshot, sync_weights, verify_manifest

pytestmark = pytest.mark.unit

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}
ASK = GenerateRequest("t/0", [1], 4, 1.0, (2,))


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_checksum_is_type_shape_and_crc() -> None:
    assert checksum(np.ones(4, np.float32)) == f"float32[4]:{zlib.crc32(np.ones(4, np.float32).tobytes()):08x}"
    assert checksum(TENSORS["a"]) != checksum(TENSORS["a"].reshape(3, 2))
    assert checksum(TENSORS["a"].T) == checksum(np.ascontiguousarray(TENSORS["a"].T))


@pytest.mark.parametrize(
    ("arrived", "message"),
    [
        ({"a": TENSORS["a"]}, "missing b"),
        ({**TENSORS, "c": TENSORS["b"]}, "unannounced c"),
        ({**TENSORS, "b": f32(1, 1, 1, 1.0001)}, "changed b"),
        ({**TENSORS, "b": TENSORS["b"].astype(np.float64)}, "changed b"),
        ({"a": f32(0), "c": f32(0)}, r"missing b; unannounced c; changed a"),
    ],
)
def test_manifest_names_what_did_not_arrive(arrived: dict[str, np.ndarray], message: str) -> None:
    sent = snapshot(3, TENSORS)
    verify_manifest(sent, "e0")
    with pytest.raises(SyncProofError, match=f"engine e0: the weights of version 3 .*{message}"):
        verify_manifest(WeightSnapshot(3, arrived, sent.manifest), "e0")


async def test_sync_gives_a_receipt() -> None:
    engine = ScriptedEngine([[2]], name="e0", shapes={"a": (2, 3), "b": (4,)})
    receipt = await sync_weights(engine, snapshot(5, TENSORS))
    assert (receipt.engine, receipt.version, receipt.tensors, receipt.bytes) == ("e0", 5, 2, 40)
    assert engine.weights.keys() == TENSORS.keys()
    assert (await engine.generate(ASK)).policy_version.tolist() == [5]


async def test_a_broken_manifest_leaves_the_engine_serving_what_it_had() -> None:
    engine = ScriptedEngine([[2]])
    await sync_weights(engine, snapshot(1, TENSORS))
    with pytest.raises(SyncProofError):
        await sync_weights(engine, WeightSnapshot(2, {"a": TENSORS["a"]}, snapshot(2, TENSORS).manifest))
    assert (await engine.generate(ASK)).policy_version.tolist() == [1]


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
        async def finish_weight_update(self, version: int) -> None:
            await super().finish_weight_update(version - 1)

    with pytest.raises(SyncProofError, match="engine e0 answers to version 6 after an update to 7"):
        await sync_weights(Deaf([[2]], name="e0"), snapshot(7, TENSORS))


def test_parity_within_the_bound_is_a_proof() -> None:
    proof = check_parity("e0", 3, f32(-1.0, -2.0), f32(-1.0, -2.0001), np.array([3, 3], np.int32))
    assert (proof.engine, proof.version, proof.tokens, proof.bound) == ("e0", 3, 2, 2e-4)
    assert proof.max_difference == pytest.approx(1e-4, rel=0.01)
    assert proof.mean_difference == pytest.approx(0.5e-4, rel=0.01)


def test_an_improbable_token_may_differ_in_proportion() -> None:
    assert check_parity("e0", 3, f32(-0.1, -8.0), f32(-0.1, -8.001), np.array([3, 3], np.int32)).max_difference == pytest.approx(
        1e-3, rel=0.01
    )
    with pytest.raises(SyncProofError, match="1 tokens beyond"):
        check_parity("e0", 3, f32(-0.1, -8.0), f32(-0.1, -8.0017), np.array([3, 3], np.int32))
    with pytest.raises(SyncProofError, match="1 tokens beyond"):
        check_parity("e0", 3, f32(-0.1, -8.0), f32(-0.1003, -8.0), np.array([3, 3], np.int32))


@pytest.mark.parametrize(
    ("learner", "engine", "versions", "message"),
    [
        (
            f32(-1, -2),
            f32(-1, -2.001),
            [3, 3],
            r"engine e0: log-probabilities of 2 tokens of version 3 differ .* up to 0\.001 \(bound 0\.0002, 1 tokens",
        ),
        (f32(-1, -2), f32(-1, -2), [3, 2], r"1 of 2 tokens were sampled by version 2 and not by 3"),
        (f32(-1, -2), f32(-1, -2), [-1, 4], r"2 of 2 tokens were sampled by version -1, 4"),
        (f32(-1, np.nan), f32(-1, -2), [3, 3], r"up to nan \(bound 0\.0002, 1 tokens"),
        (f32(-1, -2), f32(-1, -np.inf), [3, 3], r"up to inf"),
        (f32(-1, -np.inf), f32(-1, -np.inf), [3, 3], r"up to nan"),
        (f32(), f32(), [], "no token of version 3"),
    ],
)
def test_parity_violations(learner: np.ndarray, engine: np.ndarray, versions: list[int], message: str) -> None:
    with pytest.raises(SyncProofError, match=message):
        check_parity("e0", 3, learner, engine, np.array(versions, np.int32))
