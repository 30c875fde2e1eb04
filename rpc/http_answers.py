"""Answers over HTTP from services that are not ours: none is held that is larger than whoever asked can use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import httpx2

UNPACKED = {"Accept-Encoding": "identity"}
"""What a request says: a packed answer of half a megabyte can unpack to a gigabyte."""


class UnfitAnswer(Exception):
    """An answer that is not read to its end; the text says why."""


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, limit: int) -> None:
        self._stream, self._limit = stream, limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > self._limit:
                raise UnfitAnswer(f"its answer has more than {self._limit} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def bounded(limit: int) -> Callable[[httpx2.Response], Awaitable[None]]:
    """A hook on the responses of an `httpx2.AsyncClient`: one that has more than `limit` bytes, or is packed, raises UnfitAnswer.

    Example: `httpx2.AsyncClient(headers=UNPACKED, event_hooks={"response": [bounded(6 * 2**20)]})`.
    """

    async def bind(response: httpx2.Response) -> None:
        packed = response.headers.get("content-encoding", "identity")
        if packed.strip().lower() != "identity":
            raise UnfitAnswer(f"its answer is packed as {packed[:40]!r}, which was not asked for")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Bounded(response.stream, limit)

    return bind
