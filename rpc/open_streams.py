"""How many streams a server has open at a time: each keeps a task, and what was read of it, for as long as its client likes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc

MOST_STREAMS: Final = 1024


class OpenStreams(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stub alone
    """Refuses streams beyond `most` with RESOURCE_EXHAUSTED, those of health and reflection too. Unary calls are not counted."""

    def __init__(self, most: int) -> None:
        self._most, self._open = most, 0

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None or not (handler.request_streaming or handler.response_streaming):
            return handler
        kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
        return handler._replace(**{kind: self._counted(getattr(handler, kind))})

    def _counted(self, answer: Any) -> Any:
        """The same function, of the same kind, while there is room."""
        if inspect.isasyncgenfunction(answer):

            async def answers(request: Any, context: Any) -> Any:
                await self._refuse_beyond(context)
                with self._one_more():
                    async for one in answer(request, context):
                        yield one

            return answers

        async def answered(request: Any, context: Any) -> Any:
            await self._refuse_beyond(context)
            with self._one_more():
                return await answer(request, context)

        return answered

    async def _refuse_beyond(self, context: Any) -> None:
        if self._open >= self._most:
            said = f"{self._most} streams are open, as many as this server takes; close some, or give it more (--max-streams)"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, said)

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
