"""Unary calls: one at a time by hand, and of every item where a replica has no stream.

A call that may have run is never sent again here. gRPC sends one again by itself only where it knows that no server saw it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import grpc

from ..address import Endpoint, Target
from ..background import background
from ..bounds import MOST_DESCRIBED, UNREADABLE, answers_of
from ..errors import CODES, RpcRemoteError, RpcUnavailable
from .calls import Call, Ended, Link
from .channels import LOOP_GRACE_S, call_error, channel_ready, open_channel, until_failure
from .mock import mock_channel, mounted
from .resolve import targets_of

T = TypeVar("T")

AT_A_TIME = 256  # calls with one replica; more wait their turn, their deadlines ticking


def unary_blocking(address: str, call: Callable[[grpc.aio.Channel, float], Awaitable[T]], timeout_s: float) -> T:
    """One unary call to the first replica that answers, connection included within `timeout_s` seconds; a call that is harmless twice.

    `call` gets the channel and the seconds left. Raises RpcUnavailable, RpcRefused, RpcTimeout or RpcRemoteError.
    """
    endpoint = Endpoint.parse(address)

    async def run() -> T:
        mock = mounted.get(endpoint.shown)
        if mock is not None:
            return await _ask(mock_channel(mock), endpoint, Target(endpoint.shown), call, timeout_s)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        targets = await targets_of(endpoint)
        for number, target in enumerate(targets):
            last = number == len(targets) - 1
            share = timeout_s if len(targets) == 1 else max(deadline - loop.time(), 0.001) / (len(targets) - number)
            try:
                return await _unary(endpoint, target, call, share)
            except RpcUnavailable:
                if last:
                    raise
        raise AssertionError("an endpoint has at least one target")

    return background().run(run(), timeout_s + LOOP_GRACE_S)


def describe_blocking(address: str, service: str, request: Any, kind: type[T], timeout_s: float) -> T:
    """What the service at an address says that it is, a message of `kind` with at most `MOST_DESCRIBED` fields. service: its full name.
    Raises as `unary_blocking` does."""

    async def ask(channel: Any, left_s: float) -> T:
        method = channel.unary_unary(
            f"/{service}/Describe",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answers_of(kind, MOST_DESCRIBED, small=0),
        )
        answer: T = await method(request, timeout=left_s)
        return answer

    return unary_blocking(address, ask, timeout_s)


async def _unary(endpoint: Endpoint, target: Target, call: Callable[[grpc.aio.Channel, float], Awaitable[T]], timeout_s: float) -> T:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    async with open_channel(target, endpoint.security) as channel:
        await channel_ready(channel, target, endpoint.security, timeout_s)
        return await _ask(channel, endpoint, target, call, max(deadline - loop.time(), 0.001))


async def _ask(
    channel: Any, endpoint: Endpoint, target: Target, call: Callable[[grpc.aio.Channel, float], Awaitable[T]], timeout_s: float
) -> T:
    try:
        answer = await call(channel, timeout_s)
        if answer is None:
            raise RpcRemoteError(endpoint.shown, UNREADABLE, CODES["DATA_LOSS"])
        return answer
    except grpc.aio.AioRpcError as error:
        raise await call_error(error, endpoint.shown, target, endpoint.security) from None


class UnaryExchange:
    """Carries calls while `run` runs, each as a unary call. calls: what is with this replica and not settled, by id; shared with it."""

    def __init__(self, link: Link, calls: dict[str, Call], settled: Callable[[Call, Any], None]) -> None:
        self._link = link
        self._calls = calls
        self._settled = settled
        self._outbox: list[Call] = []
        self._wake = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(AT_A_TIME)

    def send(self, call: Call) -> None:
        """Make a call, which is in `calls` already."""
        self._outbox.append(call)
        self._wake.set()

    def withdraw(self, call: Call) -> None:
        """Cancel a call, which is in `calls` no more."""
        task = self._tasks.get(call.request_id)
        if task is not None:
            task.cancel()

    async def run(self, channel: grpc.aio.Channel) -> Ended:
        """Make calls until the connection is lost and cannot be made again at once."""
        call_one: Any = channel.unary_unary(
            self._link.method.unary_path,
            request_serializer=self._link.method.request.SerializeToString,
            response_deserializer=answers_of(self._link.method.response),
        )
        starter = asyncio.create_task(self._start(call_one))
        try:
            await until_failure(channel)
            return Ended(RpcUnavailable(self._link.address, "the server is gone"))
        finally:
            left = [starter, *self._tasks.values()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _start(self, call_one: Any) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._outbox = self._outbox, []
            for call in batch:
                if call.request_id in self._calls:
                    task = self._tasks[call.request_id] = asyncio.create_task(self._one(call_one, call))
                    task.add_done_callback(partial(self._forget, call.request_id))

    def _forget(self, request_id: str, task: asyncio.Task[None]) -> None:
        """A task has ended; one that was cancelled before its first step ran nothing that could say so."""
        if self._tasks.get(request_id) is task:
            del self._tasks[request_id]

    async def _one(self, call_one: Any, call: Call) -> None:
        link, loop = self._link, asyncio.get_running_loop()
        try:
            async with self._turn:
                call.sent = True
                link.counts.unary_calls += 1
                left = max(call.deadline - loop.time(), 0.001)
                result: Any = await call_one(
                    call.request, timeout=left, metadata=(("burnish-request-id", call.request_id),), wait_for_ready=True
                )
                if result is None:
                    result = RpcRemoteError(link.address, UNREADABLE, CODES["DATA_LOSS"])
        except grpc.aio.AioRpcError as error:
            result = await call_error(error, link.address, link.target, link.security)
        if self._calls.pop(call.request_id, None) is not None:
            self._settled(call, result)
