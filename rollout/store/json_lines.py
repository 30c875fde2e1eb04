"""How lines of JSON are appended and read.

One row is one line, written with a single append: a reader sees whole rows, and a process killed in the middle of one leaves at most
an unfinished last line, which readers skip and the next writer removes. One file has one writer at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ...envs.rows import json_object
from ..writing import writing
from .own_files import MOST_LINE_BYTES, open_file


class JsonLines:
    """Appends rows to one file. Close it, or use it as a context manager.

    Example: `with JsonLines(Path("metrics.jsonl")) as lines: lines.append({"step": 1, "reward": 0.5})`.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        _drop_unfinished_line(self._file)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row. Raises ValueError on NaN or infinity, TypeError on what JSON cannot hold, OSError when the disk is full."""
        line = json.dumps(row, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"
        with writing(self.path):
            written = os.write(self._file, line)
        if written != len(line):
            _drop_unfinished_line(self._file)
            raise OSError(f"{self.path}: only {written} of {len(line)} bytes could be written; is the disk full?")

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _drop_unfinished_line(file: int) -> None:
    end = size = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        os.ftruncate(file, end)


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) for every whole line, where reading "path:line". Blank lines and an unfinished last line are skipped.

    Raises ValueError naming file and line when a line is no JSON object or longer than `MOST_LINE_BYTES`, and naming a file that is a pipe.
    """
    return ((where, row) for where, _, row in _whole_lines(path))


def keep_rows(path: Path, keep: Callable[[Mapping[str, Any]], bool]) -> None:
    """Drop the rows that are not to be kept, and an unfinished last line, from a file that nobody has open; whole or not at all.

    A file that is not there holds none. Raises ValueError as `read_json_lines` does.
    """
    if not path.is_file():
        return
    draft = path.with_name(f".{path.name}.tmp")
    with draft.open("wb") as kept:
        kept.writelines(line for _, line, row in _whole_lines(path) if keep(row))
    if draft.stat().st_size < path.stat().st_size:
        draft.replace(path)
    else:
        draft.unlink()


def _whole_lines(path: Path) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    return ((where, line, object_in(where, line)) for where, line in raw_lines(path))


def raw_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """(where, line) for every whole line, as `read_json_lines` has them and refuses them."""
    with open_file(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MOST_LINE_BYTES + 1), b""), start=1):
            if len(line) > MOST_LINE_BYTES:
                raise ValueError(f"{path}:{number}: the line is longer than {MOST_LINE_BYTES >> 20} MiB")
            if not line.strip() or not line.endswith(b"\n"):
                continue
            yield f"{path}:{number}", line


def object_in(where: str, line: bytes) -> dict[str, Any]:
    """The row of a line. Raises ValueError, which begins with `where`."""
    try:
        return json_object(line)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
