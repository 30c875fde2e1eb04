"""Tools that keep state for an episode, on the way to them: pinned, run once, closed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.envs.remote.service import SessionLimits
from burnish.envs.remote.tools import RemoteToolSession, RemoteToolSet, ToolService
from burnish.envs.tool_sessions import SessionTools
from burnish.envs.tools import ToolContext, ToolRejected
from burnish.hosting.process import ServiceProcess
from burnish.hosting.services import load_tools
from burnish.rpc.background import background
from burnish.rpc.server import Server
from burnish.v1 import tool_pb2, tool_pb2_grpc

pytestmark = pytest.mark.integration

TARGETS = Path(__file__).with_name("rpc_targets.py")
WAIT_S = 120.0


def context(file: Path, episode: str = "e/0", **data: Any) -> ToolContext:
    return ToolContext(episode, 1, {"file": str(file), **data})


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def counters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ServiceProcess]]:
    logs = tmp_path_factory.mktemp("logs")
    services = [ServiceProcess("tools", f"{TARGETS}:Counter", logs / f"{i}.log") for i in range(2)]
    for service in services:
        service.start()
    yield services
    for service in services:
        service.stop(grace_s=1.0)


def pressed(session: RemoteToolSession, **arguments: Any) -> dict[str, int]:
    return dict(json.loads(session.call("press", arguments)))


def test_an_episode_keeps_its_object_and_its_replica(counters: list[ServiceProcess], tmp_path: Path) -> None:
    tools = RemoteToolSet(",".join(service.address for service in counters), deadline_s=WAIT_S)
    tools.check()
    assert tools.schemas() == load_tools(f"{TARGETS}:Counter").schemas()
    sessions = [tools.open(context(tmp_path / f"{i}", f"e/{i}")) for i in range(8)]
    found = [[pressed(session) for session in sessions] for _ in range(3)]
    assert [[one["count"] for one in row] for row in found] == [[1] * 8, [2] * 8, [3] * 8]
    assert len({tuple(one["pid"] for one in row) for row in found}) == 1
    assert Counter(one["pid"] for one in found[0]) == {service.pid: 4 for service in counters}
    for session in sessions:
        session.close()
        session.close()
    assert [lines(tmp_path / f"{i}") for i in range(8)] == [
        [f"opened e/{i}", "pressed 1", "pressed 2", "pressed 3", "closed"] for i in range(8)
    ]


def test_a_call_whose_answer_was_lost_is_run_once(counters: list[ServiceProcess], tmp_path: Path) -> None:
    tools = RemoteToolSet(counters[0].address, deadline_s=WAIT_S)
    session = tools.open(context(tmp_path / "log"))
    assert pressed(session)["count"] == 1
    (connection,) = tools._client._replicas(background())._replicas
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(pressed, session, s=0.5)
        wait_until(lambda: "pressed 2" in lines(tmp_path / "log"), "the call")
        assert connection._runner is not None
        background().loop.call_soon_threadsafe(connection._runner.cancel)
        assert waiting.result(WAIT_S)["count"] == 2
    assert pressed(session)["count"] == 3
    session.close()
    assert lines(tmp_path / "log")[1:] == ["pressed 1", "pressed 2", "pressed 3", "closed"]


def test_the_context_may_change_and_calls_may_be_wrong(counters: list[ServiceProcess], tmp_path: Path) -> None:
    data: dict[str, Any] = {"file": str(tmp_path / "log")}
    session = RemoteToolSet(counters[0].address, deadline_s=WAIT_S).open(ToolContext("e/0", 1, data))
    assert session.call("read", {}) == "0 for nobody"
    data["who"] = "ann"
    assert session.call("read", {}) == "0 for ann"
    with pytest.raises(ToolRejected, match="press: argument 's': must be a number"):
        session.call("press", {"s": "long"})
    with pytest.raises(ToolRejected, match="there is no tool 'pres'"):
        session.call("pres", {})
    session.close()


def test_what_cannot_be_opened_is_a_failure_and_a_lone_call_has_its_own_object(counters: list[ServiceProcess], tmp_path: Path) -> None:
    tools = RemoteToolSet(counters[0].address, deadline_s=WAIT_S)
    with pytest.raises(EpisodeFailure, match="no counter left") as caught:
        tools.open(context(tmp_path / "log", broken=True)).call("press", {})
    assert (caught.value.failure.kind, caught.value.failure.culprit) == (FailureKind.TOOL_ERROR, f"press@{counters[0].address}")
    assert [json.loads(tools.call("press", {}, context(tmp_path / "log")))["count"] for _ in range(2)] == [1, 1]
    assert lines(tmp_path / "log") == ["opened e/0", "pressed 1", "closed"] * 2


def test_closing_stops_what_is_at_work_and_closes_it_afterwards(counters: list[ServiceProcess], tmp_path: Path) -> None:
    session = RemoteToolSet(counters[0].address, deadline_s=60.0).open(context(tmp_path / "log"))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(session.call, "press", {"s": 60.0})
        wait_until(lambda: "pressed 1" in lines(tmp_path / "log"), "the call")
        session.close()
        with pytest.raises(EpisodeFailure, match="was closed"):
            waiting.result(WAIT_S)
    wait_until(lambda: lines(tmp_path / "log")[1:] == ["pressed 1", "closed"], "the end of the object")


def test_a_session_whose_server_died_is_a_failure_at_once(tmp_path: Path) -> None:
    with ServiceProcess("tools", f"{TARGETS}:Counter", tmp_path / "service.log") as service:
        session = RemoteToolSet(service.address, deadline_s=120.0).open(context(tmp_path / "log"))
        assert pressed(session)["count"] == 1
        assert service.pid is not None
        os.kill(service.pid, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(EpisodeFailure) as caught:
            session.call("press", {})
        assert time.monotonic() - began < 60.0
        service.stop()
        service.port = int(service.address.rpartition(":")[2])
        service.start()
        with pytest.raises(EpisodeFailure, match="is not open here"):
            session.call("press", {})
        session.close()
    assert (caught.value.failure.kind, caught.value.failure.culprit) == (FailureKind.TOOL_ERROR, f"press@{service.address}")
    assert lines(tmp_path / "log") == ["opened e/0", "pressed 1"]


async def test_sessions_are_bounded_and_expire(tmp_path: Path) -> None:
    loaded = load_tools(f"{TARGETS}:Counter")
    assert isinstance(loaded, SessionTools)
    server = Server([ToolService(loaded, sessions=SessionLimits(idle_s=3.0, max_sessions=1))])
    async with grpc.aio.insecure_channel(await server.start()) as channel:
        stub = tool_pb2_grpc.ToolServiceStub(channel)

        def request(session: str, step: tool_pb2.SessionStep.ValueType = tool_pb2.SESSION_STEP_OPEN) -> tool_pb2.CallRequest:
            data = json.dumps({"file": str(tmp_path / session)})
            return tool_pb2.CallRequest(session_id=session, session_step=step, episode_id=session, task_data_json=data, tool="read")

        async def code(asked: tool_pb2.CallRequest) -> str:
            try:
                await stub.Call(asked, timeout=WAIT_S)
            except grpc.aio.AioRpcError as error:
                return str(error.code().name)
            return "OK"

        assert await code(request("a")) == "OK"
        assert await code(request("a")) == "OK", "opening is harmless twice"
        assert await code(request("b")) == "RESOURCE_EXHAUSTED"
        assert await code(request("a", tool_pb2.SESSION_STEP_UNSPECIFIED)) == "INVALID_ARGUMENT", "a call needs an id"
        assert await code(request("", tool_pb2.SESSION_STEP_OPEN)) == "INVALID_ARGUMENT"
        assert await code(request("b", tool_pb2.SESSION_STEP_UNSPECIFIED)) == "NOT_FOUND"
        deadline = time.monotonic() + WAIT_S
        while await code(request("b")) != "OK":
            assert time.monotonic() < deadline, "the idle session does not end"
        assert await code(request("b", tool_pb2.SESSION_STEP_CLOSE)) == "OK"
        assert await code(request("b", tool_pb2.SESSION_STEP_CLOSE)) == "OK", "closing is harmless twice"
    await server.stop()
    assert (lines(tmp_path / "a"), lines(tmp_path / "b")) == (["opened a", "closed"], ["opened b", "closed"])
