"""Whatever a peer can set is tried, field by field: none names code, a file outside its folder, or an address to call.

A peer is a client or a server of the services, whoever wrote a row of data, a model folder, or a run folder that is opened to be looked
at. Python's audit hooks see every import, file, process and socket of this process; what gRPC's own code connects to, a listener sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import json
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message as Proto
from rich.console import Console

from burnish.envs.builtin.inspection import service as inspection_tools
from burnish.envs.contract import ENVS, make_env
from burnish.envs.failures import EpisodeFailure
from burnish.envs.remote.env import RemoteEnv
from burnish.envs.remote.service import EnvironmentService, ServedEnvironment
from burnish.envs.remote.tools import RemoteToolSet, ToolService
from burnish.envs.tools import ToolContext, ToolRejected, ToolSet
from burnish.envs.types import Message, Task
from burnish.inspector.report import render_report
from burnish.inspector.runs import read_run, read_run_transcripts
from burnish.inspector.terminal import Selection, print_rollouts
from burnish.rewards.checks.trial import read_episodes
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.remote.service import VERIFIERS, VerifierService
from burnish.rewards.types import RewardInput
from burnish.rpc.background import background
from burnish.rpc.errors import RpcError
from burnish.rpc.methods import CONTRACT
from burnish.rpc.server import Server
from burnish.trainer.data.config import TasksConfig
from burnish.trainer.data.sources import read_conversations
from burnish.trainer.data.task_files import read_task_files
from burnish.trainer.models.checkpoints import list_checkpoints
from burnish.trainer.models.folder import check_model_folder
from burnish.trainer.models.importing import ModelSize, import_model, new_model
from burnish.trainer.models.manifest import read_manifest
from burnish.v1 import common_pb2, environment_pb2, tool_pb2, verifier_pb2

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

MARK = "burnish_canary"
HOST = "127.66.66.66"
WATCHED = ("import", "open", "exec", "socket.", "subprocess.", "os.", "pickle.", "ctypes.", "sqlite3.", "urllib.", "shutil.", "glob.")
CALL_S = 120.0
REFUSALS = (ValueError, OSError, EpisodeFailure, RpcError, ToolRejected, grpc.RpcError)
"""How a peer's nonsense may end."""


@dataclass
class Watch:
    """What reached an importer, a file, a process or a socket, and names a canary."""

    folder: Path
    listener: socket.socket
    seen: list[str] = field(default_factory=list)
    on: bool = False

    @property
    def payloads(self) -> tuple[str, ...]:
        """What names code, files and addresses in the ways that burnish reads them."""
        place = f"{HOST}:{self.listener.getsockname()[1]}"
        code = (f"{MARK}:run", f"{self.folder}/{MARK}.py:run", f"{MARK}:{MARK}/Env-v0", f"{MARK}/Env-v0")
        files = (f"{self.folder}/{MARK}.txt", f"../{MARK}.txt", f"--plugin={MARK}.py")
        template = f"{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}{{% include '{self.folder}/{MARK}.txt' %}}"
        return (*code, *files, place, f"http://{place}/{MARK}", template)

    @contextlib.contextmanager
    def over(self, what: str) -> Iterator[None]:
        """Fail when anything in the block reaches out for a canary. Refusals are swallowed."""
        self.seen.clear()
        self.on = True
        try:
            with contextlib.suppress(*REFUSALS):
                yield
        finally:
            self.on = False
        assert not self.seen, f"{what}: {self.seen[:3]}"
        with pytest.raises(BlockingIOError):
            self.listener.accept()

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event.startswith(WATCHED):
            told = repr(arguments)
            if MARK in told or HOST in told:
                self.seen.append(f"{event} {told:.200}")


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    folder = tmp_path_factory.mktemp("outside")
    (folder / f"{MARK}.py").write_text("def run(*args, **kwargs): return ''\n")
    (folder / f"{MARK}.txt").write_text("secret")
    with socket.socket() as listener, pytest.MonkeyPatch.context() as patch:
        listener.bind((HOST, 0))
        listener.listen()
        listener.setblocking(False)
        patch.syspath_prepend(str(folder))
        made = Watch(folder, listener)
        sys.addaudithook(made.hook)  # for as long as this process lives; it does nothing while it is off
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


def json_leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from json_leaves(value[key], (*path, key))


def json_changed(value: Any, payload: str) -> Iterator[tuple[str, Any]]:
    """The value with each part of it replaced by the payload, and with the payload as a further key of each object."""
    for path in list(json_leaves(value))[1:]:
        copy = json.loads(json.dumps(value))
        here = copy
        for step in path[:-1]:
            here = here[step]
        if isinstance(here[path[-1]], dict):
            here[path[-1]][payload] = payload
            yield f"{path} as a key", json.loads(json.dumps(copy))
        here[path[-1]] = payload
        yield f"{path}", copy


