"""Whatever arrives on the wire or a policy writes: an answer of its kind or a typed error, never a crash, a hang or a silent zero."""

from __future__ import annotations

import asyncio
import math
from typing import Any, TypeVar

import pytest
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtoMessage
from hypothesis import given
from hypothesis import strategies as st

from burnish.envs.remote.service import EnvironmentService, ServedEnvironment, SessionLimits
from burnish.envs.remote.tools import ToolService
from burnish.envs.tool_calls import Malformed, parse_tool_calls
from burnish.envs.tools import ToolSet, tool
from burnish.rewards.remote.service import Verifier, VerifierService
from burnish.rewards.remote.wire import from_response
from burnish.rewards.types import InvalidScore, RewardInput, Score
from burnish.rpc.errors import Status
from burnish.v1 import common_pb2, environment_pb2, tool_pb2, verifier_pb2

pytestmark = pytest.mark.fuzz

M = TypeVar("M", bound=ProtoMessage)

WAIT_S = 120.0


def from_bytes(kind: type[M]) -> st.SearchStrategy[M]:
    """Messages out of arbitrary bytes; what is no message at all, gRPC refuses before any code of ours sees it."""

    def parsed(data: bytes) -> M:
        try:
            return kind.FromString(data)
        except DecodeError:
            return kind()

    return st.binary(max_size=60).map(parsed)


# ------------------------------------------------------------------------------------------------------------ environments

IDS = st.sampled_from(["", "a", "b"])
TEXT = st.text(max_size=20)
JSON = st.sampled_from(["", "{}", "[]", "{", '{"max_operand": 3}', '{"max_operand": -1}', '{"x": 1}', '{"max_operand": "y"}', "NaN"])
TASKS = st.one_of(st.none(), st.builds(common_pb2.Task, id=TEXT, seed=st.integers(-(2**63), 2**63 - 1), data_json=JSON))
RESETS = st.builds(
    environment_pb2.ResetRequest,
    episode_id=IDS,
    environment=st.sampled_from(["", "burnish/Arithmetic-v0", "x"]),
    seed=st.integers(-(2**63), 2**63 - 1),
    task=TASKS,
    kwargs_json=JSON,
)
STEPS = st.builds(environment_pb2.StepRequest, episode_id=IDS, step_id=st.integers(-2, 3), action=TEXT)
CLOSES = st.builds(environment_pb2.CloseRequest, episode_id=IDS)


EPISODE_REQUESTS = st.one_of(
    st.builds(environment_pb2.EpisodeRequest, reset=RESETS),
    st.builds(environment_pb2.EpisodeRequest, step=STEPS),
    st.builds(environment_pb2.EpisodeRequest, close=CLOSES),
    from_bytes(environment_pb2.EpisodeRequest),
)


@given(st.lists(EPISODE_REQUESTS, max_size=12), st.booleans())
def test_whatever_arrives_gets_an_answer_of_its_kind_or_a_typed_error(requests: list[environment_pb2.EpisodeRequest], inline: bool) -> None:
    async def ask_all() -> None:
        service = EnvironmentService([ServedEnvironment("burnish/Arithmetic-v0")], SessionLimits(max_sessions=2), inline=inline)
        for request in requests:
            answers = []
            for _ in range(2):  # all of it may be asked again
                try:
                    answer: Any = await asyncio.wait_for(service._handle(request), WAIT_S)
                    assert answer.WhichOneof("answer") == request.WhichOneof("call")
                except Status as status:
                    assert status.code != "INTERNAL", status.message
                    answer = (status.code, status.message)
                answers.append(answer)
            assert answers[0] == answers[1]
        assert service.close()

    asyncio.run(ask_all())


# ----------------------------------------------------------------------------------------------------- verifiers and tools

NUMBERS = st.floats() | st.integers(-3, 3).map(float)
MESSAGES = st.lists(
    st.builds(
        common_pb2.Message,
        role=st.integers(0, 6),
        text=TEXT,
        tool_calls=st.lists(st.builds(common_pb2.ToolCall, id=IDS, name=TEXT, arguments_json=JSON), max_size=2),
    ),
    max_size=3,
)
VERIFY_REQUESTS = from_bytes(verifier_pb2.VerifyRequest) | st.builds(
    verifier_pb2.VerifyRequest,
    verifier=st.sampled_from(["", "fuzz/last-v1", "x"]),
    task=TASKS,
    messages=MESSAGES,
    env_reward=NUMBERS,
    env_parts=st.dictionaries(TEXT, NUMBERS, max_size=2),
    data_json=JSON,
)


