"""A process that outlives its parent by seconds, to end what a killed program leaves of the local Ray that it had started.

Ray's servers end with the driver, but its two agents notice a dead raylet and then try for a minute to report it to a control service that
is dead as well. Every process of that Ray carries a mark in its environment, so no other is touched. Standard library only: it is run as a
file, by an interpreter without packages.

    python ray_ends.py DRIVER MARK
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

MARK = "BURNISH_LOCAL_RAY"
"""The environment variable that marks the processes of a Ray."""
POLL_S = 0.5
GRACE_S = 5.0
"""Seconds in which those that end by themselves may do so."""


def marked(mark: str) -> dict[int, str]:
    """The names of this user's processes that carry the mark, by number, as Linux shows them. One that has ended carries none."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            if carries(int(folder.name), mark):
                found[int(folder.name)] = (folder / "comm").read_text().strip()
    return found


def carries(process: int, mark: str) -> bool:
    """Whether the process has the mark; numbers are used again. Raises OSError when there is none of that number, or it is not ours."""
    return f"{MARK}={mark}".encode() in Path(f"/proc/{process}/environ").read_bytes().split(b"\0")


def wait_for_the_end(driver: int, mark: str) -> None:
    """Return when the driver, this process's parent, has ended, or the raylet that it started."""
    raylets = [number for number, name in marked(mark).items() if name == "raylet"]
    with suppress(OSError):
        while os.getppid() == driver and raylets and carries(raylets[0], mark):
            time.sleep(POLL_S)


def end(mark: str) -> None:
    """Wait a moment for the processes with the mark to end, and kill those that do not."""
    deadline = time.monotonic() + GRACE_S
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for number in marked(mark):
        with suppress(OSError):
            os.kill(number, signal.SIGKILL)


if __name__ == "__main__":
    wait_for_the_end(int(sys.argv[1]), sys.argv[2])
    end(sys.argv[2])
