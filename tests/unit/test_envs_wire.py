"""Messages, tasks and infos cross the wire unchanged; an environment service answers whatever arrives with a typed answer."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
import tracemalloc
from typing import Any

import gymnasium
import pytest

from burnish.envs.contract import StepInfo
from burnish.envs.registry import did_you_mean, some_of
from burnish.envs.remote import session as session_module
from burnish.envs.remote import tools as tools_module
from burnish.envs.remote import wire
from burnish.envs.remote.env import RemoteEnv
from burnish.envs.remote.service import EnvironmentService, ServedEnvironment, SessionLimits
from burnish.envs.remote.tools import ToolService
from burnish.envs.remote.wire import (
    MAX_ENTRIES,
    info_from_wire,
    info_to_wire,
    messages_from_wire,
    messages_to_wire,
    task_from_wire,
    task_to_wire,
)
from burnish.envs.tools import Tool, ToolSet, tool
from burnish.envs.types import Message, Task, TextPart, ToolCall
from burnish.rewards.remote.service import Verifier, VerifierService
from burnish.rpc.batches import AT_ONCE_BYTES
from burnish.rpc.client import BatchedClient
from burnish.rpc.errors import RpcError, Status
from burnish.rpc.methods import EPISODE
from burnish.rpc.payload import MAX_JSON_CHARS, PayloadError
from burnish.v1 import common_pb2, environment_pb2, tool_pb2, verifier_pb2

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


def test_json_of_a_message_is_bounded_together_and_not_only_each_text_of_it() -> None:
    """Forty megabytes of arguments, each below its bound, made 20 million lists."""
    text = json.dumps({"a": [[]] * 99_000}, separators=(",", ":"))
    most = MAX_JSON_CHARS // len(text)
    calls = [common_pb2.ToolCall(name="x", arguments_json=text)] * (most + 1)
    many = [common_pb2.Message(role=common_pb2.ROLE_ASSISTANT, tool_calls=calls[:2]) for _ in range(most // 2 + 1)]
    for rows in (many, [common_pb2.Message(role=common_pb2.ROLE_ASSISTANT, tool_calls=calls)]):
        with pytest.raises(PayloadError, match=r"messages: arguments_json of all calls has .* characters of JSON; the limit is 8388608"):
            messages_from_wire("messages", rows)
    assert len(messages_from_wire("messages", many[:1])) == 1
    with pytest.raises(PayloadError, match=r"info.tools_json has .* characters of JSON"):
        info_from_wire(environment_pb2.StepInfo(tools_json=[text] * (most + 1)))
    with pytest.raises(PayloadError, match=r"info.tools_json holds 65537 entries"):
        info_from_wire(environment_pb2.StepInfo(tools_json=["{}"] * (MAX_ENTRIES + 1)))


def test_text_that_utf8_cannot_carry_is_replaced_wherever_the_policy_can_put_it() -> None:
    odd = Message("tool", "\ud800", (ToolCall("\ud800", "\ud800"),), tool_call_id="\ud800", name="\ud800")
    assert messages_from_wire("m", messages_to_wire([odd])) == (Message("tool", "?", (ToolCall("?", "?"),), tool_call_id="?", name="?"),)
    info = StepInfo(labels={"\ud800": "\ud800"}, metrics={"\ud800": 1.0})
    assert info_from_wire(info_to_wire(info)) == {"labels": {"?": "?"}, "metrics": {"?": 1.0}}


def test_more_entries_than_an_episode_has_are_refused_before_any_is_read() -> None:
    """Two bytes on the wire make one."""
    with pytest.raises(PayloadError, match=r"task\.prompt holds 65537 entries; the limit is 65536"):
        task_from_wire(common_pb2.Task(prompt=[common_pb2.Message()] * (MAX_ENTRIES + 1)))
    calls = common_pb2.Message(role=common_pb2.ROLE_USER, tool_calls=[common_pb2.ToolCall()] * (MAX_ENTRIES + 1))
    parts = common_pb2.Message(role=common_pb2.ROLE_USER, parts=common_pb2.TextParts(parts=[common_pb2.TextPart()] * (MAX_ENTRIES + 1)))
    for message, what in ((calls, "tool_calls"), (parts, "parts")):
        with pytest.raises(PayloadError, match=rf"m\[0\]\.{what} holds 65537 entries"):
            messages_from_wire("m", [message])


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


# ------------------------------------------------------------------------------------------------------------------ what a service keeps


def reset(episode_id: str, text: str = "", environment: str = "") -> environment_pb2.EpisodeRequest:
    task = common_pb2.Task(id="t", data_json=json.dumps({"text": text}))
    return environment_pb2.EpisodeRequest(reset=environment_pb2.ResetRequest(episode_id=episode_id, environment=environment, task=task))


async def test_sessions_are_bounded_in_bytes_and_know_their_reset_by_its_digest() -> None:
    """4,096 episodes whose resets had 64 MiB each were kept, for ten minutes after anybody used them."""
    service = EnvironmentService([ServedEnvironment("burnish/Arithmetic-v0")], SessionLimits(max_bytes=1 << 20), inline=True)
    for i in range(5):
        await service._handle(reset(f"e-{i}", "x" * 200_000))
    with pytest.raises(Status, match=r"the episodes that are open hold as many bytes as this server keeps \(1 MiB\)"):
        await service._handle(reset("e-5", "x" * 200_000))
    await service._handle(reset("small"))
    await service._handle(environment_pb2.EpisodeRequest(close=environment_pb2.CloseRequest(episode_id="e-0")))
    await service._handle(reset("e-5", "x" * 200_000))
    assert (await service._handle(reset("e-5", "x" * 200_000))).HasField("reset"), "the same again"
    with pytest.raises(Status, match="is open already, from another reset"):
        await service._handle(reset("e-5", "x" * 199_999 + "y"))
    step = environment_pb2.StepRequest(episode_id="small", step_id=0, action="7")
    first = await service._handle(environment_pb2.EpisodeRequest(step=step))
    assert await service._handle(environment_pb2.EpisodeRequest(step=step)) == first
    step.action = "8"
    with pytest.raises(Status, match="taken already, with another action"):
        await service._handle(environment_pb2.EpisodeRequest(step=step))
    assert not any(isinstance(value, environment_pb2.ResetRequest) for one in service._sessions.values() for value in vars(one).values())
    service.close()


class Long(gymnasium.Env[Any, str]):
    """Answers as long as asked for."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        assert options is not None
        return (Message("user", "x" * options["task"].data["chars"]),), {}

    def step(self, action: str) -> Any:
        return (Message("user", "x" * int(action)),), 0.0, False, False, {}


