"""The one way burnish starts a gRPC server: health, reflection, loopback only, a ready line, and a drain on SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]  # missing from grpc-stubs
from grpc_reflection.v1alpha import reflection

from .methods import MAX_MESSAGE_BYTES


class Service(Protocol):
    """A servicer that `Server` can host."""

    @property
    def full_name(self) -> str:
        """Example: `burnish.v1.VerifierService`."""
        ...

    def add_to(self, server: grpc.aio.Server) -> None: ...

    async def drain(self) -> None:
        """Take no further work and let streams end once what is at work is answered."""
        ...

    def close(self) -> bool:
        """Release threads; False when one is stuck in user code."""
        ...


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where and how to listen. host must be loopback; port 0 takes a free one. drain_s: longest wait for work at hand when stopping."""

    host: str = "127.0.0.1"
    port: int = 0
    drain_s: float = 10.0


class Server:
    """Hosts services in the running event loop: `await start()`, then `await stop()`."""

    def __init__(self, services: Sequence[Service], options: ServerOptions | None = None) -> None:
        self.options = options or ServerOptions()
        self.services = tuple(services)
        self.address = ""
        _check_host(self.options.host)

    async def start(self) -> str:
        """Listen and serve; returns the address. Raises ValueError when the port cannot be had."""
        limits = (("grpc.max_send_message_length", MAX_MESSAGE_BYTES), ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES))
        # Without so_reuseport=0 a second server would share the port silently and take half of the calls.
        self._server = grpc.aio.server(options=(*limits, ("grpc.so_reuseport", 0)))
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)  # type: ignore[no-untyped-call,unused-ignore]
        names = [service.full_name for service in self.services]
        for service in self.services:
            service.add_to(self._server)
        reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        port = _bind(self._server, self.options.host, self.options.port)
        await self._server.start()
        for name in ("", *names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self.address = _join(self.options.host, port)
        return self.address

    async def stop(self) -> bool:
        """Turn unhealthy, finish what is at work within `drain_s`, cancel the rest. False when user code is stuck in a thread."""
        await self._health.enter_graceful_shutdown()
        for service in self.services:
            await service.drain()
        await self._server.stop(self.options.drain_s)
        closed = [service.close() for service in self.services]  # every one of them
        return all(closed)


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


def _check_host(host: str) -> None:
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ValueError(
            f"host {host!r} is not loopback: services have neither TLS nor a token, so they listen on 127.0.0.1 or ::1 only; "
            "to reach one from another machine, forward the port over ssh"
        )


def _bind(server: grpc.aio.Server, host: str, port: int) -> int:
    try:
        return server.add_insecure_port(_join(host, port))
    except RuntimeError as error:
        raise ValueError(f"cannot listen on {_join(host, port)}: {_why_not(host, port)}") from error


def _why_not(host: str, port: int) -> str:
    """gRPC does not say why; try the address once more with a plain socket."""
    family: Any = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return "the port is in use; stop whatever holds it, choose another, or give 0 for a free one"
            return os.strerror(error.errno or 0)
    return "gRPC refused the address"


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
