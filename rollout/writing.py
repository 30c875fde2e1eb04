"""What libraries raise when they cannot write a file, as the system's error with the file's name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Within the block a library writes `file`. Raises OSError naming it where the system refused: Arrow names no file, and safetensors
    raises an error of its own.

    Example: on a full disk, `with writing(file): save_file(tensors, file)` raises OSError(ENOSPC, "No space left on device", file).
    """
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number is None or getattr(error, "filename", None) is not None:
            raise
        raise OSError(number, os.strerror(number), str(file)) from error


def write_text(file: Path, text: str) -> None:
    """Write a file of text, in UTF-8. Raises OSError naming it where the system refused: on a full disk, Python names none.

    Example: `write_text(Path("progress.json"), "{}")`.
    """
    with writing(file):
        file.write_text(text, encoding="utf-8")


def _number(error: Exception) -> int | None:
    """The system's number of what it refused, None where it was not the system."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    said = re.search(r"(?:os error |\[errno )(\d+)", str(error))
    return int(said[1]) if said else None
