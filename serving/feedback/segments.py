"""Rows in files that are short-lived: each holds the rows of some time, and goes as a whole, by age or where there are too many.

A folder of them has one writer or several; each holds the folder's lock while it writes. Files are read without it: rows are whole lines.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ...rollout.store.json_lines import JsonLines, keep_rows, read_json_lines

PARTS: Final = 16
"""Into which the time and the bytes of a folder are divided: a row goes at most this share of them before it has to."""
_NAME: Final = re.compile(r"([0-9]{8}T[0-9]{6})Z-[0-9]{6}\.jsonl")


class Segments:
    """A folder of rows that no row stays in for longer than `kept_s` seconds, and that takes at most `most_bytes`.

    Example: `Segments(Path("feedback"), kept_s=86_400, most_bytes=2**27).append({"id": "a"})`.
    """

    def __init__(self, folder: Path, kept_s: float, most_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self.folder, self._kept_s, self._most_bytes, self._clock = folder, kept_s, most_bytes, clock
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def longest_row(self) -> int:
        """Bytes that a row may have."""
        return self._most_bytes // PARTS

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row, and let go of what is too old or too much."""
        with self._held():
            self._prune(room=self.longest_row)
            with JsonLines(self._current()) as lines:
                lines.append(row)

    def prune(self) -> None:
        """Let go of what is too old or too much."""
        with self._held():
            self._prune()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row that may still be read, in the order in which they were written."""
        for file in self._files():
            if not self._is_over(file):
                yield from _rows(file)

    def find(self, id: str, since: float) -> dict[str, Any] | None:
        """The row with this id, which was written no sooner than `since`."""
        needle, files = id.encode(), self._files()
        for i, file in enumerate(files):
            written_sooner = i + 1 < len(files) and _begins(files[i + 1]) < since
            if written_sooner or self._is_over(file):
                continue
            if needle in _content(file):
                found = next((row for row in _rows(file) if row.get("id") == id), None)
                if found is not None:
                    return found
        return None

    def count(self, id: str) -> int:
        """How many rows with this id may still be read."""
        needle = id.encode()
        files = [file for file in self._files() if not self._is_over(file) and needle in _content(file)]
        return sum(row.get("id") == id for file in files for row in _rows(file))

    def remove(self, ids: Collection[str]) -> int:
        """Let go of every row with one of these ids, and say how many there were."""
        removed = 0

        def stays(row: Mapping[str, Any]) -> bool:
            nonlocal removed
            goes = row.get("id") in ids
            removed += goes
            return not goes

        with self._held():
            for file in self._files():
                content = _content(file)
                if any(id.encode() in content for id in ids):
                    keep_rows(file, stays)
        return removed

    def _current(self) -> Path:
        """The file that is written to."""
        now, files = int(self._clock()), self._files()
        number = 0
        if files:
            last = files[-1]
            now = max(now, int(_begins(last)))  # a clock that was put back; files stay in the order in which they are written
            if now - _begins(last) < self._kept_s / PARTS and last.stat().st_size < self._most_bytes // PARTS:
                return last
            number = int(last.stem[-6:]) + 1 if now == _begins(last) else 0
        return self.folder / f"{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%S}Z-{number:06}.jsonl"

    def _prune(self, room: int = 0) -> None:
        size = sum(file.stat().st_size for file in self._files()) + room
        for file in self._files():
            if size > self._most_bytes or self._is_over(file):
                size -= file.stat().st_size
                file.unlink()

    def _is_over(self, file: Path) -> bool:
        """Whether the oldest row that a file may hold has been there for long enough."""
        return _begins(file) + self._kept_s <= self._clock()

    def _files(self) -> list[Path]:
        return sorted(file for file in self.folder.iterdir() if _NAME.fullmatch(file.name))

    @contextmanager
    def _held(self) -> Iterator[None]:
        held = os.open(self.folder / ".lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield
        finally:
            os.close(held)


def _begins(file: Path) -> float:
    found = _NAME.fullmatch(file.name)
    assert found is not None
    return datetime.strptime(f"{found[1]}+0000", "%Y%m%dT%H%M%S%z").timestamp()


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from (row for _, row in read_json_lines(file))
    except FileNotFoundError:  # it went meanwhile
        return


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""
