"""Formulas over graders: what they are worth, by hand, and what is no formula or has no value."""

from __future__ import annotations

import math

import pytest

from burnish.rewards.graders.bounds import least
from burnish.rewards.graders.formula import MAX_CHARS, MAX_DEPTH, Formula, FormulaError

pytestmark = pytest.mark.unit

VALUES = {"a": 2.0, "b": 0.5, "_c1": 0.0}


def value(text: str) -> float:
    return Formula(text, VALUES)(VALUES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.8 * a + 0.2*b", 1.7),
        ("a ^ 2", 4.0),
        ("a ** 2", 4.0),
        ("-a ^ 2", -4.0),  # the power binds tighter than the sign, as in mathematics
        ("2 ^ 3 ^ 2", 512.0),  # and to the right
        ("(1 + a) / (1 - b)", 6.0),
        ("1 - a - 1", -2.0),
        ("+a - -b", 2.5),
        ("min(a, b, 3) + max(a, b)", 2.5),
        ("abs(-a) + floor(1.7) + ceil(1.2)", 5.0),
        ("exp(_c1) + sqrt(4) + log(1)", 3.0),
        (".5e1", 5.0),
        (" a\n", 2.0),
        ("0 ^ 0", 1.0),
    ],
)
def test_what_a_formula_is_worth(text: str, expected: float) -> None:
    assert value(text) == pytest.approx(expected, abs=1e-12)
    assert type(value(text)) is float


@pytest.mark.parametrize(
    "text", ["1 / _c1", "_c1 ^ -1", "sqrt(-a)", "log(_c1)", "log(-1)", "(-a) ^ 0.5", "exp(1000)", "1e308 * 10", "-1e308 - 1e308"]
)
def test_a_formula_without_a_value_is_an_error_that_shows_the_scores(text: str) -> None:
    with pytest.raises(FormulaError, match=r"a = 2, b = 0.5, _c1 = 0"):
        value(text)


def test_exponents_are_bounded() -> None:
    assert value("a ^ 64") == 2.0**64
    with pytest.raises(FormulaError, match="the exponent 65 is beyond 64"):
        value("a ^ 65")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no formula"),
        ("a b", "is no formula"),
        ("a +", "is no formula"),
        ("(a", "is no formula"),
        ("1_0", "is no formula"),
        ("lambda", "is no formula"),
        ("c", r"names 'c', which is no grader here; did you mean '_c1'\?"),
        ("a if a else b", "holds 'a if a else b'"),
        ("not a", "holds 'not a'"),
        ("a or b", "holds 'a or b'"),
        ("(a, b)", r"holds '\(a, b\)'"),
        ("min(*a, b)", "holds '\\*a'"),
        ("min(a, **b)", "may use"),
        ("a.real", r"holds '\.'"),
        ("a == b", "holds '='"),
        ("'a'", 'holds "\'"'),
        ("a[0]", r"holds '\['"),
        ("a % b", "holds '%'"),
        ("a // b", r"holds 'a // b'|is no formula"),
        ("__import__(a)", "calls '__import__'"),
        ("a(b)", "calls 'a'"),
        ("a(b)(b)", "may use"),
        ("min(a)", "min in the formula takes two arguments or more, not 1"),
        ("sqrt(a, b)", "sqrt in the formula takes one argument, not 2"),
        ("1e999", "too large"),
        ("min", "names 'min'"),
        ("(" * (MAX_DEPTH + 1) + "a" + ")" * (MAX_DEPTH + 1), "nested more than"),
        ("-" * (MAX_DEPTH + 1) + "a", "nested more than"),
        ("a" + " + a" * (MAX_DEPTH + 1), "nested more than"),
        ("a" * (MAX_CHARS + 1), "at most"),
    ],
)
def test_what_is_no_formula(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Formula(text, VALUES)


RANGES = {"a": (0.0, 1.0), "b": (-1.0, 2.0), "c": (1.0, 5.0)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5 * a + 0.5 * (1 - b)", -0.5),
        ("c - a - b", -2.0),
        ("-b ^ 2", -4.0),
        ("b ^ 2", 0.0),
        ("b ^ 3", -1.0),
        ("(1 + b) ^ 0.5", 0.0),
        ("c ^ -2", 0.04),
        ("2 ^ b", 0.5),
        ("b * c", -5.0),
        ("a / c", 0.0),
        ("b / c", -1.0),
        ("1 / a", 1.0),
        ("1 / b", -math.inf),
        ("log(c)", 0.0),
        ("log(a)", -math.inf),
        ("max(log(a), -3)", -3.0),
        ("abs(b) + sqrt(c) + floor(a) + ceil(b)", 0.0),
        ("min(a, b) + exp(b)", -1 + math.exp(-1)),
        ("exp(1000 * c)", math.inf),
    ],
)
def test_the_least_of_a_formula_over_the_ranges_of_its_names(text: str, expected: float) -> None:
    assert least(Formula(text, RANGES), RANGES) == pytest.approx(expected, abs=1e-12)


def test_no_value_of_a_formula_lies_below_its_least() -> None:
    for text in ("a * b - b / c", "(a - b) ^ 2 * c", "max(a, b) - min(b, c)", "b ^ 3 - a * b", "abs(a - c) * b"):
        formula = Formula(text, RANGES)
        grid = [{"a": i / 4, "b": -1 + 3 * j / 4, "c": 1 + k} for i in range(5) for j in range(5) for k in range(5)]
        assert min(formula(values) for values in grid) >= least(formula, RANGES) - 1e-12
