"""Channels to services: how they are opened, when they are ready, and why they are not."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import grpc

from ..address import Target
from ..errors import RpcError, RpcRefused, RpcUnavailable, error_from
from ..methods import MAX_MESSAGE_BYTES
from ..security import ClientSecurity

LOOP_GRACE_S = 5.0  # how much later than the call's deadline a blocked thread gives up on a background loop that does not answer
LOOK_S = 0.3  # a TLS connection that takes longer is looked into
DIAGNOSIS_S = 2.0
CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel must not inherit the backoff of one that broke
    ("grpc.enable_http_proxy", 0),
    # A peer that is stopped or cut off keeps its connection: only an unanswered ping tells. While nothing else travels, gRPC sends no more
    # than one a minute, which is what strict servers bear.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # otherwise a minute, whatever the line above says
)


class _BearerToken(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]  # generic in its stub alone
    """Adds the token to unary calls; streams get it when they are opened."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *token_metadata(self._token))
        return await continuation(details._replace(metadata=metadata), request)


def token_metadata(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call that carries `token`, nothing when it is empty."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def open_channel(target: Target, security: ClientSecurity) -> grpc.aio.Channel:
    """A channel to one target. Raises RpcRefused when certificates or token cannot be read."""
    options = [*CHANNEL_OPTIONS]
    try:
        token = security.token()
        interceptors: Any = [_BearerToken(token)] if token else []
        if not security.secure:
            if target.authority:
                options += [("grpc.default_authority", f"{target.authority}:{target.address.rpartition(':')[2]}")]
            return grpc.aio.insecure_channel(target.address, options=options, interceptors=interceptors)
        name = security.server_name or target.authority
        if name:
            options += [("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]
        return grpc.aio.secure_channel(target.address, security.credentials(), options=options, interceptors=interceptors)
    except ValueError as error:
        raise RpcRefused(target.address, str(error)) from error


async def channel_ready(
    channel: grpc.aio.Channel, target: Target, security: ClientSecurity, timeout_s: float, patient: bool = True
) -> None:
    """Wait until the channel is connected, trying again meanwhile, unless `patient` is False.

    Raises RpcUnavailable, or RpcRefused as soon as TLS fails, or is wanted by the server and not spoken.
    """
    ready: asyncio.Future[Any] = asyncio.ensure_future(channel.channel_ready())
    waits = {ready} if patient else {ready, asyncio.ensure_future(until_failure(channel))}
    looks: set[asyncio.Future[Any]] = set()
    try:
        async with asyncio.timeout(timeout_s):
            ended = await _first(waits, LOOK_S)
            while ready not in ended:
                look: asyncio.Future[Any] = asyncio.ensure_future(diagnose(target, security))
                looks.add(look)
                await _first({ready, look})  # looking may take seconds, and a server that is there meanwhile is not to wait for it
                if ready.done():
                    return
                if reason := look.result():  # a server that is not there yet is worth waiting for, this is not
                    raise RpcRefused(target.address, reason)
                if ended:
                    raise RpcUnavailable(target.address, "could not connect again")
                ended = await _first(waits, LOOK_S)
    except TimeoutError:
        raise RpcUnavailable(target.address, f"could not connect within {timeout_s:g} s; is the service running?") from None
    finally:
        for one in waits | looks:
            one.cancel()


async def _first(waits: set[asyncio.Future[Any]], timeout_s: float | None = None) -> set[asyncio.Future[Any]]:
    """Those that have ended once one of them has, or after so many seconds."""
    return (await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED))[0]


async def until_failure(channel: grpc.aio.Channel) -> None:
    """Return once a connection of the channel could not be made."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


async def call_error(error: grpc.aio.AioRpcError, address: str, target: Target, security: ClientSecurity) -> RpcError:
    """The exception for a call that gRPC ended. With TLS, a broken connection is looked into: it may be the handshake."""
    code, message = error.code().value[0], error.details() or error.code().name
    if error.code() is grpc.StatusCode.UNAVAILABLE and security.secure:
        reason = await diagnose(target, security)
        if reason:
            return RpcRefused(address, reason)
    return error_from(address, code, message)


async def diagnose(target: Target, security: ClientSecurity) -> str:
    """Why a connection to the target fails, from a plain socket: gRPC tells less. Empty when it is not for TLS.

    With TLS, why the handshake fails; without it, that the server speaks TLS.
    """
    look = _try_handshake if security.secure else _wants_tls
    return await asyncio.get_running_loop().run_in_executor(None, look, target, security)


def _wants_tls(target: Target, security: ClientSecurity) -> str:
    """What to say to a client without TLS of a server that greets only with it. Nothing is sent but the greeting, and nothing trusted."""
    host, _, port = target.address.rpartition(":")
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=DIAGNOSIS_S) as plain:
            unchecked.wrap_socket(plain).close()
    except (OSError, ValueError):  # an address without a port is no socket of this kind
        return ""
    return "TLS: the server speaks TLS and this client does not; give the CA of its certificate (tls = { ca = … })"


def _try_handshake(target: Target, security: ClientSecurity) -> str:
    host, _, port = target.address.rpartition(":")
    host = host.strip("[]")
    name = security.server_name or target.authority or host
    try:
        with (
            socket.create_connection((host, int(port)), timeout=DIAGNOSIS_S) as plain,
            security.context().wrap_socket(plain, server_hostname=name) as secure,
        ):
            if secure.recv(1):  # with TLS 1.3 a server refuses the client's certificate only after the handshake
                return ""
        hung_up = "TLS: the server hangs up after the handshake: "
        if security.cert:
            return f"{hung_up}it does not accept this client's certificate"
        return f"{hung_up}it wants a certificate of this client (mutual TLS); give cert and key"
    except ssl.SSLCertVerificationError as error:
        return f"TLS: the server's certificate is not accepted: {error.verify_message}"
    except ssl.SSLError as error:
        return f"TLS: {_alert(error)}"
    except OSError:
        return ""


def _alert(error: ssl.SSLError) -> str:
    reason = (error.reason or str(error)).lower().replace("_", " ")
    if "certificate required" in reason:
        return "the server wants a certificate of this client (mutual TLS): give cert and key"
    if "unknown ca" in reason or "bad certificate" in reason or "certificate expired" in reason:
        return f"the server does not accept this client's certificate: {reason}"
    return f"handshake failed: {reason}"
