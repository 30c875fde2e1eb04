"""Services that stop, break, refuse or are not listened to, over real sockets."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.envs.remote.env import RemoteEnv
from burnish.envs.remote.tools import RemoteToolSet
from burnish.envs.tools import ToolContext
from burnish.envs.types import Message, Task
from burnish.hosting.process import ServiceProcess
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.remote.service import Verifier, VerifierService
from burnish.rewards.types import RewardInput, Score
from burnish.rpc import streams
from burnish.rpc.batches import Limits
from burnish.rpc.server import Server
from burnish.v1 import common_pb2, tool_pb2, verifier_pb2, verifier_pb2_grpc

pytestmark = pytest.mark.integration

TESTS = Path(__file__).resolve().parent
WAIT_S = 120.0


def episode(**data: Any) -> RewardInput:
    return RewardInput("e/0", Task("e", 17), (Message("user", "hi"),), 1.0, data=data)


async def outcome(remote: RemoteVerifier) -> Score | FailureKind:
    try:
        return await remote.score(episode())
    except EpisodeFailure as error:
        return error.failure.kind


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[ServiceProcess]]:
    services = [ServiceProcess("verifier", f"{TESTS / 'rpc_targets.py'}:pid", tmp_path / f"{i}.log") for i in range(2)]
    for service in services:
        service.start()
    yield services
    for service in services:
        service.stop(grace_s=0.5)


async def test_of_a_stopped_replica_few_calls_are_lost_and_it_comes_back(pair: list[ServiceProcess]) -> None:
    address = ",".join(service.address for service in pair)
    stopped = pair[0].pid or 0
    patient = RemoteVerifier("pid", address, deadline_s=WAIT_S)
    assert isinstance(await outcome(patient), Score)
    os.kill(stopped, signal.SIGSTOP)
    try:
        brief = RemoteVerifier("pid", address, deadline_s=4.0)
        results = [await outcome(brief) for _ in range(8)]
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert results.count(FailureKind.VERIFIER_TIMEOUT) <= 2, results
    assert sum(isinstance(one, Score) for one in results) >= 6, results
    deadline = time.monotonic() + WAIT_S
    while (await patient.score(episode())).value != stopped:
        assert time.monotonic() < deadline, "the replica that answers again gets no calls"
        await asyncio.sleep(0.02)


async def test_a_call_at_a_server_that_stopped_ends_before_a_long_deadline(pair: list[ServiceProcess]) -> None:
    remote = RemoteVerifier("pid", pair[0].address, deadline_s=300.0)
    assert isinstance(await outcome(remote), Score)
    os.kill(pair[0].pid or 0, signal.SIGSTOP)
    began = time.monotonic()
    assert await outcome(remote) is FailureKind.VERIFIER_UNAVAILABLE
    assert time.monotonic() - began < 150.0, "pings are answered, or not sent"


def test_a_step_of_a_session_whose_replica_died_fails_at_once(tmp_path: Path) -> None:
    target = f"{TESTS / 'env_targets.py'}:test/Puppet-v0"
    worlds = [ServiceProcess("environment", target, tmp_path / f"{i}.log", kwargs={"file": str(tmp_path / f"{i}.did")}) for i in range(2)]
    address = ",".join(service.start() for service in worlds)
    try:
        envs = [RemoteEnv(address, deadline_s=120.0) for _ in range(2)]
        for env in envs:
            env.reset(seed=1)
        assert worlds[0].pid is not None
        os.kill(worlds[0].pid, signal.SIGKILL)
        worlds[0].stop()
        began = time.monotonic()
        failures = []
        for env in envs:
            try:
                env.step("end")
            except EpisodeFailure as error:
                failures.append(error.failure)
        assert time.monotonic() - began < 60.0
        (lost,) = failures
        assert (lost.kind, lost.culprit) == (FailureKind.ENV_ERROR, f"test/Puppet-v0@{address}")
        assert f"replica {worlds[0].address}" in lost.detail
    finally:
        for service in worlds:
            service.stop(grace_s=0.5)


# --------------------------------------------------------------------------------------------------------------- unary calls


class OldTools:
    """A unary tool server as another language might have it: acts, and then says that it is unavailable."""

    def __init__(self) -> None:
        self.acted = 0

    async def describe(self, request: tool_pb2.DescribeToolsRequest, context: Any) -> tool_pb2.DescribeToolsResponse:
        press = tool_pb2.ToolInfo(name="press", description="Press.", parameters_json='{"type":"object","properties":{}}')
        return tool_pb2.DescribeToolsResponse(contract="burnish.v1", tools=[press])

    async def call(self, request: tool_pb2.CallRequest, context: Any) -> tool_pb2.CallResponse:
        self.acted += 1
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the load balancer says so")
        raise AssertionError


@asynccontextmanager
async def serving(tools: OldTools) -> AsyncIterator[str]:
    server = grpc.aio.server()
    methods = {
        "Describe": grpc.unary_unary_rpc_method_handler(
            tools.describe, tool_pb2.DescribeToolsRequest.FromString, tool_pb2.DescribeToolsResponse.SerializeToString
        ),
        "Call": grpc.unary_unary_rpc_method_handler(tools.call, tool_pb2.CallRequest.FromString, tool_pb2.CallResponse.SerializeToString),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("burnish.v1.ToolService", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def test_a_call_that_acted_and_was_then_unavailable_is_not_made_again() -> None:
    tools = OldTools()
    async with serving(tools) as address:
        remote = RemoteToolSet(address, deadline_s=WAIT_S)
        with pytest.raises(EpisodeFailure) as caught:
            await asyncio.to_thread(remote.call, "press", {}, ToolContext("e/0", 1))
    assert (caught.value.failure.kind, caught.value.failure.culprit) == (FailureKind.TOOL_ERROR, f"press@{address}")
    assert tools.acted == 1


# ------------------------------------------------------------------------------------------------------------- back-pressure


def large(episode: RewardInput) -> Score:
    return Score(1.0, labels={"text": "x" * 1000})


@asynccontextmanager
async def verifying(function: Any, limits: Limits) -> AsyncIterator[VerifierService]:
    service = VerifierService([Verifier("test/own-v1", function)], limits)
    server = Server([service])
    await server.start()
    service.address = server.address  # type: ignore[attr-defined]
    yield service
    server.options = server.options.__class__(drain_s=0.1)
    await server.stop()


async def test_results_that_a_client_does_not_read_are_counted_and_bounded() -> None:
    async def at_once(episode: RewardInput) -> Score:
        return large(episode)

    async with verifying(at_once, Limits(max_in_flight=256)) as service, grpc.aio.insecure_channel(service.address) as channel:  # type: ignore[attr-defined]
        open_stream: Any = verifier_pb2_grpc.VerifierServiceStub(channel).VerifyStream
        stream = open_stream()
        request = verifier_pb2.VerifyRequest(task=common_pb2.Task(id="t" * 1000))

        async def write() -> None:
            for first in range(0, 100_000, 64):
                items = [verifier_pb2.VerifyItem(request_id=str(first + n), request=request) for n in range(64)]
                await stream.write(verifier_pb2.VerifyStreamRequest(items=items))

        writer = asyncio.create_task(write())
        held: Counter[int] = Counter()
        for _ in range(100):
            await asyncio.sleep(0.02)
            held[service.in_flight] += 1
        assert not writer.done(), "the client may send as much as it likes"
        assert 256 <= service.in_flight < 512, held
        writer.cancel()
        stream.cancel()
        while service.in_flight:
            await asyncio.sleep(0.02)


async def test_a_stream_of_which_nothing_is_taken_ends_and_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(episode: RewardInput) -> Score:
        return Score(1.0, labels={"text": "x" * 200_000})

    monkeypatch.setattr(streams, "UNTAKEN_S", 1.0)
    async with verifying(at_once, Limits()) as service, grpc.aio.insecure_channel(service.address) as channel:  # type: ignore[attr-defined]
        open_stream: Any = verifier_pb2_grpc.VerifierServiceStub(channel).VerifyStream
        stream, held = open_stream(), service._handler.held
        request = verifier_pb2.VerifyRequest(task=common_pb2.Task(id="t"))
        items = [verifier_pb2.VerifyItem(request_id=str(n), request=request) for n in range(64)]
        async with asyncio.timeout(WAIT_S):
            await stream.write(verifier_pb2.VerifyStreamRequest(items=items))
            while held.held < 40 * 200_000:
                await asyncio.sleep(0.01)
            while held.held > 10 * 200_000:  # the one message that gRPC has of it stays until it is read
                await asyncio.sleep(0.01)
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                async for _ in stream:
                    pass
            while held.held or service.in_flight:
                await asyncio.sleep(0.01)
    assert (ended.value.code(), ended.value.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "the client took no results for 1 s")


async def test_unary_calls_are_limited_too() -> None:
    release = asyncio.Event()

    async def wait(episode: RewardInput) -> float:
        await release.wait()
        return 1.0

    async with verifying(wait, Limits(max_in_flight=4)) as service, grpc.aio.insecure_channel(service.address) as channel:  # type: ignore[attr-defined]
        stub = verifier_pb2_grpc.VerifierServiceStub(channel)
        calls = [
            asyncio.ensure_future(stub.Verify(verifier_pb2.VerifyRequest(task=common_pb2.Task(id="t")), timeout=WAIT_S)) for _ in range(6)
        ]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        while sum(call.done() for call in calls) < 2:
            await asyncio.sleep(0.01)
        assert service.in_flight == 4
        release.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
    codes = [one.code() for one in results if isinstance(one, grpc.aio.AioRpcError)]
    assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 2
