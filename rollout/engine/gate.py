"""Who may generate while weights change: nobody. The gate counts what is in flight and walks through one weight update at a time.

What is in flight then either ends first, or stands still and goes on under the new weights.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal

from ...envs.failures import EpisodeFailure, Failure, FailureKind

State = Literal["open", "paused", "updating"]


class Gate:
    """Admission to one engine, used from one thread; it may serve several event loops one after the other.

    open -> pause -> paused -> start -> updating -> finish -> paused -> resume -> open. An update that stops half-way leaves a fault:
    every request in flight or held back, and every later one, fails with ENGINE_ERROR until another update finishes.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.version = 0
        self._state: State = "open"
        self._fault: str | None = None
        self._in_flight = 0
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @asynccontextmanager
    async def admitted(self, timeout_s: float) -> AsyncIterator[None]:
        """Hold one place in flight, waiting while the gate is not open. Raises EpisodeFailure ENGINE_TIMEOUT or ENGINE_ERROR."""
        await self.opened(timeout_s)
        self._in_flight += 1
        try:
            yield
            self._check_fault()  # what was in flight may have gone on under weights that are not known
        finally:
            self._in_flight -= 1
            self._wake()

    async def opened(self, timeout_s: float) -> None:
        """Wait while the gate is not open. Raises as `admitted` does."""
        opened = await self._until(lambda: self._state == "open" or self._fault is not None, timeout_s)
        self._check_fault()
        if not opened:
            raise self.failure(FailureKind.ENGINE_TIMEOUT, f"held back for {timeout_s:g} s by a weight update that has not resumed")

    async def pause(self, timeout_s: float, finish: bool = True) -> None:
        """Close, and wait until nothing is in flight, unless that is not to `finish`. On a timeout the gate opens again, for nothing was
        changed, and it raises EpisodeFailure ENGINE_TIMEOUT."""
        if self._state == "updating":
            raise ValueError(f"engine {self.name} is updating; finish_weight_update before pausing it again")
        self._state = "paused"
        if not finish:
            return
        drained = False
        try:
            drained = await self._until(lambda: self._in_flight == 0, timeout_s)
        finally:
            if not drained and self._fault is None:
                self._open()
        if not drained:
            raise self.failure(FailureKind.ENGINE_TIMEOUT, f"{self._in_flight} requests still in flight {timeout_s:g} s after pausing")

    def start(self) -> None:
        if self._state != "paused":
            raise ValueError(f"engine {self.name} is {self._state}; a weight update starts with pause_generation")
        self._state = "updating"

    def require_updating(self) -> None:
        if self._state != "updating":
            raise ValueError(f"engine {self.name} is {self._state}; call start_weight_update first")

    def finish(self, version: int) -> None:
        self.require_updating()
        self._state, self._fault, self.version = "paused", None, version

    def fail(self, reason: str) -> None:
        """An update stopped half-way, for `reason`."""
        self._state, self._fault = "paused", reason
        self._wake()

    def resume(self) -> None:
        """Open. Raises EpisodeFailure ENGINE_ERROR while an update is unfinished."""
        if self._state == "updating":
            self.fail("generation was resumed before finish_weight_update")
        self._check_fault()
        self._open()

    def failure(self, kind: FailureKind, detail: str) -> EpisodeFailure:
        return EpisodeFailure(Failure(kind, self.name, detail))

    def _open(self) -> None:
        self._state = "open"
        self._wake()

    def _check_fault(self) -> None:
        if self._fault is not None:
            raise self.failure(
                FailureKind.ENGINE_ERROR, f"its last weight update did not finish ({self._fault}); it serves again after one that does"
            )

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while not condition():
            left = end - loop.time()
            if left <= 0:
                return False
            waiter = loop.create_future()
            self._waiters.add(waiter)
            try:
                await asyncio.wait({waiter}, timeout=left)
            finally:
                self._waiters.discard(waiter)
        return True

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
