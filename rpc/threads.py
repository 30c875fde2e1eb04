"""Worker threads for sync handlers: cheaper per call than an executor, and they tell the function when its caller gave up."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from .user_code import message_of

T = TypeVar("T")

STUCK_S = 1.0
"""Seconds that every thread has worked for callers who gave up before no more work is taken: a burst of short deadlines passes."""

_cancelled: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("burnish_cancelled", default=None)


def cancelled() -> bool:
    """For long sync tools and verifiers: whether the caller gave up on the call that this thread works for."""
    event = _cancelled.get()
    return event is not None and event.is_set()


class _Job:
    __slots__ = ("args", "context", "event", "function", "future", "started", "stuck")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], future: asyncio.Future[Any]) -> None:
        self.function = function
        self.args = args
        self.future = future
        self.event = threading.Event()
        self.started = False
        self.stuck = False
        self.context = contextvars.copy_context()
        self.context.run(_cancelled.set, self.event)


class Threads:
    """Up to `limit` threads of one event loop. What finished together wakes the loop once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._done: deque[tuple[_Job, Any, BaseException | None]] = deque()
        self._threads: list[threading.Thread] = []
        self._busy: set[threading.Thread] = set()
        self._stuck = 0
        self._full_since: float | None = None  # when the last thread got stuck, while all of them are
        self._in_flight = 0
        self._waking = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def stuck(self) -> int:
        """Threads whose function goes on although its caller gave up."""
        return self._stuck

    @property
    def able(self) -> bool:
        """Whether a thread is left for further work, or will be in a moment: not every one has been stuck for `STUCK_S`."""
        return self._full_since is None or time.monotonic() < self._full_since + STUCK_S

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Run a sync function in a thread, in the caller's context, `cancelled()` telling it when the awaiting task was cancelled."""
        loop = self._loop = asyncio.get_running_loop()
        job = _Job(function, args, loop.create_future())
        self._in_flight += 1
        if len(self._threads) < min(self._in_flight, self._limit):
            self._start_thread()
        self._jobs.put(job)
        try:
            return await job.future  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            job.event.set()
            if job.started:
                job.stuck = True
                self._stuck += 1
                self._full_since = time.monotonic() if self._stuck == self._limit else None
            raise

    def close(self, patience_s: float = 0.1) -> bool:
        """Let the threads end; False when one is still busy with a function that does not return. One that only has not got round to
        ending, on a busy machine, is not waited for any longer."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(patience_s)
        return not self._busy

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"burnish-handler-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.started = True  # before looking: either this thread sees that the caller gave up, or the caller that it began
            if job.event.is_set():
                self._finish(job, None, None)
                continue
            self._busy.add(threading.current_thread())
            try:
                result = job.context.run(job.function, *job.args)
            except BaseException as error:
                self._busy.discard(threading.current_thread())
                self._finish(job, None, _carried(error))
            else:
                self._busy.discard(threading.current_thread())
                self._finish(job, result, None)
            del job

    def _finish(self, job: _Job, result: Any, error: BaseException | None) -> None:
        self._done.append((job, result, error))
        if not self._waking:
            self._waking = True
            assert self._loop is not None
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        self._waking = False  # before looking: whatever finishes from here on wakes the loop again
        while self._done:
            job, result, error = self._done.popleft()
            future = job.future
            self._in_flight -= 1
            if job.stuck:
                self._stuck -= 1
                self._full_since = None
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)


def _carried(error: BaseException) -> Exception:
    """The error as a future can carry it: StopIteration it cannot, SystemExit would end the event loop, and CancelledError would look as if
    the caller had given up."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    raised = RuntimeError(f"the function raised {type(error).__name__}: {message_of(error)}").with_traceback(error.__traceback__)
    raised.__cause__ = error
    return raised
