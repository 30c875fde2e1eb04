"""Calls of environments that nobody waits for any longer. No thread can be stopped, so each keeps its own for as long as its call lasts."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future
from typing import Any, Final

PER_EPISODE: Final = 4
"""Calls that may be left behind for each episode that runs at once, before the process is replaced: a service that answers late has a few
for each of them, and lets go of them again."""
AT_LEAST: Final = 32


class WorkerUnfit(RuntimeError):
    """This process can play no more episodes; another is to take its place."""


class HungEnvironments(WorkerUnfit):
    """So many calls of environments hang here."""


class LoopEnded(WorkerUnfit):
    """The event loop that plays the episodes has ended."""


class LeftBehind:
    """The calls that were left behind and have not ended. May be used from any thread.

    Example: `left.add("burnish/Arithmetic-v0 step", call); left.check(concurrency=64)`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: list[tuple[str, Future[Any]]] = []

    def add(self, what: str, call: Future[Any]) -> None:
        """A call that runs on with nobody waiting. what: the environment, and what was asked of it."""
        with self._lock:
            self._calls = [one for one in self._calls if not one[1].done()] + [(what, call)]

    def check(self, concurrency: int) -> None:
        """Raise HungEnvironments, which names the environments, where there are more than `concurrency` episodes may leave."""
        with self._lock:
            hung = Counter(what for what, call in self._calls if not call.done())
        if hung.total() > max(PER_EPISODE * concurrency, AT_LEAST):
            named = ", ".join(f"{count} of {what}" for what, count in hung.most_common(3))
            raise HungEnvironments(f"{hung.total()} calls of environments hang past their deadline, {named}; give their waits a deadline")
