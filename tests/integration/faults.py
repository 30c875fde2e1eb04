"""What the parts of the fault matrix are to suffer: a file for each place, with the name of the fault in it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

FOLDER = "BURNISH_FAULTS"
"""The environment variable that names the folder of these files."""
PACE_S = 0.02
"""Seconds that a call takes; ten times as many where it is slow."""
SEEN = "is as it should be"
"""What the tool says of whatever is looked at."""


def told(place: str) -> str:
    """What a place is to suffer now, "" for nothing."""
    with suppress(FileNotFoundError):
        return Path(os.environ[FOLDER], place).read_text()
    return ""


def consumed(place: str, fault: str) -> bool:
    """Whether a place is to suffer this fault, which it then does once."""
    if told(place) != fault:
        return False
    with suppress(FileNotFoundError):
        Path(os.environ[FOLDER], place).unlink()
        return True
    return False
