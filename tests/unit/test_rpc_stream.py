"""The client side of a stream against a stand-in for gRPC's call object: orders of events that no real server can be made to give."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from burnish.rpc import batches
from burnish.rpc.address import Target
from burnish.rpc.methods import VERIFY
from burnish.rpc.security import ClientSecurity
from burnish.rpc.transport.calls import Call, Ended, Link, StreamCounts
from burnish.rpc.transport.stream import StreamExchange
from burnish.rpc.transport.unary import UnaryExchange


class CoveredUp:
    """A server that ends its stream while a write is on its way: gRPC then says INTERNAL of the stream, for good, whatever the server said.
    What the server sent before is still read."""

    def __init__(self, last: list[Any]) -> None:
        self._last = last

    def __call__(self, *_: object, **__: object) -> CoveredUp:
        return self

    def stream_stream(self, *_: object) -> CoveredUp:
        return self

    async def write(self, _: bytes) -> None:
        raise self._error()

    async def __aiter__(self) -> AsyncIterator[Any]:
        await asyncio.sleep(0.01)
        for message in self._last:
            yield message
        raise self._error()

    async def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.INTERNAL

    async def details(self) -> str:
        return "Internal error from Core"

    def cancel(self) -> bool:
        return True

    def get_state(self) -> grpc.ChannelConnectivity:
        return grpc.ChannelConnectivity.IDLE

    def _error(self) -> grpc.aio.AioRpcError:
        md = grpc.aio.Metadata
        return grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, md(), md(), "Internal error from Core", "")


class Unheard:
    def deliver(self, future: Any, result: Any) -> None:
        raise AssertionError("the replica's owner delivers")


@pytest.mark.parametrize(("last", "clean"), [([VERIFY.results(stopping=True)], True), ([], False)])
def test_a_server_that_said_it_stops_has_begun_nothing_else_however_the_stream_ends(last: list[Any], clean: bool) -> None:
    async def run() -> Ended:
        link = Link("mine", Target("127.0.0.1:1"), VERIFY, ClientSecurity(), "me", StreamCounts())
        call = Call(VERIFY.request(), 1.0, Unheard(), None)
        call.request_id, call.deadline = "me-0", asyncio.get_running_loop().time() + 1
        exchange = StreamExchange(link, {call.request_id: call}, lambda *_: None)
        exchange.send(call)
        ended = await exchange.run(CoveredUp(last))  # type: ignore[arg-type]
        assert call.sent
        return ended

    assert asyncio.run(asyncio.wait_for(run(), 10)).clean == clean


class Silent(CoveredUp):
    """A server that answers no unary call."""

    def unary_unary(self, *_: object, **__: object) -> Any:
        async def call(*_: object, **__: object) -> None:
            await asyncio.Event().wait()

        return call

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return grpc.ChannelConnectivity.READY

    async def wait_for_state_change(self, state: grpc.ChannelConnectivity) -> None:
        await asyncio.Event().wait()


def test_a_unary_call_that_is_withdrawn_leaves_nothing_behind() -> None:
    """Also before its task has taken a step: it was kept for as long as the connection lived."""

    async def run() -> None:
        link = Link("mine", Target("127.0.0.1:1"), VERIFY, ClientSecurity(), "me", StreamCounts())
        calls: dict[str, Call] = {}
        exchange = UnaryExchange(link, calls, lambda *_: None)
        running = asyncio.ensure_future(exchange.run(Silent([])))  # type: ignore[arg-type]
        for number, steps in enumerate((0, 1, 2, 5)):
            call = Call(VERIFY.request(), 100.0, Unheard(), None)
            call.request_id, call.deadline = f"me-{number}", asyncio.get_running_loop().time() + 100
            calls[call.request_id] = call
            exchange.send(call)
            while call.request_id not in exchange._tasks:
                await asyncio.sleep(0)
            for _ in range(steps):
                await asyncio.sleep(0)
            del calls[call.request_id]
            exchange.withdraw(call)
        while exchange._tasks:
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 10))


class Reads:
    """The server's side of a stream whose client reads when it pleases: what was written, and when that was read."""

    def __init__(self) -> None:
        self.written: list[Any] = []

    async def write(self, message: Any) -> None:
        self.written.append(message)


async def never() -> AsyncIterator[Any]:
    await asyncio.Event().wait()
    yield


def test_a_server_that_stops_waits_for_its_client_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handle(request: Any) -> Any:
        raise AssertionError("nothing is asked")

    async def run(seconds: float) -> tuple[list[Any], bool]:
        monkeypatch.setattr(batches, "LEAVE_S", seconds)
        handler, reads = batches.BatchedHandler(VERIFY, handle), Reads()
        serving = asyncio.create_task(handler.stream(never(), reads))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        await handler.drain()
        while not reads.written:
            await asyncio.sleep(0.01)
        await asyncio.wait({serving}, timeout=0.2)
        stays = not serving.done()
        serving.cancel()  # the client leaves
        await asyncio.wait({serving}, timeout=10)
        assert serving.done() and not handler._streams
        return reads.written, stays

    written, stays = asyncio.run(run(60.0))
    assert [message.stopping for message in written] == [True] and stays
    assert not asyncio.run(run(0.0))[1]
