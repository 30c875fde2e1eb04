"""One thing per event loop and key: clients and semaphores belong to the loop that first used them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


class PerLoop(Generic[T]):
    """Makes a thing the first time a loop asks for a key, and gives the same one afterwards.

    Example: `CLIENTS.get(url, lambda: Client(url))` with a module's `CLIENTS: PerLoop[Client] = PerLoop()`.
    """

    def __init__(self) -> None:
        self._made: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, T]] = WeakKeyDictionary()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The thing of the running loop for this key."""
        things = self._made.setdefault(asyncio.get_running_loop(), {})
        if key not in things:
            things[key] = make()
        return things[key]
