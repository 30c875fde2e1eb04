"""Who closes what a session holds: whoever ends the session, or the last that is at work in it then, and nobody twice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from ...rpc.errors import Status

T = TypeVar("T")


class Users:
    """Those that use what is to be closed once, from any thread. closed: what is said to who comes after the end.

    Example: work goes through `users.guard(work, close)`, and who ends the session calls `close` itself where `users.discard()` is True.
    """

    def __init__(self, closed: str) -> None:
        self._closed = closed
        self._lock = threading.Lock()
        self._count = 0
        self._discarded = False

    def enter(self) -> None:
        """Somebody uses it from here on. Raises Status CANCELLED once it is discarded."""
        with self._lock:
            if self._discarded:
                raise Status("CANCELLED", self._closed)
            self._count += 1

    def leave(self) -> bool:
        """Somebody uses it no more; True when the caller is to close it, being the last after its end."""
        with self._lock:
            self._count -= 1
            return self._discarded and not self._count

    def guard(self, work: Callable[[], T], close: Callable[[], None]) -> T:
        """Do work in this thread, which nobody can stop, and close what it used where that fell to it."""
        self.enter()
        try:
            return work()
        finally:
            if self.leave():
                close()

    def discard(self) -> bool:
        """Let nothing more begin; True when the caller is to close it, since nobody is at work."""
        with self._lock:
            first, self._discarded = not self._discarded, True
            return first and not self._count
