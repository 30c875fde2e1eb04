"""Addresses: where a service is, and how to talk to it, in one string that travels through configs and to other processes. Examples:

127.0.0.1:50051                               one server
10.0.0.5:50051,10.0.0.6:50051                 replicas
verifiers.example:50051                       one server, or as many replicas as the name has addresses
ray:verdicts                                  the replicas that `burnish deploy-verifier --name verdicts` runs
10.0.0.5:50051?ca=/certs/ca.pem&token_env=T   TLS and a token: the fields of `ClientSecurity`
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import parse_qsl, urlencode

from .security import TURN_TLS_ON, ClientSecurity, is_loopback

RAY = "ray:"
SERVICE = "service:"
"""`service:NAME` in the environment_args and verifiers of a recipe stands for the address of its service of that name."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*)|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?\]")


@dataclass(frozen=True, slots=True)
class Target:
    """One replica. address: `host:port` to connect to. authority: the name it is known by, when that is not the host."""

    address: str
    authority: str = ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A parsed address. hosts: `host:port` of each replica, or empty and `ray_name` set.

    Example: `Endpoint.parse("127.0.0.1:50051").hosts == ("127.0.0.1:50051",)`.
    """

    hosts: tuple[str, ...]
    ray_name: str = ""
    security: ClientSecurity = field(default_factory=ClientSecurity)

    @staticmethod
    def parse(address: str) -> Endpoint:
        """Raises ValueError naming what is wrong with the address."""
        place, _, query = address.partition("?")
        security = _security(address, query)
        if place.startswith(RAY):
            name = place.removeprefix(RAY)
            if not NAME.fullmatch(name):
                raise ValueError(f"address {place!r} must read ray:NAME, for example ray:verdicts")
            _check_token(place, (), security)
            return Endpoint((), name, security)
        hosts = tuple(place.split(","))
        for host in hosts:
            _check_host_port(host)
        if len(set(hosts)) != len(hosts):
            raise ValueError(f"address {place!r} names a replica twice")
        _check_token(place, hosts, security)
        return Endpoint(hosts, "", security)

    @property
    def shown(self) -> str:
        """Where it is, for people: the address without its security."""
        return f"{RAY}{self.ray_name}" if self.ray_name else ",".join(self.hosts)

    def __str__(self) -> str:
        values = {one.name: getattr(self.security, one.name) for one in fields(self.security)}
        query = urlencode({name: "1" if value is True else value for name, value in values.items() if value}, safe="/:")
        return f"{self.shown}?{query}" if query else self.shown


def shown_address(address: str) -> str:
    """The address as failures and people name it. Example: `"h:1?ca=/c.pem" -> "h:1"`."""
    return address.partition("?")[0]


def check_address(address: str) -> None:
    """Raise ValueError unless `address` can be parsed."""
    Endpoint.parse(address)


def is_address(text: str) -> bool:
    """Whether a text can be parsed as an address, whatever else it may be."""
    try:
        check_address(text)
    except ValueError:
        return False
    return True


def is_dynamic(endpoint: Endpoint) -> bool:
    """Whether its replicas may come and go while clients use it."""
    return bool(endpoint.ray_name) or any(not is_literal(host) for host in endpoint.hosts)


def is_literal(place: str) -> bool:
    """Whether a `host:port` says by itself where it is. Example: true of "127.0.0.1:1", "[::1]:1" and "localhost:1"."""
    host = place.rpartition(":")[0]
    return host == "localhost" or host.startswith("[") or host.replace(".", "").isdigit()


def service_references(value: Any) -> Iterator[str]:
    """The names in every `service:NAME` string inside plain data."""
    if isinstance(value, str) and value.startswith(SERVICE):
        yield value.removeprefix(SERVICE)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from service_references(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from service_references(item)


def with_addresses(value: Any, addresses: Mapping[str, str]) -> Any:
    """Plain data with every `service:NAME` replaced by that service's address."""
    if isinstance(value, str):
        return addresses[value.removeprefix(SERVICE)] if value.startswith(SERVICE) else value
    if isinstance(value, Mapping):
        return {key: with_addresses(item, addresses) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_addresses(item, addresses) for item in value]
    return value


def _check_host_port(place: str) -> None:
    host, _, port = place.rpartition(":")
    if not _HOST.fullmatch(host) or not _PORT.fullmatch(port) or int(port) > 65535:
        shown = place if "@" not in place else f"…@{place.rpartition('@')[2]}"  # what stands before it may be a password
        raise ValueError(f"address {shown!r} must read host:port, for example 127.0.0.1:50051")


def _check_token(place: str, hosts: tuple[str, ...], security: ClientSecurity) -> None:
    """Refuse a token that would travel in the clear: without TLS, to anything but addresses of this machine. `ray:NAME` may be anywhere."""
    local = bool(hosts) and all(is_loopback(host.rpartition(":")[0]) for host in hosts)
    if (security.token_env or security.token_file) and not security.secure and not local:
        raise ValueError(f"address {place!r}: without TLS the token would travel in the clear; {TURN_TLS_ON}")


def _security(address: str, query: str) -> ClientSecurity:
    try:
        try:
            given = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
        except ValueError:  # its message would repeat what may be a secret
            raise ValueError("what follows the ? must read name=value, with & between several") from None
        known = {one.name for one in fields(ClientSecurity)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise ValueError(f"{unknown[0]!r} is unknown; there are {', '.join(sorted(known))}")
        tls = given.pop("tls", "") == "1"
        return ClientSecurity(tls=tls, **given)
    except ValueError as error:
        raise ValueError(f"address {shown_address(address)!r}: {error}") from None
