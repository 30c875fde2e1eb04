"""Clients over real sockets that take nothing of what they asked for: what a server holds for them, and how many of them it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.hosting import services
from burnish.rpc import batches, open_streams
from burnish.rpc.client import BatchedClient
from burnish.rpc.errors import RpcError
from burnish.rpc.methods import MAX_MESSAGE_BYTES, VERIFY
from burnish.rpc.security import ServerSecurity
from burnish.rpc.server import Server, ServerOptions
from burnish.v1 import verifier_pb2_grpc

pytestmark = pytest.mark.unit

LARGE = 4 << 20
TOKEN = "sesame-sesame-sesame"


class Verdicts(verifier_pb2_grpc.VerifierServiceServicer):  # the other methods are the stub's, which say UNIMPLEMENTED
    """A service whose answers are large."""

    full_name, able = "burnish.v1.VerifierService", True

    def __init__(self, limits: batches.Limits) -> None:
        self.judged, self.address = 0, ""
        self.handler = batches.BatchedHandler(VERIFY, self._judge, limits)

    async def _judge(self, request: Any) -> Any:
        self.judged += 1
        return VERIFY.response(labels={"expected": "x" * LARGE})

    @property
    def in_flight(self) -> int:
        return self.handler.in_flight

    def add_to(self, server: grpc.aio.Server) -> None:
        verifier_pb2_grpc.add_VerifierServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call,unused-ignore]

    async def Verify(self, request: Any, context: Any) -> Any:
        return await self.handler.unary(request, context)

    async def VerifyStream(self, requests: Any, context: Any) -> None:  # type: ignore[override]
        await self.handler.stream(requests, context)

    async def drain(self) -> None:
        await self.handler.drain()

    def close(self) -> bool:
        return self.handler.close()


class Wire:
    """What stands between a client and its server, and hands on nothing of what the server says while `deaf`."""

    def __init__(self, address: str) -> None:
        self._host, self._port = address.split(":")
        self._lines: list[asyncio.StreamWriter] = []
        self.hears = asyncio.Event()
        self.hears.set()

    async def open(self) -> str:
        server = await asyncio.start_server(self._joined, "127.0.0.1", 0)
        return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        for line in self._lines:
            line.transport.abort()

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, away = await asyncio.open_connection(self._host, self._port)
        self._lines += [writer, away]
        with suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(self._hand_on(reader, away), self._hand_on(there, writer, self.hears))

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hears: asyncio.Event | None = None) -> None:
        while said := await reader.read(65536):
            if hears is not None:
                await hears.wait()
            writer.write(said)
            await writer.drain()


@asynccontextmanager
async def serving(limits: batches.Limits, max_streams: int = 1024) -> AsyncIterator[tuple[Verdicts, Wire, Any, Any]]:
    """The service, the wire of one client, that client, and another one."""
    service = Verdicts(limits)  # type: ignore[abstract]
    server = Server([service], ServerOptions(max_streams=max_streams))
    address = service.address = await server.start()
    wire = Wire(address)
    options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
    async with grpc.aio.insecure_channel(await wire.open(), options) as near, grpc.aio.insecure_channel(address, options) as far:
        await asyncio.wait_for(near.channel_ready(), 10)
        stubs: list[Any] = [verifier_pb2_grpc.VerifierServiceStub(one) for one in (near, far)]  # type: ignore[no-untyped-call,unused-ignore]
        try:
            yield service, wire, stubs[0], stubs[1]
        finally:
            wire.cut()
            await server.stop()


@asynccontextmanager
async def opened(*stubs: Any) -> AsyncIterator[list[Any]]:
    """Streams that stay open, which the server has begun."""
    calls = [stub.VerifyStream(metadata=()) for stub in stubs]
    for call in calls:
        await call.write(VERIFY.items(items=[VERIFY.item(request_id="a", request=VERIFY.request())]))
        assert len((await asyncio.wait_for(call.read(), 10)).results) == 1
    try:
        yield calls
    finally:
        for call in calls:
            call.cancel()


async def refused(stub: Any) -> tuple[grpc.StatusCode, str]:
    """How a stream ends that is opened and asks for nothing."""
    call = stub.VerifyStream(timeout=10)
    return await call.code(), await call.details()


async def test_a_server_has_so_many_streams_open_and_says_so_of_more() -> None:
    """Any number of them could be opened, each with a task of the server's, by whoever reached the port."""
    async with serving(batches.Limits(), max_streams=2) as (service, _, near, far):
        async with opened(near, far) as (first, *_):
            code, said = await refused(far)
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert said == "2 streams are open, as many as this server takes; close some, or give it more (--max-streams)"
            async with grpc.aio.insecure_channel(service.address) as channel:
                health: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call,unused-ignore]
                assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=10)).status == 1, "what is no stream is answered"
                watching = health.Watch(health_pb2.HealthCheckRequest(), timeout=10)
                assert (await watching.read()).status == 1, "health has room of its own"
                watching.cancel()
            assert await ended(far.Verify(VERIFY.request(), timeout=10)) is grpc.StatusCode.OK
            client: Any = BatchedClient(service.address, VERIFY)
            with pytest.raises(RpcError, match="2 streams are open"):
                await client.call(VERIFY.request(), 2.0)
            first.cancel()
            await until(lambda: len(service.handler._streams) == 1)
            async with opened(far):
                assert (await refused(far))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        await until(lambda: not service.handler._streams)
        async with opened(near, far):
            pass


