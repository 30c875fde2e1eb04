"""Many deadlines under one timer of the event loop."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")

TICK_S = 0.02


class Deadlines(Generic[K]):
    """Calls `expire(key)` once the deadline of a key has passed: never early, and at most a tick (20 ms) late.

    Deadlines that fall into the same tick share a set, so adding and discarding cost a dictionary lookup each.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, expire: Callable[[K], None], tick_s: float = TICK_S) -> None:
        self._loop = loop
        self._expire = expire
        self._tick_s = tick_s
        self._slots: dict[int, set[K]] = {}
        self._order: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_slot = 0

    def add(self, key: K, deadline: float) -> int:
        """Watch a key until `deadline`, seconds on the loop's clock; the slot returned discards it again."""
        slot = int(deadline / self._tick_s) + 1
        keys = self._slots.get(slot)
        if keys is None:
            self._slots[slot] = {key}
            heapq.heappush(self._order, slot)
            if self._timer is None or slot < self._timer_slot:
                self._arm()
        else:
            keys.add(key)
        return slot

    def discard(self, key: K, slot: int) -> None:
        """Stop watching. Harmless when the key is not watched."""
        keys = self._slots.get(slot)
        if keys is not None:
            keys.discard(key)

    def close(self) -> None:
        """Forget every key."""
        self._slots.clear()
        self._order.clear()
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._order:
            self._timer_slot = self._order[0]
            self._timer = self._loop.call_at(self._timer_slot * self._tick_s, self._turn)

    def _turn(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._order and self._order[0] * self._tick_s <= now:
            for key in self._slots.pop(heapq.heappop(self._order)):
                self._expire(key)
        self._arm()
