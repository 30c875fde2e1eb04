"""How many streams a server has open at a time: each keeps a task, and what was read of it, for as long as its client likes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc
from grpc_health.v1 import health

MOST_STREAMS: Final = 1024
MOST_WATCHES: Final = 64
"""Of those that need no token, and take no room of those that do."""
OPEN_TO_ALL: Final = f"/{health.SERVICE_NAME}/"
"""How the methods begin that need no token."""


class OpenStreams(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stub alone
    """Refuses streams beyond `most` with RESOURCE_EXHAUSTED, those of reflection too, and of health beyond `MOST_WATCHES`. Unary calls are
    not counted."""

    def __init__(self, most: int) -> None:
        self._streams = _Room(most, f"{most} streams are open, as many as this server takes; close some, or give it more (--max-streams)")
        self._watches = _Room(
            MOST_WATCHES, f"the health of this server is watched {MOST_WATCHES} times, as often as it may be; ask by Check"
        )

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None or not (handler.request_streaming or handler.response_streaming):
            return handler
        room = self._watches if details.method.startswith(OPEN_TO_ALL) else self._streams
        kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
        return handler._replace(**{kind: _counted(getattr(handler, kind), room)})


class _Room:
    """How many streams of a kind are open. said: why there is no room for another."""

    def __init__(self, most: int, said: str) -> None:
        self._most, self._said, self._open = most, said, 0

    async def refuse_beyond(self, context: Any) -> None:
        if self._open >= self._most:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, self._said)

    @contextmanager
    def one_more(self) -> Iterator[None]:
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


def _counted(answer: Any, room: _Room) -> Any:
    """The same function, of the same kind, while there is room."""
    if inspect.isasyncgenfunction(answer):

        async def answers(request: Any, context: Any) -> Any:
            await room.refuse_beyond(context)
            with room.one_more():
                async for one in answer(request, context):
                    yield one

        return answers

    async def answered(request: Any, context: Any) -> Any:
        await room.refuse_beyond(context)
        with room.one_more():
            return await answer(request, context)

    return answered
