"""An event loop on a clock of its own, so that what a test proves of time does not depend on how busy the machine is."""

from __future__ import annotations

import asyncio
import selectors
import time
import weakref

TURN_S = 1e-6


class _Selector(selectors.DefaultSelector):
    """Adds up the seconds that the loop has waited because it had nothing to do, and a microsecond for each of its turns."""

    seconds = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        began = time.monotonic()
        ready = super().select(timeout)
        waited = time.monotonic() - began
        self.seconds += TURN_S + (waited if timeout is None else min(waited, max(timeout, 0.0)))
        return ready


class PatientLoop(asyncio.SelectorEventLoop):
    """Its clock stands almost still while it has something to do, and no wait takes longer than it was to: a machine that is late makes
    nothing due.

    `pass_time` moves the clock on at once, so that a test of a deadline says when it passes and does not wait for it.
    """

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)
        _loops.add(self)

    def time(self) -> float:
        return self._clock.seconds

    def pass_time(self, seconds: float) -> None:
        """From any thread: `seconds` later all of a sudden."""
        self.call_soon_threadsafe(self._move, seconds)

    def _move(self, seconds: float) -> None:
        self._clock.seconds += seconds


_loops: weakref.WeakSet[PatientLoop] = weakref.WeakSet()


def pass_time(seconds: float) -> None:
    """From a thread that knows of no loop: on every one that runs."""
    for loop in [one for one in _loops if one.is_running()]:
        loop.pass_time(seconds)


class PatientLoops(asyncio.DefaultEventLoopPolicy):
    """`asyncio.run` on a PatientLoop."""

    _loop_factory = PatientLoop


def patient_loop() -> PatientLoop:
    """The loop that runs here."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, PatientLoop)
    return loop