def last_number(episode: RewardInput) -> float:
    """The environment's reward; raises on an episode without messages, as verifiers do."""
    return episode.env_reward * len(episode.answer or "")


@given(VERIFY_REQUESTS)
def test_whatever_a_verifier_is_asked_ends_in_a_finite_score_or_a_typed_error(request: verifier_pb2.VerifyRequest) -> None:
    async def ask() -> None:
        service = VerifierService([Verifier("fuzz/last-v1", last_number)])
        try:
            answer = await asyncio.wait_for(service.answer(request), WAIT_S)
            assert math.isfinite(answer.score)
        except Status as status:
            assert status.code in ("INVALID_ARGUMENT", "NOT_FOUND", "UNKNOWN", "DATA_LOSS"), status.message
        assert service.close()

    asyncio.run(ask())


@given(from_bytes(verifier_pb2.VerifyResponse) | st.builds(verifier_pb2.VerifyResponse, score=NUMBERS))
def test_whatever_a_verifier_answers_is_a_finite_score_or_invalid(response: verifier_pb2.VerifyResponse) -> None:
    try:
        score = from_response(response)
    except InvalidScore:
        return
    assert isinstance(score, Score) and math.isfinite(score.value) and all(map(math.isfinite, score.parts.values()))
    assert score.value == response.score


@tool
def count(item: str, times: int = 1) -> str:
    """Count."""
    return f"{item} x {times}"


CALL_REQUESTS = from_bytes(tool_pb2.CallRequest) | st.builds(
    tool_pb2.CallRequest,
    tool=st.sampled_from(["", "count", "cuont"]),
    arguments_json=JSON
    | st.sampled_from(['{"item": "a"}', '{"item": 1, "times": "x"}', '{"item": "\\ud800"}', '{"item": "a", "times": 1e400}']),
    task_data_json=JSON | st.just(""),
    task_seed=st.integers(-(2**63), 2**63 - 1),
    session_id=st.sampled_from(["", "s", "t"]),
    call_id=st.sampled_from(["", "0", "1"]),
    session_step=st.integers(0, 3),
)


@given(st.lists(CALL_REQUESTS, min_size=1, max_size=8))
def test_whatever_tools_are_asked_ends_in_text_a_rejection_or_a_typed_error(requests: list[tool_pb2.CallRequest]) -> None:
    async def ask() -> None:
        service = ToolService(ToolSet([count]), sessions=SessionLimits(max_sessions=1))
        for request in requests:
            try:
                answer = await asyncio.wait_for(service.answer(request), WAIT_S)
                assert answer.WhichOneof("outcome") in ("text", "rejected")
            except Status as status:
                allowed = ("INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED") if request.session_id else ("INVALID_ARGUMENT",)
                assert status.code in allowed, status.message
        assert service.close()

    asyncio.run(ask())


# --------------------------------------------------------------------------------------------------------- tool calls in text


def schema(name: str, *parameters: str) -> dict[str, object]:
    properties = {parameter: {"type": "string"} for parameter in parameters}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object", "properties": properties}}}


TOOLS = [schema("measure", "part", "feature"), schema("spec", "feature"), schema("stop")]
PIECES = ["measure(", "spec(", "[", "]", "(", ")", ",", "=", '"', "'", "\\", "```", "<tool_call>", "</tool_call>", '{"name": "spec"']
PIECES += ['"arguments": {', "}", "part", "17", "-", "**", "f'", "{x}", "lambda:", "1e999", "bore", ":=", "await "]
PIECES += ["\n", " ", "\t", "\x00", "\ud800", "\N{ROCKET}"]
FRAGMENTS = st.sampled_from(PIECES)


@given(
    st.one_of(st.text(st.characters(), max_size=200), st.lists(FRAGMENTS, max_size=30).map("".join)),
    st.sampled_from(["pythonic", "hermes"]),
)
def test_no_text_raises_and_calls_are_always_of_known_tools(text: str, parser: str) -> None:
    parsed = parse_tool_calls(text, TOOLS, parser)
    if isinstance(parsed, Malformed):
        assert parsed.reason
        parsed.reason.encode()  # the policy reads it
    else:
        assert {call.name for call in parsed} <= {"measure", "spec", "stop"}
