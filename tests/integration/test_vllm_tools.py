"""vLLM's tool parsers behind the registry: formats that burnish does not read itself, held to its rules."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.grammars import compiled, fits

from burnish.envs.tool_calls import TEMPLATE_MARKS, Malformed, find_parser, parse_tool_calls
from burnish.envs.types import ToolCall
from burnish.serving.forced_calls import forced_calls

pytestmark = pytest.mark.integration

MEASURE = ToolCall("call_0", "measure", {"part": 17, "feature": "bore"})
PROPERTIES = {"part": {"type": "integer"}, "feature": {"type": "string"}}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "measure", "description": "", "parameters": {"type": "object", "properties": PROPERTIES}}}
]


FAMILIES_CALLS = [
    ("hermes", 'Look.<tool_call>{"name": "measure", "arguments": {"part": 17, "feature": "bore"}}</tool_call>'),
    (
        "qwen3_coder",
        "<tool_call>\n<function=measure>\n<parameter=part>\n17\n</parameter>\n"
        "<parameter=feature>\nbore\n</parameter>\n</function>\n</tool_call>",
    ),
    (
        "glm45",
        "<tool_call>measure\n<arg_key>part</arg_key>\n<arg_value>17</arg_value>\n"
        "<arg_key>feature</arg_key>\n<arg_value>bore</arg_value>\n</tool_call>",
    ),
    (
        "kimi_k2",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.measure:0<|tool_call_argument_begin|>"
        '{"part": 17, "feature": "bore"}<|tool_call_end|><|tool_calls_section_end|>',
    ),
    (
        "deepseek_v3",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>measure\n"
        '```json\n{"part": 17, "feature": "bore"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    ),
    ("mistral", '[TOOL_CALLS] [{"name": "measure", "arguments": {"part": 17, "feature": "bore"}}]'),
    ("mistral", '[TOOL_CALLS]measure[ARGS]{"part": 17, "feature": "bore"}'),
    ("llama3_json", '{"name": "measure", "parameters": {"part": 17, "feature": "bore"}}'),
]


@pytest.mark.parametrize(("name", "text"), FAMILIES_CALLS)
def test_a_call_in_the_format_of_another_family(name: str, text: str) -> None:
    assert parse_tool_calls(text, TOOLS, f"vllm/{name}-v1") == (MEASURE,)
    assert parse_tool_calls("scrap: the bore is too large", TOOLS, f"vllm/{name}-v1") == ()


FORCED = {"qwen3_coder", "glm45", "kimi_k2", "deepseek_v3", "llama3_json"}


@pytest.mark.parametrize(("name", "text"), FAMILIES_CALLS)
def test_the_form_of_a_family_can_be_forced_where_vllm_knows_it(name: str, text: str) -> None:
    if name in FORCED:
        grammar = compiled(forced_calls(f"vllm/{name}-v1", TOOLS, "measure"))
        assert fits(grammar, text) and not fits(grammar, f"{text}\n{text}") and not fits(grammar, "scrap")
    elif name == "mistral":
        with pytest.raises(ValueError, match=r"vllm/mistral-v1 reads them, and that form cannot be forced"):
            forced_calls(f"vllm/{name}-v1", TOOLS, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('<tool_call>{"name": "measure"</tool_call>', "cannot be read"),  # vLLM gives this back as an answer
        ('<tool_call>{"name": "mesure", "arguments": {}}</tool_call>', "there is no tool 'mesure'; did you mean 'measure'?"),
        ('<tool_call>{"name": "measure", "arguments": {"part": NaN}}</tool_call>', "not a finite number"),
    ],
)
def test_an_attempt_that_fails_is_malformed_never_an_answer(text: str, reason: str) -> None:
    parsed = parse_tool_calls(text, TOOLS, "vllm/hermes-v1")
    assert isinstance(parsed, Malformed)
    assert reason in parsed.reason


@pytest.mark.parametrize("name", ["kimi_k2", "deepseek_v3", "mistral", "glm45"])
def test_a_mark_without_a_call_is_malformed_in_every_format(name: str) -> None:
    marks = {"kimi_k2": "<|tool_calls_section_begin|>", "deepseek_v3": "<｜tool▁calls▁begin｜>", "mistral": "[TOOL_CALLS]"}
    assert isinstance(parse_tool_calls(f"Well. {marks.get(name, '<tool_call>')} oops", TOOLS, f"vllm/{name}-v1"), Malformed)


def test_every_parser_that_a_chat_template_calls_for_is_there() -> None:
    for _, parser in TEMPLATE_MARKS:
        assert callable(find_parser(parser))


def test_a_name_that_vllm_has_not_is_one_line() -> None:
    with pytest.raises(ValueError, match="vLLM has no tool parser 'hermez'; did you mean 'hermes'"):
        find_parser("vllm/hermez-v1")
    with pytest.raises(ValueError, match="does not read whole texts"):
        find_parser("vllm/openai-v1")
