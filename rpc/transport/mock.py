"""A transport for tests: calls to an address are answered by a Python function of this process, without a socket.

    def answer(method: str, request: Any) -> Any:
        return verifier_pb2.VerifyResponse(score=1.0)

    with MockTransport(answer, "verdicts.example:50051") as mock:
        ...                                # whatever is called at that address, RemoteVerifier included
    assert [call.method for call in mock.calls] == ["Verify"]

`burnish.testing.mock_verifier` and `mock_tools` answer with scores and texts instead of messages.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from ..address import Endpoint, shown_address
from ..background import background
from ..errors import CODES, RpcError, RpcTimeout, Status, error_from
from ..methods import BatchedMethod
from .calls import Call, StreamCounts

Answer = Callable[[str, Any], Any]

mounted: dict[str, MockTransport] = {}
"""The mocks that are entered now, by their address without its security."""


@dataclass(frozen=True, slots=True)
class MockCall:
    """One call that arrived. method: its name in the contract ("Verify", "Call", "Episode", "Describe"). request: the message."""

    method: str
    request: Any


class MockTransport:
    """Stands in for the service at `address` while it is entered; every client of this process at that address meets it.

    answer: a sync or async function of a method's name and its request message that returns the response message. A `Status` that it
    raises reaches the caller as the service's own typed error, an `RpcError` (RpcUnavailable, say) as one of the way there, anything else
    as UNKNOWN. A caller's deadline holds: an answer that comes later is RpcTimeout. calls: what arrived, in order.

    Other processes, such as Ray's workers, do not see it. Raises ValueError when the address is malformed or mocked already.
    """

    def __init__(self, answer: Answer, address: str = "mock:1") -> None:
        Endpoint.parse(address)
        self.address = address
        self.calls: list[MockCall] = []
        self._answer = answer
        self._is_async = inspect.iscoroutinefunction(answer)

    def __enter__(self) -> MockTransport:
        place = shown_address(self.address)
        if place in mounted:
            raise ValueError(f"{place} is mocked already; give the second mock an address of its own")
        mounted[place] = self
        return self

    def __exit__(self, *error: object) -> None:
        del mounted[shown_address(self.address)]

    def line(self, method: BatchedMethod[Any, Any]) -> MockLine:
        """Where calls of a batched method go."""
        return MockLine(self, method)

    def channel(self) -> MockChannel:
        """What stubs make unary calls on."""
        return MockChannel(self)

    async def answer(self, method: str, request: Any, timeout_s: float) -> Any:
        """The response. Raises RpcError."""
        self.calls.append(MockCall(method, request))
        place = shown_address(self.address)
        try:
            async with asyncio.timeout(timeout_s):
                if self._is_async:
                    return await self._answer(method, request)
                return await asyncio.to_thread(self._answer, method, request)
        except TimeoutError:
            raise RpcTimeout(place, f"no answer within {timeout_s:g} s") from None
        except Status as status:
            raise error_from(place, CODES[status.code], status.message) from status
        except RpcError:
            raise
        except Exception as error:
            raise error_from(place, CODES["UNKNOWN"], f"the mock raised {type(error).__name__}: {error}") from error


class MockLine:
    """Calls of one batched method to a mock. Lives on the background loop."""

    def __init__(self, mock: MockTransport, method: BatchedMethod[Any, Any]) -> None:
        self.counts = StreamCounts()
        self._mock = mock
        self._name = method.unary_path.rpartition("/")[2]

    def submit(self, call: Call) -> None:
        call.replica = background().loop.create_task(self._run(call))

    def withdraw(self, call: Call) -> None:
        call.replica.cancel()

    async def _run(self, call: Call) -> None:
        try:
            result = await self._mock.answer(self._name, call.request, call.timeout_s)
        except RpcError as error:
            result = error
        call.waiter.deliver(call.future, result)


class MockChannel:
    """As much of a channel as the generated stubs need for unary calls."""

    def __init__(self, mock: MockTransport) -> None:
        self._mock = mock

    def unary_unary(self, path: str, *_: Any, **__: Any) -> Callable[..., Any]:
        """A method that a stub calls with a request and a timeout."""

        async def call(request: Any, timeout: float | None = None, **_: Any) -> Any:
            return await self._mock.answer(path.rpartition("/")[2], request, timeout or 60.0)

        return call

    def stream_stream(self, path: str, *_: Any, **__: Any) -> Callable[..., Any]:
        """Streams are mocked item by item, above the channel."""

        def call(*_: Any, **__: Any) -> Any:
            raise NotImplementedError(f"{path}: a mock has no stream of its own; call the method through burnish's client")

        return call


def mock_channel(mock: MockTransport) -> grpc.aio.Channel:
    """The mock's channel, typed as what stubs take."""
    channel: Any = mock.channel()
    return channel  # type: ignore[no-any-return]
