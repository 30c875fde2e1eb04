"""Says what a request has taken while it is being answered, so that a client which hangs up before the end has been counted too.

vLLM counts an answer in one piece at its end, and tells nobody of one that was broken off. Here, next to the engine, the tokens of a
request are known as they are sampled; `metered` is told of them by messages of a kind of their own, which never leave the service.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Final, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .wire import ANSWERED, USAGE, path_of

TOLD_S: Final = 0.25
"""Seconds between two words of what was taken: what is sampled since the last, a call that is cancelled from afar does not pay for."""
_HEADER: Final = b"x-request-id"


class Counter(Protocol):
    """What counts the tokens of requests, by the id that they carry to the engine."""

    def begin(self, id: str) -> None: ...

    def read(self, id: str) -> tuple[int, int]:
        """Tokens of the prompt, once it was read, and of all answers so far."""
        ...

    def forget(self, id: str) -> None: ...


class CountedChatApp:
    """ASGI middleware right in front of the engine's application."""

    def __init__(self, app: ASGIApp, counter: Counter) -> None:
        self._app, self._counter = app, counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or path_of(scope) not in ANSWERED:
            await self._app(scope, receive, send)
            return
        id, counter, told = uuid.uuid4().hex, self._counter, (0, 0)

        async def tell() -> None:
            nonlocal told
            now = counter.read(id)
            if now != told:
                told = now
                await send({"type": USAGE, "prompt_tokens": now[0], "completion_tokens": now[1]})

        async def keep_telling() -> None:
            while True:
                await asyncio.sleep(TOLD_S)
                await tell()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                await tell()  # of one that was broken off, the answer says nothing
            await send(message)

        headers = [*(pair for pair in scope["headers"] if pair[0].lower() != _HEADER), (_HEADER, id.encode())]
        counter.begin(id)
        telling = asyncio.ensure_future(keep_telling())
        try:
            await self._app({**scope, "headers": headers}, receive, counted)
        finally:
            telling.cancel()
            try:
                await tell()
            finally:
                counter.forget(id)
