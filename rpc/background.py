"""Background event loops of this process, each on a daemon thread: one where every client lives, one where async tools run.

Environment threads and other event loops hand their calls to them. A loop is made on first use inside the process that uses it (gRPC
does not survive a fork) and taken down when the interpreter exits. Code that users wrote never runs on the loop of the clients.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

T = TypeVar("T")

CLOSE_S = 2.0

_lock = threading.Lock()
_current: dict[str, Background] = {}


class Background:
    """An event loop running on its own thread. `shared` holds objects that live on the loop, by key."""

    def __init__(self, name: str = "rpc") -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.shared: dict[Any, Any] = {}
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._waking = False
        self._thread = threading.Thread(target=self._run, name=f"burnish-{name}", daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop, from any thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def post(self, function: Callable[..., None], *args: Any) -> None:
        """Have the loop call a function that does not raise, from any thread. What was posted together wakes the loop once."""
        self._posted.append((function, args))
        if not self._waking:
            self._waking = True
            self.loop.call_soon_threadsafe(self._run_posted)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """Run a coroutine on the loop and wait for it, at most `timeout_s` seconds (then TimeoutError)."""
        self.check_thread()
        future = self.submit(coroutine)
        try:
            return future.result(timeout_s)
        except FutureTimeout:
            raise TimeoutError(f"no result within {timeout_s:g} s") from None
        finally:
            future.cancel()

    def check_thread(self) -> None:
        """A blocking call on the loop's own thread would wait for itself."""
        assert threading.current_thread() is not self._thread, "blocking call on the background loop; await instead"

    def close(self) -> None:
        """Cancel what runs on the loop and stop it."""
        if self.pid != os.getpid() or not self._thread.is_alive():
            return
        self.loop.call_soon_threadsafe(self._cancel_all)
        self._thread.join(CLOSE_S)

    def _run_posted(self) -> None:
        self._waking = False  # before looking: whatever is posted from here on wakes the loop again
        while self._posted:
            function, args = self._posted.popleft()
            function(*args)

    def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()

        async def stop() -> None:
            if tasks:
                await asyncio.wait(tasks, timeout=CLOSE_S / 2)
            self.loop.stop()

        self._stopping = self.loop.create_task(stop())

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()


def background(name: str = "rpc") -> Background:
    """The background loop of this process called `name`, started on first use."""
    current = _current.get(name)
    if current is not None and current.pid == os.getpid():  # nearly always; without waiting for the lock
        return current
    with _lock:
        current = _current.get(name)
        if current is None or current.pid != os.getpid():
            current = _current[name] = Background(name)
            atexit.register(current.close)
        return current
