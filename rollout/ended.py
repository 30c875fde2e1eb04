"""Waiting for work of the event loop to end, and for what it leaves behind: nobody returns while an environment is still being closed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def all_ended(work: Iterable[asyncio.Future[Any]]) -> None:
    """Wait until all of it has ended, well or not. Whoever cancels this waits for it too, and it is not cancelled for that.

    Example: `closing = asyncio.ensure_future(close()); await all_ended([closing])`.
    """
    left, cancelled = set(work), False
    while left:
        try:
            _, left = await asyncio.wait(left)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """`asyncio.gather` that leaves nothing running: when one fails, or this is cancelled, the others are cancelled and waited for."""
    running = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*running)
    finally:
        for one in running:
            one.cancel()
        await all_ended(running)
