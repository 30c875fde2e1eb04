"""Whatever a peer can set in a message or a row is tried, field by field: none names code, a file elsewhere, or an address to call."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message as Proto
from tests.integration.reaching import CALL_S, MARK, TALK, Watch, json_changed, watching

from burnish.envs.builtin.inspection import service as inspection_tools
from burnish.envs.contract import ENVS, make_env
from burnish.envs.remote.env import RemoteEnv
from burnish.envs.remote.service import EnvironmentService, ServedEnvironment
from burnish.envs.remote.tools import RemoteToolSet, ToolService
from burnish.envs.tools import ToolContext, ToolSet
from burnish.envs.types import Message, Task
from burnish.rewards.checks.trial import read_episodes
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.remote.service import VERIFIERS, VerifierService
from burnish.rewards.types import RewardInput
from burnish.rpc.background import background
from burnish.rpc.methods import CONTRACT
from burnish.rpc.server import Server
from burnish.trainer.data.audit import checked_rows
from burnish.trainer.data.config import TasksConfig
from burnish.trainer.data.sources import Reject, read_conversations
from burnish.trainer.data.task_files import read_task_files
from burnish.v1 import common_pb2, environment_pb2, tool_pb2, verifier_pb2

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    with watching(tmp_path_factory.mktemp("outside")) as made:
        yield made


def test_the_watch_sees_what_it_is_for(watch: Watch) -> None:
    def reach_out() -> None:
        open(watch.folder / f"{MARK}.txt").close()

    def call_out() -> None:
        with socket.create_connection(watch.listener.getsockname()):
            pass

    for reach in (lambda: __import__(MARK), reach_out, call_out):
        with pytest.raises(AssertionError, match="a canary"), watch.over("a canary"):
            reach()
        with contextlib.suppress(BlockingIOError):
            watch.listener.accept()[0].close()
    sys.modules.pop(MARK, None)


# ---------------------------------------------------------------------------------------------------------- messages


VALID = {"role": common_pb2.ROLE_USER, "contract": CONTRACT, "text": "hello", "name": "measure"}


def example(descriptor: Descriptor, turn: int, valid: Mapping[str, Any]) -> Proto:
    """A message with every field set, oneofs to their alternative number `turn`. valid: values by the name of the field."""
    message = message_factory.GetMessageClass(descriptor)()
    for one in descriptor.fields:
        alternatives = one.containing_oneof.fields if one.containing_oneof else [one]
        if one is not alternatives[turn % len(alternatives)] and one.number != alternatives[turn % len(alternatives)].number:
            continue
        if one.message_type and one.message_type.GetOptions().map_entry:
            value = one.message_type.fields_by_name["value"]
            getattr(message, one.name)["a"] = "x" if value.type == FieldDescriptor.TYPE_STRING else 1.0
        elif one.message_type:
            inner = example(one.message_type, turn, valid)
            getattr(message, one.name).extend([inner]) if one.is_repeated else getattr(message, one.name).CopyFrom(inner)
        else:
            value = valid.get(one.name, plain(one))
            getattr(message, one.name).extend([value]) if one.is_repeated else setattr(message, one.name, value)
    return message


def plain(one: FieldDescriptor) -> Any:
    if one.type == FieldDescriptor.TYPE_STRING:
        return '{"a": 1}' if one.name.endswith("_json") else "x"
    return {FieldDescriptor.CPPTYPE_BOOL: False, FieldDescriptor.CPPTYPE_DOUBLE: 1.0}.get(one.cpp_type, 1)


def leaves(message: Proto, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each string of a message: names of fields, indices, keys of maps."""
    for one, value in message.ListFields():
        here = (*path, one.name)
        if one.message_type and one.message_type.GetOptions().map_entry:
            yield (*here, "a")
        elif one.message_type:
            for i, inner in enumerate(value if one.is_repeated else [value]):
                yield from leaves(inner, (*here, i) if one.is_repeated else here)
        elif one.type == FieldDescriptor.TYPE_STRING:
            yield (*here, 0) if one.is_repeated else here


def changed(message: Proto, path: tuple[Any, ...], text: str) -> Proto:
    """A copy with the string at the end of the way replaced; a map gets it as a key too."""
    copy = type(message)()
    copy.CopyFrom(message)
    here: Any = copy
    for step in path[:-1]:
        here = here[step] if isinstance(step, int) else getattr(here, step)
    last = path[-1]
    if isinstance(here, Proto):
        setattr(here, last, text)
    elif isinstance(last, int):
        here[last] = text
    else:
        value = here[last]
        here[text] = text if isinstance(value, str) else value
        here[last] = text if isinstance(value, str) else value
    return copy