TALK = [
    {"role": "user", "content": "2 + 2?"},
    {
        "role": "assistant",
        "content": "4",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
    },
    {"role": "tool", "content": "4", "tool_call_id": "1", "name": "f"},
    {"role": "assistant", "content": "4"},
]
TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}}
TASK = {"id": "a", "messages": TALK[:1], "reference_answer": "4", "tools": [TOOL], "topic": {"deep": ["x"]}}
TRIAL = {"id": "a", "task": "t", "messages": TALK, "metadata": {"x": 1}, "data": {"y": "z"}, "metrics": {"m": 1.0}, "env_parts": {"p": 1.0}}


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
    ],
    ids=["tasks", "conversations", "rewards try"],
)
def test_no_field_of_a_row_reaches_out(row: dict[str, Any], read: Callable[[Path], Any], watch: Watch, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for payload in watch.payloads:
        for where, changed_row in json_changed(row, payload):
            file.write_text(json.dumps(changed_row) + "\n")
            with watch.over(where):
                read(file)


# ------------------------------------------------------------------------------------------------- run and model folders


RESULT = {
    "mode": "sampled", "success_part": "env", "episodes": 2, "rewarded": 2, "success": 0.5, "success_low": 0.1, "success_high": 0.9,
    "reward": 0.5, "turns": 1.0, "tokens": 3.0, "task_success": {"t": 0.5}, "parts": {"env": 0.5}, "metrics": {"cost": 1.0},
    "confusion": {"pass": {"pass": 1, "": 1}}, "recall": {"pass": 0.5}, "macro_recall": 0.5,
    "best_constant": {"label": "pass", "success": 1.0, "macro_recall": 1.0}, "failures": {"env_error": 1}, "truncations": {"max_turns": 1},
}  # fmt: skip
TRANSCRIPT = {
    "schema": 1, "run": "r", "phase": "base", "step": 0, "split": "heldout", "mode": "sampled", "episode": "t/0", "task": "t", "seed": 1,
    "sample": 0, "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    "reward": {"total": 1.0, "parts": {"env": 1.0}}, "labels": {"expected": "pass", "predicted": "pass"}, "metrics": {"cost": 1.0},
    "turns": [{"tokens": 3, "stop_reason": "stop", "generate_s": 0.1, "env_s": 0.1, "oldest_version": 0, "newest_version": 0}],
    "trainable_tokens": 3, "context_tokens": 9,
}  # fmt: skip
AGAINST = {"base": {"difference": 0.1, "low": 0.0, "high": 0.2, "p_value": 0.1, "n": 2, "unpaired": 0}}
SAVED = {"event": "saved", "phase": "rft", "step": 3, "final": True, "metrics": {"reward": 1.0}, "created_at": "2026-01-01T00:00:00Z"}
RUN_FILES: Mapping[str, tuple[dict[str, Any], ...]] = {
    "config.json": ({"name": "r", "model": "m", "environment": "e/E-v0", "plugins": ["x.py"], "services": {"a": {"address": "h:1"}}},),
    "versions.json": ({"python": "3.11", "platform": "linux", "cpus": 2, "packages": {"burnish": "0"}},),
    "seeds.json": ({"run": 1},),
    "metrics.jsonl": ({"phase": "rft", "step": 1, "time": 1.0, "reward_mean": 0.5},),
    "evaluations.jsonl": (
        {"schema": 1, "phase": "base", "step": 0, "against": {}, **RESULT},
        {"schema": 1, "phase": "rft", "step": 3, "against": AGAINST, **RESULT},
    ),
    "ledger.jsonl": ({"schema": 1, "phase": "rft", "step": 1, "issued": 1, "trained": 0, "masked": {"env_error": 1}},),
    "transcripts/episodes.jsonl": (TRANSCRIPT, {**TRANSCRIPT, "phase": "rft", "step": 3}),
    "checkpoints.jsonl": (SAVED, {"event": "pruned", "name": "rft-1"}),
}


def write_run(folder: Path) -> None:
    (folder / "transcripts").mkdir(parents=True)
    (folder / "checkpoints" / "rft-3").mkdir(parents=True)
    for name, rows in RUN_FILES.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def look_at(run: Path) -> tuple[str, str]:
    """Open a run folder in every way there is. Returns the page and the terminal, as far as they can be shown."""
    page, terminal = io.StringIO(), io.StringIO()
    for show in (
        lambda: page.write(render_report(read_run(run), read_run_transcripts(run))),
        lambda: print_rollouts(run, Selection(), Console(file=terminal, width=120, force_terminal=True, no_color=True)),
        lambda: list_checkpoints(run),
    ):
        with contextlib.suppress(*REFUSALS):
            show()
    return page.getvalue(), terminal.getvalue()


def test_no_field_of_a_run_folder_reaches_out_and_none_becomes_markup(watch: Watch, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run)
    page, terminal = look_at(run)
    assert "<h1>run</h1>" in page and "t/0" in terminal and "<script" not in page
    shown = 0
    for name, rows in RUN_FILES.items():
        text = (run / name).read_text()
        for i, row in enumerate(rows):
            for number in range(len(list(json_changed(row, "")))):
                for payload in (watch.payloads[number % len(watch.payloads)], "</pre><script>alert(1)</script>\x1b]0;owned\x07\u202e"):
                    where, changed_row = list(json_changed(row, payload))[number]
                    lines = [json.dumps(changed_row if i == j else other) for j, other in enumerate(rows)]
                    (run / name).write_text("".join(f"{line}\n" for line in lines))
                    with watch.over(f"{name} {where}"):
                        page, terminal = look_at(run)
                    assert "<script" not in page, where
                    assert not any(sign in page + terminal for sign in ("\x1b]", "\u202e", "\x07")), where
                    shown += "&lt;script&gt;" in page or "<script>" in terminal
        (run / name).write_text(text)
    assert shown > 20, "most of it is shown, as text"


def test_links_in_a_run_folder_lead_nowhere(watch: Watch, tmp_path: Path) -> None:
    outside = watch.folder / f"{MARK}.jsonl"
    outside.write_text(json.dumps(TRANSCRIPT) + "\n")
    for name in RUN_FILES:
        run = tmp_path / name.replace("/", "-")
        write_run(run)
        (run / name).unlink()
        (run / name).symlink_to(outside)
        with pytest.raises(ValueError, match=r"is a link that leads out of the folder"):
            read_run(run) if "checkpoints" not in name else list_checkpoints(run)


@pytest.fixture(scope="module")
def honest_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    new_model(["some text"], folder, ModelSize(hidden=32, layers=1, heads=1, intermediate=32, vocab_size=280, max_position=64))
    return folder


AUTO_MAP = {
    "auto_map": {
        "AutoConfig": f"{MARK}.Config", "AutoModelForCausalLM": f"{MARK}.Model", "AutoTokenizer": [f"{MARK}.Slow", f"{MARK}.Fast"],
    },
    "custom_pipelines": {"x": {"impl": f"{MARK}.Pipeline"}},
}  # fmt: skip


def test_no_field_of_a_model_folder_reaches_out(honest_model: Path, watch: Watch, tmp_path: Path) -> None:
    number = 0
    for name in ("config.json", "tokenizer_config.json", "generation_config.json", "burnish.json"):
        value = {**json.loads((honest_model / name).read_text()), "adapter": "x", "_name_or_path": "x", "tokenizer_file": "x"}
        for turn in range(len(list(json_leaves(value)))):
            payload = watch.payloads[turn % len(watch.payloads)]
            cases = list(json_changed(value, payload))
            if turn >= len(cases):
                continue
            where, hostile_value = cases[turn]
            folder, number = tmp_path / f"m{number}", number + 1
            shutil.copytree(honest_model, folder)
            (folder / name).write_text(json.dumps(hostile_value))
            with watch.over(f"{name} {where}"):
                read_manifest(folder)
                check_model_folder(folder)
                import_model(folder, tmp_path / "imported" / f"m{number}")
            shutil.rmtree(folder)


def test_code_that_comes_with_a_model_is_neither_run_nor_passed_on(honest_model: Path, watch: Watch, tmp_path: Path) -> None:
    folder = tmp_path / "with-code"
    shutil.copytree(honest_model, folder)
    (folder / "burnish.json").unlink()  # as others write their folders; with it, the import would be refused for the change alone
    (folder / f"{MARK}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": f"{watch.folder}/{MARK}", "peft_type": "LORA"}))
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **AUTO_MAP}))
    with watch.over("a model with an adapter"), pytest.raises(ValueError, match="holds an adapter"):
        import_model(folder, tmp_path / "imported")
    (folder / "adapter_config.json").unlink()
    with watch.over("a model with code"):
        import_model(folder, tmp_path / "imported")
    assert not (tmp_path / "ran").exists()
    for file in (tmp_path / "imported").iterdir():
        assert MARK.encode() not in file.read_bytes(), f"{file.name} passes on where the code is"


def test_no_file_of_a_model_folder_leads_out_of_it(honest_model: Path, watch: Watch, tmp_path: Path) -> None:
    weights = watch.folder / f"{MARK}.safetensors"
    shutil.copyfile(honest_model / "model.safetensors", weights)
    for name in ("chat_template.jinja", "tokenizer.json", "model.safetensors", "config.json"):
        folder = tmp_path / name
        shutil.copytree(honest_model, folder)
        shutil.move(folder / name, watch.folder / f"{MARK}-{name}")
        (folder / name).symlink_to(watch.folder / f"{MARK}-{name}")
        with pytest.raises(ValueError, match="is a link that leads out of the folder"):
            check_model_folder(folder)
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        folder = tmp_path / index
        shutil.copytree(honest_model, folder)
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": str(weights), "x": f"../{MARK}.bin"}}))
        with watch.over(index), pytest.raises(ValueError, match=r"names the file|lacks the weight file"):
            import_model(folder, tmp_path / f"{index}-imported")
