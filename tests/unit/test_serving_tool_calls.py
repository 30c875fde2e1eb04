"""Tool calls in served answers: read by the model's parser, whole and streamed, and written back into later turns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from starlette.types import Receive, Scope, Send
from tests.unit.guard_policy import policy

from burnish.envs.tool_calls import TOOL_PARSERS, Parsed, checked_calls, find_parser, write_pythonic
from burnish.envs.types import ToolCall
from burnish.guardrails.guard import Guard
from burnish.serving.app import chat_service
from burnish.serving.forced_calls import PYTHONIC
from burnish.serving.rendering import as_in_training
from burnish.serving.tool_calls import PARSER_HEADER, _around
from burnish.serving.wire import read_body

pytestmark = pytest.mark.unit

PROPERTIES = {"part": {"type": "integer"}, "feature": {"type": "string"}}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "measure", "parameters": {"type": "object", "properties": PROPERTIES}}},
    {"type": "function", "function": {"name": "stop"}},
]
HERMES = 'I look.\n<tool_call>{"name": "measure", "arguments": {"part": 3, "feature": "bore"}}</tool_call>'


class Model:
    """Says what it is told to, as vLLM's application does; a stream comes in pieces of three characters."""

    def __init__(self, says: str, parser: str = PYTHONIC, finish: str = "stop") -> None:
        self.says, self.parser, self.finish = says, parser, finish
        self.asked: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked = json.loads(await read_body(receive))
        named = (PARSER_HEADER, self.parser.encode())
        head = {"id": "x", "model": "m", "created": 1}
        if not self.asked.get("stream"):
            message = {"role": "assistant", "content": self.says}
            choice = {"index": 0, "message": message, "finish_reason": self.finish}
            usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
            body = json.dumps({**head, "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json"), named]})
            await send({"type": "http.response.body", "body": body})
            return
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream; charset=utf-8"), named]}
        )
        pieces = [self.says[i : i + 3] for i in range(0, len(self.says), 3)]
        rows = [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
        rows += [{"index": 0, "delta": {"content": piece}, "finish_reason": None} for piece in pieces]
        rows.append({"index": 0, "delta": {"content": ""}, "finish_reason": self.finish})
        for row in rows:
            chunk = {**head, "object": "chat.completion.chunk", "choices": [row]}
            await send({"type": "http.response.body", "body": b"data: " + json.dumps(chunk).encode() + b"\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def client(model: Model, guard: Guard | None = None) -> AsyncOpenAI:
    service = chat_service(model, lambda: ("m",), guard=guard)
    http: Any = httpx.AsyncClient(transport=httpx.ASGITransport(service), base_url="http://service")
    return AsyncOpenAI(base_url="http://service/v1", api_key="none", http_client=http, max_retries=0)


async def asked(model: Model, guard: Guard | None = None, **more: Any) -> Any:
    return (await client(model, guard).chat.completions.create(model="m", messages=[{"role": "user", "content": "?"}], **more)).choices[0]


async def streamed(model: Model, guard: Guard | None = None, **more: Any) -> tuple[str, list[tuple[str, str]], str | None, int]:
    """Text, calls and finish reason of a stream, and in how many chunks text came."""
    text, calls, finish, chunks = "", list[tuple[str, str]](), None, 0
    stream = await client(model, guard).chat.completions.create(model="m", messages=[{"role": "user", "content": "?"}], stream=True, **more)
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            chunks += bool(choice.delta.content)
            calls += [(call.function.name, call.function.arguments) for call in choice.delta.tool_calls or ()]
            finish = choice.finish_reason or finish
    return text, calls, finish, chunks


@pytest.mark.parametrize(
    ("says", "parser", "before", "calls"),
    [
        ('measure(3, "bore")', PYTHONIC, None, [("measure", {"part": 3, "feature": "bore"})]),
        ('Now.\nmeasure(3, "bore")\nstop()', PYTHONIC, "Now.", [("measure", {"part": 3, "feature": "bore"}), ("stop", {})]),
        ("stop()\n\nNo medical advice.", PYTHONIC, "No medical advice.", [("stop", {})]),
        (HERMES, "burnish/hermes-v1", "I look.", [("measure", {"part": 3, "feature": "bore"})]),
    ],
)
async def test_what_the_policy_wrote_becomes_calls(says: str, parser: str, before: str | None, calls: list[Any]) -> None:
    found = await asked(Model(says, parser), tools=TOOLS)
    assert found.finish_reason == "tool_calls" and found.message.content == before
    assert [(call.function.name, json.loads(call.function.arguments)) for call in found.message.tool_calls] == calls
    assert all(len(call.id) == 9 and call.type == "function" for call in found.message.tool_calls)
    text, seen, finish, _ = await streamed(Model(says, parser), tools=TOOLS)
    assert (text or None, [(name, json.loads(given)) for name, given in seen], finish) == (before, calls, "tool_calls")


@pytest.fixture
def whole_words() -> Iterator[str]:
    """The id of a parser that makes other words, and other numbers, of what is written."""

    def parse(text: str, tools: Sequence[Mapping[str, Any]]) -> Parsed:
        name, _, said = text.replace("~", "").partition(" ")
        return checked_calls([(name, {"feature": int(said, 36) if said.isalnum() else said})] if name == "measure" else [], tools)

    TOOL_PARSERS.register("test/whole-words-v1", parse, "here")
    yield "test/whole-words-v1"
    TOOL_PARSERS._loaded.pop("test/whole-words-v1")


@pytest.mark.parametrize(
    ("says", "is_call"),
    [
        ("measure the bo~re", True),
        ("measure the ner~ve gas", False),
        ("measure 14h9mddt8lj", False),  # the number of a card
        ("measure write to jo@exa~mple.com", False),
        ("measure no guaran~teed return", True),
    ],
)
async def test_a_call_that_a_policy_holds_back_as_it_is_read_is_none(says: str, is_call: bool, whole_words: str) -> None:
    guard = Guard(policy(tools=[{"tool": "measure", "action": "allow"}]))
    found = await asked(Model(says, whole_words), guard, tools=TOOLS)
    assert (found.finish_reason, bool(found.message.tool_calls)) == (("tool_calls", True) if is_call else ("stop", False))
    assert is_call or found.message.content == says
    text, calls, finish, _ = await streamed(Model(says, whole_words), guard, tools=TOOLS)
    assert (bool(calls), finish) == ((True, "tool_calls") if is_call else (False, "stop"))
    assert is_call or text == says
    assert (await asked(Model(says, whole_words), tools=TOOLS)).finish_reason == "tool_calls"


def test_what_stands_around_calls_is_found_in_a_few_readings() -> None:
    parser, read = find_parser(PYTHONIC), list[int]()

    def counted(text: str, tools: Any) -> Any:
        read.append(len(text))
        return parser(text, tools)

    before, after = "\n".join(f"thought {i}" for i in range(3000)), "\n".join(f"word {i}" for i in range(3000))
    said = f'{before}\nmeasure(3, "bore")\nstop()\n{after}'
    found = parser(said, TOOLS)
    assert isinstance(found, tuple) and len(found) == 2
    assert _around(said, found, counted, TOOLS) == f"{before}\n{after}" and len(read) < 30


@pytest.mark.parametrize(
    ("says", "finish", "more"),
    [
        ('measure(3, "bore")', "stop", {}),  # no tools were given
        ('measure(3, "bore")', "stop", {"tools": TOOLS, "tool_choice": "none"}),
        ('measure(3, "bore")', "length", {"tools": TOOLS}),  # cut short: there may be more of it
        ('measure(3, "bo', "stop", {"tools": TOOLS}),  # no call that can be read
        ("It fits.", "stop", {"tools": TOOLS, "tool_choice": "auto"}),
    ],
)
async def test_everything_else_is_text_as_it_was_written(says: str, finish: str, more: dict[str, Any]) -> None:
    model = Model(says, finish=finish)
    found = await asked(model, **more)
    assert (found.message.content, found.message.tool_calls, found.finish_reason) == (says, None, finish)
    assert model.asked.get("tools") == more.get("tools")
    text, seen, ended, chunks = await streamed(Model(says, finish=finish), **more)
    assert (text, seen, ended) == (says, [], finish) and chunks == -(-len(says) // 3)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tool_choice": "always", "tools": TOOLS}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "look"}}, "tools": TOOLS}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {}}, "tools": TOOLS}, "tool_choice"),
        ({"tool_choice": "required", "tools": TOOLS, "response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required", "tools": [{"type": "function", "function": {"name": "x", "description": "x" * 20_000}}]}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": {"measure": 1}}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": 3}}]}, "tools"),
        ({"tools": [{"function": {"name": "x"}}]}, "tools"),
        ({"response_format": {"type": "regex"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x" * 20_000}}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"anyOf": [{"minProperties": 60}]}}}}, "response_format"),
    ],
)
async def test_what_would_do_nothing_or_harm_is_refused(more: dict[str, Any], param: str) -> None:
    http = httpx.AsyncClient(transport=httpx.ASGITransport(chat_service(Model("x"), lambda: ("m",))), base_url="http://service")
    answer = await http.post("/v1/chat/completions", json={"model": "m", "messages": [{"role": "user", "content": "?"}], **more})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


async def test_a_stream_that_breaks_off_loses_no_text() -> None:
    text, calls, finish, _ = await streamed(Model("It is", finish=None), tools=TOOLS)  # type: ignore[arg-type]
    assert (text, calls, finish) == ("It is", [], None)


async def test_nobody_outside_sees_which_parser_reads() -> None:
    http = httpx.AsyncClient(transport=httpx.ASGITransport(chat_service(Model("x"), lambda: ("m",))), base_url="http://service")
    for stream in (False, True):
        row = {"model": "m", "messages": [{"role": "user", "content": "?"}], "stream": stream}
        assert PARSER_HEADER.decode() not in (await http.post("/v1/chat/completions", json=row)).headers


def test_calls_are_written_as_they_are_read() -> None:
    calls = (
        ToolCall("", "measure", {"part": 3, "feature": 'a "b" ü'}),
        ToolCall("", "measure", {"feature": "bore"}),
        ToolCall("", "stop", {}),
    )
    said = write_pythonic(calls, TOOLS)
    assert said == 'measure(3, "a \\"b\\" ü")\nmeasure(feature="bore")\nstop()'
    again = find_parser("pythonic")(said, TOOLS)
    assert isinstance(again, tuple) and [(one.name, dict(one.arguments)) for one in again] == [(c.name, dict(c.arguments)) for c in calls]


class LeavesOutCalls:
    template_args: dict[str, Any] = {}  # noqa: RUF012
    stop_token_ids = (2,)

    def request(self, messages: Any, tools: Any = ()) -> dict[str, Any]:
        assert not any(message.tool_calls for message in messages)
        return {"messages": [message.to_dict() for message in messages]}


def test_a_conversation_comes_back_as_the_policy_wrote_it() -> None:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "measure", "arguments": '{"part": 3, "feature": "bore"}'}}
    rows = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "25031"},
    ]
    made = as_in_training({"messages": rows, "tools": TOOLS}, LeavesOutCalls(), writes_calls=True)  # type: ignore[arg-type]
    assert [row["content"] for row in made["messages"]] == ["?", 'measure(3, "bore")', "25031"]
    assert made["skip_special_tokens"] is False  # a control token may be part of a call


@pytest.mark.parametrize(("given", "kept"), [({"tool_choice": "none"}, None), ({"skip_special_tokens": True}, True), ({}, False)])
def test_the_model_is_told_to_leave_no_token_of_a_call_out(given: dict[str, Any], kept: bool | None) -> None:
    made = as_in_training({"messages": [{"role": "user", "content": "?"}], "tools": TOOLS, **given}, LeavesOutCalls())  # type: ignore[arg-type]
    assert made.get("skip_special_tokens") is kept and made.get("tool_choice", "none") == "none"
