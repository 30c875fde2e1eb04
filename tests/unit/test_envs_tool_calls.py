"""Reading tool calls out of text: what is a call, what is an answer, what is neither."""

from __future__ import annotations

import pytest

from burnish.envs.tool_calls import MAX_CALL_CHARS, MAX_CALLS, Malformed, parse_tool_calls
from burnish.envs.types import ToolCall

pytestmark = pytest.mark.unit


def schema(name: str, *parameters: str) -> dict[str, object]:
    properties = {parameter: {"type": "string"} for parameter in parameters}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object", "properties": properties}}}


TOOLS = [schema("measure", "part", "feature"), schema("spec", "feature"), schema("stop")]
MEASURE = ToolCall("call_0", "measure", {"part": 17, "feature": "bore"})


@pytest.mark.parametrize(
    "text",
    [
        'measure(17, "bore")',
        '[measure(17, "bore")]',
        "  measure(17, feature='bore')\n",
        "measure(feature='bore', part=17)",
        'I should look at the bore first.\nmeasure(17, "bore")',
        '<think>measure it</think>\n[measure(part=17, feature="bore")]',
        '```python\nmeasure(17, "bore")\n```\nThat is my call.',
        'measure(\n  17,\n  "bore",\n)',
    ],
)
def test_pythonic_forms_of_one_call(text: str) -> None:
    assert parse_tool_calls(text, TOOLS) == (MEASURE,)


def test_pythonic_list_keeps_order_and_numbers_the_calls() -> None:
    calls = parse_tool_calls('[spec("bore"), measure(1, "bore"), stop()]', TOOLS)
    assert calls == (
        ToolCall("call_0", "spec", {"feature": "bore"}),
        ToolCall("call_1", "measure", {"part": 1, "feature": "bore"}),
        ToolCall("call_2", "stop", {}),
    )


def test_pythonic_literals_become_json_values() -> None:
    (call,) = parse_tool_calls("spec(feature=[-1, 2.5, True, None, true, null, ('a', {'k': 'v'})])", TOOLS)  # type: ignore[misc]
    assert call.arguments == {"feature": [-1, 2.5, True, None, True, None, ["a", {"k": "v"}]]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "scrap: the bore is too large",
        "PASS",
        "[1, 2]",
        "7",
        "measure",
        "I would measure(it) carefully.",
        "(pass)",
        "f(x) is not a call of ours.",
    ],
)
def test_pythonic_text_without_a_call_is_an_answer(text: str) -> None:
    assert parse_tool_calls(text, TOOLS) == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('measure(17, "bore"', "was never closed"),
        ("measure(17, bore)", "bore is not a value; put text in quotes"),
        ('measure(17, "bore") and then I will see', "nothing after it"),
        ('measure(1, "bore")\nspec("bore")', "a list of calls"),
        ('measure(1, "bore", 3)', "measure takes 2 arguments (part, feature), not 3"),
        ("measure(1, part=2)", "'part' is given twice"),
        ("measure(part=1, part=2)", "'part' is given twice"),
        ("measure(**{})", "** is not allowed"),
        ("measure(*[1])", "plain values"),
        ("measure(1 + 1)", "plain values"),
        ("measure(__import__('os'))", "plain values"),
        ("measure(part=f'{1}')", "plain values"),
        ("measure(b'x')", "not bytes"),
        ("measure(1e999)", "not a finite number"),
        ("measure(99999999999999999999)", "more than 64 bits"),
        ("measure('\\ud800')", "surrogate"),
        ("measure({1: 2})", "keys of a dict must be strings"),
        ("measure({**{}})", "keys of a dict must be strings"),
        ("[measure(1), 5]", "write tool(name=value)"),
        ("[measure(1), inspect(2)]", "there is no tool 'inspect'"),
        ('meassure(17, "bore")', "there is no tool 'meassure'; did you mean 'measure'?"),
        ("[" + ", ".join(["stop()"] * (MAX_CALLS + 1)) + "]", f"more than {MAX_CALLS} tool calls"),
        ("measure('" + "a" * MAX_CALL_CHARS + "')", f"longer than {MAX_CALL_CHARS} characters"),
        ("measure(" + "[" * 50 + "]" * 50 + ")", "nested deeper"),
        ("measure('\x00')", "null bytes"),
        ("measure('\ud800')", "cannot be read"),
    ],
)
def test_pythonic_attempts_that_fail_say_why(text: str, reason: str) -> None:
    parsed = parse_tool_calls(text, TOOLS)
    assert isinstance(parsed, Malformed)
    assert reason in parsed.reason


