"""Which episodes hold a word: the postings of an index's words, in a file beside them, of which a search reads only what it asks for.

A part of an index is of consecutive episodes, `PART` at most. Each of its words has a stretch of bytes: the places in the part of the
episodes that hold it, as little-endian 16-bit numbers, or, where these would take as much, a bit for each episode of the part, the first
in the highest bit of the first byte, filled up to whole 16-bit numbers. Words of nearly every episode take a bit for each so, and rare ones
two bytes an episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

PART = 1 << 16
"""Episodes of a part, at most: a place in it is a 16-bit number."""
_PLACE = np.dtype("<u2")
_READ = 22
"""Log2 of the bytes that are read at once, about."""


@dataclass(frozen=True, slots=True)
class WordsPart:
    """A part of an index. words: its Parquet file of words, each with where its stretch starts and its size in bytes. first: the part's
    first episode, as the index numbers them. episodes: how many it is of."""

    words: str
    first: int
    episodes: int

    @property
    def postings(self) -> Path:
        """Where the stretches are. Example: `words-0.postings`."""
        return Path(self.words).with_suffix(".postings")


def pack(held: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64], episodes: int) -> tuple[bytes, npt.NDArray[np.int64]]:
    """Stretches one after another, and the size of each. held: places that are in order for each word; word i has those from `offsets[i]`
    to `offsets[i + 1]`."""
    assert 0 < episodes <= PART, "a place must fit into 16 bits"
    bits, places = _bitmap_bytes(episodes), held.astype(_PLACE)
    stretches = list[bytes]()
    for begin, end in pairwise(offsets.tolist()):
        of_it = places[begin:end]
        stretches.append(of_it.tobytes() if of_it.nbytes < bits else _bitmap(of_it, bits))
    return b"".join(stretches), np.array([len(one) for one in stretches], np.int64)


def mark(marks: npt.NDArray[np.bool_], part: WordsPart, starts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> None:
    """Set the marks of the episodes that some stretches hold. marks: of a part's episodes, (episodes,).

    Raises ValueError when the file does not hold such stretches; OSError when it cannot be read.
    """
    bits = _bitmap_bytes(part.episodes)
    if starts.size and (starts.min() < 0 or sizes.min() <= 0 or sizes.max() > bits or np.any((starts | sizes) & 1)):
        raise _unreadable(part)
    order = np.argsort(starts, kind="stable")
    starts, sizes = starts[order], sizes[order]
    blocks = np.flatnonzero(np.diff(starts >> _READ)) + 1  # what is read at once stays small, whatever is asked for
    with part.postings.open("rb") as file:
        for begins, lengths in zip(np.split(starts, blocks), np.split(sizes, blocks), strict=True):
            if begins.size:
                file.seek(int(begins[0]))
                wanted = int((begins + lengths).max() - begins[0])
                said = file.read(wanted)
                if len(said) < wanted:
                    raise _unreadable(part)
                _mark(marks, part, said, begins - begins[0], lengths)


def _mark(marks: npt.NDArray[np.bool_], part: WordsPart, said: bytes, starts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> None:
    bits = _bitmap_bytes(part.episodes)
    numbers = np.frombuffer(said, _PLACE)
    whole = sizes == bits
    if whole.any():
        held = np.zeros(bits // 2, _PLACE)
        for start in starts[whole].tolist():
            held |= numbers[start // 2 : (start + bits) // 2]
        marks |= np.unpackbits(held.view(np.uint8), count=part.episodes).view(np.bool_)
    for begin, end in _runs(starts[~whole], sizes[~whole]):
        places = numbers[begin // 2 : end // 2]
        if int(places.max()) >= part.episodes:
            raise _unreadable(part)
        marks[places] = True


def _runs(starts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> Sequence[tuple[int, int]]:
    """Stretches that follow each other, as one. starts: in order."""
    ends = starts + sizes
    breaks = np.flatnonzero(starts[1:] != ends[:-1]) + 1
    return [
        (int(begins[0]), int(until[-1]))
        for begins, until in zip(np.split(starts, breaks), np.split(ends, breaks), strict=True)
        if begins.size
    ]


def _bitmap(places: npt.NDArray[np.uint16], size: int) -> bytes:
    held = np.zeros(8 * size, np.bool_)
    held[places] = True
    return np.packbits(held).tobytes()


def _bitmap_bytes(episodes: int) -> int:
    return 2 * -(-episodes // 16)


def _unreadable(part: WordsPart) -> ValueError:
    folder = part.postings.parent
    return ValueError(f"the index in {folder} cannot be read: {part.postings.name} does not hold what its words say; delete {folder}")
