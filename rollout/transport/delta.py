"""The delta form of a bucket: which of its elements changed, and what they are now.

Few do: a bfloat16 number has eight bits of precision, so an update smaller than about 1/512 of a weight leaves what an engine holds of it
as it was (docs/weights.md). Bits are compared, not numbers, so that what is applied is what was sent.

    gaps    uint8: for each changed element, how many unchanged ones precede it since the changed one before. A gap of 255 or more is as
            many bytes 255 as it has whole 255s, and one of the rest: 0 is `00`, 254 is `fe`, 255 is `ff 00`, 600 is `ff ff 5a`.
    values  the changed elements in order, in the bucket's type

What is applied is judged by the checksum of every tensor as an engine loads it (`weights.verify_manifest`), as whatever comes whole is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WORTH = 2.0
"""A delta is sent where it takes this many times fewer bytes than the bucket."""
ESCAPE = 255


@dataclass(frozen=True, slots=True)
class Delta:
    """What turns the bucket that was sent before into this one, see above. uint8 `[bytes]`, and `[changed]` in the bucket's type.

    Example: `delta_of(before, now)`.
    """

    gaps: np.ndarray
    values: np.ndarray

    @property
    def nbytes(self) -> int:
        return int(self.gaps.nbytes + self.values.nbytes)


def delta_of(before: np.ndarray, now: np.ndarray, worth: float = WORTH) -> Delta | None:
    """The delta between two flat arrays of one type; None where it would not take `worth` times fewer bytes than `now`."""
    assert before.dtype == now.dtype and before.shape == now.shape and now.ndim == 1, "a delta is between two states of one bucket"
    bits = np.dtype(f"u{now.itemsize}")
    changed = before.view(bits) != now.view(bits)
    largest = now.nbytes / worth
    if int(np.count_nonzero(changed)) * (now.itemsize + 1) > largest:  # a gap takes a byte at least
        return None
    at = np.flatnonzero(changed)
    found = Delta(_encoded(np.diff(at, prepend=-1) - 1), now[at])
    return found if found.nbytes <= largest else None


def apply_delta(delta: Delta, data: np.ndarray) -> None:
    """Turn `data`, which was the bucket before, into the one that the delta leads to, in place.

    Raises ValueError for a delta that does not fit: something else was sent than what `delta_of` made.
    """
    at = _decoded(delta.gaps)
    if delta.values.dtype != data.dtype or len(at) != len(delta.values) or (len(at) and at[-1] >= len(data)):
        raise ValueError(f"a delta of {len(at)} places and {len(delta.values)} values does not fit a bucket of {len(data)} elements")
    data[at] = delta.values


def _encoded(gaps: np.ndarray) -> np.ndarray:
    """The bytes of gaps, each at least 0."""
    escapes, rest = np.divmod(gaps, ESCAPE)
    ends = np.cumsum(escapes + 1)
    found = np.full(int(ends[-1]) if len(ends) else 0, ESCAPE, np.uint8)
    found[ends - 1] = rest
    return found


def _decoded(gaps: np.ndarray) -> np.ndarray:
    """Where the changed elements are, int64 and rising."""
    ends = np.flatnonzero(gaps != ESCAPE)
    return np.cumsum(gaps, dtype=np.int64)[ends] + np.arange(len(ends))
