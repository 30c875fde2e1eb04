"""Rows that say the same: duplicates, exact and near, and training rows that hold what an evaluation asks.

Rows are compared by what a model would see of them (`audit.Checked.text`), in small letters and with white space and punctuation aside.

- Exact duplicates have equal words, told by 128 bits of BLAKE2b.
- Near duplicates have nearly equal sets of runs of `SHINGLE` words. Their Jaccard similarity is estimated by MinHash over `HASHES` hash
  functions (Broder 1997, SEQUENCES), with a standard error of sqrt(J (1 - J) / HASHES), 0.035 at 0.8. A row is near the most similar one
  before it whose estimate reaches the threshold. Candidates agree in a whole band of hashes (Indyk and Motwani 1998, STOC); bands are as
  wide as still finds 99 % of the pairs that are as similar as the threshold.
- A row is contaminated when it holds runs of `n` words of an evaluation's row (Brown et al. 2020, arXiv 2005.14165, appendix C, n = 13); a
  row that is shorter counts as one run.

Memory holds a digest, or the hashes of a row, for every row that is kept, never its text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .audit import Checked

SHINGLE: Final = 3
HASHES: Final = 128
RUNS_AT_ONCE: Final = 4096
"""Whose hashes are held together, 1 KiB for each."""
NGRAM: Final = 13

_WORD = re.compile(r"\w+")
_SEEDS = np.random.default_rng(0x11A5).integers(0, 2**64, HASHES, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A row that says what an earlier one says. similarity: 1.0 when it is exact, else the estimate."""

    where: str
    of: str
    kind: Literal["exact", "near"]
    similarity: float = 1.0


@dataclass(frozen=True, slots=True)
class Overlap:
    """A row of an evaluation of which `share` of the runs of words stand in the training row at `trained`, where most of them do."""

    where: str
    trained: str
    share: float


def words_of(text: str) -> list[str]:
    """Example: `words_of("Is 3 > 2? Yes.")` is `["is", "3", "2", "yes"]`."""
    return _WORD.findall(text.casefold())


def duplicates(rows: Iterable[Checked], threshold: float | None = None) -> Iterator[Duplicate | Checked]:
    """Every row in order: itself where it says something new, or whose duplicate it is. threshold: similarity from which rows are near
    duplicates; None looks for exact ones only. Raises ValueError when the threshold is no share."""
    near = _Near(threshold) if threshold is not None else None
    seen: dict[bytes, str] = {}
    for row in rows:
        words = words_of(row.text)
        digest = _digest(words)
        if digest in seen:
            yield Duplicate(row.where, seen[digest], "exact")
            continue
        seen[digest] = row.where
        found = near.earlier(row.where, words) if near is not None else None
        yield found or row


class MeasuredRow(Protocol):
    """A row of an evaluation: where it is, and what of it is a question (`audit.Checked` is one)."""

    @property
    def where(self) -> str: ...
    @property
    def asked(self) -> str: ...


def contaminated(trained: Iterable[Checked], measured: Sequence[MeasuredRow], n: int = NGRAM) -> list[Overlap]:
    """Rows of an evaluation that stand in training rows, those that do most first."""
    if n < 1:
        raise ValueError(f"runs of {n} words tell nothing; give at least 1")
    runs = [set(_runs(words_of(row.asked), n)) for row in measured]
    holders: dict[bytes, list[int]] = {}
    for i, of_row in enumerate(runs):
        for run in of_row:
            holders.setdefault(run, []).append(i)
    lengths = sorted({min(n, len(words_of(row.asked))) for row in measured} - {0})
    best: dict[int, tuple[int, str]] = {}
    for row in trained:
        words, hits = words_of(row.text), dict[int, int]()
        for run in {run for length in lengths for run in _runs(words, length)}:
            for i in holders.get(run, ()):
                hits[i] = hits.get(i, 0) + 1
        for i, count in hits.items():
            if count > best.get(i, (0, ""))[0]:
                best[i] = (count, row.where)
    found = [Overlap(measured[i].where, where, count / len(runs[i])) for i, (count, where) in best.items()]
    return sorted(found, key=lambda overlap: -overlap.share)


class _Near:
    """Rows by their MinHashes, and by the bands of these."""

    def __init__(self, threshold: float) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"a similarity of {threshold:g} cannot be asked for; give one above 0 and up to 1, such as 0.8")
        self._threshold, self._width = threshold, band_width(threshold)
        self._bands: dict[bytes, list[int]] = {}
        self._kept: list[tuple[str, NDArray[np.uint64]]] = []

    def earlier(self, where: str, words: Sequence[str]) -> Duplicate | None:
        """The most similar row before this one, if it is near; the row itself is kept otherwise."""
        hashed = minhash(words)
        keys = [bytes([i]) + hashed[i : i + self._width].tobytes() for i in range(0, HASHES - self._width + 1, self._width)]
        candidates = {number for key in keys for number in self._bands.get(key, ())}
        best = max(((float(np.mean(self._kept[i][1] == hashed)), -i) for i in candidates), default=(0.0, 0))
        if best[0] >= self._threshold:
            return Duplicate(where, self._kept[-best[1]][0], "near", best[0])
        for key in keys:
            self._bands.setdefault(key, []).append(len(self._kept))
        self._kept.append((where, hashed))
        return None


def minhash(words: Sequence[str]) -> NDArray[np.uint64]:
    """The least of each hash function over the runs of words, uint64 `[HASHES]`: two rows agree in one with a probability that is their
    Jaccard similarity."""
    runs = np.frombuffer(b"".join(_runs(words, SHINGLE)) or bytes(8), "<u8")
    least = np.full(HASHES, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(runs), RUNS_AT_ONCE):
        mixed = runs[None, start : start + RUNS_AT_ONCE] ^ _SEEDS[:, None]
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # SplitMix64's finaliser, as in blend.py
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        np.minimum(least, (mixed ^ (mixed >> np.uint64(31))).min(axis=1), out=least)
    return least


def band_width(threshold: float) -> int:
    """Hashes of a band: the most with which 99 % of pairs of this similarity agree in one band at least."""
    return max(width for width in range(1, HASHES + 1) if width == 1 or 1 - (1 - threshold**width) ** (HASHES // width) >= 0.99)


def _runs(words: Sequence[str], n: int) -> Iterator[bytes]:
    """Every run of n words, or the whole where there are fewer, as 64 bits."""
    if not words:
        return
    for start in range(max(1, len(words) - n + 1)):
        yield blake2b(" ".join(words[start : start + n]).encode(), digest_size=8).digest()


def _digest(words: Sequence[str]) -> bytes:
    return blake2b(" ".join(words).encode(), digest_size=16).digest()
