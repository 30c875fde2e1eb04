"""A look at a service says why it was refused, also where writing to the refused stream covers the reason up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc
import pytest

from burnish.rpc.errors import RpcRemoteError
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


class Answers:
    """A stream that brings these."""

    def __init__(self, answers: list[Any], requests: Any, timeout: float) -> None:
        self.answers = answers

    async def __aiter__(self) -> AsyncIterator[Any]:
        for answer in self.answers:
            yield answer


async def test_a_stream_that_does_not_end_or_cannot_be_read_is_given_up() -> None:
    heard = partial(_heard, "127.0.0.1:1")
    assert await heard(partial(Answers, [[1], [2, 3]]), b"request", 1.0, list, 5) == [1, 2, 3]
    for endless in (list[list[int]]([[]] * 6), [[1] * 5]):
        with pytest.raises(RpcRemoteError, match="a stream brought more than 5 answers"):
            await heard(partial(Answers, endless), b"request", 1.0, list, 5)
    with pytest.raises(RpcRemoteError, match="its answer is no message of this contract"):
        await heard(partial(Answers, [None]), b"request", 1.0, list, 5)


async def test_a_refusal_that_a_write_covered_up_is_asked_for_again() -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _heard("127.0.0.1:1", Stream, b"request", 1.0, list, 9)
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.UNAUTHENTICATED, "the token is wrong")
