"""The one way burnish starts a gRPC server: health, reflection, TLS and tokens, a ready line, and a drain on SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import errno
import hmac
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]  # missing from grpc-stubs
from grpc_reflection.v1alpha import reflection

from .bounds import Bounds
from .methods import MAX_MESSAGE_BYTES
from .open_streams import MOST_STREAMS, OPEN_TO_ALL, OpenStreams
from .security import ServerSecurity

MAX_PENDING_CALLS = 100_000
MAX_CALLS = 16_384
"""Calls of one connection at a time, of whatever kind, those included whose answer is not taken; others wait in the client."""
HEALTH_S = 0.5  # how often services are asked whether they can still work


class Service(Protocol):
    """A servicer that `Server` can host."""

    @property
    def full_name(self) -> str:
        """Example: `burnish.v1.VerifierService`."""
        ...

    def add_to(self, server: grpc.aio.Server) -> None: ...

    @property
    def in_flight(self) -> int:
        """Items and unary calls at work."""
        ...

    @property
    def able(self) -> bool:
        """Whether it has a thread left to work with; False while all are stuck in user code."""
        ...

    async def drain(self) -> None:
        """Take no further work and let streams end once what is at work is answered."""
        ...

    def close(self) -> bool:
        """Release threads; False when one is stuck in user code."""
        ...


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where and how to listen. host: loopback, or what `security` allows; port 0 takes a free one. drain_s: longest wait for work at hand
    when stopping. max_streams: open at a time, of all clients and services together, health's aside; more are
    refused with RESOURCE_EXHAUSTED.

    Raises ValueError for a max_streams below 1.
    """

    host: str = "127.0.0.1"
    port: int = 0
    drain_s: float = 10.0
    security: ServerSecurity = field(default_factory=ServerSecurity)
    max_streams: int = MOST_STREAMS

    def __post_init__(self) -> None:
        if self.max_streams < 1:
            raise ValueError(f"a server needs max_streams of at least 1, not {self.max_streams}")


