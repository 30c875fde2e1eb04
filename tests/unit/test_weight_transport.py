"""Weights on their way: buckets, deltas, who sends and who fetches what, and that nothing can be skipped unseen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.engine.layout import BFLOAT16, checksum
from burnish.rollout.transport.buckets import Bucket, Span
from burnish.rollout.transport.delta import Delta, apply_delta, delta_of
from burnish.rollout.transport.shipment import BucketRef, Form, Receiver, Sender, Shipment
from burnish.rollout.weights import SyncProofError, SyncReceipt, sync_weights

pytestmark = pytest.mark.unit


def bf16(*bits: int) -> np.ndarray:
    return np.array(bits, np.uint16).view(BFLOAT16)


# Buckets


def test_a_bucket_gives_its_tensors_in_their_shapes_tied_ones_under_each_name() -> None:
    bucket = Bucket((Span(("embed", "head"), (2, 3), 0), Span(("norm",), (2,), 6)), np.arange(8, dtype=np.float32))
    found = dict(bucket.tensors())
    assert list(found) == ["embed", "head", "norm"]
    assert found["head"].tolist() == found["embed"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert np.shares_memory(found["head"], bucket.data)
    assert bucket.manifest() == {name: checksum(array) for name, array in found.items()}


def test_bfloat16_is_carried_as_its_bits_and_told_from_other_types() -> None:
    one, two = bf16(0x3F80), bf16(0x4000)  # 1.0 and 2.0
    assert checksum(one).startswith("bfloat16[1]:") and checksum(one) != checksum(two)
    assert checksum(one)[9:] == checksum(one.view(np.uint16))[7:], "the same bytes, another type"


# Deltas


@pytest.mark.parametrize(("at", "gaps"), [([0], "00"), ([254], "fe"), ([255], "ff00"), ([600, 601], "ffff5a00"), ([], "")])
def test_gaps_are_bytes_with_an_escape(at: list[int], gaps: str) -> None:
    before = np.zeros(2000, np.uint16).view(BFLOAT16)
    now = before.copy()
    now.view(np.uint16)[at] = 7
    delta = delta_of(before, now)
    assert delta is not None
    assert (delta.gaps.tobytes().hex(), delta.values.view(np.uint16).tolist()) == (gaps, [7] * len(at))
    assert delta.nbytes == len(gaps) // 2 + 2 * len(at)
    apply_delta(delta, before)
    assert np.array_equal(before, now)


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float16), BFLOAT16])
@pytest.mark.parametrize("density", [0.0, 0.0005, 0.02, 0.3])
def test_a_delta_leads_to_the_same_bits_and_takes_as_many_bytes_as_changed(dtype: np.dtype[Any], density: float) -> None:
    random = np.random.default_rng(3)
    bits = np.dtype(f"u{dtype.itemsize}")
    before = random.integers(0, 1 << 16, 50_000).astype(bits).view(dtype)
    now = before.copy()
    changed = random.random(50_000) < density
    now.view(bits)[changed] ^= 1
    delta = delta_of(before, now)
    assert delta is not None
    assert len(delta.values) == changed.sum() and delta.nbytes <= changed.sum() * (1 + dtype.itemsize) + 50_000 // 255
    apply_delta(delta, before)
    assert before.tobytes() == now.tobytes()


def test_numbers_that_compare_equal_and_nan_are_sent_by_their_bits() -> None:
    before = np.array([0.0, np.nan, 1.0] + [5.0] * 20, np.float32)
    now = before.copy()
    now[0] = -0.0  # equal as numbers, and not what the learner has; nan is unequal to itself, and did not change
    delta = delta_of(before, now)
    assert delta is not None and len(delta.values) == 1 and np.signbit(delta.values[0])


def test_a_delta_that_is_not_half_the_bytes_is_none() -> None:
    before = np.zeros(3000, np.uint16).view(BFLOAT16)
    now = before.copy()
    now.view(np.uint16)[:1000] = 1  # 3 bytes each, of 6000
    assert delta_of(before, now) is not None
    now.view(np.uint16)[1000] = 1
    assert delta_of(before, now) is None
    assert delta_of(before, now, worth=1.9) is not None


@pytest.mark.parametrize("cut", [Delta(np.zeros(3, np.uint8), bf16(1, 1)), Delta(np.full(9, 9, np.uint8), bf16(*[1] * 9))])
def test_a_delta_that_does_not_fit_is_refused(cut: Delta) -> None:
    with pytest.raises(ValueError, match="does not fit a bucket of 10 elements"):
        apply_delta(cut, np.zeros(10, np.uint16).view(BFLOAT16))


# A fleet in miniature


SPANS = ((Span(("embed", "head"), (50, 20), 0), Span(("norm",), (20,), 1000)), (Span(("down",), (30, 30), 0),))


class Source:
    """A learner that changes a few elements of its two buckets, and sends them as `LearnerGroup` does."""

    def __init__(self, form: Form | None = None, node: str = "learner's") -> None:
        self.form, self.node, self.version = form or Form("bfloat16"), node, 0
        self.random = np.random.default_rng(0)
        self.data = [self.random.integers(0, 1 << 15, size).astype(np.uint16).view(BFLOAT16) for size in (1020, 900)]
        self.sender = Sender(self.form)

    def step(self, share: float = 0.02) -> None:
        self.version += 1
        for data in self.data:
            data.view(np.uint16)[self.random.random(len(data)) < share] ^= 1

    def send(self, apart: bool = True) -> Shipment:
        before = self.sender.begin(apart)
        parts, manifest, compared = list[BucketRef](), dict[str, str](), bool(before)
        for number, (spans, data) in enumerate(zip(SPANS, self.data, strict=True)):
            bucket = Bucket(spans, data.copy())
            parts.append(BucketRef(bucket, delta_of(before[number].data, bucket.data) if before else None))
            manifest |= bucket.manifest()
        return self.sender.finish(self.version, manifest, parts, self.node, apart, compared)


def tensors(source: Source) -> dict[str, bytes]:
    return {name: array.tobytes() for spans, data in zip(SPANS, source.data, strict=True) for name, array in Bucket(spans, data).tensors()}


def same(reference: Any) -> Any:
    return reference


async def take(receiver: Receiver, engine: ScriptedEngine, shipment: Shipment, fetch: Any = same) -> SyncReceipt:
    with receiver.taking(shipment, fetch) as weights:
        return await sync_weights(engine, weights)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine([[2]], name="e0", shapes={"embed": (50, 20), "head": (50, 20), "norm": (20,), "down": (30, 30)})


def loaded(engine: ScriptedEngine) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in engine.weights.items()}


async def test_an_engine_elsewhere_gets_what_changed_once_it_has_what_that_changes(engine: ScriptedEngine) -> None:
    source, receiver = Source(), Receiver("another")
    whole = 2 * (1020 + 900)
    took: list[tuple[int, bool, bool]] = []
    for _ in range(4):
        receipt = await take(receiver, engine, source.send())
        took.append((receipt.bytes, receipt.delta, receiver.version is not None))
        assert loaded(engine) == tensors(source) and receipt.version == engine.weight_version == source.version
        source.step()
    # Nothing to compare with; worth it, and to be kept from now on; then only what changed.
    assert took[:2] == [(whole, False, False), (whole, False, True)]
    assert all(size < whole / 5 and delta for size, delta, _ in took[2:])


async def test_an_engine_on_the_learners_node_reads_the_buckets_where_they_are_and_keeps_nothing(engine: ScriptedEngine) -> None:
    source, receiver = Source(), Receiver("learner's")
    for _ in range(4):
        receipt = await take(receiver, engine, source.send())
        assert (receipt.delta, receiver.version, loaded(engine)) == (False, None, tensors(source))
        source.step()


async def test_without_other_nodes_or_where_it_is_off_nothing_is_compared_and_the_old_is_given_up_first(engine: ScriptedEngine) -> None:
    for apart, form in ((False, Form("bfloat16")), (True, Form("bfloat16", deltas=False))):
        source = Source(form)
        first = source.send(apart)
        source.step()
        assert source.sender.begin(apart) == []
        assert first.parts == [], "nobody holds a bucket of it while the next is made"
        with pytest.raises(ValueError, match="version 0 were given up when the next were made"):
            await take(Receiver("another"), engine, first)


async def test_every_so_often_all_is_sent_and_kept(engine: ScriptedEngine) -> None:
    source, receiver = Source(Form("bfloat16", whole_every=3)), Receiver("another")
    deltas = []
    for _ in range(9):
        deltas.append((await take(receiver, engine, source.send())).delta)
        source.step()
    assert deltas == [False, False, True, False, True, True, False, True, True]


async def test_dense_changes_are_sent_whole_and_nothing_is_kept(engine: ScriptedEngine) -> None:
    source, receiver = Source(), Receiver("another")
    for _ in range(4):
        receipt = await take(receiver, engine, source.send())
        assert (receipt.delta, receiver.version) == (False, None)
        source.step(share=0.9)


async def test_a_bucket_of_dense_changes_is_sent_whole_beside_one_that_is_not(engine: ScriptedEngine) -> None:
    source, receiver = Source(), Receiver("another")
    for _ in range(2):
        await take(receiver, engine, source.send())
        source.step()
    source.data[1].view(np.uint16)[:] ^= 2
    receipt = await take(receiver, engine, source.send())
    assert receipt.delta and 2 * 900 < receipt.bytes < 2 * (1020 + 900) and loaded(engine) == tensors(source)


async def test_an_engine_that_missed_a_version_or_is_new_gets_everything(engine: ScriptedEngine) -> None:
    source, receiver = Source(), Receiver("another")
    for _ in range(3):
        await take(receiver, engine, source.send())
        source.step()
    source.send()  # it was away
    source.step()
    assert not (await take(receiver, engine, source.send())).delta
    source.step()
    new = Receiver("another")
    shipment = source.send()
    assert not (await take(new, engine, shipment)).delta and (await take(receiver, engine, shipment)).delta
    assert loaded(engine) == tensors(source)


# What must be found out


async def prepared(engine: ScriptedEngine) -> tuple[Source, Receiver]:
    """A receiver that gets deltas."""
    source, receiver = Source(), Receiver("another")
    for _ in range(3):
        await take(receiver, engine, source.send())
        source.step()
    return source, receiver


@pytest.mark.parametrize("way", ["whole", "delta"])
async def test_a_skipped_tensor_is_found(engine: ScriptedEngine, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, receiver = await prepared(engine)
    receiver = receiver if way == "delta" else Receiver("another")
    every = Bucket.tensors

    def without_norm(self: Bucket) -> Iterator[tuple[str, np.ndarray]]:
        return ((name, array) for name, array in every(self) if name != "norm")

    monkeypatch.setattr(Bucket, "tensors", without_norm)
    with pytest.raises(SyncProofError, match=r"version 3 were not loaded as the learner sent them .missing norm"):
        await take(receiver, engine, source.send())
    assert receiver.version is None


@pytest.mark.parametrize("way", ["whole", "delta"])
async def test_a_skipped_bucket_is_found(engine: ScriptedEngine, way: str) -> None:
    source, receiver = await prepared(engine)
    shipment = source.send()
    del shipment.parts[1]
    with pytest.raises(SyncProofError, match="missing down"):
        await take(receiver if way == "delta" else Receiver("another"), engine, shipment)


async def test_a_bucket_of_the_version_before_is_found(engine: ScriptedEngine) -> None:
    source = Source()
    old = source.send().parts[0].bucket
    source.step()
    shipment = source.send()
    shipment.parts[0] = BucketRef(old)
    with pytest.raises(SyncProofError, match="changed embed, head"):
        await take(Receiver("another"), engine, shipment)


async def test_a_skipped_flush_is_found_whoever_claims_to_have_had_it(engine: ScriptedEngine) -> None:
    source, receiver = await prepared(engine)
    missed = source.send()
    receiver.version = missed.version  # it never took it in
    source.step()
    with pytest.raises(SyncProofError, match=r"changed down, embed, head"):
        await take(receiver, engine, source.send())
    assert receiver.version is None, "what it has is not known, so nothing will be built on it"
    source.step()
    assert not (await take(receiver, engine, source.send())).delta
    assert loaded(engine) == tensors(source)


async def test_a_delta_that_is_not_applied_is_found(engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    source, receiver = await prepared(engine)
    monkeypatch.setattr("burnish.rollout.transport.shipment.apply_delta", lambda delta, data: None)
    with pytest.raises(SyncProofError, match="changed"):
        await take(receiver, engine, source.send())


async def test_after_a_failed_fetch_everything_is_fetched_again(engine: ScriptedEngine) -> None:
    source, receiver = await prepared(engine)
    shipment = source.send()

    def broken(reference: Any) -> Any:
        raise ConnectionError("cable cut")

    with pytest.raises(ConnectionError):
        await take(receiver, engine, shipment, broken)
    assert not (await take(receiver, engine, shipment)).delta
    assert loaded(engine) == tensors(source)
