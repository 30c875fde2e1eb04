"""Grammars of forced calls: whatever they let a model write, the model's parser reads as calls of the tools that were asked for."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.grammars import anything, compiled, fits

from burnish.envs.tool_calls import find_parser, write_pythonic
from burnish.envs.types import ToolCall
from burnish.serving.forced_calls import HERMES, PYTHONIC, forced_calls, pythonic_grammar

pytestmark = pytest.mark.unit

PROPERTIES: dict[str, Any] = {
    "part": {"type": "integer"},
    "feature": {"type": "string", "enum": ["bore", 'é"x\n']},
    "limits": {"type": "array", "items": {"type": "number"}},
    "more": {"anyOf": [{"type": "string"}]},
}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": "measure", "parameters": {"type": "object", "properties": PROPERTIES, "required": ["feature"]}},
    },
    {"type": "function", "function": {"name": "stop"}},
    {"type": "function", "function": {"name": "note", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}},
]


@pytest.mark.parametrize("parser", [PYTHONIC, HERMES])
def test_whatever_a_model_writes_under_the_grammar_are_calls_that_its_parser_reads(parser: str) -> None:
    read, chance = find_parser(parser), random.Random(3)
    for only in (None, "measure", "stop"):
        grammar = compiled(forced_calls(parser, TOOLS, only))
        seen = set()
        for _ in range(60):
            said = anything(grammar, chance)
            found = read(said, TOOLS)
            assert isinstance(found, tuple) and found, said
            assert len(found) == 1 or only is None, said
            seen |= {call.name for call in found}
            for call in found:
                if call.name == "measure":
                    assert call.arguments["feature"] in PROPERTIES["feature"]["enum"], said
                    assert isinstance(call.arguments.get("part", 0), int), said
        assert seen == ({only} if only else {"measure", "stop", "note"})


def test_the_grammar_of_the_own_form_takes_what_burnish_writes_and_keeps_types_and_order() -> None:
    grammar = compiled(forced_calls(PYTHONIC, TOOLS, None))
    calls = [
        ToolCall("", "measure", {"part": -17, "feature": "bore"}),
        ToolCall("", "measure", {"part": 0, "feature": "bore", "limits": [1.5, -2], "more": {"a": [True, None, "x"]}}),
        ToolCall("", "stop", {}),
        ToolCall("", "note", {"text": 'It is "so".'}),
    ]
    for some in ([call] for call in calls):
        assert fits(grammar, write_pythonic(some, TOOLS)), some
    assert fits(grammar, write_pythonic(calls, TOOLS))
    for wrong in (
        "",
        "I look.",
        "Now: stop()",
        "measure(3)",
        'measure("3", "bore")',
        'measure(3, "edge")',
        'measure(03, "bore")',
        "stop() stop()",
    ):
        assert not fits(grammar, wrong), wrong


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
KINDS = st.sampled_from(["object", "array", "string", "integer", "number", "boolean", "null", "tuple"])
SCHEMAS = st.recursive(
    st.fixed_dictionaries({}, optional={"type": KINDS | ANY, "enum": st.lists(ANY, max_size=3) | ANY, "items": ANY}),
    lambda inner: st.fixed_dictionaries({"type": KINDS}, optional={"items": inner, "anyOf": st.lists(inner, max_size=2)}),
    max_leaves=4,
)


@given(st.dictionaries(st.text(max_size=5), SCHEMAS, max_size=4), ANY)
def test_the_own_form_has_a_grammar_for_whatever_a_schema_says(properties: dict[str, Any], required: Any) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": properties, "required": required}}}
    said = anything(compiled(forced_calls(PYTHONIC, [tool], "f")), random.Random(1))
    found = find_parser(PYTHONIC)(said, [tool])
    assert isinstance(found, tuple) and len(found) == 1, said


def test_a_named_tool_is_called_once() -> None:
    for parser, call in ((PYTHONIC, "stop()"), (HERMES, '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>')):
        once, often = (compiled(forced_calls(parser, TOOLS, only)) for only in ("stop", None))
        assert fits(once, call) and not fits(once, f"{call}\n{call}")
        assert fits(often, call) and fits(often, f"{call}\n{call}")


def test_what_cannot_be_forced_says_why() -> None:
    def tool(name: str) -> list[Any]:
        return [{"type": "function", "function": {"name": name}}]

    for name in ("<|im_end|>", 'x"', "", "a b"):
        with pytest.raises(ValueError, match="cannot be forced: a name has letters"):
            forced_calls(HERMES, tool(name), None)
    for name in ("look-up", "9x", "import"):
        assert forced_calls(HERMES, tool(name), None)
        with pytest.raises(ValueError, match="that is no name"):
            forced_calls(PYTHONIC, tool(name), None)
    assert "call0" in pythonic_grammar([{"name": "stop", "parameters": None}], once=True)
