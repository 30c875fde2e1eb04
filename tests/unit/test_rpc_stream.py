"""The client side of a stream against a stand-in for gRPC's call object: orders of events that no real server can be made to give."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from burnish.envs.remote.env import RemoteEnv
from burnish.envs.remote.tools import RemoteToolSet
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rpc import batches, streams
from burnish.rpc.address import Target
from burnish.rpc.bounds import MAX_PARTS, SMALL_BYTES, TooManyParts, answers_of, more_parts
from burnish.rpc.client import BatchedClient
from burnish.rpc.errors import CODES, RpcError
from burnish.rpc.methods import CALL, EPISODE, VERIFY
from burnish.rpc.security import ClientSecurity, ServerSecurity
from burnish.rpc.server import Server, ServerOptions
from burnish.rpc.transport.calls import Call, Ended, Link, StreamCounts
from burnish.rpc.transport.stream import StreamExchange
from burnish.rpc.transport.unary import UnaryExchange
from burnish.v1 import common_pb2, verifier_pb2, verifier_pb2_grpc


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
        monkeypatch.setattr(streams, "LEAVE_S", seconds)
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


class Refusing(Reads):
    """A context that can be told how the stream ends."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: tuple[grpc.StatusCode, str] | None = None

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.ended = (code, details)


def test_a_message_of_more_items_than_any_client_packs_together_ends_its_stream() -> None:
    """A million of them in 2 MB held the loop for seconds, and their refusals took half a gigabyte."""

    async def handle(request: Any) -> Any:
        raise AssertionError("nothing is asked")

    async def run(items: int) -> Refusing:
        async def sent() -> AsyncIterator[Any]:
            yield VERIFY.items.FromString(b"\x0a\x00" * items)

        context = Refusing()
        await batches.BatchedHandler(VERIFY, handle).stream(sent(), context)  # type: ignore[arg-type]
        return context

    most = asyncio.run(asyncio.wait_for(run(streams.MOST_ITEMS), 60))
    assert most.ended is None and sum(len(message.results) for message in most.written) == streams.MOST_ITEMS
    more = asyncio.run(asyncio.wait_for(run(streams.MOST_ITEMS + 1), 60))
    assert more.ended is not None and more.ended[0] is grpc.StatusCode.INVALID_ARGUMENT and not more.written
    assert "at most 2048 items, not 2049" in more.ended[1]


LARGE = 100_000


async def served(handler: batches.BatchedHandler[Any, Any], *messages: Any, then: Any = None) -> Refusing:
    """What a stream writes that gets these messages, and ends once `then` is there."""
    context = Refusing()

    async def sent() -> AsyncIterator[Any]:
        for message in messages:
            yield message
            await asyncio.sleep(0.01)
        if then is not None:
            await then(context)

    await asyncio.wait_for(handler.stream(sent(), context), 60)  # type: ignore[arg-type]
    return context


def items(*sizes: int, first: int = 0) -> Any:
    """A message with items of so many bytes and a little."""
    message = VERIFY.items()
    for i, size in enumerate(sizes, first):
        message.items.add(request_id=str(i), timeout_s=30).request.task.id = "x" * size
    return message


def codes(context: Refusing) -> dict[str, int]:
    """By the id of an item how it ended: 0 is well."""
    return {one.request_id: one.error.code if one.HasField("error") else 0 for message in context.written for one in message.results}