class Server:
    """Hosts services in the running event loop: `await start()`, then `await stop()`."""

    def __init__(self, services: Sequence[Service], options: ServerOptions | None = None) -> None:
        self.options = options or ServerOptions()
        self.services = tuple(services)
        self.address = ""
        self.options.security.check_host(self.options.host)

    @property
    def in_flight(self) -> int:
        """Items and unary calls at work."""
        return sum(service.in_flight for service in self.services)

    async def start(self) -> str:
        """Listen and serve; returns the address. Raises ValueError when the port, the certificates or the token cannot be had."""
        security = self.options.security
        token = security.token()
        limits = (
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            # Calls wait here until Python accepts them, one at a time. From 1,000 on gRPC would by itself end some of them as CANCELLED.
            ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
            ("grpc.max_concurrent_streams", MAX_CALLS),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # clients ask every ten seconds whether their server is there
            ("grpc.keepalive_time_ms", 60_000),  # and so do servers: work for a client that is gone is let go
            ("grpc.keepalive_timeout_ms", 20_000),
        )
        # Without so_reuseport=0 a second server would share the port silently and take half of the calls.
        self._server = grpc.aio.server(
            options=(*limits, ("grpc.so_reuseport", 0)),
            interceptors=[*([_TokenCheck(token)] if token else []), OpenStreams(self.options.max_streams), Bounds()],
        )
        self._health = _Health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)  # type: ignore[no-untyped-call,unused-ignore]
        names = [service.full_name for service in self.services]
        for service in self.services:
            service.add_to(self._server)
        reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        port = _bind(self._server, self.options.host, self.options.port, security.credentials())
        await self._server.start()
        for name in ("", *names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._watcher = asyncio.create_task(self._watch())
        self.address = _join(self.options.host, port)
        return self.address

    async def stop(self) -> bool:
        """Turn unhealthy, finish what is at work within `drain_s`, cancel the rest. False when user code is stuck in a thread."""
        self._watcher.cancel()
        await self._health.enter_graceful_shutdown()
        for service in self.services:
            await service.drain()
        await self._server.stop(self.options.drain_s)
        closed = [service.close() for service in self.services]  # every one of them
        return all(closed)

    async def _watch(self) -> None:
        """Say NOT_SERVING of a service that has no thread left, and of the whole server with it, until it has one again."""
        said = {service.full_name: True for service in self.services}
        while True:
            await asyncio.sleep(HEALTH_S)
            now = {service.full_name: service.able for service in self.services}
            if now != said:
                said = now
                for name, able in (("", all(now.values())), *now.items()):
                    status = health_pb2.HealthCheckResponse
                    await self._health.set(name, status.SERVING if able else status.NOT_SERVING)


async def serve_until_signal(services: Sequence[Service], options: ServerOptions, on_ready: Callable[[str], None]) -> bool:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the process at once. Returns what `Server.stop` returns."""
    server = Server(services, options)
    address = await server.start()
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def on_signal() -> None:
        if asked.is_set():
            os._exit(130)
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    on_ready(address)
    await asked.wait()
    return await server.stop()


def ready_line(address: str, services: Sequence[Service]) -> str:
    """What a service prints when it listens, one line of JSON.

    Example: `{"event": "ready", "address": "127.0.0.1:50051", "services": ["burnish.v1.ToolService"], "pid": 4711}`.
    """
    names = [service.full_name for service in services]
    return json.dumps({"event": "ready", "address": address, "services": names, "pid": os.getpid()})


def print_ready(address: str, services: Sequence[Service]) -> None:
    """Print the ready line on stdout."""
    sys.stdout.write(ready_line(address, services) + "\n")
    sys.stdout.flush()


class _Health(health_aio.HealthServicer):  # type: ignore[misc]  # missing from grpc-stubs
    """Health whose watchers are sent away when the server stops: they would hold it up until its grace is over."""

    def __init__(self) -> None:
        super().__init__()
        self._stopping = asyncio.Event()

    async def Watch(self, request: Any, context: Any) -> None:
        watching = asyncio.ensure_future(super().Watch(request, context))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            stopping.cancel()

    async def enter_graceful_shutdown(self) -> None:
        await super().enter_graceful_shutdown()
        await asyncio.sleep(0)  # watchers pass on the news first
        self._stopping.set()


class _TokenCheck(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stub alone
    """Refuses calls that do not carry the token. Health checks need none: those who make them seldom can."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None or details.method.startswith(OPEN_TO_ALL):
            return handler
        given = next((value for key, value in details.invocation_metadata or () if key == "authorization"), None)
        if given is None:
            return _refusing(handler, "the call carries no token; configure token_env or token_file")
        if not hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._expected):
            return _refusing(handler, "the token is wrong")
        return handler


def _refusing(handler: Any, message: str) -> Any:
    """A handler of the same shape that ends every call as unauthenticated. What it carries is not even taken apart."""

    async def refuse(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, message)

    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make: Any = kinds[(handler.request_streaming, handler.response_streaming)]
    return make(refuse, request_deserializer=None, response_serializer=handler.response_serializer)


def _bind(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    address = _join(host, port)
    # Asked before gRPC is, which says why not only in a log line of its own.
    if (refusal := _refusal(host, port)) == errno.EADDRINUSE:
        raise ValueError(
            f"cannot listen on {address}: the port is in use; stop whatever holds it, choose another, or give 0 for a free one"
        )
    if refusal < 0:  # of getaddrinfo: no number that strerror knows
        raise ValueError(f"cannot listen on {address}: {host} cannot be looked up; give an address of this machine")
    try:
        return server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    except RuntimeError as error:
        unknown = "gRPC refused the address, or the certificate and its key do not belong together"
        raise ValueError(f"cannot listen on {address}: {os.strerror(refusal) if refusal else unknown}") from error


def _refusal(host: str, port: int) -> int:
    """The errno with which a plain socket is refused this address, 0 when it is not."""
    family: Any = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno or 0
    return 0


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
