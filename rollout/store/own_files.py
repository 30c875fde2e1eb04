"""The files of a run folder, which may be anybody's: what is read of one is its own, has an end, and is no larger than what it is for.

A link may lead anywhere, a pipe keeps its reader waiting for ever, and a sparse file of a few bytes claims terabytes. So whatever opens a
file of a run finds it with `own_file` or `own_files`, and opens it with `open_file` or `read_whole`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import Final

MOST_OBJECT_BYTES: Final = 64 << 20
"""Of a file that is read whole."""
MOST_LINE_BYTES: Final = 64 << 20
"""Of a line of a file that is read line by line."""


def own_file(home: Path, name: str) -> Path | None:
    """A file of a run folder by its path in it, None when it is not there.

    Raises ValueError when it, or a folder on the way to it, is a link that leads out of the run folder, and when it is no file.

    Example: `own_file(run, "data/sft/blend.json")`.
    """
    file = home / name
    check_own(home, file)
    if file.is_dir():
        raise ValueError(f"{file} is a folder, not a file; remove it")
    return file if file.exists() else None


def own_files(home: Path, pattern: str, under: str = "") -> list[Path]:
    """The files in a run folder, or in the folder `under` it, that fit a pattern, by name. Raises ValueError as `own_file` does.

    Example: `own_files(run, "*.jsonl", "transcripts")`.
    """
    folder = home / under
    check_own(home, folder)
    found = sorted(folder.glob(pattern))
    check_all_own(home, found)
    return [file for file in found if file.is_file()]


def check_all_own(home: Path, paths: Iterable[Path]) -> None:
    """`check_own` of many paths: what lies in a folder of a run is the run's, unless it is a link, or no file.

    Example: `check_all_own(run, run.glob("transcripts/*.jsonl"))`.
    """
    folders = set[Path]()
    for path in paths:
        if path.parent not in folders:
            check_own(home, path.parent)
            folders.add(path.parent)
        try:
            kind = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            check_own(home, path)


def check_own(home: Path, path: Path) -> None:
    """Raise ValueError when a path in a run folder leads out of it, or to a pipe or a device."""
    try:
        within = path.resolve().is_relative_to(home.resolve())
    except (OSError, RuntimeError) as error:  # links that lead to each other
        raise ValueError(f"{path} is a link that leads nowhere: {error}") from error
    if not within:
        raise ValueError(f"{path} is a link that leads out of the folder; what is shown of a run must be its own")
    try:
        kind = path.stat().st_mode  # asked once: a file of a store may go meanwhile
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise ValueError(f"{path} is a pipe or a device, not a file; remove it")


def open_file(file: Path) -> BufferedReader:
    """A file to be read, without waiting for anybody. Raises ValueError when it is a pipe, a device or a folder."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{file} is a pipe, a device or a folder, not a file; remove it")
    return os.fdopen(descriptor, "rb")


def read_whole(file: Path, most: int = MOST_OBJECT_BYTES) -> bytes:
    """The bytes of a file. Raises ValueError when there are more than `most`, or it is no file (`open_file`)."""
    with open_file(file) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{file} is larger than {most >> 20} MiB, which no such file of a run is")
    return content