@pytest.mark.parametrize("together", [True, False])
def test_requests_at_work_are_bounded_by_their_bytes_together_and_small_ones_always_taken(together: bool) -> None:
    """8,192 items of up to 64 MiB each were taken: half a terabyte of one stream."""

    async def run() -> None:
        release = asyncio.Event()

        async def handle(request: Any) -> Any:
            await release.wait()
            return VERIFY.response()

        handler = batches.BatchedHandler(VERIFY, handle, batches.Limits(max_bytes=8 * LARGE))

        async def then(_: Any) -> None:
            release.set()

        sizes = [LARGE] * 6
        messages = [items(*sizes, 10)] if together else [*(items(one, first=i) for i, one in enumerate(sizes)), items(10, first=6)]
        taken = codes(await served(handler, *messages, then=then))
        full = CODES["RESOURCE_EXHAUSTED"]
        assert [taken[str(i)] for i in range(7)] == [0, 0, 0, full, full, full, 0]  # half of all is one stream's
        again = codes(await served(handler, items(*sizes[:3])))
        assert list(again.values()) == [0, 0, 0], "what ended holds nothing"

    asyncio.run(run())


def test_unary_calls_and_streams_share_the_bytes() -> None:
    async def run() -> None:
        release = asyncio.Event()

        async def handle(request: Any) -> Any:
            await release.wait()
            return VERIFY.response()

        handler = batches.BatchedHandler(VERIFY, handle, batches.Limits(max_bytes=5 * LARGE))
        request = items(LARGE).items[0].request
        context = Unary()
        waiting = [asyncio.ensure_future(handler.unary(request, context)) for _ in range(2)]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        with pytest.raises(Aborted, match="RESOURCE_EXHAUSTED"):
            await handler.unary(request, context)  # type: ignore[arg-type]

        async def then(_: Any) -> None:
            release.set()

        taken = codes(await served(handler, items(LARGE, LARGE, 10), then=then))
        assert taken == {"0": 0, "1": CODES["RESOURCE_EXHAUSTED"], "2": 0}, "what one client takes leaves room for others"
        await asyncio.gather(*waiting)
        await handler.unary(request, context)  # type: ignore[arg-type]

    asyncio.run(run())


class Slow(Refusing):
    """A client that takes nothing before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.read = asyncio.Event()

    async def write(self, message: Any) -> None:
        await self.read.wait()
        await super().write(message)


async def judged_large(request: Any) -> Any:
    return VERIFY.response(labels={"expected": "x" * LARGE})


def opened(handler: batches.BatchedHandler[Any, Any], context: Any, *messages: Any) -> asyncio.Task[None]:
    """A stream that gets these messages and stays open."""

    async def sent() -> AsyncIterator[Any]:
        for message in messages:
            yield message
        await asyncio.Event().wait()

    return asyncio.ensure_future(handler.stream(sent(), context))


async def left(*streams: asyncio.Task[None]) -> None:
    for stream in streams:
        stream.cancel()
    await asyncio.wait(streams, timeout=10)


def test_large_results_that_nobody_reads_are_bounded_by_their_bytes_together() -> None:
    async def run() -> None:
        handler, context = batches.BatchedHandler(VERIFY, judged_large, batches.Limits(max_bytes=8 * LARGE)), Slow()
        stream = opened(handler, context, items(*[10] * 8))
        await asyncio.sleep(0.05)
        context.read.set()
        await asyncio.sleep(0.05)
        ended = codes(context)
        assert sorted(ended.values()) == [0] * 3 + [CODES["UNAVAILABLE"]] * 5, "no fault of the verifier"
        assert list(codes(await served(handler, items(10, 10, 10))).values()) == [0, 0, 0]
        await left(stream)
        assert handler.held.held == 0

    asyncio.run(run())


def test_a_client_that_is_slow_to_read_loses_no_result() -> None:
    """Results were dropped as the verifier's fault, though what made them was read while others waited."""

    async def run() -> None:
        handler, context = batches.BatchedHandler(VERIFY, judged_large, batches.Limits(max_bytes=8 * LARGE)), Slow()
        stream = opened(handler, context, *(items(10, first=i) for i in range(40)))
        await asyncio.sleep(0.05)
        assert handler.in_flight <= 3, "nothing more is read meanwhile"
        context.read.set()
        async with asyncio.timeout(30):
            while len(codes(context)) < 40:
                await asyncio.sleep(0.01)
        assert set(codes(context).values()) == {0}
        await left(stream)

    asyncio.run(run())


