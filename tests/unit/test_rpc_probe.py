"""A look at a service says why it was refused, also where writing to the refused stream covers the reason up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from burnish.rpc.probe import _heard

pytestmark = pytest.mark.unit


class Stream:
    """One that was refused: whoever writes on it hears "internal", and whoever does not hears why."""

    def __init__(self, requests: Any = None, timeout: float = 0.0) -> None:
        self.writes = requests is not None

    async def __aiter__(self) -> AsyncIterator[Any]:
        raise grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), "Internal error from Core", "")
        yield

    async def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.INTERNAL if self.writes else grpc.StatusCode.UNAUTHENTICATED

    async def details(self) -> str:
        return "the token is wrong"


async def test_a_refusal_that_a_write_covered_up_is_asked_for_again() -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _heard(Stream, b"request", 1.0)
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.UNAUTHENTICATED, "the token is wrong")