async def test_those_who_need_no_token_take_no_room_of_those_who_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many health checks as there may be streams, and nobody who had the token could open one."""
    monkeypatch.setattr(open_streams, "MOST_WATCHES", 2)
    monkeypatch.setenv("BURNISH_TEST_TOKEN", TOKEN)
    service = Verdicts(batches.Limits())  # type: ignore[abstract]
    server = Server([service], ServerOptions(max_streams=1, security=ServerSecurity(token_env="BURNISH_TEST_TOKEN")))
    address = await server.start()
    async with grpc.aio.insecure_channel(address, [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]) as channel:
        stubs: Any = verifier_pb2_grpc.VerifierServiceStub(channel), health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call,unused-ignore]
        verifier, health = stubs
        watching = [health.Watch(health_pb2.HealthCheckRequest(), timeout=10) for _ in range(2)]
        assert [(await one.read()).status for one in watching] == [1, 1]
        more = health.Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert await more.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "watched 2 times" in await more.details()
        refused_one = verifier.VerifyStream(timeout=10)
        assert await refused_one.code() is grpc.StatusCode.UNAUTHENTICATED
        call = verifier.VerifyStream(metadata=(("authorization", f"Bearer {TOKEN}"),), timeout=10)
        await call.write(VERIFY.items(items=[VERIFY.item(request_id="a", request=VERIFY.request())]))
        assert len((await call.read()).results) == 1
        for one in (*watching, call):
            one.cancel()
    await server.stop()


def test_a_server_without_a_stream_is_none() -> None:
    with pytest.raises(ValueError, match="max_streams of at least 1, not 0"):
        ServerOptions(max_streams=0)


@pytest.mark.parametrize("kind", ["verifier", "tools", "env"])
def test_a_user_says_how_many_streams_a_service_has(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[ServerOptions]()
    name = {"verifier": "serve_verifier", "tools": "serve_tools", "env": "serve_environment"}[kind]
    monkeypatch.setattr(services, name, lambda target, options=None, *_, **__: given.append(options))
    monkeypatch.setattr(services, "serve_environment", lambda target, kwargs=None, options=None, **_: given.append(options))
    for arguments, most in (((), 1024), (("--max-streams", "7"), 7)):
        assert CliRunner().invoke(app, [f"serve-{kind}", "burnish/Arithmetic-v0", *arguments]).exit_code == 0
        assert given.pop().max_streams == most
    assert CliRunner().invoke(app, [f"serve-{kind}", "burnish/Arithmetic-v0", "--max-streams", "0"]).exit_code == 2


async def until(true: Any) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


async def ended(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_unary_answers_that_nobody_takes_are_bounded_by_their_bytes_and_their_number() -> None:
    """Each of any number of them held 64 MiB, and counted for nothing once its work was done."""
    async with serving(batches.Limits(max_bytes=8 * LARGE)) as (service, wire, deaf, other):
        handler = service.handler
        wire.hears.clear()
        calls = [asyncio.ensure_future(ended(deaf.Verify(VERIFY.request(), timeout=60))) for _ in range(8)]
        await until(lambda: service.judged == 8 and handler.held.held >= 3 * LARGE)
        assert handler.held.held < 4 * LARGE, "half of all is what unary calls may have together"
        assert await ended(other.Verify(VERIFY.request(), timeout=10)) is grpc.StatusCode.UNAVAILABLE
        wire.hears.set()
        found = await asyncio.wait_for(asyncio.gather(*calls), 20)
        assert sorted(code.name for code in found) == ["OK"] * 3 + ["UNAVAILABLE"] * 5
        await until(lambda: handler.held.held == 0 and handler.in_flight == 0)
        assert await ended(other.Verify(VERIFY.request(), timeout=10)) is grpc.StatusCode.OK, "what was taken holds nothing"


async def test_unary_answers_that_nobody_takes_are_calls_in_flight_until_their_client_leaves() -> None:
    async with serving(batches.Limits(max_in_flight=4)) as (service, wire, deaf, other):
        wire.hears.clear()
        calls = [asyncio.ensure_future(ended(deaf.Verify(VERIFY.request(), timeout=60))) for _ in range(4)]
        await until(lambda: service.handler.held.held > 4 * LARGE)
        assert service.in_flight == 4
        assert await ended(other.Verify(VERIFY.request(), timeout=10)) is grpc.StatusCode.RESOURCE_EXHAUSTED
        wire.cut()
        await until(lambda: service.handler.held.held == 0 and service.in_flight == 0)
        assert await ended(other.Verify(VERIFY.request(), timeout=10)) is grpc.StatusCode.OK
        await asyncio.wait(calls, timeout=10)
        for call in calls:
            call.cancel()
