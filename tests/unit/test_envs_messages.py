"""Messages as OpenAI has them: every key is read, or refused by name with what to write instead."""

from __future__ import annotations

import json
from typing import Any

import pytest

from burnish.envs.types import Message, ToolCall, message_from_dict, refuse_unread
from burnish.serving.admission import Refused
from burnish.serving.requests import read_chat_request
from burnish.trainer.data.forms import read_conversation, read_messages
from burnish.trainer.data.task_files import task_row

pytestmark = pytest.mark.unit


def test_openais_own_form_is_read() -> None:
    call = {"id": "call_0", "type": "function", "index": 0, "function": {"name": "add", "arguments": '{"a": 3, "b": 4}'}}
    row = {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": [], "function_call": None}
    assert message_from_dict(row) == Message("assistant", "", (ToolCall("call_0", "add", {"a": 3, "b": 4}),))
    assert message_from_dict({"role": "developer", "content": "Be brief."}) == Message("system", "Be brief.")
    empty = {"function": {"name": "now", "arguments": ""}, "id": None}
    assert message_from_dict({"role": "assistant", "content": "", "tool_calls": [empty]}).tool_calls == (ToolCall("", "now", {}),)


def call_of(**function: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", **function}}]}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"role": "assistant", "content": "7", "reasoning_content": "3 + 4"}, r"m: reasoning_content is not read; write it into content"),
        ({"role": "assistant", "content": "7", "thinking": "3 + 4"}, r"m: thinking is not read; write it into content.*<think>"),
        ({"role": "assistant", "content": "", "function_call": {"name": "add"}}, r"m: function_call is not read; write tool_calls: \["),
        ({"role": "user", "content": "x", "weight": 0}, r"m: weight is not read; remove it \(read are role, content, tool_calls"),
        ({"role": "function", "content": "7", "name": "add"}, "role 'function' is unknown.*role tool"),
        (call_of(arguments="{"), r"m.tool_calls\[0\]: function.arguments is no JSON"),
        (call_of(arguments="[3]"), "must be an object, or one as JSON text, not list"),
        (
            {
                "role": "user",
                "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y", "cache_control": {"type": "ephemeral"}}],
            },
            r"m.content\[1\]: cache_control is not read; remove it \(read are type, text\)",
        ),
        ({"role": "user", "content": [{"type": "text", "text": "x", "weight": 0}]}, r"m.content\[0\]: weight is not read"),
        (call_of(strict=True), r"m.tool_calls\[0\].function: strict is not read"),
    ],
)
def test_what_is_not_read_is_refused_by_name(row: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        message_from_dict(row, "m")


def test_arguments_of_more_values_than_anybody_writes_are_refused_before_any_is_made() -> None:
    """A request of 3.9 MB took 100 MB and 2.5 s of the engine's event loop."""
    many = '{"a":[' + "[]," * 60_000 + "0]}"
    assert len(message_from_dict(call_of(arguments=many)).tool_calls[0].arguments["a"]) == 60_001
    two = [*call_of(arguments=many)["tool_calls"], *call_of(arguments=many)["tool_calls"]]
    with pytest.raises(ValueError, match=r"m: function\.arguments of the tool calls hold more than 100000 JSON values"):
        message_from_dict({"role": "assistant", "tool_calls": two}, "m")
    with pytest.raises(ValueError, match=r"messages: function\.arguments of the tool calls hold more than 500000 JSON values"):
        read_messages([call_of(arguments=many)] * 9, "messages")
    with pytest.raises(ValueError, match=r"messages: function\.arguments of the tool calls hold more than 500000 JSON values"):
        task_row({"messages": [{"role": "user", "content": "x"}, *[call_of(arguments=many)] * 9]}, "tasks", 1)
    with pytest.raises(Refused, match=r"messages: function\.arguments of the tool calls hold more than 300000 JSON values"):
        read_chat_request(json.dumps({"model": "m", "messages": [call_of(arguments=many)] * 6}).encode())


def test_a_key_that_says_nothing_is_as_good_as_absent() -> None:
    refuse_unread({"a": None, "b": "", "c": [], "d": {}}, ())
    with pytest.raises(ValueError, match="e is not read"):
        refuse_unread({"e": False}, ())


TALK = [{"role": "user", "content": "3 + 4?"}, {"role": "assistant", "content": "7"}]


def test_rows_of_other_forms_are_refused_by_name() -> None:
    for key, value in (("functions", [{"name": "add"}]), ("chosen", TALK)):
        with pytest.raises(ValueError, match=f"^{key} is not read"):
            read_conversation({"messages": TALK, key: value})
    assert read_conversation({"messages": TALK, "id": 3, "metadata": {"by": "me"}, "functions": None}).messages[1].text == "7"
    with pytest.raises(ValueError, match=r"functions is not read; write tools: \["):
        task_row({"messages": TALK[:1], "functions": [{"name": "add"}]}, "train", 1)
    assert task_row({"messages": TALK[:1], "topic": "sums"}, "train", 1).data == {"topic": "sums"}
