"""SIGTERM ends a program as it says itself, whatever libraries it starts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def keep_sigterm() -> Iterator[None]:
    """Give SIGTERM the handler back that it had, after a block that starts a library which puts its own in the place, as Ray does.

    Ray's prints a native stack trace and aborts. In another thread than the main one, where handlers cannot be set, this does nothing.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