@pytest.mark.parametrize("inline", [False, True])
async def test_episodes_keep_an_answer_while_there_is_room_and_go_on_without(inline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both answers of 4,096 episodes that are kept, of any size, were counted nowhere."""
    monkeypatch.setattr(session_module, "make_env", lambda *_, **__: Long())
    service = EnvironmentService([ServedEnvironment("burnish/Arithmetic-v0")], SessionLimits(max_bytes=2 << 20), inline=inline)

    def begin(chars: int) -> environment_pb2.EpisodeRequest:
        task = common_pb2.Task(id="t", data_json=json.dumps({"chars": chars}))
        return environment_pb2.EpisodeRequest(reset=environment_pb2.ResetRequest(episode_id=str(chars), task=task))

    async def stepped(episode_id: str, step_id: int, action: str) -> int:
        step = environment_pb2.StepRequest(episode_id=episode_id, step_id=step_id, action=action)
        answer = (await service._handle(environment_pb2.EpisodeRequest(step=step))).step
        await asyncio.sleep(0)
        return len(answer.messages[0].text)

    for again in range(2):
        assert len((await service._handle(begin(600_000))).reset.messages[0].text) == 600_000, again
        await asyncio.sleep(0)
    for step in range(5):  # what is kept of one makes room for the next
        assert await stepped("600000", step, "300000") == await stepped("600000", step, "300000") == 300_000
    assert len((await service._handle(begin(1_500_000))).reset.messages[0].text) == 1_500_000
    await asyncio.sleep(0)
    with pytest.raises(Status, match="that was answered, and the answer is not kept: the episodes that are open hold as many bytes"):
        await service._handle(begin(1_500_000))
    assert await stepped("1500000", 0, "5") == await stepped("1500000", 0, "5") == 5
    with pytest.raises(Status, match="hold as many bytes") as caught:
        await stepped("1500000", 1, "1".zfill(3 << 19))
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    assert await stepped("1500000", 1, "7") == 7, "it goes on"
    with pytest.raises(Status, match="hold as many bytes"):
        empty = environment_pb2.ResetRequest(episode_id="e", task=common_pb2.Task(prompt=[common_pb2.Message()] * 40_000))
        await service._handle(environment_pb2.EpisodeRequest(reset=empty))
    service.close()
    assert service._room.held == 0


async def test_an_id_of_any_length_costs_no_more_than_what_is_said_of_it() -> None:
    """Comparing one of a million characters with what is served held the loop, and the answer was as long as the question."""
    long = "ab" * 500_000
    environments = EnvironmentService([ServedEnvironment("burnish/Arithmetic-v0")], inline=True)
    verifiers = VerifierService([Verifier("t/x-v1", float)])  # type: ignore[arg-type]
    step = environment_pb2.EpisodeRequest(step=environment_pb2.StepRequest(episode_id=long))
    for asked in (environments._handle(reset("e", environment=long)), environments._handle(step), environments._handle(reset(long)),
                  verifiers.answer(verifier_pb2.VerifyRequest(verifier=long))):  # fmt: skip
        tracemalloc.start()
        with pytest.raises(Status) as caught:
            await asked
        assert len(str(caught.value)) < 500 and tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()
    environments.close()
    verifiers.close()


def test_a_word_that_is_close_is_looked_for_up_to_a_length() -> None:
    assert did_you_mean("a" * 199, ["a" * 200]) == f"; did you mean {'a' * 200!r}?"
    assert did_you_mean("a" * 201, ["a" * 200] * 13) == ""


async def test_a_large_request_is_read_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 64 MiB, whose many fields of JSON are each within their bounds, held the loop for a minute."""
    readers: list[bool] = []

    def read(name: str, text: str) -> dict[str, Any]:
        readers.append(threading.current_thread() is threading.main_thread())
        return {}

    monkeypatch.setattr(wire, "decode_object", read)
    verifiers = VerifierService([Verifier("t/x-v1", lambda episode: 1.0)])
    tools = ToolService(ToolSet([tool(nothing)]))
    monkeypatch.setattr(tools_module, "decode_json", lambda text: read("", text))
    for size, in_main in ((10, True), (AT_ONCE_BYTES, False)):
        task = common_pb2.Task(id="t", data_json=json.dumps({"text": "x" * size}))
        assert (await verifiers.answer(verifier_pb2.VerifyRequest(task=task))).score == 1.0
        assert (await tools.answer(tool_pb2.CallRequest(tool="nothing", task_data_json=task.data_json))).text == "none"
        assert readers and set(readers) == {in_main}
        readers.clear()
    verifiers.close()
    tools.close()


def test_the_schemas_of_all_tools_are_bounded_together() -> None:
    rows = [tool_pb2.ToolInfo(name=f"t{i}", parameters_json='{"a":[' + "[]," * 900 + "[]]}") for i in range(200)]
    assert len(tools_module._schemas("127.0.0.1:1", rows[:100])) == 100
    with pytest.raises(RpcError, match="parameters_json of all tools holds more than 100000 JSON values"):
        tools_module._schemas("127.0.0.1:1", rows)
    with pytest.raises(PayloadError, match="tools_json holds more than 100000 JSON values"):
        info_from_wire(environment_pb2.StepInfo(tools_json=[row.parameters_json for row in rows]))
    rows[3].parameters_json = "]"
    with pytest.raises(RpcError, match="the schema of tool 't3' is unreadable"):
        tools_module._schemas("127.0.0.1:1", rows)


def test_a_list_of_words_from_elsewhere_is_short() -> None:
    assert some_of(["a", "b" * 300]) == f"a, {'b' * 200}…"
    assert some_of(["a"] * 15).endswith("a and 3 more")


async def test_many_arguments_of_an_async_tool_are_checked_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    checked_in, bind = list[threading.Thread](), Tool.bind

    def noted(self: Tool[..., Any], *args: Any) -> dict[str, Any]:
        checked_in.append(threading.current_thread())
        return bind(self, *args)

    monkeypatch.setattr(Tool, "bind", noted)
    tools = ToolService(ToolSet([tool(waits)]))
    for count, in_main in ((1, True), (60_000, False)):
        arguments = json.dumps({f"k{i}": 1 for i in range(count)})
        answer = await tools.answer(tool_pb2.CallRequest(tool="waits", arguments_json=arguments))
        assert answer.rejected.startswith("waits: ") and len(answer.rejected) < 200
        assert (checked_in.pop() is threading.main_thread()) is in_main
    tools.close()


async def waits() -> str:
    """Nothing, later."""
    return "none"


def nothing() -> str:
    """Nothing."""
    return "none"


async def test_an_episode_whose_reset_cannot_be_read_has_not_begun() -> None:
    service = EnvironmentService([ServedEnvironment("burnish/Arithmetic-v0")])
    for _ in range(2):
        wrong = reset("e")
        wrong.reset.task.data_json = "{"
        with pytest.raises(Status, match=r"task\.data_json: not valid JSON") as caught:
            await service._handle(wrong)
        assert (caught.value.code, service.in_flight) == ("INVALID_ARGUMENT", 0)
    assert (await service._handle(reset("e"))).HasField("reset")
    service.close()
