"""Reading tool calls out of text: what is a call, what is an answer, what is neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from burnish.envs.tool_calls import (
    _BRACKET,
    _PLAINLY,
    MAX_CALL_CHARS,
    MAX_CALLS,
    TOOL_PARSERS,
    Malformed,
    Parsed,
    check_agreement,
    checked_calls,
    parse_tool_calls,
    parser_of_template,
)
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
        'measure(17, "bore") and then I will see',
        'measure(17, "bore")\n\nThat is my call (the bore matters).',
        'measure(17, "bore"); I hope that (part of it) helps',
        'measure(17, "bore")\nSummary (short)',
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


@pytest.mark.parametrize(
    "text",
    [
        'spec("bore")\nmeasure(1, "bore")\nstop()',
        'First:\nspec("bore")\nthen\n  measure(1, "bore")  # the bore\nand\nstop()\nDone.',
        'spec("bore"); measure(1, "bore"), stop()',
        '```\nspec("bore")\n```\n```\nmeasure(1, "bore")\nstop()\n```',
        '[spec("bore")]\n[measure(1, "bore"), stop()]',
    ],
)
def test_several_calls_on_lines_of_their_own_or_beside_each_other(text: str) -> None:
    assert parse_tool_calls(text, TOOLS) == (
        ToolCall("call_0", "spec", {"feature": "bore"}),
        ToolCall("call_1", "measure", {"part": 1, "feature": "bore"}),
        ToolCall("call_2", "stop", {}),
    )


@pytest.mark.parametrize("text", ["measure(1, ')]')", 'measure(1, "a\\")")', "measure(1, [{'k': ')'}])\nok )"])
def test_brackets_inside_text_do_not_close_a_call(text: str) -> None:
    parsed = parse_tool_calls(text, TOOLS)
    assert not isinstance(parsed, Malformed) and len(parsed) == 1 and parsed[0].arguments["part"] == 1


@pytest.mark.parametrize("text", ["a (b\nc) it's )", 'a "(" b\n[', "'\n("])
def test_brackets_in_a_text_of_several_lines_do_not_close_a_call(text: str) -> None:
    (call,) = parse_tool_calls(f'measure(1, """{text}""")', TOOLS)  # type: ignore[misc]
    assert call.arguments == {"part": 1, "feature": text}


@pytest.mark.parametrize("piece", ['\\"', "\\'", "\\\"\\'", '"""\\"', "'''\\'", "\"'", "'\n\\\""])
def test_no_text_of_a_call_is_read_twice_where_it_is_not_closed(piece: str) -> None:
    text = piece * 100_000
    assert sum(len(token[0]) for token in _BRACKET.finditer(text)) <= len(text)
    assert isinstance(parse_tool_calls(f"measure({text[:8000]}", TOOLS), Malformed)


@pytest.mark.timeout(120)
def test_whether_a_value_is_written_plainly_is_told_in_one_pass() -> None:
    """What takes the square of its length takes an hour here."""
    digits = "0" * 1_000_000
    for number in (digits, f"{digits}.", f".{digits}", f"{digits}.{digits}e{digits}"):
        assert _PLAINLY.fullmatch(number)
        assert not _PLAINLY.fullmatch(f"{number}_0")
    assert isinstance(parse_tool_calls(f"measure({digits[:8000]}_0.0)", TOOLS), Malformed)


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
        ('measure(17, "bore")\ninspect("bore")', "there is no tool 'inspect'"),
        ('measure(17, "bore")\nspec("bore"', "was never closed"),
        ("stop()\n" * (MAX_CALLS + 1), f"more than {MAX_CALLS} tool calls"),
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
    "block",
    [
        '{"id": "call_9", "type": "function", "name": "measure", "arguments": {"part": 17, "feature": "bore"}}',
        '{"name": "measure", "arguments": "{\\"part\\": 17, \\"feature\\": \\"bore\\"}"}',
        '{"name": "measure", "arguments": [17, "bore"]}',
    ],
)
def test_hermes_forms_of_one_call(block: str) -> None:
    assert parse_tool_calls(f"<tool_call>{block}</tool_call>", TOOLS, "hermes") == (MEASURE,)
    assert parse_tool_calls('<tool_call>{"name": "stop", "arguments": null}</tool_call>', TOOLS, "hermes") == (
        ToolCall("call_0", "stop", {}),
    )


@pytest.mark.parametrize(
    ("template", "parser"),
    [
        (None, None),
        ("{{ messages }}", None),
        ('return a json object within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>', "burnish/hermes-v1"),
        ("<tool_call>\n<function=example_function_name>", "vllm/qwen3_coder-v1"),
        ("<tool_call>{function-name}<arg_key>", "vllm/glm45-v1"),
        ("{{ '<|tool_calls_section_begin|>' }}", "vllm/kimi_k2-v1"),
        ("[TOOL_CALLS]", "vllm/mistral-v1"),
        ('{"name": function name, "parameters": dictionary', "vllm/llama3_json-v1"),
    ],
)
def test_the_parser_that_a_chat_template_calls_for(template: str | None, parser: str | None) -> None:
    assert parser_of_template(template) == parser


def test_a_parser_that_sees_no_call_of_the_template_is_refused() -> None:
    check_agreement("burnish/hermes-v1", "burnish/hermes-v1")
    check_agreement("vllm/hermes-v1", "burnish/hermes-v1")
    check_agreement("burnish/pythonic-v1", None)
    check_agreement("my-team/hermes-with-notes-v1", "burnish/hermes-v1")
    check_agreement(None, "burnish/hermes-v1")
    with pytest.raises(
        ValueError, match=r"format of burnish/hermes-v1, and the environment reads burnish/pythonic-v1: no call would be seen"
    ):
        check_agreement("burnish/pythonic-v1", "burnish/hermes-v1")


def test_a_parser_of_ones_own_by_id() -> None:
    def shout(text: str, tools: Sequence[Mapping[str, Any]]) -> Parsed:
        return checked_calls([("stop", "{}")] if text == "STOP!" else [], tools)

    TOOL_PARSERS.register("test/shout-v1", shout, "here")
    try:
        assert parse_tool_calls("STOP!", TOOLS, "test/shout-v1") == (ToolCall("call_0", "stop", {}),)
        assert parse_tool_calls("stop", TOOLS, "test/shout-v1") == ()
    finally:
        TOOL_PARSERS._loaded.pop("test/shout-v1")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([("measure", '{"part": 17, "feature": "bore"}')], (MEASURE,)),
        ([("measure", {"part": 17, "feature": "bore"})], (MEASURE,)),
        ([("mesure", "{}")], "there is no tool 'mesure'; did you mean 'measure'?"),
        ([("measure", '{"part": NaN}')], "an argument is not a finite number"),
        ([("measure", "{")], "not valid JSON"),
        ([("stop", "{}")] * 33, "more than 32 tool calls"),
    ],
)
def test_what_other_parsers_read_is_held_to_the_same_rules(found: list[tuple[str, Any]], expected: Any) -> None:
    parsed = checked_calls(found, TOOLS)
    assert expected in parsed.reason if isinstance(parsed, Malformed) else parsed == expected


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ('{"name": "spec"', "not valid JSON"),
        ('"spec"', 'write {"name"'),
        ('{"arguments": {}}', 'write {"name"'),
        ('{"name": "spec", "arguments": [1, 2]}', "spec takes 1 arguments (feature), not 2"),
        ('{"name": "spec", "arguments": 1}', "arguments of spec must be an object"),
        ('{"name": "spec", "arguments": "{"}', "not valid JSON"),
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
    begun = parse_tool_calls('<tool_call>{"name": "stop"}</tool_call><tool_call>{"name": "st', TOOLS, "hermes")
    assert isinstance(begun, Malformed) and begun.before == (ToolCall("call_0", "stop", {}),)
    again = checked_calls([("stop", "{}"), ("stop", "{")], TOOLS)
    assert isinstance(again, Malformed) and again.before == begun.before
    assert parse_tool_calls('<tool_call>{"name": "stop"}', TOOLS, "hermes") == Malformed("<tool_call> is not closed by </tool_call>")
    assert parse_tool_calls("stop</tool_call>", TOOLS, "hermes") == Malformed("</tool_call> without <tool_call>")
    many = parse_tool_calls("<tool_call>" * 1000, TOOLS, "hermes")
    assert many == Malformed(f"more than {MAX_CALLS} tool calls at once")


def test_unknown_parser_is_a_users_mistake() -> None:
    with pytest.raises(ValueError, match=r"'burnish/hermez-v1' is unknown; did you mean 'burnish/hermes-v1'\?"):
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
        "stop()\n" + "a(\n" * 100_000,
        "stop()\n" + "a(1)" * 100_000,
    ],
)
def test_huge_and_deeply_nested_text_neither_raises_nor_hangs(text: str, parser: str) -> None:
    parsed = parse_tool_calls(text, TOOLS, parser)
    assert isinstance(parsed, Malformed) or parsed in ((), (ToolCall("call_0", "stop", {}),))


@pytest.mark.parametrize(
    "value",
    [
        '"ner" "ve gas"',
        "\"ner\"'ve gas'",
        '("ner"\n"ve gas")',
        '{"ner" "ve": 1}',
        '["ner" # here\n"ve"]',
        '"""ner""" "ve"',
        "4111_1111",
        "0x10",
    ],
)
def test_a_value_that_is_written_as_another_is_no_call(value: str) -> None:
    """Python puts pieces of text together, and drops what stands in numbers: a guard reads them as they are written."""
    found = parse_tool_calls(f"measure({value})", TOOLS)
    assert isinstance(found, Malformed) and "text between one pair of quotes, numbers in digits" in found.reason


@pytest.mark.parametrize(
    ("value", "means"),
    [
        ('"""a\n"b"""', 'a\n"b'),
        ("r'\\d'", "\\d"),
        ('u"é\u2028"', "é\u2028"),
        ('"a\\"b"', 'a"b'),
        ("-.5", -0.5),
        ("2.e3", 2000.0),
        ("[1,\r\n'é']", [1, "é"]),
    ],
)
def test_a_value_in_one_piece_is_read_however_it_is_written(value: str, means: object) -> None:
    found = parse_tool_calls(f"measure({value})", TOOLS)
    assert isinstance(found, tuple) and next(iter(found[0].arguments.values())) == means
