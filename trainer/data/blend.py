"""Blending in closed form: which source, and which of its rows, stands at a position of an endless stream.

    blend = Blend({"own": Fraction(7, 10), "tools": Fraction(2, 10), "refusals": Fraction(1, 10)})
    blend.at(12_345)        # Draw(source=…, ordinal=…): the ordinal-th row that this source gives
    row_at(size=900, seed=1, ordinal=2_000)     # Place(epoch=2, row=…)

Everything is a pure function of the position in exact integers: nothing is drawn, counted up or rounded, so that a run resumes, and a
step is traced, from its position alone. A source that is used up begins again in a new order; no source ends a blend; a share of 0 gives
no row.

**Which source.** Shares are fractions that sum to 1; over their common denominator W, the *period*, source i has the integer w_i, and
w_1 + … + w_k = W. The j-th row of source i (j = 1, 2, …) may stand at no position before floor((j - 1) W / w_i), and must stand before
ceil(j W / w_i), positions counted from 0. A position takes, of the rows that may stand there, the one whose latest position is the
earliest (of equal ones, that of the source named first). Every row then keeps its window: these are the windows of proportionate
progress (Baruah, Cohen, Plaxton and Varvel 1996, Algorithmica 15:600-625) for unit jobs on one machine whose load is exactly 1, for which
a schedule exists, and earliest deadline first finds one. Windows kept for all rows mean that for *every* n and i the count c_i(n) of
source i among the first n positions obeys

    floor(n w_i / W)  <=  c_i(n)  <=  ceil(n w_i / W),    so    |c_i(n) - n w_i / W| < 1,

which is the quota of apportionment, and what Tijdeman's chairman assignment (1980, Discrete Mathematics 32:323-330) asks for. For two
sources it is the line of Bresenham (1965). At n = W the counts are exact, so the order of one period repeats, and a period's order is all
that is kept: position n is entry n mod W, and c_i(n) = (n div W) w_i + c_i(n mod W). Memory is 6 bytes a position of a period, at most
`MAX_PERIOD` of them, whatever the data.

**Which row.** The ordinal-th row of a source of N rows belongs to pass e = ordinal div N, at place ordinal mod N of a permutation of
0 … N - 1 that is keyed by (seed, e): a Feistel network (Luby and Rackoff 1988, SIAM J. Comput. 17:373-386) over the smallest power of 4
that holds N, walked on until it lands below N (Black and Rogaway 2002, CT-RSA). No table of rows is made, so memory does not grow with N.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

MAX_PERIOD = 1_000_000
"""Positions after which a blend repeats itself, at most."""
TOKEN_PERIOD = 100_000
"""Of a blend by tokens, whose sample shares are rounded to 1 / 100,000: see `shares_by_tokens`."""
ROUNDS = 8
_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Draw:
    """What stands at a position: `source`, an index into the sources of the blend, and the `ordinal` of its row, from 0 and without end.

    Example: `Draw(source=1, ordinal=17)`.
    """

    source: int
    ordinal: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where an ordinal is among the rows of a source: the pass over them, `epoch`, and the index of the `row`, both from 0.

    Example: `Place(epoch=2, row=811)`.
    """

    epoch: int
    row: int


class Blend:
    """An endless, exact interleaving of sources.

    shares: the share of each source by its name, fractions that sum to 1; a share may be 0. Raises ValueError naming what is wrong: a
    negative share, shares that do not sum to 1, or shares so fine that the order repeats only after more than `MAX_PERIOD` positions.

    Example: `Blend({"own": Fraction(7, 10), "curated": Fraction(3, 10)}).at(0)` is `Draw(0, 0)`.
    """

    def __init__(self, shares: Mapping[str, Fraction]) -> None:
        if not shares or sum(shares.values()) != 1:
            raise ValueError(f"the shares of a blend must sum to 1, not {sum_said(sum(shares.values(), Fraction()), 1)}")
        negative = [name for name, share in shares.items() if share < 0]
        if negative:
            raise ValueError(f"the share of {negative[0]} is negative")
        self.names = tuple(shares)
        self.shares = tuple(shares.values())
        self.period = math.lcm(*(share.denominator for share in self.shares))
        if self.period > MAX_PERIOD:
            raise ValueError(
                f"shares as fine as these repeat only after {self.period:,} samples, more than the {MAX_PERIOD:,} that are laid out; "
                "write them with fewer digits"
            )
        self.weights = tuple(int(share * self.period) for share in self.shares)
        self._sources, self._ordinals = _period(self.weights)

    def at(self, position: int) -> Draw:
        """What stands at `position`, from 0."""
        times, offset = divmod(position, self.period)
        source = int(self._sources[offset])
        return Draw(source, times * self.weights[source] + int(self._ordinals[offset]))

    def counts(self, n: int) -> tuple[int, ...]:
        """How many of the first `n` positions each source has: within 1 of `n x share`, in either direction and for every n."""
        times, offset = divmod(n, self.period)
        within = np.bincount(self._sources[:offset], minlength=len(self.weights))
        return tuple(times * weight + int(count) for weight, count in zip(self.weights, within, strict=True))