def test_streams_that_read_nothing_leave_room_for_others_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them held everything for as long as they stayed open."""

    async def run() -> None:
        handler = batches.BatchedHandler(VERIFY, judged_large, batches.Limits(max_bytes=32 * LARGE))
        contexts = [Slow() for _ in range(3)]
        streams = [opened(handler, context, items(*[10] * 40)) for context in contexts]
        await asyncio.sleep(0.1)
        assert handler.held.held > 20 * LARGE
        assert list(codes(await served(handler, items(10))).values()) == [0]
        async with asyncio.timeout(30):
            await asyncio.wait(streams)
        assert {context.ended for context in contexts} == {(grpc.StatusCode.RESOURCE_EXHAUSTED, "the client took no results for 0.5 s")}
        assert handler.held.held == 0 and handler.in_flight == 0

    monkeypatch.setattr(streams, "UNTAKEN_S", 0.5)
    asyncio.run(run())


def test_small_requests_count_together() -> None:
    """400 MB were held that counted for nothing: in ids, in fields that the contract has none of, and in many a request of 64 KiB."""

    async def run() -> None:
        release = asyncio.Event()

        async def handle(request: Any) -> Any:
            await release.wait()
            return VERIFY.response()

        async def then(_: Any) -> None:
            release.set()

        handler = batches.BatchedHandler(VERIFY, handle, batches.Limits(max_bytes=8 * LARGE))
        taken = list(codes(await served(handler, *(items(60_000, first=i) for i in range(20)), then=then)).values())
        assert sorted(taken) == [0] * 6 + [CODES["RESOURCE_EXHAUSTED"]] * 14 and handler.held.held == 0

    asyncio.run(run())


def test_an_item_of_unknown_fields_keeps_only_its_request() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    async def run() -> None:
        kept = list[Any]()

        async def handle(request: Any) -> Any:
            kept.append(request)
            return VERIFY.response()

        unknown = b"\xa2\x06\x80\x80\x80\x10" + bytes(32 << 20)
        item = items(10).items[0].SerializeToString() + unknown
        raw = b"\x0a" + bytes([0x80 | len(item) & 127, 0x80 | len(item) >> 7 & 127, 0x80 | len(item) >> 14 & 127, len(item) >> 21]) + item
        handler, before = batches.BatchedHandler(VERIFY, handle), resident()
        for _ in range(4):
            await served(handler, VERIFY.items.FromString(raw))
        assert len(kept) == 4 and resident() - before < 64 << 20

    asyncio.run(run())


def test_a_request_id_that_is_a_text_of_its_own_ends_the_stream() -> None:
    async def handle(request: Any) -> Any:
        return VERIFY.response()

    async def run(length: int) -> Refusing:
        return await served(batches.BatchedHandler(VERIFY, handle), VERIFY.items(items=[{"request_id": "x" * length, "request": {}}]))

    assert asyncio.run(run(streams.MOST_ID)).ended is None
    long = asyncio.run(run(streams.MOST_ID + 1))
    assert long.ended == (grpc.StatusCode.INVALID_ARGUMENT, "a request_id has at most 200 characters") and not long.written


def test_a_request_that_is_kept_keeps_nothing_of_the_message_that_it_came_in() -> None:
    """protobuf keeps a message as long as anything in it: five requests of a few bytes held 300 MB."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    async def run() -> None:
        kept = list[Any]()

        async def handle(request: Any) -> Any:
            if len(request.task.id) < LARGE:
                kept.append(request)
            return VERIFY.response()

        handler, raw = batches.BatchedHandler(VERIFY, handle), items(10, 32 << 20).SerializeToString()
        before = resident()
        for _ in range(4):
            await served(handler, VERIFY.items.FromString(raw))
        assert [one.task.id for one in kept] == ["x" * 10] * 4 and resident() - before < 64 << 20

    asyncio.run(run())