def test_hermes_calls_with_text_around_them() -> None:
    text = (
        'First the limit.<tool_call>\n{"name": "spec", "arguments": {"feature": "bore"}}\n</tool_call>'
        ' Then<tool_call>{"name": "measure", "arguments": {"part": 17, "feature": "bore"}}</tool_call>'
        '<tool_call>{"name": "stop"}</tool_call>'
    )
    assert parse_tool_calls(text, TOOLS, "hermes") == (
        ToolCall("call_0", "spec", {"feature": "bore"}),
        ToolCall("call_1", "measure", {"part": 17, "feature": "bore"}),
        ToolCall("call_2", "stop", {}),
    )
    assert parse_tool_calls('scrap, measure(17, "bore")', TOOLS, "hermes") == ()


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ('{"name": "spec"', "not valid JSON"),
        ('"spec"', 'write {"name"'),
        ('{"arguments": {}}', 'write {"name"'),
        ('{"name": "spec", "arguments": [1]}', "arguments of spec must be an object"),
        ('{"name": "spec", "args": {}}', "key 'args' is not known"),
        ('{"name": "spek", "arguments": {}}', "did you mean 'spec'?"),
        ('{"name": "spec", "arguments": {"feature": NaN}}', "not a finite number"),
        ('{"name": "spec", "arguments": {"feature": "\\ud800"}}', "surrogate"),
        ('{"name": "spec", "arguments": {"feature": ' + "9" * 5000 + "}}", "cannot be read"),
        ('{"name": "spec", "arguments": ' + '{"a":' * 1200 + "}" * 1200 + "}", "nest"),
        ("{" + " " * MAX_CALL_CHARS, "longer than"),
    ],
)
def test_hermes_attempts_that_fail_say_why(block: str, reason: str) -> None:
    parsed = parse_tool_calls(f"<tool_call>{block}</tool_call>", TOOLS, "hermes")
    assert isinstance(parsed, Malformed)
    assert reason in parsed.reason


def test_hermes_unbalanced_tags_are_malformed() -> None:
    assert parse_tool_calls('<tool_call>{"name": "stop"}', TOOLS, "hermes") == Malformed("<tool_call> is not closed by </tool_call>")
    assert parse_tool_calls("stop</tool_call>", TOOLS, "hermes") == Malformed("</tool_call> without <tool_call>")
    many = parse_tool_calls("<tool_call>" * 1000, TOOLS, "hermes")
    assert many == Malformed(f"more than {MAX_CALLS} tool calls at once")


def test_unknown_parser_is_a_users_mistake() -> None:
    with pytest.raises(ValueError, match=r"'hermez' is unknown; did you mean 'hermes'\?"):
        parse_tool_calls("", TOOLS, "hermez")


@pytest.mark.parametrize("parser", ["pythonic", "hermes"])
@pytest.mark.parametrize(
    "text",
    [
        "measure(" + "-" * 8000 + "1)",
        "measure(" + "1+" * 4000 + "1)",
        "(" * 100_000,
        " " * 1_000_000,
        "a(" * 300_000,
        "measure(\n" * 50_000,
    ],
)
def test_huge_and_deeply_nested_text_neither_raises_nor_hangs(text: str, parser: str) -> None:
    parsed = parse_tool_calls(text, TOOLS, parser)
    assert parsed == () or isinstance(parsed, Malformed)
