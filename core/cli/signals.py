"""SIGTERM ends a command as Ctrl-C does: whatever was started is ended on the way out, and one line says how it ended."""

from __future__ import annotations

import signal
from typing import Any

_received: set[int] = set()


def end_on_sigterm() -> None:
    """From now on SIGTERM interrupts this process."""
    signal.signal(signal.SIGTERM, _interrupt)


def terminated() -> bool:
    """Whether the interruption came from SIGTERM. The exception does not say so itself: Ray raises one of its own in its place."""
    return signal.SIGTERM in _received


def _interrupt(number: int, frame: Any) -> None:
    _received.add(number)
    raise KeyboardInterrupt
