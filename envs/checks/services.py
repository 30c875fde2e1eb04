"""What the conformance suites ask of every service, whatever it does: reflection and health."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from ...rpc.errors import CODES, RpcRemoteError, code_name
from ...rpc.methods import BatchedMethod
from ...rpc.probe import exchange, health_of, outcome_of, services_at
from .conformance import Broken

UNIMPLEMENTED = 12
"""gRPC's code for a method that a server does not have."""


def check_reflection(address: str, service: str, timeout_s: float) -> str:
    """Raises Broken unless reflection lists the service."""
    names = services_at(address, timeout_s)
    if service not in names:
        raise Broken(f"reflection lists {', '.join(names) or 'nothing'}, not {service}")
    return f"lists {', '.join(names)}"


def check_health(address: str, service: str, timeout_s: float) -> str:
    """Raises Broken unless server and service are healthy."""
    for name in ("", service):
        status = health_of(address, name, timeout_s)
        if status != "SERVING":
            raise Broken(f"health of {name or 'the server'} is {status}")
    return "SERVING, for the server and the service"


def offers_stream(address: str, method: BatchedMethod[Any, Any], timeout_s: float) -> bool:
    """Whether the service has the batched stream; a simple one may do without."""
    try:
        exchange(address, method, [], timeout_s)
    except RpcRemoteError as error:
        if error.code == UNIMPLEMENTED:
            return False
        raise
    return True


def outcome_of_one(address: str, method: BatchedMethod[Any, Any], request: Any, timeout_s: float) -> tuple[int, Any]:
    """Status code and response of one item on a stream of its own. Raises Broken unless it gets exactly one result."""
    return outcomes(exchange(address, method, [method.item(request_id="0", timeout_s=timeout_s, request=request)], timeout_s), 1)[0]


def outcomes(results: list[Any], count: int) -> list[tuple[int, Any]]:
    """Status codes and responses in the order of their numbered request ids. Raises Broken unless each item has exactly one."""
    ids = [result.request_id for result in results]
    if len(ids) != len(set(ids)) or len(ids) != count:
        raise Broken(f"{count} items on a stream got {len(ids)} results, for the ids {', '.join(ids[:8])}; each item gets exactly one")
    return [outcome_of(result) for result in sorted(results, key=lambda result: (len(result.request_id), result.request_id))]


def expect_code(code: str, got: int, what: str) -> None:
    """Raises Broken unless the status code `got` is the one called `code`."""
    if got != CODES[code]:
        raise Broken(f"{what}: {'a result' if got == 0 else code_name(got)} instead of {code}")


@contextlib.contextmanager
def quiet_server() -> Iterator[None]:
    """Keep what a server of this process says about faults that are provoked here out of the terminal."""
    log = logging.getLogger("burnish.rpc")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