def hostile(message: Proto, watch: Watch, names: tuple[str, ...] = ()) -> Iterator[tuple[str, Proto]]:
    """The message with one string after the other set to each payload. names: keys that mean something in its JSON fields."""
    for path in leaves(message):
        where = f"{message.DESCRIPTOR.name}.{'.'.join(map(str, path))}"
        for payload in watch.payloads:
            yield where, changed(message, path, payload)
            if str(path[-1]).endswith("_json") or "tools_json" in path:
                values: list[dict[str, Any]] = [{payload: payload}, *({name: payload} for name in names)]
                values += [{name: {"x": [payload], payload: 1}} for name in names]
                for value in values:
                    yield f"{where} {list(value)}", changed(message, path, json.dumps(value))


def all_services() -> list[Any]:
    return [service for file in (verifier_pb2, tool_pb2, environment_pb2) for service in file.DESCRIPTOR.services_by_name.values()]


def parameters(id: str) -> tuple[str, ...]:
    return tuple(inspect.signature(ENVS.get(id)).parameters)


@pytest.fixture(scope="module")
def channel(watch: Watch) -> Iterator[grpc.Channel]:
    """Every service of burnish, with every built-in environment, each open to every argument of its clients."""
    ids = [row.id for row in ENVS.list() if row.id.startswith("burnish/")]
    made_with: dict[str, dict[str, Any]] = {"burnish/Remote-v0": {"address": "127.0.0.1:1", "deadline_s": 0.05}}
    environments = EnvironmentService([ServedEnvironment(id, made_with.get(id, {}), parameters(id)) for id in ids])
    verifiers = VerifierService([VERIFIERS.get("burnish/inspection-verdict-v1")])
    server = Server([environments, verifiers, ToolService(ToolSet.from_module(inspection_tools))])
    address = background().run(server.start(), CALL_S)
    with grpc.insecure_channel(address) as made:
        yield made
    background().run(server.stop(), CALL_S)


def send(channel: grpc.Channel, service: Any, method: Any, request: Proto) -> None:
    path, answer = f"/{service.full_name}/{method.name}", message_factory.GetMessageClass(method.output_type)
    serialize: Any = {"request_serializer": type(request).SerializeToString, "response_deserializer": answer.FromString}
    if method.client_streaming:
        list(channel.stream_stream(path, **serialize)(iter([request]), timeout=CALL_S))
    else:
        channel.unary_unary(path, **serialize)(request, timeout=CALL_S)


def with_new_ids(request: Proto) -> Proto:
    """The request with an episode of its own: one that is open already would be answered without being read."""
    for path in leaves(request):
        if path[-1] == "episode_id":
            return changed(request, path, uuid.uuid4().hex)
    return request


@pytest.mark.parametrize("service", all_services(), ids=lambda service: service.name)
def test_no_field_of_a_request_reaches_out(service: Any, channel: grpc.Channel, watch: Watch) -> None:
    tried: set[str] = set()
    for method in service.methods:
        for turn in range(3):
            valid = {**VALID, "environment": "burnish/Arithmetic-v0", "tool": "measure", "verifier": "", "kwargs_json": ""}
            for where, request in hostile(example(method.input_type, turn, valid), watch, ("part", "feature", "level", "verdict")):
                tried.add(where.partition(" ")[0])
                with watch.over(f"{method.name}, {where}"):
                    send(channel, service, method, request if where.endswith("episode_id") else with_new_ids(request))
    assert tried or all(not method.input_type.fields for method in service.methods)


@pytest.mark.parametrize("id", [row.id for row in ENVS.list() if row.id.startswith("burnish/")])
def test_no_argument_and_no_action_of_a_client_reaches_out(id: str, channel: grpc.Channel, watch: Watch) -> None:
    service = environment_pb2.DESCRIPTOR.services_by_name["EnvironmentService"]
    reset, step = service.methods_by_name["Reset"], service.methods_by_name["Step"]
    for payload in watch.payloads:
        values = [{name: value} for name in parameters(id) for value in (payload, [payload], {"x": payload}, {payload: 1})]
        for kwargs in values:
            request = environment_pb2.ResetRequest(episode_id=uuid.uuid4().hex, environment=id, kwargs_json=json.dumps(kwargs))
            with watch.over(f"{id} {kwargs}"):
                send(channel, service, reset, request)
        if id == "burnish/Remote-v0":
            continue
        data = json.dumps({"level": 0, "tools": [payload], payload: payload})
        prompt = [common_pb2.Message(role=common_pb2.ROLE_USER, text=payload)]
        task = common_pb2.Task(id=payload, seed=1, prompt=prompt, data_json=data)
        session = environment_pb2.ResetRequest(episode_id=uuid.uuid4().hex, environment=id, task=task, attempt_id=payload)
        with watch.over(f"{id}, an action"):
            send(channel, service, reset, session)
            send(channel, service, step, environment_pb2.StepRequest(episode_id=session.episode_id, step_id=0, action=payload))


