"""Verifier and tool services over real sockets, each in a process of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from burnish.envs.failures import EpisodeFailure, Failure, FailureKind
from burnish.envs.remote.tools import RemoteToolSet
from burnish.envs.tools import ToolContext, ToolRejected
from burnish.envs.types import Message, Task
from burnish.hosting.process import ServiceProcess
from burnish.hosting.services import load_tools
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.remote.wire import to_request
from burnish.rewards.types import RewardInput, Score
from burnish.rpc.background import background
from burnish.rpc.client import BatchedClient
from burnish.rpc.errors import CODES
from burnish.rpc.methods import VERIFY
from burnish.v1 import common_pb2, tool_pb2, tool_pb2_grpc, verifier_pb2, verifier_pb2_grpc

pytestmark = pytest.mark.integration

TARGETS = Path(__file__).with_name("rpc_targets.py")
CONTEXT = ToolContext("train-17/0", 17, {"level": 2})
WAIT_S = 120.0


def episode(reward: float = 1.0, **data: Any) -> RewardInput:
    return RewardInput(f"e{reward:g}/0", Task("e", 17), (Message("user", "hi"), Message("assistant", "pass")), reward, data=data)


def verify(remote: RemoteVerifier, item: RewardInput) -> Score:
    return asyncio.run(remote.score(item))


def failure(remote: RemoteVerifier, item: RewardInput) -> Failure:
    with pytest.raises(EpisodeFailure) as caught:
        verify(remote, item)
    return caught.value.failure


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)


def content(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def puppet(logs: Path) -> Iterator[str]:
    with ServiceProcess("verifier", f"{TARGETS}:puppet", logs / "puppet.log") as service:
        yield service.address


@pytest.fixture(scope="module")
def sync_puppet(logs: Path) -> Iterator[str]:
    with ServiceProcess("verifier", f"{TARGETS}:sync_puppet", logs / "sync.log") as service:
        yield service.address


@pytest.fixture(scope="module")
def tools(logs: Path) -> Iterator[str]:
    with ServiceProcess("tools", str(TARGETS), logs / "tools.log") as service:
        yield service.address


@pytest.fixture
def channel(puppet: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(puppet) as opened:
        yield opened


# ------------------------------------------------------------------------------------------------------------- the contract


def test_unary_and_stream_give_the_same_answers(puppet: str, channel: grpc.Channel) -> None:
    stub = verifier_pb2_grpc.VerifierServiceStub(channel)
    requests = [to_request(episode(i / 8)) for i in range(5)]
    unary = [stub.Verify(request, timeout=WAIT_S) for request in requests]
    client = BatchedClient(puppet, VERIFY)
    streamed = [client.call_blocking(request, WAIT_S) for request in requests]
    assert streamed == unary
    assert [one.score for one in unary] == [0.0, 0.125, 0.25, 0.375, 0.5]
    assert verify(RemoteVerifier("puppet", puppet), episode(0.5)) == Score(0.5, {"messages": 2}, {"expected": "e"})


def test_what_is_ready_together_travels_together(puppet: str) -> None:
    client = BatchedClient(puppet, VERIFY)
    client.call_blocking(to_request(episode()), WAIT_S)
    before = client.counts()
    sent, batches, connections, received = before.items_sent, before.batches_sent, before.connections, before.batches_received

    async def together() -> list[float]:
        answers = await asyncio.gather(*(client.call(to_request(episode(float(i))), WAIT_S) for i in range(100)))
        return [answer.score for answer in answers]

    assert background().run(together(), WAIT_S) == [float(i) for i in range(100)]
    after = client.counts()
    assert (after.items_sent - sent, after.batches_sent - batches, after.connections - connections) == (100, 1, 0)
    assert 2 <= after.batches_received - received <= 4  # results set out by the share, while the next are worked out


def test_many_threads_share_one_stream(tools: str) -> None:
    remote = RemoteToolSet(tools)

    def call(i: int) -> str:
        return remote.call("add", {"a": i, "b": 1}, CONTEXT)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(call, range(200)))
    assert [answer.split()[0] for answer in answers] == [str(i + 1) for i in range(200)]
    assert remote._client.counts().connections == 1


def test_health_and_reflection_answer(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "burnish.v1.VerifierService"):
        assert health.Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S).status == health_pb2.HealthCheckResponse.SERVING
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = next(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([question]), timeout=WAIT_S))
    assert "burnish.v1.VerifierService" in [service.name for service in answer.list_services_response.service]


def test_unary_errors_are_statuses_and_the_request_id_comes_back(channel: grpc.Channel) -> None:
    stub = verifier_pb2_grpc.VerifierServiceStub(channel)
    cases = {
        grpc.StatusCode.UNKNOWN: to_request(episode(do="raise")),
        grpc.StatusCode.DATA_LOSS: to_request(episode(do="nan")),
        grpc.StatusCode.NOT_FOUND: to_request(episode(), verifier="test/pupet-v1"),
        grpc.StatusCode.INVALID_ARGUMENT: verifier_pb2.VerifyRequest(data_json="[]"),
    }
    for code, request in cases.items():
        with pytest.raises(grpc.RpcError) as caught:
            stub.Verify(request, timeout=WAIT_S, metadata=(("burnish-request-id", "r-1"),))
        assert caught.value.code() == code, caught.value.details()
        assert ("burnish-request-id", "r-1") in caught.value.trailing_metadata()


def test_two_thousand_unary_calls_at_a_time_all_get_an_answer(puppet: str) -> None:
    async def run() -> list[float]:
        async with grpc.aio.insecure_channel(puppet) as opened:
            stub = verifier_pb2_grpc.VerifierServiceStub(opened)
            calls = [stub.Verify(to_request(episode(float(i))), timeout=WAIT_S * 2) for i in range(2048)]
            return [answer.score for answer in await asyncio.gather(*calls)]

    assert background().run(run(), WAIT_S * 2) == [float(i) for i in range(2048)]


def test_items_of_one_batch_do_not_see_each_others_context(channel: grpc.Channel) -> None:
    items = [verifier_pb2.VerifyItem(request_id=str(i), request=to_request(episode(do="context"))) for i in range(50)]
    stream = verifier_pb2_grpc.VerifierServiceStub(channel).VerifyStream(
        iter([verifier_pb2.VerifyStreamRequest(items=items)]), timeout=WAIT_S
    )
    assert [result.response.score for batch in stream for result in batch.results] == [1.0] * 50


def test_every_item_of_a_raw_stream_gets_one_typed_result(channel: grpc.Channel, tmp_path: Path) -> None:
    sleep = to_request(episode(do="sleep", s=60, file=str(tmp_path / "a")))
    items = [
        verifier_pb2.VerifyItem(request_id="late", timeout_s=0.2, request=sleep),
        verifier_pb2.VerifyItem(request_id="withdrawn", timeout_s=60, request=sleep),
        verifier_pb2.VerifyItem(request_id="withdrawn", cancel=common_pb2.Cancel()),
        verifier_pb2.VerifyItem(request_id="good", request=to_request(episode(0.5))),
        verifier_pb2.VerifyItem(request_id="bad", request=to_request(episode(do="raise"))),
        verifier_pb2.VerifyItem(request_id="empty"),
    ]
    stream = verifier_pb2_grpc.VerifierServiceStub(channel).VerifyStream(
        iter([verifier_pb2.VerifyStreamRequest(items=items)]), timeout=WAIT_S
    )
    results = [result for batch in stream for result in batch.results]
    assert {one.request_id: one.error.code for one in results} == {
        "late": CODES["DEADLINE_EXCEEDED"],
        "withdrawn": CODES["CANCELLED"],
        "good": 0,
        "bad": CODES["UNKNOWN"],
        "empty": CODES["INVALID_ARGUMENT"],
    }
    assert len(results) == 5


# ------------------------------------------------------------------------------------------------------- verifiers that fail


def test_every_fault_of_a_verifier_is_a_typed_failure_with_its_name(puppet: str, tmp_path: Path) -> None:
    remote = RemoteVerifier("verdict", puppet, deadline_s=WAIT_S)
    brief = RemoteVerifier("verdict", puppet, deadline_s=2.0)
    raised = failure(remote, episode(do="raise"))
    assert raised.kind == FailureKind.VERIFIER_ERROR
    assert raised.detail.startswith("KeyError: 'verdict'")
    assert "rpc_targets.py" in raised.detail
    assert failure(remote, episode(do="nan")).kind == FailureKind.VERIFIER_INVALID
    assert failure(remote, episode(do="word")).kind == FailureKind.VERIFIER_INVALID
    assert failure(brief, episode(do="sleep", s=60, file=str(tmp_path / "s"))).kind == FailureKind.VERIFIER_TIMEOUT
    assert failure(RemoteVerifier("verdict", puppet, verifier="a/b-v1"), episode()).kind == FailureKind.VERIFIER_ERROR
    assert failure(remote, episode(truth={1, 2})).kind == FailureKind.VERIFIER_ERROR
    assert raised.culprit == f"verdict@{puppet}"
    assert verify(remote, episode()).value == 1.0


def test_a_server_of_several_verifiers_is_asked_by_id(logs: Path) -> None:
    with ServiceProcess("verifier", str(TARGETS), logs / "several.log") as service:
        scored = RemoteVerifier("verdict", service.address, verifier="test/puppet-v1", deadline_s=WAIT_S)
        process = RemoteVerifier("verdict", service.address, verifier="test/pid-v1", deadline_s=WAIT_S)
        scored.check(WAIT_S)
        assert verify(scored, episode(0.5)).value == 0.5
        assert verify(process, episode(0.5)).value == service.pid
        with pytest.raises(ValueError, match=r"serves .*test/pid-v1.*; say which one to use: verifier_id = …"):
            RemoteVerifier("verdict", service.address).check(WAIT_S)
        assert failure(RemoteVerifier("verdict", service.address, deadline_s=WAIT_S), episode()).kind == FailureKind.VERIFIER_ERROR


def test_a_verifier_that_is_down_is_unavailable() -> None:
    address = f"127.0.0.1:{free_port()}"
    remote = RemoteVerifier("verdict", address, deadline_s=0.5)
    down = failure(remote, episode())
    assert (down.kind, down.culprit) == (FailureKind.VERIFIER_UNAVAILABLE, f"verdict@{address}")
    with pytest.raises(ValueError, match=f"verifier 'verdict' at {address} does not answer: could not connect within 0.5 s"):
        remote.check(timeout_s=0.5)


def test_check_recognises_the_service(puppet: str, tools: str) -> None:
    RemoteVerifier("verdict", puppet).check()
    RemoteToolSet(tools).check()
    with pytest.raises(ValueError, match="did you mean 'test/puppet-v1'"):
        RemoteVerifier("verdict", puppet, verifier="test/pupet-v1").check()
    with pytest.raises(ValueError, match="does not answer"):
        RemoteVerifier("verdict", tools).check()


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("cause", ["deadline", "cancel"])
def test_giving_up_reaches_user_code(kind: str, cause: str, puppet: str, sync_puppet: str, tmp_path: Path) -> None:
    file = tmp_path / "state"
    remote = RemoteVerifier("verdict", puppet if kind == "async" else sync_puppet, deadline_s=3.0 if cause == "deadline" else WAIT_S)

    async def run() -> None:
        task = asyncio.create_task(remote.score(episode(do="sleep", s=60, file=str(file))))
        while content(file) != "started":
            await asyncio.sleep(0.02)
        if cause == "cancel":
            task.cancel()
        await asyncio.wait({task})
        assert task.cancelled() == (cause == "cancel")

    asyncio.run(asyncio.wait_for(run(), WAIT_S))
    wait_until(lambda: content(file) == "cancelled", "cancellation of user code")


# ------------------------------------------------------------------------------------------------------------------- tools


def test_remote_tools_behave_like_local_ones(tools: str) -> None:
    local = load_tools(str(TARGETS))
    remote = RemoteToolSet(tools)
    assert remote.schemas() == local.schemas()
    calls: list[tuple[str, dict[str, Any]]] = [
        ("add", {"a": 1, "b": "2"}),
        ("wait", {"s": 0}),
        ("add", {"a": 1}),
        ("add", {"a": 1, "b": 2, "c": 3}),
        ("add", {"a": 10**30, "b": 1}),
        ("add", {"a": {1}, "b": 1}),
        ("misbehave", {"how": "reject"}),
        ("nothing", {}),
        ("no\ud800thing", {}),
    ]
    for name, arguments in calls:
        answers = []
        for toolset in (local, remote):
            try:
                answers.append(toolset.call(name, arguments, CONTEXT))
            except ToolRejected as rejection:
                answers.append(f"rejected: {rejection}")
        assert answers[0] == answers[1]
    assert remote.call("add", {"a": 1, "b": 2}, CONTEXT) == "3 for train-17/0 seed 17 {'level': 2}"


def test_faults_of_tools_are_failures_with_name_and_address(tools: str) -> None:
    with pytest.raises(EpisodeFailure) as raised:
        RemoteToolSet(tools).call("misbehave", {"how": "raise"}, CONTEXT)
    assert raised.value.failure.kind == FailureKind.TOOL_ERROR
    assert raised.value.failure.culprit == f"misbehave@{tools}"
    assert raised.value.failure.detail.startswith("OSError: gauge is unplugged")

    brief = RemoteToolSet(tools, deadline_s=2.0)
    brief.check()
    with pytest.raises(EpisodeFailure) as late:
        brief.call("wait", {"s": 60}, CONTEXT)
    assert (late.value.failure.kind, late.value.failure.culprit) == (FailureKind.TOOL_TIMEOUT, f"wait@{tools}")

    with pytest.raises(EpisodeFailure) as down:
        RemoteToolSet(f"127.0.0.1:{free_port()}", deadline_s=0.3).call("add", {"a": 1, "b": 2}, CONTEXT)
    assert down.value.failure.kind == FailureKind.TOOL_ERROR


def test_a_unary_tool_call_may_be_rejected_without_an_rpc_error(tools: str) -> None:
    with grpc.insecure_channel(tools) as opened:
        answer = tool_pb2_grpc.ToolServiceStub(opened).Call(tool_pb2.CallRequest(tool="add", arguments_json='{"a": 1}'), timeout=WAIT_S)
    assert answer.rejected == "add: argument 'b' is missing"


# --------------------------------------------------------------------------------------------------------- process lifetimes


def test_a_killed_server_fails_what_it_had_and_the_next_call_reconnects(tmp_path: Path) -> None:
    file, port = tmp_path / "state", free_port()
    service = ServiceProcess("verifier", f"{TARGETS}:puppet", tmp_path / "log", port=port)
    remote = RemoteVerifier("verdict", service.start(), deadline_s=60.0)
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(failure, remote, episode(do="sleep", s=60, file=str(file)))
            wait_until(lambda: content(file) == "started", "the call")
            assert service.pid is not None
            os.kill(service.pid, signal.SIGKILL)
            broken = waiting.result(WAIT_S)
        assert broken.kind == FailureKind.VERIFIER_UNAVAILABLE
        assert "connection broke" in broken.detail
        service.stop()
        service.start()
        assert verify(remote, episode(0.5)).value == 0.5
    finally:
        service.stop()


def test_a_frozen_server_costs_no_more_than_the_deadline(tmp_path: Path) -> None:
    service = ServiceProcess("verifier", f"{TARGETS}:puppet", tmp_path / "log")
    remote = RemoteVerifier("verdict", service.start(), deadline_s=3.0)
    try:
        assert verify(remote, episode(0.5)).value == 0.5
        assert service.pid is not None
        os.kill(service.pid, signal.SIGSTOP)
        assert failure(remote, episode()).kind == FailureKind.VERIFIER_TIMEOUT
        with pytest.raises(ValueError, match=r"does not answer: could not connect within 0\.5 s"):
            remote.check(timeout_s=0.5)
        os.kill(service.pid, signal.SIGCONT)
        assert verify(RemoteVerifier("verdict", service.address, deadline_s=WAIT_S), episode(0.5)).value == 0.5
        os.kill(service.pid, signal.SIGSTOP)
    finally:
        service.stop(grace_s=0.2)
    assert not service.alive


def test_stopping_finishes_what_is_at_work(tmp_path: Path) -> None:
    file = tmp_path / "state"
    service = ServiceProcess("verifier", f"{TARGETS}:puppet", tmp_path / "log")
    remote = RemoteVerifier("verdict", service.start(), deadline_s=WAIT_S)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(verify, remote, episode(do="sleep", s=1.0, file=str(file)))
        wait_until(lambda: content(file) == "started", "the call")
        service.stop()
        assert waiting.result(WAIT_S).value == 1.0
    assert not service.alive
    assert failure(RemoteVerifier("verdict", service.address, deadline_s=0.3), episode()).kind == FailureKind.VERIFIER_UNAVAILABLE


def test_user_code_that_never_returns_does_not_keep_the_server(tmp_path: Path) -> None:
    file = tmp_path / "state"
    service = ServiceProcess("verifier", f"{TARGETS}:sync_puppet", tmp_path / "log")
    remote = RemoteVerifier("verdict", service.start(), deadline_s=3.0)
    assert failure(remote, episode(s=3600, file=str(file), polite=False)).kind == FailureKind.VERIFIER_TIMEOUT
    assert content(file) == "started"
    pid = service.pid
    assert pid is not None
    service.stop()
    assert not Path(f"/proc/{pid}").exists()
    assert "ending the process without it" in (tmp_path / "log").read_text()


def test_a_taken_port_and_a_wrong_target_are_one_clear_line(puppet: str, tmp_path: Path) -> None:
    port = int(puppet.rpartition(":")[2])
    with pytest.raises(ValueError, match=rf"did not start: cannot listen on 127\.0\.0\.1:{port}: the port is in use"):
        ServiceProcess("verifier", f"{TARGETS}:puppet", tmp_path / "port.log", port=port).start()
    with pytest.raises(ValueError, match="there is no 'pupet'; did you mean 'puppet'"):
        ServiceProcess("verifier", f"{TARGETS}:pupet", tmp_path / "name.log").start()


def test_a_service_dies_with_whoever_started_it(tmp_path: Path) -> None:
    code = (
        "import threading, time; from pathlib import Path; from burnish.hosting.process import ServiceProcess\n"
        f"service = ServiceProcess('tools', {str(TARGETS)!r}, Path({str(tmp_path / 'log')!r}))\n"
        "starter = threading.Thread(target=service.start); starter.start(); starter.join()\n"
        "print(service.pid, service.alive, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pid, alive = parent.stdout.readline().split()
        assert alive == "True", "the service must outlive the thread that asked for it"
        assert os.getsid(int(pid)) != os.getsid(parent.pid), "a terminal's Ctrl-C must not reach it"
    finally:
        parent.kill()
        parent.communicate(timeout=WAIT_S)

    def gone() -> bool:
        stat = Path(f"/proc/{pid}/stat")
        try:
            return stat.read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    wait_until(gone, "the end of the orphan")


def test_the_program_prints_one_ready_line_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "burnish.hosting.services", "tools", str(TARGETS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith('{"event": "ready", "address": "127.0.0.1:')
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=WAIT_S)
            assert (process.returncode, out, err) == (0, "", "")
        finally:
            process.kill()
