"""Between a value and the total: clip, normalise, weigh, add, cap, in this order, and what makes no sense is refused."""

from __future__ import annotations

from typing import Any

import pytest

from burnish.rewards.config import RewardConfig
from burnish.rewards.terms import Term, standardised
from burnish.rewards.types import InvalidScore, in_full

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("term", "value", "shaped"),
    [
        (Term(), 7.0, 7.0),
        (Term(clip=(-1.0, 1.0)), 7.0, 1.0),
        (Term(clip=(-1.0, 1.0)), -7.0, -1.0),
        (Term(clip=(-1.0, 1.0)), 0.25, 0.25),
        (Term(normalize="minmax", range=(2.0, 10.0)), 4.0, 0.25),
        (Term(normalize="minmax", range=(-1.0, 1.0)), -1.0, 0.0),
        (Term(clip=(0.0, 8.0), normalize="minmax", range=(0.0, 10.0)), 99.0, 0.8),  # clipped first, then mapped
        (Term(0.5, clip=(0.0, 1.0)), 2.0, 1.0),  # the weight comes later
    ],
)
def test_values_are_clipped_and_then_mapped(term: Term, value: float, shaped: float) -> None:
    assert term.shaped(value) == pytest.approx(shaped)


def test_a_value_outside_its_declared_range_is_no_score() -> None:
    term = Term(normalize="minmax", range=(0.0, 1.0))
    for value in (-0.01, 1.01, 50.0):
        with pytest.raises(InvalidScore, match=r"lies outside range = \[0, 1\]; widen it, or clip"):
            term.shaped(value)


def test_a_gate_caps_and_never_raises_the_total() -> None:
    gate = Term(gate=0.5, cap=0.25)
    assert gate.capped(3.0, 0.49) == 0.25
    assert gate.capped(-3.0, 0.49) == -3.0
    assert gate.capped(3.0, 0.5) == 3.0
    assert Term(gate=0.5).capped(3.0, 0.0) == 0.0
    assert Term().capped(3.0, -1e9) == 3.0


def test_standardising_within_a_group() -> None:
    assert standardised([1.0, 3.0]) == pytest.approx([-1.0, 1.0], abs=1e-5)
    assert standardised([0.0, 0.0, 3.0]) == pytest.approx([-(0.5**0.5), -(0.5**0.5), 2**0.5], abs=1e-5)
    assert standardised([0.1, 0.1, 0.1]) == [0.0, 0.0, 0.0]
    assert standardised([7.0]) == [0.0]
    for equal in ([1.0, 1.000003], [0.0, 0.1 + 0.2 - 0.3], [0.0, 1.2e-8]):
        assert standardised(equal) == [0.0, 0.0], "what rounding left was made as large as any difference"
    assert standardised([0.0, 1e-5]) == pytest.approx([-5 / 6, 5 / 6], abs=1e-6)
    assert standardised([]) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clip": (1.0, 0.0)}, r"clip must be \[low, high\] with low < high, not \[1.0, 0.0\]"),
        ({"clip": (0.0, float("inf"))}, "clip must be"),
        ({"normalize": "minmax"}, "needs range"),
        ({"range": (0.0, 1.0)}, "range has no effect without"),
        ({"normalize": "group", "range": (0.0, 1.0)}, "range has no effect without"),
        ({"normalize": "minmax", "range": (1.0, 1.0)}, "range must be"),
        ({"normalize": "minmax", "range": (2.0, 3.0), "clip": (0.0, 1.0)}, "do not overlap"),
        ({"normalize": "z"}, 'normalize must be "minmax" or "group"'),
        ({"weight": 0.0, "clip": (0.0, 1.0)}, "clip has no effect with weight = 0"),
        ({"weight": 0.0, "normalize": "group"}, "normalize has no effect with weight = 0"),
        ({"cap": 0.0}, "cap has no effect without gate"),
        ({"gate": float("nan")}, "gate must be a finite number"),
        ({"weight": float("inf")}, "weight must be a finite number"),
    ],
)
def test_contradictions_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Term(**given)


def test_a_recipe_says_the_same() -> None:
    entry = RewardConfig(
        use="burnish/inspection-cost-v1", weight=0.5, clip=(0.0, 9.0), normalize="minmax", range=(0.0, 9.0), gate=0.1, cap=-1.0
    )
    assert entry.term == Term(0.5, (0.0, 9.0), "minmax", (0.0, 9.0), 0.1, -1.0)
    assert entry.term.description == "clipped to [0, 9] from [0, 9] to [0, 1] x 0.5, below 0.1 the total is at most -1"
    assert RewardConfig(use="burnish/inspection-cost-v1").term == Term()
    for address in ("grader.example.com.py:50051", "verdicts.py:443?tls=1", "a:50051,b.com.py:50051"):  # a country's ending
        assert RewardConfig(verifier=address, name="right").verifier == address
    with pytest.raises(ValueError, match="cap has no effect without gate"):
        RewardConfig(use="burnish/inspection-cost-v1", cap=1.0)


def test_large_bounds_are_shown_as_they_are() -> None:
    """They were shown as 1.23457e+06, to people and to judges."""
    term = Term(2.0, clip=(-1234567.0, 1234567.0))
    assert term.description == "clipped to [-1234567, 1234567] x 2"
    with pytest.raises(InvalidScore, match=r"1234567.5 lies outside range = \[0, 1234567\]"):
        Term(1.0, normalize="minmax", range=(0.0, 1234567.0)).shaped(1234567.5)
    assert [in_full(value) for value in (0.1, -0.0, 1e6, 1 / 3)] == ["0.1", "0", "1000000", "0.333333333333333"]
