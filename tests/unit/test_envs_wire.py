"""Messages, tasks and infos cross the wire unchanged; an environment service answers whatever arrives with a typed answer."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.envs.contract import StepInfo
from burnish.envs.env_service import EnvironmentService, ServedEnvironment, SessionLimits
from burnish.envs.remote_env import RemoteEnv
from burnish.envs.types import Message, Task, TextPart, ToolCall
from burnish.envs.wire import info_from_wire, info_to_wire, messages_from_wire, messages_to_wire, task_from_wire, task_to_wire
from burnish.rpc.client import BatchedClient
from burnish.rpc.errors import Status
from burnish.rpc.methods import EPISODE
from burnish.rpc.payload import PayloadError
from burnish.v1 import common_pb2, environment_pb2

pytestmark = pytest.mark.unit

MESSAGES = (
    Message("system", (TextPart("Inspect "), TextPart("part 17."))),
    Message("assistant", "", (ToolCall("call_0", "measure", {"part": 17, "deep": [1, 2.5, None, {"ok": True}]}),)),
    Message("tool", "0.02 Bohrung zu groß", tool_call_id="call_0", name="measure"),
)
INFO: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "measure", "parameters": {"type": "object"}}}],
    "reward_parts": {"right": 1.0},
    "metrics": {"cost": 0.5},
    "labels": {"expected": "scrap"},
    "data": {"answer": 2**53 + 1, "list": [1, 2]},
}


def test_everything_comes_back_as_it_was() -> None:
    wire = [common_pb2.Message.FromString(one.SerializeToString()) for one in messages_to_wire(MESSAGES)]
    assert messages_from_wire("messages", wire) == MESSAGES
    task = Task("train-17", -5, MESSAGES, {"answer": 7})
    assert task_from_wire(common_pb2.Task.FromString(task_to_wire(task).SerializeToString())) == task
    assert info_from_wire(info_to_wire(StepInfo.read(INFO))) == INFO
    assert info_from_wire(info_to_wire(StepInfo())) == {}


def test_text_that_utf8_cannot_carry_is_replaced_wherever_the_policy_can_put_it() -> None:
    odd = Message("tool", "\ud800", (ToolCall("\ud800", "\ud800"),), tool_call_id="\ud800", name="\ud800")
    assert messages_from_wire("m", messages_to_wire([odd])) == (Message("tool", "?", (ToolCall("?", "?"),), tool_call_id="?", name="?"),)
    info = StepInfo(labels={"\ud800": "\ud800"}, metrics={"\ud800": 1.0})
    assert info_from_wire(info_to_wire(info)) == {"labels": {"?": "?"}, "metrics": {"?": 1.0}}


def test_what_is_malformed_is_named() -> None:
    with pytest.raises(PayloadError, match=r"prompt\[1\]\.role is 0; set one of"):
        messages_from_wire("prompt", [*messages_to_wire(MESSAGES[:1]), common_pb2.Message(text="hi")])
    with pytest.raises(PayloadError, match=r"m\[0\]\.tool_calls\[0\]\.arguments_json: must be a JSON object, not list"):
        messages_from_wire("m", [common_pb2.Message(role=common_pb2.ROLE_USER, tool_calls=[common_pb2.ToolCall(arguments_json="[1]")])])
    with pytest.raises(PayloadError, match=r'info\["data"\]: truth is inf, not a finite number'):
        info_to_wire(StepInfo(data={"truth": float("inf")}))
    with pytest.raises(PayloadError, match=r"info\.tools_json\[0\]: not valid JSON"):
        info_from_wire(environment_pb2.StepInfo(tools_json=["{"]))


def test_a_remote_environment_is_cheap_to_make_and_says_what_is_wrong_with_its_arguments() -> None:
    RemoteEnv("127.0.0.1:1").close()  # connects to nothing
    client = BatchedClient("127.0.0.1:1", EPISODE)
    assert pickle.loads(pickle.dumps(client)).method is EPISODE
    wrong: dict[str, dict[str, Any]] = {
        "deadline_s must be a positive number": {"address": "127.0.0.1:1", "deadline_s": 0},
        "must read host:port": {"address": "localhost"},
        "kwargs: level is inf": {"address": "127.0.0.1:1", "kwargs": {"level": float("inf")}},
    }
    for says, arguments in wrong.items():
        with pytest.raises(ValueError, match=says):
            RemoteEnv(**arguments)


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


def parsed(data: bytes) -> environment_pb2.EpisodeRequest:
    try:
        return environment_pb2.EpisodeRequest.FromString(data)
    except DecodeError:
        return environment_pb2.EpisodeRequest()


REQUESTS = st.one_of(
    st.builds(environment_pb2.EpisodeRequest, reset=RESETS),
    st.builds(environment_pb2.EpisodeRequest, step=STEPS),
    st.builds(environment_pb2.EpisodeRequest, close=CLOSES),
    st.binary(max_size=40).map(parsed),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(REQUESTS, max_size=12), st.booleans())
def test_whatever_arrives_gets_an_answer_of_its_kind_or_a_typed_error(requests: list[environment_pb2.EpisodeRequest], inline: bool) -> None:
    async def ask_all() -> None:
        service = EnvironmentService([ServedEnvironment("burnish/Arithmetic-v0")], SessionLimits(max_sessions=2), inline=inline)
        for request in requests:
            answers = []
            for _ in range(2):  # all of it may be asked again
                try:
                    answer: Any = await asyncio.wait_for(service._handle(request), 10.0)
                    assert answer.WhichOneof("answer") == request.WhichOneof("call")
                except Status as status:
                    assert status.code != "INTERNAL", status.message
                    answer = (status.code, status.message)
                answers.append(answer)
            assert answers[0] == answers[1]
        assert service.close()

    asyncio.run(ask_all())
