"""One process drives a run: two that write the same folder would mix their rows, and each drop what the other did."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = "driver.lock"
ASKED_S = 1.0
"""Seconds that a driver waits for those who ask whether there is one (`is_driven`), and hold the lock for that moment."""


class AlreadyDriven(ValueError):
    """Another process drives the run."""


@contextmanager
def sole_driver(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a run folder for this process. The system gives it back when the process ends, however it ends.

    say: told where the file system knows no locks. Raises AlreadyDriven naming the process that holds it already.
    """
    file = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        try:
            _lock(file)
        except BlockingIOError:
            who = os.pread(file, 20, 0)
            which = f" {int(who)}" if who.isdigit() else ""
            raise AlreadyDriven(
                f"{path} is driven by process{which} already; wait until it has ended, or end it, and resume then"
            ) from None
        except OSError as error:
            say(f"{path} cannot be locked ({error.strerror}): see to it that no second process resumes it meanwhile")
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(file)


def is_driven(path: Path) -> bool | None:
    """Whether a process drives the run in a folder, which need not be writable. None where that cannot be told: no process has driven it
    there, the lock may not be read, or the file system knows none.

    Example: false of a run that was killed, as soon as it has ended.
    """
    try:
        file = os.open(path / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # beside others who ask
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(file)
    return False


def _lock(file: int) -> None:
    """Raises BlockingIOError where another process holds the lock longer than one that only asks."""
    deadline = time.monotonic() + ASKED_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.02)
