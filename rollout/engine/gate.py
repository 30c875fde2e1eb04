"""Who may generate while weights change: nobody. The gate counts what is in flight and walks through one weight update at a time.

What is in flight then either ends first, or stands still and goes on under the new weights. While it waits for its answer, and while new
weights wait for its end, the tokens that the engine samples tell whether the engine is slow, which is the policy's time, or hangs.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar

from ...envs.failures import EpisodeFailure, Failure, FailureKind
from .base import OutOfTime

T = TypeVar("T")

State = Literal["open", "paused", "updating"]

LOOKS = 8
"""How often, in the seconds in which an engine may be silent, it is seen whether it was: it is, for up to an eighth longer."""
NEXT_LOOK_S = 0.1
"""The longest between two looks for the token that tells that an answer is late and not lost."""


class Gate:
    """Admission to one engine, used from one thread; it may serve several event loops one after the other.

    open -> pause -> paused -> start -> updating -> finish -> paused -> resume -> open. An update that stops half-way leaves a fault:
    every request in flight or held back, and every later one, fails with ENGINE_ERROR until another update finishes.

    silent_s: seconds in which an engine that is asked may sample no token at all, for anybody; then it hangs. held_s: seconds that one
    weight update may hold a request, once what was in flight has ended or stands still. Neither counts as the other, nor as time that an
    answer takes.
    """

    def __init__(self, name: str, silent_s: float, held_s: float) -> None:
        self.name, self.silent_s, self.held_s = name, silent_s, held_s
        self.version = 0
        self._state: State = "open"
        self._drains = False
        self._fault: str | None = None
        self._in_flight = 0
        self._tokens = 0
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def tokens(self) -> int:
        """Sampled so far, for anybody."""
        return self._tokens

    def sampled(self, tokens: int) -> None:
        """So many more tokens were sampled; from whichever thread samples."""
        self._tokens += tokens

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Hold one place in flight, waiting while the gate is not open. Raises EpisodeFailure ENGINE_TIMEOUT or ENGINE_ERROR."""
        await self._once(lambda: self._state == "open")
        self._in_flight += 1
        try:
            yield
            self._check_fault()  # what was in flight may have gone on under weights that are not known
        finally:
            self._in_flight -= 1
            if self._state != "open":
                self._wake()

    async def moving(self) -> None:
        """Wait while what is in flight stands still for new weights. Raises as `admitted` does."""
        await self._once(lambda: not self._stands_still)

    async def answered(self, work: Awaitable[T], max_seconds: float = math.inf) -> tuple[T, float]:
        """What `work`, which is in flight, gives, and the seconds it took; those in which it stood still for new weights are not among
        them. Unless it ends well, it is cancelled.

        Raises OutOfTime when it takes longer than `max_seconds`, once the engine has sampled another token, whoever it is for: until then
        it is not known to be slow. Raises EpisodeFailure ENGINE_TIMEOUT when it samples none for `silent_s`, or weights hold it for
        `held_s`, ENGINE_ERROR when they were not wholly updated, and what `work` raises.
        """
        answer = asyncio.ensure_future(work)
        try:
            return await self._watched(answer, max_seconds)
        finally:
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)

    async def _watched(self, answer: asyncio.Future[T], max_seconds: float) -> tuple[T, float]:
        now = asyncio.get_running_loop().time
        spent = silent = held = 0.0
        seen = self._tokens
        while True:
            late, still, began = spent >= max_seconds, self._stands_still, now()
            look_s = min(self.silent_s / LOOKS, NEXT_LOOK_S if late else max_seconds - spent)
            await self._changed(self.held_s - held if still else look_s, answer)
            passed = now() - began
            if answer.done():
                found = answer.result()
                if late:
                    raise OutOfTime(self.name)
                return found, spent + (0.0 if still else passed)
            self._check_fault()
            before, seen = seen, self._tokens
            if still:
                held, silent = held + passed, 0.0
                if held >= self.held_s:
                    raise self._held_too_long()
                continue
            spent, held = spent + passed, 0.0
            if seen > before:
                silent = 0.0
                if late:
                    raise OutOfTime(self.name)
            else:
                silent += min(passed, look_s)  # a look that comes late tells nothing of the engine
            if silent >= self.silent_s:
                raise self.failure(FailureKind.ENGINE_TIMEOUT, f"no token sampled for {self.silent_s:g} s, for any request")

    async def pause(self, silent_s: float, finish: bool = True) -> None:
        """Close, and wait until nothing is in flight, unless that is not to `finish`. That takes as long as the longest answer, which has
        an end of its own (`answered`). When for `silent_s` no token was sampled and nothing has ended, the gate opens again, for nothing
        was changed, and it raises EpisodeFailure ENGINE_TIMEOUT."""
        if self._state == "updating":
            raise ValueError(f"engine {self.name} is updating; finish_weight_update before pausing it again")
        self._state, self._drains = "paused", finish
        self._wake()
        if not finish:
            return
        drained = False
        try:
            drained = await self._drained(silent_s)
        finally:
            if not drained and self._fault is None:
                self._open()
        if not drained:
            asked = f"{self._in_flight} requests still in flight"
            raise self.failure(
                FailureKind.ENGINE_TIMEOUT, f"{asked}, and no token sampled for any of them for {silent_s:g} s after pausing"
            )

    async def _drained(self, silent_s: float) -> bool:
        """Wait until nothing is in flight; whether that came before the engine was silent for so long."""
        now = asyncio.get_running_loop().time
        silent, look_s, seen = 0.0, silent_s / LOOKS, (self._tokens, self._in_flight)
        while self._in_flight:
            if silent >= silent_s:
                return False
            began = now()
            await self._changed(look_s)
            before, seen = seen, (self._tokens, self._in_flight)
            silent = silent + min(now() - began, look_s) if seen == before else 0.0
        return True

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
        self._state, self._drains = "open", False
        self._wake()

    @property
    def _stands_still(self) -> bool:
        """Whether what is in flight waits for new weights, instead of ending before them."""
        return self._state != "open" and not self._drains

    def _held_too_long(self) -> EpisodeFailure:
        return self.failure(FailureKind.ENGINE_TIMEOUT, f"held back for {self.held_s:g} s by a weight update that has not resumed")

    def _check_fault(self) -> None:
        if self._fault is not None:
            raise self.failure(
                FailureKind.ENGINE_ERROR, f"its last weight update did not finish ({self._fault}); it serves again after one that does"
            )

    @property
    def _is_draining(self) -> bool:
        """Whether the weights wait for what is in flight, and nothing yet for them: its end, or the pause's, wakes who waits."""
        return self._state == "paused" and self._drains and self._in_flight > 0

    async def _once(self, condition: Callable[[], bool]) -> None:
        """Wait for `condition`, as long as a weight update may hold a request."""
        now, held = asyncio.get_running_loop().time, 0.0
        while not condition() and self._fault is None:
            if held >= self.held_s:
                raise self._held_too_long()
            began, draining = now(), self._is_draining
            await self._changed(None if draining else self.held_s - held)
            held += 0.0 if draining else now() - began
        self._check_fault()

    async def _changed(self, timeout_s: float | None, *others: asyncio.Future[Any]) -> None:
        """Wait until the gate has changed, or one of `others` is done."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait({waiter, *others}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
