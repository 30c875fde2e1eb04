"""Conversations made up by a machine under templates of eight families, calls in every format, and requests to the endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from functools import cache
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from tests.fuzz.made_up import JSON, spoiled
from tests.unit.chat_templates import FAMILIES, family_tokenizer

from burnish.envs.tool_calls import TEMPLATE_MARKS, TOOL_PARSERS, Malformed, find_parser, parse_tool_calls
from burnish.envs.types import Message, ToolCall
from burnish.rollout.renderers import TemplateRenderer
from burnish.serving.app import StrictChatApp
from burnish.serving.rendering import RenderedChatApp
from burnish.serving.requests import CHAT_FIELDS
from burnish.trainer.data.supervised import sft_examples

pytestmark = pytest.mark.fuzz

SPECIAL = sorted({token for _, special, _, _ in FAMILIES.values() for token in special})
WORDS = [
    "yes",
    "no ",
    " a \n",
    "\n",
    "",
    " ",
    "<think>\nhm\n</think>\n\n",
    "</think>",
    "<think>",
    "<tool_call>",
    "</tool_call>",
    "{{ x }}",
    "ü🚀",
]
SAID = st.lists(st.one_of(st.sampled_from(WORDS), st.sampled_from(SPECIAL), st.text(max_size=6)), max_size=4).map("".join)
NAMES = st.one_of(st.just("add"), SAID)
PLAIN = st.one_of(SAID, st.integers(-9, 9), st.booleans(), st.none(), st.lists(SAID, max_size=2))
CALLS = st.lists(st.builds(ToolCall, st.just("call_0"), NAMES, st.dictionaries(SAID, PLAIN, max_size=2)), max_size=2).map(tuple)
TURNS = st.one_of(
    st.builds(Message, st.sampled_from(["system", "user"]), SAID),
    st.builds(Message, st.just("assistant"), SAID, CALLS),
    st.builds(Message, st.just("tool"), SAID, tool_call_id=st.just("call_0"), name=NAMES),
)
ANSWERED = st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3).map(
    lambda pairs: [message for asked, said in pairs for message in (Message("user", asked), Message("assistant", said))]
)
TALKS = st.one_of(ANSWERED, st.lists(TURNS, min_size=1, max_size=5))
TOOLS = st.lists(
    st.builds(
        lambda name, text, key: {
            "type": "function",
            "function": {"name": name, "description": text, "parameters": {"type": "object", "properties": {key: {"type": "string"}}}},
        },
        NAMES,
        SAID,
        SAID,
    ),
    max_size=2,
)
MODELS = st.tuples(st.sampled_from(list(FAMILIES)), st.booleans())


@cache
def model(family: str, pieces: bool) -> tuple[Any, TemplateRenderer]:
    tokenizer = family_tokenizer(family, pieces=pieces)
    return tokenizer, TemplateRenderer(tokenizer)


def one_line(error: ValueError) -> None:
    assert str(error) and "\n" not in str(error)


# ---------------------------------------------------------------------------------------------------------- chat templates


def plain(message: Message) -> Message:
    """A message of the same form that says nothing."""
    calls = tuple(ToolCall("call_0", "x", {}) for _ in message.tool_calls)
    return Message(message.role, "x", calls, message.tool_call_id, message.name and "x")


@given(MODELS, TALKS, TOOLS)
def test_nothing_that_is_said_becomes_a_control_token(named: tuple[str, bool], talk: list[Message], tools: list[dict[str, Any]]) -> None:
    tokenizer, renderer = model(*named)
    control = set(tokenizer.convert_tokens_to_ids(list(FAMILIES[named[0]][1])))
    empty = [{"type": "function", "function": {"name": "x", "description": "x", "parameters": {}}} for _ in tools]
    try:
        text = renderer.prompt(talk, tools)
    except ValueError as error:
        one_line(error)
        return
    forms = renderer.prompt([plain(message) for message in talk], empty)
    found, own = (Counter(id for id in renderer.encode(one) if id in control) for one in (text, forms))
    assert found == own


@given(MODELS, TALKS, TOOLS)
def test_what_trains_is_every_answer_after_what_it_will_be_asked(
    named: tuple[str, bool], talk: list[Message], tools: list[dict[str, Any]]
) -> None:
    _, renderer = model(*named)
    try:
        examples = sft_examples(talk, renderer, tools)
    except ValueError as error:
        one_line(error)
        return
    last = max(i for i, message in enumerate(talk) if message.role == "assistant")
    whole = renderer.answered(talk[: last + 1], tools)
    assert examples[-1].token_ids.tolist() == renderer.encode(whole)
    answers = [i for i, message in enumerate(talk) if message.role == "assistant"]
    assert 1 <= len(examples) <= len(answers)
    for example in examples:
        assert example.trainable.any() and example.trainable[-1] and not example.trainable[0]
        assert int(example.token_ids[-1]) in renderer.stop_token_ids


@given(MODELS, st.lists(SAID, min_size=1, max_size=3), SAID)
def test_a_conversation_grows_by_the_tokens_of_the_whole(named: tuple[str, bool], said: list[str], then: str) -> None:
    """Where a turn may be appended to what stood there, the tokens are those that serving makes of the whole."""
    _, renderer = model(*named)
    talk = [Message("user", "question")]
    for answer in said:
        try:
            asked = renderer.prompt(talk)
            sampled = renderer.encode(asked + answer)[len(renderer.encode(asked)) :]
            read = renderer.read([*sampled, renderer.stop_token_ids[0]])
            talk = [*talk, Message("assistant", read.text), Message("user", then)]
            following = renderer.prompt(talk)
        except ValueError as error:
            one_line(error)
            return
        shown = asked + read.shown
        if following.startswith(shown):
            new = renderer.encode_after_turn(following[len(shown) :])
            assert renderer.encode(following)[-len(new) :] == new


# -------------------------------------------------------------------------------------------------------------- tool calls


def schema(name: str, *parameters: str) -> dict[str, Any]:
    properties = {parameter: {"type": "string"} for parameter in parameters}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object", "properties": properties}}}


KNOWN = [schema("measure", "part", "feature"), schema("stop")]
MARKS = sorted({mark for marks, _ in TEMPLATE_MARKS for mark in marks})
PIECES = [*MARKS, "</tool_call>", "</function>", "<parameter=part>", "</parameter>", "</arg_key>", "<arg_value>", "</arg_value>"]
PIECES += [
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
    "<|tool_call_begin|>",
    "functions.measure:0",
]
PIECES += ["<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>", "```", "measure", "stop", "other", "(", ")"]
PIECES += ['{"name": "measure", "arguments": {"part": "7"}}', '{"name": "stop", "parameters": {}}', '[{"name": "stop", "arguments": {}}]']
PIECES += ["{", "}", "[", "]", ",", ":", "=", '"', "'", "\\", "\n", " ", "7", "1e999", "NaN", "null", "\x00", "\ud800", "🚀", "function"]
CALL_TEXT = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=25).map("".join),
    st.text(st.characters(), max_size=100),
    spoiled(st.just({"name": "measure", "arguments": {"part": "7", "feature": "bore"}})).map(
        lambda call: f"<tool_call>{json.dumps(call)}</tool_call>"
    ),
)


@pytest.fixture(scope="module")
def parsers() -> list[str]:
    """Every parser of whole texts, loaded."""
    from vllm.tool_parsers import ToolParserManager  # takes seconds

    names = [*(listing.id for listing in TOOL_PARSERS.list()), *(f"vllm/{name}-v1" for name in ToolParserManager.list_registered())]
    found = []
    for name in sorted(names):
        with contextlib.suppress(ValueError):  # not made for whole texts
            find_parser(name)
            found.append(name)
    assert {parser for _, parser in TEMPLATE_MARKS} <= set(found)
    return found


@given(text=CALL_TEXT, data=st.data())
def test_any_text_is_calls_of_known_tools_or_an_answer_or_malformed(parsers: list[str], text: str, data: st.DataObject) -> None:
    found = parse_tool_calls(text, KNOWN, data.draw(st.sampled_from(parsers)))
    if isinstance(found, Malformed):
        assert found.reason
        found.reason.encode()  # the policy reads it
        return
    for call in found:
        assert call.name in ("measure", "stop")
        assert json.loads(json.dumps(call.arguments, allow_nan=False)) == call.arguments


# ---------------------------------------------------------------------------------------------------------------- requests

PART = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]), "text": SAID})
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "developer", "robot"])
CONTENT = st.one_of(SAID, SAID, st.lists(PART, max_size=2), st.none())
ROW = st.fixed_dictionaries(
    {"role": ROLES, "content": CONTENT},
    optional={
        "name": SAID,
        "tool_call_id": st.just("call_0"),
        "tool_calls": st.just([{"id": "call_0", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]),
        "reasoning_content": SAID,
    },
)
REQUESTS = st.fixed_dictionaries(
    {"model": st.just("m"), "messages": st.lists(ROW, max_size=3)},
    optional={"tools": TOOLS, **dict.fromkeys(("n", "stop", "temperature", "stop_token_ids", "ignore_eos", "functions"), JSON)},
)
BODIES = st.one_of(spoiled(REQUESTS).map(lambda request: json.dumps(request).encode()), st.binary(max_size=60))


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """In vLLM's place: answers with the request that reached it."""
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@given(st.sampled_from(list(FAMILIES)), BODIES)
def test_any_request_reaches_the_model_as_in_training_or_is_refused_in_one_line(family: str, body: bytes) -> None:
    _, renderer = model(family, False)

    async def ask() -> httpx.Response:
        app = StrictChatApp(RenderedChatApp(echo, renderer), lambda: ("m",))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            return await client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})

    answer = asyncio.run(ask())
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) in ((400, 400), (404, "model_not_found"))
        assert error["type"] == "invalid_request_error"
        assert error["message"] and "\n" not in error["message"]
        return
    request, arrived = json.loads(body), answer.json()
    assert set(request) <= CHAT_FIELDS
    assert len(arrived["messages"]) in (len(request["messages"]), len(request["messages"]) + 1)  # one more where it lists the tools
    text = json.dumps([arrived["messages"], arrived.get("tools")], ensure_ascii=False)
    assert not any(token in text for token in FAMILIES[family][1]), "what is said holds no control token"
    if not request.get("ignore_eos") and isinstance(request.get("stop_token_ids") or [], list):
        assert all(id in arrived["stop_token_ids"] for id in renderer.stop_token_ids)
