"""Which replicas an address stands for, now.

A target is always a literal address and, beside it, the name it was found by: however many addresses a name has today, the same replica is
the same target, and its sessions stay.
"""

from __future__ import annotations

import asyncio
import socket

from ..address import Endpoint, Target, is_literal
from ..errors import RpcUnavailable

LOOKUP_S = 5.0


async def targets_of(endpoint: Endpoint) -> tuple[Target, ...]:
    """The replicas as of now, at least one. Raises RpcUnavailable when there are none or they cannot be looked up in time."""
    try:
        async with asyncio.timeout(2 * LOOKUP_S):
            return await _resolve(endpoint)
    except ValueError as error:
        raise RpcUnavailable(endpoint.shown, str(error)) from error
    except TimeoutError:
        raise RpcUnavailable(endpoint.shown, f"it could not be looked up within {2 * LOOKUP_S:g} s") from None


async def _resolve(endpoint: Endpoint) -> tuple[Target, ...]:
    """Raises ValueError saying what cannot be looked up."""
    if endpoint.ray_name:
        from ..ray_names import replica_addresses

        addresses = await asyncio.get_running_loop().run_in_executor(None, replica_addresses, endpoint.ray_name)
        return tuple(Target(address) for address in addresses)
    found: list[Target] = []
    for place in endpoint.hosts:
        found += [Target(place)] if is_literal(place) else await _by_name(place)
    return tuple(dict.fromkeys(found))


async def _by_name(place: str) -> list[Target]:
    host, _, port = place.rpartition(":")
    try:
        rows = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(f"the name {host!r} cannot be looked up: {error.strerror or error}") from error
    four = {f"{row[4][0]}:{port}" for row in rows if row[0] == socket.AF_INET}
    six = {f"[{row[4][0]}]:{port}" for row in rows if row[0] == socket.AF_INET6}
    return [Target(address, host) for address in sorted(four or six)]
