"""The gateway's router: what the engine tells the meter is no part of an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray.exceptions import RayActorError

from burnish.serving.audit import Books
from burnish.serving.gateway import Router
from burnish.serving.wire import CHAT, USAGE

pytestmark = pytest.mark.unit

TAKEN = {"type": USAGE, "prompt_tokens": 7, "completion_tokens": 1}
BODY = {"type": "http.response.body", "body": b"{}"}


class Call:
    def __init__(self, gives: list[Any]) -> None:
        self._gives = gives

    async def __aiter__(self) -> AsyncIterator[Any]:
        for one in self._gives:
            if isinstance(one, Exception):
                raise one
            yield one

    def cancel(self) -> None: ...


class Handle:
    """A version whose replicas answer in turn."""

    def __init__(self, *replicas: list[Any]) -> None:
        self._replicas = list(replicas)

    def remote(self, path: str, body: bytes) -> Call:
        return Call(self._replicas.pop(0))


async def test_a_replica_that_dies_after_it_only_told_what_it_took_is_followed_by_another() -> None:
    sent = list[Any]()

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await Router(Books(), 60)._answer(Handle([[TAKEN], RayActorError()], [[TAKEN], [BODY]]), CHAT, b"", receive, send)
    assert sent == [TAKEN, TAKEN, BODY]
    with pytest.raises(RayActorError):
        await Router(Books(), 60)._answer(Handle([[BODY], RayActorError()], [[BODY]]), CHAT, b"", receive, send)