class Answers(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stub alone
    """A server that answers each unary method with what it is given, whatever it was asked. It has no streams."""

    def __init__(self) -> None:
        self.by_path: dict[str, Proto] = {}

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        answer = self.by_path.get(details.method)
        if answer is None:
            return None
        return grpc.unary_unary_rpc_method_handler(lambda request, context: answer.SerializeToString(), response_serializer=bytes)


EPISODE = RewardInput("e/0", Task("e", 17), (Message("user", "hi"), Message("assistant", "ho")), 0.5)


def play(address: str) -> None:
    env = RemoteEnv(address, deadline_s=CALL_S)
    env.check()
    env.reset(seed=1)
    env.step("hello")
    env.close()


def use_tools(address: str) -> None:
    tools = RemoteToolSet(address, deadline_s=CALL_S)
    tools.check()
    tools.call("measure", {}, ToolContext("e/0", 17, {}))


def verify(address: str) -> None:
    remote = RemoteVerifier("verdict", address, deadline_s=CALL_S)
    remote.check()
    asyncio.run(remote.score(EPISODE))


CLIENTS: Mapping[str, Callable[[str], None]] = {"EnvironmentService": play, "ToolService": use_tools, "VerifierService": verify}


@pytest.mark.parametrize("service", all_services(), ids=lambda service: service.name)
def test_no_field_of_an_answer_reaches_out(service: Any, watch: Watch) -> None:
    answers = Answers()
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[answers])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    client = CLIENTS[service.name]
    unary = [method for method in service.methods if not method.client_streaming]
    try:
        for turn in range(2):
            honest = {f"/{service.full_name}/{method.name}": example(method.output_type, turn, VALID) for method in unary}
            for path, answer in honest.items():
                for where, sent in hostile(answer, watch):
                    answers.by_path = {**honest, path: sent}
                    with watch.over(where):
                        client(address)
    finally:
        server.stop(None)


# -------------------------------------------------------------------------------------------------------------- rows


TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}}
TASK = {"id": "a", "messages": TALK[:1], "reference_answer": "4", "tools": [TOOL], "topic": {"deep": ["x"]}}
TRIAL = {"id": "a", "task": "t", "messages": TALK, "metadata": {"x": 1}, "data": {"y": "z"}, "metrics": {"m": 1.0}, "env_parts": {"p": 1.0}}
PREFERENCE = {"id": "a", "prompt": TALK[:1], "chosen": TALK[3:], "rejected": "5", "tools": [TOOL], "metadata": {"x": 1}}
ANSWER = {"id": "a", "prompt": "2 + 2?", "response": "4", "system": "Be brief.", "metadata": {"x": 1}}
VERL = {
    "data_source": "d",
    "prompt": TALK[:1],
    "ability": "m",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"i": 3},
}


def read_tasks(file: Path) -> None:
    other = file.with_name("other.jsonl")
    other.write_text(json.dumps({"messages": [{"role": "user", "content": "another"}]}) + "\n")
    files = read_task_files(TasksConfig(train=str(other), held_out=str(file)))
    for task in files.held_out_tasks(1):
        env = make_env("burnish/SingleTurn-v0")
        env.reset(seed=1, options={"task": task})
        env.step("4")


@pytest.mark.parametrize(
    ("row", "read"),
    [
        (TASK, read_tasks),
        ({"messages": TALK, "tools": [TOOL]}, lambda file: list(read_conversations(file))),
        (TRIAL, lambda file: read_episodes(file)),
        (VERL, read_tasks),
        *((form, lambda file: list(checked_rows([str(file)]))) for form in (PREFERENCE, ANSWER, {"text": "x", "meta": {"y": 1}})),
    ],
    ids=["tasks", "conversations", "rewards try", "verl", "preferences", "answers", "documents"],
)
def test_no_field_of_a_row_reaches_out(row: dict[str, Any], read: Callable[[Path], Any], watch: Watch, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    assert not any(isinstance(found, Reject) for found in read(file) or ()), "as it stands, the row is read"
    for payload in watch.payloads:
        for where, changed_row in json_changed(row, payload):
            file.write_text(json.dumps(changed_row) + "\n")
            with watch.over(where):
                read(file)
