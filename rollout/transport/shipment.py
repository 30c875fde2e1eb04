"""A model's weights on their way: what a learner sends, and how an engine's process takes it in.

    learner   puts every bucket into its node's object store, one after the other, and beside it what changed since the bucket before it
    engine    on the learner's node: reads the buckets where they are
              on another node: fetches each bucket, or only its delta where it still has what that changes

The engine's side decides, for it alone knows what it has: a process that was restarted, came later or missed a version has nothing that a
delta could change, and fetches everything. References are whatever `fetch` resolves: Ray's in a fleet, anything in tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..engine.config import Dtype
from ..engine.layout import checksum, shapes_of
from .adapters import Base, Frozen, checked
from .buckets import BUCKET_BYTES, Bucket
from .delta import Delta, apply_delta

WHOLE_EVERY = 20
"""Of so many versions, one is sent whole where deltas are sent otherwise."""
Fetch = Callable[[Any], Any]
"""What a reference is to: a `Bucket`, or a `Delta`."""


@dataclass(frozen=True, slots=True)
class BucketRef:
    """References to a bucket, and to the delta that leads to it, where there is one."""

    bucket: Any
    delta: Any | None = None


@dataclass(slots=True)
class Shipment:
    """One version, for every engine. It lasts until the next one is made.

    manifest: checksum of every tensor, made where the tensors come from. node: where the buckets are. base: the version that deltas change,
    None where everything is sent whole. keep: whether an engine elsewhere should keep what comes, because deltas are worth it. frozen: the
    base of adapters where these are all that is sent, and what the manifest is of.

    Example: `LearnerGroup.snapshot()`.
    """

    version: int
    manifest: Mapping[str, str]
    parts: list[BucketRef]
    node: str
    base: int | None = None
    keep: bool = False
    frozen: Frozen | None = None

    def release(self) -> list[BucketRef]:
        """Give up the references, so that the memory is free once nobody else has them; returns them."""
        parts, self.parts = self.parts, []
        return parts


@dataclass(frozen=True, slots=True)
class Form:
    """How weights are sent. dtype: the engines'. deltas: to engines on other nodes, only what changed where that takes half the bytes or
    less. whole_every: of so many versions, one that is sent whole all the same. bucket_bytes: of a bucket at most, see `buckets.py`.
    adapters: whether adapters are sent alone, in float32 and without deltas, since an update changes all of them."""

    dtype: Dtype = "float32"
    deltas: bool = True
    whole_every: int = WHOLE_EVERY
    bucket_bytes: int = BUCKET_BYTES
    adapters: bool = False


class Sender:
    """The learner's side of the transport: what of the version before the next is compared with, and what it gives up of it."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self._sent: Shipment | None = None
        self._deltas_since_whole = 0

    def begin(self, apart: bool) -> list[Any]:
        """Before a snapshot is made: the buckets that its buckets are to be compared with, none where it is sent whole. What was sent
        before is given up. apart: whether there may be engines on other nodes."""
        parts = self._sent.release() if self._sent is not None else []
        whole = not (apart and self.form.deltas) or self.form.adapters or self._deltas_since_whole + 1 >= self.form.whole_every
        return [] if whole else [part.bucket for part in parts]

    def finish(
        self,
        version: int,
        manifest: Mapping[str, str],
        parts: list[BucketRef],
        node: str,
        apart: bool,
        compared: bool,
        frozen: Frozen | None = None,
    ) -> Shipment:
        """What is sent of the version. compared: whether `begin` gave anything to compare with. frozen: see `Shipment`."""
        changes = any(part.delta is not None for part in parts)
        before = self._sent
        self._deltas_since_whole = self._deltas_since_whole + 1 if changes else 0
        worth = changes or (not compared and before is not None and before.keep)
        base = before.version if before is not None and changes else None
        self._sent = Shipment(version, manifest, parts, node, base, worth and apart and self.form.deltas and not self.form.adapters, frozen)
        return self._sent


@dataclass(slots=True)
class Arriving:
    """The weights of a shipment as an engine takes them in, once. bytes: what was fetched so far. delta: whether some of it changes what
    was there. frozen: where adapters are merged here; the manifest is then of what that gives, and grows with it."""

    version: int
    manifest: Mapping[str, str]
    bytes: int = 0
    delta: bool = False
    frozen: Frozen | None = None
    source: Iterator[tuple[str, np.ndarray]] = field(default_factory=lambda: iter(()))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return shapes_of(self.manifest) if self.frozen is None else self.frozen.shapes

    def stream(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every tensor by name, fetched as it is asked for."""
        return self.source


class Receiver:
    """The engine's side of the transport: takes shipments in, and keeps a copy of what came where deltas are worth it.

    node: where this process is. base: what adapters that come alone are merged into. version: of the copy, None without one.
    """

    def __init__(self, node: str, base: Base | None = None) -> None:
        self.node, self._base = node, base
        self.version: int | None = None
        self._copy: list[Bucket] = []

    @contextmanager
    def taking(self, shipment: Shipment, fetch: Fetch) -> Iterator[Arriving]:
        """What arrives. The copy is of the shipment when the context ends, and there is none when it ends with an error.

        Raises ValueError for a shipment that was given up, and where adapters came alone and they, or the base here, are not the learner's.
        """
        if not shipment.parts:
            raise ValueError(f"the weights of version {shipment.version} were given up when the next were made; send those")
        if shipment.frozen is not None:
            yield self._merging(shipment, shipment.frozen, fetch)
            return
        here = shipment.node == self.node
        base = self._copy if not here and self.version is not None and self.version == shipment.base else []
        self.version, self._copy = None, []  # whatever happens, not that of the version before
        kept: list[Bucket] = []
        arriving = Arriving(shipment.version, shipment.manifest)
        arriving.source = _taken(shipment, fetch, arriving, base, kept if shipment.keep and not here else None)
        yield arriving
        if kept:
            self.version, self._copy = shipment.version, kept

    def _merging(self, shipment: Shipment, frozen: Frozen, fetch: Fetch) -> Arriving:
        """What the adapters of a shipment make of the base."""
        assert self._base is not None, "an engine that is sent adapters has a base"
        base, sums = self._base, dict[str, str]()
        self.version, self._copy = None, []
        arriving = Arriving(shipment.version, sums, frozen=frozen)
        adapters = checked(list(_taken(shipment, fetch, arriving, [], None)), shipment.manifest)
        base.check(frozen)

        def merged() -> Iterator[tuple[str, np.ndarray]]:
            for name, array in base.merged(frozen, adapters):
                sums[name] = checksum(array)
                yield name, array

        arriving.source = merged()
        return arriving


def _taken(
    shipment: Shipment, fetch: Fetch, arriving: Arriving, base: Sequence[Bucket], kept: list[Bucket] | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor by name. base: the buckets that deltas change, which are changed in place. kept: where copies go."""
    for number, part in enumerate(shipment.parts):
        if base and part.delta is not None:
            delta: Delta = fetch(part.delta)
            bucket = base[number]
            apply_delta(delta, bucket.data)
            arriving.bytes, arriving.delta = arriving.bytes + delta.nbytes, True
        else:
            bucket = fetch(part.bucket)
            arriving.bytes += bucket.data.nbytes
            if kept is not None:
                bucket = Bucket(bucket.spans, bucket.data.copy())
        if kept is not None:
            kept.append(bucket)
        yield from bucket.tensors()
