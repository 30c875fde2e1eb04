"""Daemon threads for functions that may block, or hang.

A pool of its own: a call that hangs occupies its thread and nothing else, and does not keep the process alive, as the threads of
`concurrent.futures` would. Threads are reused, and end when they have had nothing to do for a while.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from ...envs.places import places_at

IDLE_S = 10.0

_lock = threading.Lock()
_idle: list[Worker] = []


class Worker(threading.Thread):
    """One thread that runs jobs, one at a time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def run(self) -> None:
        while True:
            try:
                job = self.jobs.get(timeout=IDLE_S)
            except queue.Empty:
                with _lock, contextlib.suppress(ValueError):  # taken this very moment: its job is on the way
                    _idle.remove(self)
                    return
                continue
            job()
            del job  # it holds the episode
            with _lock:
                _idle.append(self)

    def where(self) -> list[str]:
        """Where it is now: the line of the function that was handed to it, and the innermost two, as `places_at` says.

        Example: `["  at judge.py:12 in ask"]`.
        """
        return places_at(sys._current_frames().get(self.ident or 0))


def start(name: str, job: Callable[[], None]) -> Worker:
    """Run `job`, which must not raise, on a thread of the pool called `name`."""
    worker: Worker | None = None
    with _lock:
        while _idle and worker is None:
            last = _idle.pop()  # the last to finish, so that the others can run out
            worker = last if last.is_alive() else None  # after a fork the threads are gone
    fresh = worker is None
    worker = worker or Worker()
    worker.name = name
    if fresh:
        worker.start()
    worker.jobs.put(job)
    return worker


class Daemons(Executor):
    """These threads as an executor, with which a call that hangs does not keep the process alive. name: of the threads."""

    def __init__(self, name: str) -> None:
        self._name = f"burnish-{name}"

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        start(self._name, job)
        return future
