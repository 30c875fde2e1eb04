"""What a schema costs where a grammar is made of it: the bounds, not the making."""

from __future__ import annotations

from typing import Any

import pytest

from burnish.serving.admission import Refused
from burnish.serving.pattern_cost import pattern_cost
from burnish.serving.requests import check_format, check_schema

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("pattern", "cost"),
    [
        ("", (0, 0)),
        ("abc", (0, 3)),
        ("[a-z]{1,5}-?", (5, 6)),
        ("(ab|c){2}", (2, 6)),
        ("a{3,}", (1, 4)),
        ("(?:a?){1,4}", (7, 4)),
        ("(?<year>[0-9]{4})-(?=x)", (0, 6)),
        (r"\{3}[\]{3}]\(", (0, 5)),
        ("^(([a-z]{1,5}){1,5}){1,5}$", (124, 127)),
        ("(a{9}){999999999}", (0, 1_000_000_000)),
        ("))((", (0, 2)),
        ("[]a[^]b?[]c[d", (1, 6)),
        (r"[a\](b?", (1, 4)),
        ("[" * 300_000, (0, 300_000)),
        ("[" * 300_000 + r"\]", (0, 300_001)),
        ("]" + "[^\\" * 100_000, (0, 200_002)),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_repetitions_are_counted_as_they_are_written_out(pattern: str, cost: tuple[int, int]) -> None:
    assert pattern_cost(pattern) == cost


def form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def fields(count: int, **field: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {f"f{i}": {"type": "string", **field} for i in range(count)}}


NESTED = "^(([a-z]{1,5}){1,5}){1,5}$"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": NESTED},
        {"type": "object", "patternProperties": {NESTED: {"type": "string"}}},
        {"type": "object", "propertyNames": {"pattern": NESTED}},
        {"anyOf": [{"type": "array", "items": {"type": "string", "pattern": NESTED}}]},
        {"$defs": {"a": {"pattern": NESTED}}, "$ref": "#/$defs/a"},
        {"type": "string", "pattern": "([a-z]?[a-z]?[a-z]?[a-z]?){1,16}"},
        {"type": "string", "pattern": "a{2000}"},
        fields(3, pattern="[a-z]{1,32}"),
        fields(5, maxLength=1000),
        {"type": "array", "items": fields(5, minLength=10**12)},
        fields(5, maxLength=1e300),
        fields(65, format="uri"),
        fields(257),
    ],
)
def test_what_would_take_minutes_is_refused_before_a_grammar_is_made(schema: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=r"may (have|come to)") as refused:
        check_format(form(schema))
    assert (refused.value.status, refused.value.param) == (400, "response_format")
    with pytest.raises(Refused, match=r"^tools: "):
        check_schema([{"type": "function", "function": {"name": "f", "parameters": schema}}], "tools")


@pytest.mark.parametrize(
    "schema",
    [
        fields(9, pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}$"),
        fields(9, pattern="^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$"),
        fields(9, pattern=r"^[a-z0-9._%+-]+@[a-z0-9.-]+\.[a-z]{2,}$"),
        fields(1, pattern="^[A-Z][a-z]{1,30}( [A-Z][a-z]+)*$"),
        fields(20, maxLength=200),
        {"type": "object", "properties": {"pattern": {"type": "string"}, "maxLength": {"type": "integer"}}},
        fields(20, format="date"),
        {"enum": ["a", 1, None], "const": {"pattern": 3, "minLength": None}},
    ],
)
def test_what_people_ask_for_is_taken(schema: dict[str, Any]) -> None:
    check_format(form(schema))
