"""One process drives a run: two that write the same folder would mix their rows, and each drop what the other did."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = "driver.lock"


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
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
