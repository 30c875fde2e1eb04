"""Where a service's guard looks at texts: in threads of its own, and no longer than somebody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

from starlette.types import Receive, Scope

from .admission import Refused
from .audit import BROKEN_OFF
from .wire import client_of

AT_ONCE: Final = 16
"""Texts that are looked at at a time, unless told."""

P = ParamSpec("P")
T = TypeVar("T")


class Looks:
    """Threads for a guard: one whose judge is slow holds up those who wait for it, and nothing else of the service.

    most: texts that are looked at at a time. More wait their turn; each request has one at most.
    """

    def __init__(self, most: int = AT_ONCE) -> None:
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="burnish-guard")

    async def at(self, look: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What a call gives, or raises. A call that has not begun when its task is cancelled does not begin."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(look, *args, **kwargs))


async def unless_gone(scope: Scope, receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives. When the client hangs up before, the work is cancelled and Refused is raised.

    The request must have been read, and nobody else may be reading from the client.
    """
    receive = client_of(scope, receive)

    async def hang_up() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(hang_up())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refused(BROKEN_OFF, "gone", "the client is gone")
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()
