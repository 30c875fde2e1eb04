"""The client of the batched services, for sync threads and async code alike.

Calls from anywhere in the process to one method of one address share one stream per replica. Whatever became ready in the same tick of
the background loop travels in one message. Each call has a deadline, kept on both sides; cancelling a call cancels it on the server. When
a stream breaks, the calls in flight on it end with `RpcUnavailable` and the next call connects again. A server without the stream gets
unary calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Generic, cast

from .address import Endpoint, check_address
from .background import Background, background
from .errors import RpcTimeout
from .methods import BatchedMethod, RequestT, ResponseT, method_of
from .transport.calls import Call, Line, Pin, StreamCounts
from .transport.channels import LOOP_GRACE_S
from .transport.mock import mounted
from .transport.replicas import Replicas
from .transport.unary import describe_blocking, unary_blocking

__all__ = ["BatchedClient", "Pin", "StreamCounts", "check_address", "describe_blocking", "unary_blocking"]

CONNECT_S = 5.0


class BatchedClient(Generic[RequestT, ResponseT]):
    """Calls one batched method of the service at `address` ("127.0.0.1:50051", or anything else that `rpc/address.py` reads).

    Cheap to make and to pickle: it holds the address; the connection belongs to the process and is made by its first call.
    Example: `BatchedClient("127.0.0.1:50051", VERIFY).call_blocking(request, timeout_s=10.0)`.
    """

    def __init__(self, address: str, method: BatchedMethod[RequestT, ResponseT], connect_timeout_s: float = CONNECT_S) -> None:
        self._endpoint = Endpoint.parse(address)
        self.address = address
        self.method = method
        self.connect_timeout_s = connect_timeout_s
        self._key = (address, method.path, connect_timeout_s)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self.address, self.method.path, self.connect_timeout_s)

    async def call(self, request: RequestT, timeout_s: float) -> ResponseT:
        """The response. Raises RpcUnavailable, RpcTimeout or RpcRemoteError. Cancelling the await cancels the call on the server."""
        assert timeout_s > 0, "a call needs a positive deadline"
        home = background()
        line: Line = (home.shared.get(self._key) if not mounted else None) or self._line(home)  # nearly always the first
        loop = asyncio.get_running_loop()
        port = _port(loop, home)
        call = Call(request, timeout_s, port, loop.create_future())
        port.post(line.submit, call)
        try:
            return cast(ResponseT, await call.future)
        except asyncio.CancelledError:
            port.post(line.withdraw, call)
            raise

    def call_blocking(self, request: RequestT, timeout_s: float, pin: Pin | None = None) -> ResponseT:
        """`call` for threads without an event loop. pin: shared by all calls that must reach the same replica."""
        assert timeout_s > 0, "a call needs a positive deadline"
        home = background()
        home.check_thread()
        line = self._line(home)
        future: Future[Any] = Future()
        call = Call(request, timeout_s, _THREAD, future, pin)
        home.post(line.submit, call)
        try:
            return cast(ResponseT, future.result(timeout_s + LOOP_GRACE_S))
        except FutureTimeout:
            raise RpcTimeout(self._endpoint.shown, f"no answer within {timeout_s:g} s, and the client's own loop is stuck") from None
        finally:
            if not future.done():
                home.post(line.withdraw, call)  # this thread was interrupted

    def counts(self) -> StreamCounts:
        """Traffic of the shared streams in this process."""
        return self._line(background()).counts

    def _line(self, home: Background) -> Line:
        """Where calls go: a mock at this address, or the replicas there."""
        mock = mounted.get(self._endpoint.shown)
        return mock.line(self.method) if mock is not None else self._replicas(home)

    def _replicas(self, home: Background) -> Replicas:
        found = home.shared.get(self._key)
        if found is None:
            found = home.shared.setdefault(self._key, Replicas(self._endpoint, self.method, self.connect_timeout_s, home))
        return cast(Replicas, found)


def _unpickle(address: str, path: str, connect_timeout_s: float) -> BatchedClient[Any, Any]:
    return BatchedClient(address, method_of(path), connect_timeout_s)


class _Port:
    """Carries calls from the event loop of a caller to the background loop, and results back.

    What one tick of a loop has for the other goes over at the end of that tick, waking it once. Woken any earlier, the other thread would
    start on the first of them while the rest is still being made, and the batches on the wire would be small.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, home: Background) -> None:
        self.loop = weakref.ref(loop)  # a port must not keep its loop alive
        self._home = home
        self._local = loop is home.loop
        self._calls: list[tuple[Callable[[Call], None], Call]] = []
        self._results: deque[tuple[asyncio.Future[Any], Any]] = deque()
        self._waking = False

    def post(self, function: Callable[[Call], None], call: Call) -> None:
        """Have the background loop do something with a call; called on this port's loop."""
        if self._local:
            function(call)
            return
        if not self._calls:
            asyncio.get_running_loop().call_soon(self._send)
        self._calls.append((function, call))

    def deliver(self, future: asyncio.Future[Any], result: Any) -> None:
        """Settle a future of this port's loop; called on the background loop."""
        if self._local:
            _settle(future, result)
            return
        self._results.append((future, result))
        if not self._waking:
            self._waking = True
            self._home.loop.call_soon(self._wake)

    def _send(self) -> None:
        calls, self._calls = self._calls, []
        self._home.post(_do_all, calls)

    def _wake(self) -> None:
        self._waking = False
        loop = self.loop()
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        while self._results:
            _settle(*self._results.popleft())


def _do_all(calls: list[tuple[Callable[[Call], None], Call]]) -> None:
    for function, call in calls:
        function(call)


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():  # cancelled by its caller
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)


_ports: dict[int, _Port] = {}  # by the id of their loop


def _port(loop: asyncio.AbstractEventLoop, home: Background) -> _Port:
    port = _ports.get(id(loop))
    if port is None or port.loop() is not loop:  # the first call of this loop; an id is used again once its loop is gone
        for key in [key for key, one in _ports.items() if one.loop() is None]:
            del _ports[key]
        port = _ports[id(loop)] = _Port(loop, home)
    return port


class _ThreadPort:
    """Brings results to threads that block on a `concurrent.futures.Future`."""

    def deliver(self, future: Future[Any], result: Any) -> None:
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)


_THREAD = _ThreadPort()
