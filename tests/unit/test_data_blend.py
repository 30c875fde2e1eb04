"""Blending: every prefix keeps its shares, every pass every row, and a position says it all."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.trainer.data.blend import MAX_PERIOD, Blend, Draw, Place, row_at, share_of, shares_beside, shares_by_tokens
from burnish.trainer.data.config import BlendConfig

pytestmark = pytest.mark.unit

WEIGHTS = st.lists(st.integers(0, 60), min_size=1, max_size=9).filter(any)


def blend_of(weights: list[int]) -> Blend:
    return Blend({f"s{i}": Fraction(weight, sum(weights)) for i, weight in enumerate(weights)})


def test_seventy_to_thirty_is_laid_out_as_by_hand() -> None:
    """Windows [0, 2) [1, 3) [2, 5) [4, 6) [5, 8) [7, 9) [8, 10) for the seven, [0, 4) [3, 7) [6, 10) for the three."""
    blend = Blend({"own": share_of(0.7), "curated": share_of(0.3)})
    assert "".join("oc"[blend.at(n).source] for n in range(20)) == "oocoocoooc" * 2
    assert blend.at(12) == Draw(1, 3)
    assert blend.counts(0) == (0, 0) and blend.counts(10) == (7, 3) and blend.counts(1_000_003) == (700_002, 300_001)


@given(WEIGHTS)
@settings(max_examples=150, deadline=None)
def test_every_prefix_has_each_share_within_one(weights: list[int]) -> None:
    blend = blend_of(weights)
    counts = [0] * len(weights)
    for n in range(2 * blend.period + 1):
        assert blend.counts(n) == tuple(counts)
        for count, weight in zip(counts, weights, strict=True):
            exact = Fraction(n * weight, sum(weights))
            assert abs(count - exact) < 1
            assert exact.__floor__() <= count <= exact.__ceil__()
        draw = blend.at(n)
        assert draw.ordinal == counts[draw.source], "rows of a source come one after the other"
        counts[draw.source] += 1


@given(WEIGHTS, st.integers(1000, 10**12))
@settings(max_examples=100, deadline=None)
def test_a_long_prefix_is_exact_to_a_thousandth(weights: list[int], n: int) -> None:
    blend = blend_of(weights)
    assert sum(blend.counts(n)) == n
    for count, share in zip(blend.counts(n), blend.shares, strict=True):
        assert abs(Fraction(count, n) - share) < Fraction(1, 1000)


def test_a_share_of_nothing_gives_nothing() -> None:
    blend = Blend({"a": Fraction(1, 2), "none": Fraction(0), "b": Fraction(1, 2)})
    assert {blend.at(n).source for n in range(100)} == {0, 2}


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ({}, "must sum to 1, not 0"),
        ({"a": Fraction(1, 2)}, r"must sum to 1, not 0\.5"),
        ({"a": Fraction(3, 2), "b": Fraction(-1, 2)}, "the share of b is negative"),
        ({"a": share_of(0.12345678), "b": 1 - share_of(0.12345678)}, r"repeat only after 50,000,000 samples.*fewer digits"),
    ],
)
def test_impossible_shares_are_refused(shares: dict[str, Fraction], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Blend(shares)


def test_the_finest_shares_that_are_taken_keep_their_windows() -> None:
    """The layout asserts the window of every row, of a million here."""
    third = Fraction(333_333, MAX_PERIOD)
    blend = Blend({"a": third, "b": third, "c": 1 - 2 * third})
    assert blend.counts(MAX_PERIOD) == (333_333, 333_333, 333_334)


@given(st.integers(1, 300), st.integers(0, 2**31), st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_every_pass_has_every_row_once(size: int, seed: int, epoch: int) -> None:
    places = [row_at(size, seed, epoch * size + i) for i in range(size)]
    assert {place.epoch for place in places} == {epoch}
    assert sorted(place.row for place in places) == list(range(size))


def test_orders_differ_between_passes_and_seeds_and_never_change() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [row_at(12, seed, epoch * 12 + i).row for i in range(12)]

    assert len({tuple(order(seed, epoch)) for seed in range(5) for epoch in range(5)}) == 25
    assert order(1, 0) == [1, 8, 11, 3, 2, 10, 4, 0, 7, 9, 6, 5], "runs that resume rely on it"
    assert row_at(10**12, 3, 10**12 + 5).epoch == 1
    assert row_at(1, 9, 4) == Place(4, 0)


def test_first_places_are_even_over_the_rows() -> None:
    """Chi-squared over 10 rows and 5,000 seeds: 99.99 % of fair orders lie below 33.7 at 9 degrees of freedom."""
    first = Counter(row_at(10, seed, 0).row for seed in range(5000))
    assert sum((first[row] - 500) ** 2 / 500 for row in range(10)) < 33.7


def test_shares_of_tokens_become_shares_of_samples() -> None:
    """Half of the tokens each: rows of 30 tokens are drawn a third as often as rows of 10."""
    half = Fraction(1, 2)
    shares = shares_by_tokens(
        {"long": half, "short": half, "none": Fraction(0)}, {"long": 300, "short": 50, "none": 0}, {"long": 10, "short": 5, "none": 0}
    )
    assert shares == {"long": Fraction(1, 4), "short": Fraction(3, 4), "none": 0}
    thirds = shares_by_tokens({"a": half, "b": half}, {"a": 200, "b": 100}, {"a": 100, "b": 100})
    assert thirds == {"a": Fraction(33_333, 100_000), "b": Fraction(66_667, 100_000)}
    with pytest.raises(ValueError, match="none has no token"):
        shares_by_tokens({"a": half, "none": half}, {"a": 1, "none": 0}, {"a": 1, "none": 1})


TENTHS = (2.2, 86.9, 10.9)
"""As floats they sum to a little more than 100, as they are written to 100."""


def test_percentages_count_as_they_are_written() -> None:
    assert sum(TENTHS) > 100
    shares = shares_beside("own", [(str(percent), percent) for percent in TENTHS], "blends")
    assert shares == {"own": 0, "2.2": Fraction(22, 1000), "86.9": Fraction(869, 1000), "10.9": Fraction(109, 1000)}
    with pytest.raises(ValueError, match=r"sum to 100\.1, more than 100"):
        shares_beside("own", [("a", 2.3), ("b", 86.9), ("c", 10.9)], "blends")
    assert BlendConfig(own_percent=50, curated={str(percent): percent for percent in TENTHS}).own_percent == 50
    with pytest.raises(ValueError, match=r"must sum to 100, not 99\.9999999999; three equal ones are 33\.34, 33\.33 and 33\.33"):
        BlendConfig(own_percent=50, curated=dict.fromkeys("abc", 33.3333333333))


def test_a_sum_that_is_off_by_little_is_told_from_the_whole() -> None:
    with pytest.raises(ValueError, match=r"must sum to 100, not 100 \+ 8e-15; three equal ones are 33\.34"):
        BlendConfig(own_percent=50, curated=dict.fromkeys("abc", 100 / 3))
    with pytest.raises(ValueError, match=r"must sum to 100, not 100 - 1e-14"):
        BlendConfig(own_percent=50, curated=dict.fromkeys("abc", 33.33333333333333))
    with pytest.raises(ValueError, match=r"sum to 100 \+ 8e-15, more than 100"):
        shares_beside("own", [(name, 33.333333333333336) for name in "abc"], "blends")
    with pytest.raises(ValueError, match=r"must sum to 1, not 1 - 1e-20"):
        Blend({"a": 1 - Fraction(1, 10**20)})