class Aborted(Exception):
    """How a unary call ended."""


class Unary:
    """The context of a unary call."""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def set_trailing_metadata(self, _: Any) -> None: ...

    def time_remaining(self) -> float:
        return 30.0

    def add_done_callback(self, callback: Any) -> None: ...

    async def abort(self, code: grpc.StatusCode, _: str) -> None:
        raise Aborted(code.name)


def plain(kind: Any, path: str) -> Any:
    """A call that sends bytes as they are."""
    return kind(path, None, None)


def test_what_comes_without_a_token_is_refused_before_it_is_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight megabytes of empty messages took 400 MB first. What is sent here cannot be taken apart at all."""

    async def run() -> list[grpc.StatusCode]:
        server = Server([Unasked()], ServerOptions(security=ServerSecurity(token_env="BURNISH_TEST_TOKEN")))
        address = await server.start()
        codes = []
        async with grpc.aio.insecure_channel(address) as channel:
            for call in (
                plain(channel.unary_unary, VERIFY.unary_path)(b"\xff"),
                plain(channel.stream_stream, VERIFY.path)(iter([b"\xff"])),
            ):
                codes.append(await call.code())
        await server.stop()
        return codes

    monkeypatch.setenv("BURNISH_TEST_TOKEN", "s3cret")
    assert asyncio.run(asyncio.wait_for(run(), 60)) == [grpc.StatusCode.UNAUTHENTICATED] * 2


def test_what_a_message_holds_is_counted_before_it_is_taken_apart() -> None:
    """64 MiB of empty messages are three gigabytes."""
    request = verifier_pb2.VerifyRequest(episode_id="e", env_parts={"a": 1.0, "b": 2.0})
    for _ in range(10):
        request.messages.add(role=common_pb2.ROLE_USER, text="x" * 300)
    raw, kind = request.SerializeToString(), verifier_pb2.VerifyRequest.DESCRIPTOR
    fields = 1 + 2 * 3 + 10 * 3  # the id, entries with key and value, messages with role and text
    assert not more_parts(raw, kind, fields) and more_parts(raw, kind, fields - 1)
    packed = verifier_pb2.VerifyResponse(turns=[1.0] * 9).SerializeToString()
    assert more_parts(packed, verifier_pb2.VerifyResponse.DESCRIPTOR, 9)
    for cut in range(len(raw)):
        more_parts(raw[:cut], kind, fields)  # raises nothing: protobuf says what is wrong
    assert not more_parts(b"\xff" * 100, kind, 9)


GROUP = b"\x9b\x06\x9c\x06"  # field 99, begun and ended
RESULTS = b"\x0a\x00" * SMALL_BYTES  # empty ones
PROMPT = verifier_pb2.VerifyRequest(task=common_pb2.Task.FromString(b"\x1a\x00" * SMALL_BYTES)).SerializeToString()


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (GROUP + RESULTS, verifier_pb2.VerifyStreamResponse),
        (b"\x0a\x00" + GROUP + RESULTS, verifier_pb2.VerifyStreamResponse),
        (PROMPT + b"\xff", verifier_pb2.VerifyRequest),  # protobuf makes two million messages, and then says that the end is missing
    ],
)
def test_nothing_in_a_message_ends_the_count_of_its_fields(raw: bytes, kind: Any) -> None:
    """Four bytes of a group had 4 MB read as two million results."""
    assert more_parts(raw, kind.DESCRIPTOR, MAX_PARTS)
    with pytest.raises(TooManyParts, match="or a group"):
        answers_of(kind)(raw)


def test_a_large_message_of_more_fields_than_any_has_is_refused() -> None:
    async def run() -> list[str]:
        server, said = Server([Unasked()]), []
        address, field = await server.start(), verifier_pb2.VerifyRequest.DESCRIPTOR.fields_by_name["messages"].number
        async with grpc.aio.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
            few, many = (bytes([field << 3 | 2, 0]) * count for count in (10, SMALL_BYTES))
            calls = [plain(channel.unary_unary, VERIFY.unary_path)(raw) for raw in (few, many)]
            for call in [*calls, plain(channel.stream_stream, VERIFY.path)(iter([b"\x0a\x00" * SMALL_BYTES]))]:
                said.append(f"{(await call.code()).name}: {await call.details()}")
        await server.stop()
        return said

    few, unary, streamed = asyncio.run(asyncio.wait_for(run(), 60))
    assert few.startswith("UNIMPLEMENTED") and "a message of 4194304 bytes holds more than 200000 fields, or a group" in unary
    assert streamed == "INVALID_ARGUMENT: a message of 4194304 bytes holds more than 200000 fields, or a group"


class Unasked:
    """A service that does nothing, and reads what it is sent."""

    full_name, in_flight, able = "burnish.v1.VerifierService", 0, True

    def add_to(self, server: grpc.aio.Server) -> None:
        verifier_pb2_grpc.add_VerifierServiceServicer_to_server(Servicer(), server)  # type: ignore[abstract]

    async def drain(self) -> None: ...

    def close(self) -> bool:
        return True


class Servicer(verifier_pb2_grpc.VerifierServiceServicer):  # the other methods are the stub's, which say UNIMPLEMENTED
    async def VerifyStream(self, requests: Any, context: Any) -> None:  # type: ignore[override]
        async def handle(request: Any) -> Any:
            raise AssertionError("nothing is asked")

        await batches.BatchedHandler(VERIFY, handle).stream(requests, context)


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("raw", [b"\xff", b"\x0a\x00" * (SMALL_BYTES // 2 + 1)])
def test_a_server_whose_answer_cannot_be_read_is_said_to_be_so(raw: bytes, streams: bool) -> None:
    """Sixteen megabytes of empty results took 500 MB of its client, and held its loop for seconds."""

    async def stream(requests: AsyncIterator[Any], _: Any) -> AsyncIterator[bytes]:
        async for _message in requests:
            yield raw

    async def unary(_request: Any, _: Any) -> bytes:
        return raw if streams else b"\xff"  # of an answer to one request, most is a text

    async def run() -> str:
        handlers: dict[str, Any] = {"Verify": grpc.unary_unary_rpc_method_handler(unary)}
        if streams:
            handlers["VerifyStream"] = grpc.stream_stream_rpc_method_handler(stream)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(VERIFY.service, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        client = BatchedClient(f"127.0.0.1:{port}", VERIFY)
        try:
            with pytest.raises(RpcError) as told:
                await asyncio.wait_for(asyncio.to_thread(client.call_blocking, VERIFY.request(), 10.0), 30)
        finally:
            await server.stop(0)
        return told.value.message

    assert "its answer is no message of this contract" in asyncio.run(run())


@pytest.mark.parametrize("raw", [b"\xff", b"\x1a\x00" * 20_000])
def test_a_description_that_cannot_be_read_or_has_too_many_entries_says_so(raw: bytes) -> None:
    """A million bytes of it were half a million tools, and each verifier and environment as cheap."""

    async def describe(_request: Any, _: Any) -> bytes:
        return raw

    async def run() -> None:
        server = grpc.aio.server()
        handlers = {"Describe": grpc.unary_unary_rpc_method_handler(describe)}
        for one in (VERIFY, CALL, EPISODE):
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(one.service, handlers),))
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            for check in (RemoteVerifier("v", address).check, RemoteToolSet(address).check, RemoteEnv(address).check):
                with pytest.raises(ValueError, match="its answer is no message of this contract, or one of more fields"):
                    await asyncio.to_thread(check, 10.0)
        finally:
            await server.stop(0)

    asyncio.run(run())