def order_of(source: str, order: int) -> int:
    """A seed of each source's own, so that two of equal size are not in the same order."""
    return int.from_bytes(hashlib.blake2b(f"{order}/{source}".encode(), digest_size=8).digest(), "big")


def shares_beside(own: str, others: Sequence[tuple[str, float]], what: str) -> dict[str, Fraction]:
    """The shares of sources by their names, where each of the others has its percentage, and `own` what they leave.

    what: they are, in messages. Raises ValueError for a name that stands twice, percentages beyond 100, and shares that are too fine.
    """
    names = [own, *(name for name, _ in others)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f'two of the {what} are called {twice[0]!r}; give one another name = "…"')
    given = {name: share_of(percent) / 100 for name, percent in others}
    total = sum(given.values(), Fraction())
    if total > 1:
        raise ValueError(f"the percentages sum to {sum_said(100 * total, 100)}, more than 100; lower one")
    shares = {own: 1 - total, **given}
    Blend(shares)
    return shares


def row_at(size: int, seed: int, ordinal: int) -> Place:
    """Which of `size` rows the ordinal-th one is: every row once in each pass, in an order of its own for each pass and seed.

    Example: `sorted(row_at(3, 0, i).row for i in range(3))` is `[0, 1, 2]`, and so it is for 3, 4 and 5.
    """
    assert size > 0, "a source without rows has no order"
    epoch, place = divmod(ordinal, size)
    keys = _round_keys(seed, epoch)
    bits = max(1, (size - 1).bit_length() + 1 >> 1)
    mask = (1 << bits) - 1
    while True:
        left, right = place >> bits, place & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        place = left << bits | right
        if place < size:
            return Place(epoch, place)


def shares_by_tokens(shares: Mapping[str, Fraction], tokens: Mapping[str, int], rows: Mapping[str, int]) -> dict[str, Fraction]:
    """The shares of samples that give these shares of *tokens*, for sources of `rows` rows with `tokens` tokens in all.

    A source whose rows have T / N tokens on average gives samples in proportion to share x N / T. Exact are the averages, which count
    every row. Not exact are, first, the sample shares, rounded to 1 / `TOKEN_PERIOD` so that they sum to 1 and the order still repeats (by
    largest remainder); second, any prefix that does not end with a pass of every source, since rows differ in length. Over whole passes the
    token shares are those asked for, within that rounding. Raises ValueError naming a source without a token that has a share.
    """
    empty = [name for name, share in shares.items() if share and not tokens[name]]
    if empty:
        raise ValueError(f"{empty[0]} has no token to learn from, so it cannot have a share of tokens")
    raw = {name: share * rows[name] / tokens[name] if share else Fraction(0) for name, share in shares.items()}
    whole = sum(raw.values())
    exact = {name: value / whole * TOKEN_PERIOD for name, value in raw.items()}
    floors = {name: math.floor(value) for name, value in exact.items()}
    left = TOKEN_PERIOD - sum(floors.values())
    for name in sorted(exact, key=lambda name: floors[name] - exact[name])[:left]:
        floors[name] += 1
    return {name: Fraction(count, TOKEN_PERIOD) for name, count in floors.items()}


def share_of(number: float) -> Fraction:
    """A decimal number as the fraction that it is written as. Example: `share_of(0.7)` is `Fraction(7, 10)`."""
    return Fraction(repr(number))


def sum_said(total: Fraction, whole: int) -> str:
    """A sum that is not `whole`, so that it can be told from it. Example: `sum_said(Fraction(99), 100)` is "99"."""
    said, off = f"{float(total):.12g}", total - whole
    return said if said != str(whole) else f"{whole} {'+' if off > 0 else '-'} {float(abs(off)):.1g}"


@lru_cache(maxsize=8)
def _period(weights: Sequence[int]) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """The source of each position of a period, and how many earlier positions of the period have the same one, `[period]` each."""
    period = sum(weights)
    sources, ordinals = np.empty(period, np.uint16), np.empty(period, np.uint32)
    given = [0] * len(weights)
    waiting = [(0, i) for i, weight in enumerate(weights) if weight]
    heapify(waiting)
    ready: list[tuple[int, int]] = []
    for position in range(period):
        while waiting and waiting[0][0] <= position:
            i = heappop(waiting)[1]
            heappush(ready, (-(-(given[i] + 1) * period // weights[i]), i))
        latest, i = heappop(ready)
        assert position < latest, "earliest deadline first keeps every window where the load is 1"
        sources[position], ordinals[position] = i, given[i]
        given[i] += 1
        if given[i] < weights[i]:
            heappush(waiting, (given[i] * period // weights[i], i))
    return sources, ordinals


@lru_cache(maxsize=64)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8 * ROUNDS).digest()
    return tuple(int.from_bytes(digest[i : i + 8], "big") for i in range(0, len(digest), 8))


def _mixed(value: int) -> int:
    """A 64-bit hash (the finaliser of SplitMix64: Steele, Lea and Flood 2014, OOPSLA)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
