"""The batched stream to one replica: a writer sends what is ready together, a reader settles calls as results come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from ..bounds import UNREADABLE, answers_of
from ..errors import CODES, RpcRefused, RpcRemoteError, RpcUnavailable
from ..methods import BATCH_BYTES, BATCH_ITEMS, MAX_MESSAGE_BYTES
from .calls import Call, Ended, Link, outcome_of
from .channels import call_error, token_metadata

REASON_S = 3.0
COVERED_S = 0.5
CLOSED = "the server closed the stream"


class StreamExchange:
    """Carries calls while `run` runs. calls: what is with this replica and not settled, by id; shared with the replica."""

    def __init__(self, link: Link, calls: dict[str, Call], settled: Callable[[Call, Any], None]) -> None:
        self._link = link
        self._calls = calls
        self._settled = settled
        self._outbox: list[Call] = []
        self._wake = asyncio.Event()
        self._ending = False

    def send(self, call: Call) -> None:
        """Send a call, which is in `calls` already, with whatever else this tick of the loop brings."""
        self._outbox.append(call)
        if not self._wake.is_set():
            self._wake.set()

    def withdraw(self, call: Call) -> None:
        """Have the server cancel a call, which is in `calls` no more."""
        if call.sent and not self._ending:
            self._outbox.append(call)  # what is sent of it now is the cancel
            self._wake.set()

    async def run(self, channel: grpc.aio.Channel) -> Ended:
        """Write and read until the stream ends."""
        open_stream: Any = channel.stream_stream(self._link.method.path, None, answers_of(self._link.method.results))  # batches are bytes
        metadata = (("burnish-request-id", self._link.client_id), *token_metadata(self._link.security.token()))
        call = open_stream(metadata=metadata)
        reader = asyncio.create_task(self._read(call, channel))
        writer = asyncio.create_task(self._write(call))
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({reader}, timeout=REASON_S)  # when writing failed first, reading knows why
            if reader.done():
                return reader.result()
            return Ended(RpcUnavailable(self._link.address, f"writing failed: {writer.exception()}"))
        finally:
            self._ending = True
            call.cancel()
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    async def _write(self, stream: Any) -> None:
        while True:
            await self._wake.wait()  # ends a tick after the first call came: whatever else came with it joins the batch
            self._wake.clear()
            while self._outbox:
                batch, self._outbox = self._outbox[:BATCH_ITEMS], self._outbox[BATCH_ITEMS:]
                for data in self._encode(batch):
                    await stream.write(data)

    def _encode(self, batch: list[Call]) -> list[bytes]:
        """The messages that carry a batch: one, or more of them when it is large. A call too large for any is refused here."""
        now = asyncio.get_running_loop().time()
        message = self._link.method.items()
        for call in batch:  # added in place: protobuf copies what a constructor is given
            if call.request_id in self._calls:
                message.items.add(request_id=call.request_id, timeout_s=max(call.deadline - now, 0.001), request=call.request)
            elif call.sent:
                message.items.add(request_id=call.request_id, cancel={})
        if not message.items:  # all of them were withdrawn before they left
            return []
        data = message.SerializeToString()
        if len(data) > BATCH_BYTES and len(batch) > 1:
            half = len(batch) // 2
            return self._encode(batch[:half]) + self._encode(batch[half:])
        if len(data) + 1024 > MAX_MESSAGE_BYTES:
            large = f"the request has {len(data)} bytes; the limit is {MAX_MESSAGE_BYTES}"
            del self._calls[batch[0].request_id]
            self._settled(batch[0], RpcRemoteError(self._link.address, large, CODES["INVALID_ARGUMENT"]))
            return []
        for call in batch:
            call.sent = True
        self._link.counts.items_sent += len(message.items)
        self._link.counts.batches_sent += 1
        return [data]

    async def _read(self, stream: Any, channel: grpc.aio.Channel) -> Ended:
        link, counts = self._link, self._link.counts
        try:
            async for message in stream:
                if message is None:
                    return Ended(RpcUnavailable(link.address, UNREADABLE))
                results = message.results
                counts.batches_received += 1
                counts.results_received += len(results)
                for result in results:
                    call = self._calls.pop(result.request_id, None)
                    if call is not None:  # else it was withdrawn meanwhile
                        self._settled(call, outcome_of(link.address, result))
                if message.stopping:
                    return Ended(RpcUnavailable(link.address, CLOSED), clean=True)
        except grpc.aio.AioRpcError as error:
            error = await self._uncovered(error, stream, channel)
            if error.code() is grpc.StatusCode.OK:
                return Ended(RpcUnavailable(link.address, CLOSED), clean=True)
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return Ended(RpcUnavailable(link.address, "the server has no stream"), clean=True, unary=True)
            ended = await call_error(error, link.address, link.target, link.security)
            if isinstance(ended, RpcRefused):
                return Ended(ended)
            return Ended(RpcUnavailable(link.address, f"{error.code().name}: {error.details()}"))
        return Ended(RpcUnavailable(link.address, CLOSED), clean=True)

    async def _uncovered(self, error: grpc.aio.AioRpcError, stream: Any, channel: grpc.aio.Channel) -> grpc.aio.AioRpcError:
        """How the server ended the stream, where a write that met the end covered it up: gRPC learns it a little later, or an empty
        stream says it again."""
        if error.code() is not grpc.StatusCode.INTERNAL:
            return error
        for _ in range(10):
            await asyncio.sleep(COVERED_S / 10)
            if (code := await stream.code()) is not grpc.StatusCode.INTERNAL:
                return _error(code, await stream.details())
        if channel.get_state() is not grpc.ChannelConnectivity.READY:
            return error
        open_stream: Any = channel.stream_stream(self._link.method.path, None, answers_of(self._link.method.results))
        again = open_stream(metadata=token_metadata(self._link.security.token()), timeout=REASON_S / 2)
        code = await again.code()
        refusals = {
            grpc.StatusCode.UNIMPLEMENTED,
            grpc.StatusCode.UNAUTHENTICATED,
            grpc.StatusCode.PERMISSION_DENIED,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        }
        return _error(code, await again.details()) if code in refusals else error


def _error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details, None)
