"""Messages, tasks and infos cross the wire unchanged; an environment service answers whatever arrives with a typed answer."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from burnish.envs.contract import StepInfo
from burnish.envs.remote.env import RemoteEnv
from burnish.envs.remote.wire import info_from_wire, info_to_wire, messages_from_wire, messages_to_wire, task_from_wire, task_to_wire
from burnish.envs.types import Message, Task, TextPart, ToolCall
from burnish.rpc.client import BatchedClient
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
