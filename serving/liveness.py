"""Which versions have an engine that answers, for whoever asks without a key: so it is asked of an engine now and then, not for each."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.types import Message, Send

from .wire import USAGE

ASK_S: Final = 1.5
"""How long an engine may take to say that it lives."""
FRESH_S: Final = 1.0
"""For how long what was found holds."""
HEARD_S: Final = 3.0
"""For how long an engine that said a part of an answer is taken to live: one that has all that it may have is not asked for more."""


class Liveness:
    """Remembers what lives. ask: whether an engine of a version answers, asked once at a time of each version. For one event loop."""

    def __init__(self, ask: Callable[[str], Awaitable[bool]], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask, self._clock = ask, clock
        self._heard: dict[str, float] = {}
        self._asked: dict[str, tuple[float, asyncio.Task[bool]]] = {}

    def hearing(self, version: str, send: Send) -> Send:
        """A `send` for an answer of a version. Each part of its text says that it lives, and so do tokens that it has sampled; an answer
        that fails says nothing, for it may come from whoever stands before the engine."""
        succeeds, sampled = False, 0

        async def heard(message: Message) -> None:
            nonlocal succeeds, sampled
            lives = succeeds and message["type"] == "http.response.body"
            if message["type"] == "http.response.start":
                succeeds = message["status"] == 200
            elif message["type"] == USAGE:
                lives, sampled = message["completion_tokens"] > sampled, message["completion_tokens"]
            if lives:
                self._heard[version] = self._clock()
            await send(message)

        return heard

    async def lives(self, version: str) -> bool:
        """Whether an engine of a version answers, or has lately."""
        now = self._clock()
        if version in self._heard and now - self._heard[version] < HEARD_S:
            return True
        before = self._asked.get(version)
        if before is not None and (not before[1].done() or now - before[0] < FRESH_S):
            return await asyncio.shield(before[1])
        # A context of its own: Serve cancels what it takes for a part of the caller's request when the caller hangs up.
        asking = asyncio.get_running_loop().create_task(self._in_time(version), context=contextvars.Context())
        self._asked[version] = now, asking
        return await asyncio.shield(asking)

    def forget_all_but(self, versions: set[str]) -> None:
        """Keep what is known of these alone."""
        self._heard = {version: at for version, at in self._heard.items() if version in versions}
        self._asked = {version: asked for version, asked in self._asked.items() if version in versions}

    async def _in_time(self, version: str) -> bool:
        try:
            async with asyncio.timeout(ASK_S):
                return await self._ask(version)
        except TimeoutError:
            return False
