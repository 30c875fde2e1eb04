"""Rows out of data files, in whatever form they lie there: the one reader of tasks, demonstrations, documents and conversations to score.

    suffix, in any case, packed or not   what is read
    .jsonl  .ndjson  .json               one JSON object per line, or a list of objects
    .csv                                 a header, and a line of cells per row; a cell that is a JSON list or object is read as one
    .parquet  .arrow                     one object per row
    .txt  .text  .md                     paragraphs (an empty line between them), each as {"text": …}; only where documents are asked for

Rows are told apart by their content, not by which of their suffixes the file has. Text is UTF-8, with or without a byte-order mark.
Files are streamed: memory holds a row, not the file. A compressed file that unpacks to far more than text does is refused. `row_files`
knows where files lie and how they are packed, `row_columns` reads those of columns.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader, StringIO
from itertools import chain
from pathlib import Path
from typing import Any, Final

from ..rpc.payload import PayloadError, more_values, plain_json
from .row_columns import column_rows
from .row_files import (
    MAX_RATIO,
    PACKED_SUFFIXES,
    UnreadableFile,
    files_at,
    most_bytes,
    most_rows,
    opened,
    size_of,
    suffix_of,
    too_much,
    unpacked_name,
)

ROW_SUFFIXES: Final = (".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".arrow")
PROSE_SUFFIXES: Final = (".txt", ".text", ".md")
MAX_LINE_BYTES: Final = 64 << 20
MAX_VALUES: Final = 500_000
"""JSON values of a row: two bytes make one, and as Python holds it that takes a hundred."""
MAX_PROBLEMS: Final = 20
ENDS: Final = "; nothing of the file is read from here on"
"""Said of a row behind which nothing tells where the next one begins."""

_BOM, _PARQUET = b"\xef\xbb\xbf", b"PAR1"
_OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@dataclass(frozen=True, slots=True)
class Row:
    """A row that can be read: plain JSON values. number: its line (where it begins), or in Parquet its place, from 1.

    Example: `Row("train.jsonl:3", 3, {"text": "x"})`.
    """

    where: str
    number: int
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot. Example: `BadRow("train.jsonl:3", 3, "not JSON: …")`."""

    where: str
    number: int
    problem: str


Lines = Iterable[tuple[int, bytes]]


class Problems:
    """What is wrong with rows: the first ones in full, the others counted.

    Example: `problems.add("train.jsonl:3: id: …"); problems.check()` raises ValueError.
    """

    def __init__(self) -> None:
        self._said: list[str] = []
        self._count = 0

    def add(self, text: str) -> None:
        if text in self._said:  # of several items of one line
            return
        self._count += 1
        if len(self._said) < MAX_PROBLEMS:
            self._said.append(text)

    def __bool__(self) -> bool:
        return self._count > 0

    def lines(self) -> list[str]:
        """The first ones, a line each, and how many more there are."""
        more = [f"… and {self._count - MAX_PROBLEMS} more problems"] if self._count > MAX_PROBLEMS else []
        return self._said + more

    def check(self) -> None:
        """Raise ValueError, a line per problem, when there are any."""
        if self:
            raise ValueError("\n".join(self.lines()))


def suffix_problem(file: str | Path, prose: bool = False) -> str | None:
    """Why a file of this name is not read, or None. prose: documents are asked for, so plain text will do."""
    suffix = suffix_of(str(file))
    if suffix in ROW_SUFFIXES or (prose and suffix in PROSE_SUFFIXES):
        return None
    if suffix in PROSE_SUFFIXES:
        return f"{file}: rows are asked for, not plain text; they come from {', '.join(ROW_SUFFIXES)}"
    known = (*ROW_SUFFIXES, *PROSE_SUFFIXES) if prose else ROW_SUFFIXES
    return f"{file}: the suffix {suffix!r} is unknown; known are {', '.join(known)}, each also with {', '.join(PACKED_SUFFIXES)}"


def stem(file: str | Path) -> str:
    """What a file is called, without the suffixes that say how it is read. Example: `stem("a/train.jsonl.gz")` is "train"."""
    return unpacked_name(str(file)).stem


def read_rows(place: str | Path, prose: bool = False) -> Iterator[Row | BadRow]:
    """Every row of a file in order, or of the files of a folder. prose: documents are asked for, so a file of plain text is read too.

    Raises ValueError naming the file when it is missing or of an unknown suffix, Unreadable when it is in another encoding, damaged, of
    another form than its suffix says, or has more rows than it can be meant to.
    """
    for file in files_at(str(place)):
        unfit = suffix_problem(file, prose)
        if unfit is not None:
            raise ValueError(unfit)
        with opened(file) as stream:
            most = most_rows(MAX_RATIO * size_of(stream))  # a row of text takes a byte, though not as it is stored
            for count, row in enumerate(_rows(file, stream)):
                if count >= most:
                    raise UnreadableFile(f"{row.where}: the file has more than {MAX_RATIO} times as many rows as bytes; it is none of data")
                yield row


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in one line, made of plain values. Raises ValueError saying what is wrong, with the field where there is one."""
    return _plain(json_object(text))


def json_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in one line, whatever strings and numbers it holds. Raises ValueError."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        _check_values(text)
        value = json.loads(text, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ValueError(_undecodable(error)) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1} of the line") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    except TooManyValues:
        raise
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    return _an_object(value)


def _rows(file: str, stream: BufferedReader[Any]) -> Iterator[Row | BadRow]:
    start = stream.peek(4)[:4]
    if start == _PARQUET:
        return _columns(file, stream, arrow=False)
    suffix = suffix_of(file)
    if suffix == ".arrow":
        return _columns(file, stream, arrow=True)
    if start[:2] in _OTHER_ENCODINGS:
        raise UnreadableFile(f"{file}: is {_OTHER_ENCODINGS[start[:2]]} text; save it as UTF-8")
    if suffix == ".parquet" and stream.peek(64)[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"", b"{", b"["):
        raise UnreadableFile(f"{file}: is no Parquet file; it is damaged, or of another form than its name says")
    lines = _lines(file, stream)
    blank, first = _first(lines)
    if first is None:
        return iter(())
    lines = chain([(blank, first)], lines)
    opening = first.lstrip()[:1]
    if suffix in PROSE_SUFFIXES:
        if opening == b"{" and _is_object(first):
            raise UnreadableFile(f"{file}: begins with a JSON object; call it .jsonl to read rows, or begin it with text to read documents")
        return _paragraphs(file, lines)
    if opening == b"[" or (suffix == ".json" and opening == b"{" and not _is_object(first)):
        return _laid_out(file, lines)
    return _cells(file, lines) if suffix == ".csv" and opening != b"{" else _objects(file, lines)


def _lines(file: str, stream: BufferedReader[Any]) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, their byte-order marks removed: joined files have one in the middle."""
    number, length, most = 0, 0, most_bytes(stream)
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        length += len(line)
        if length > most:
            raise too_much(f"{file}:{number}")
        if len(line) > MAX_LINE_BYTES:
            raise UnreadableFile(f"{file}:{number}: the line is longer than {MAX_LINE_BYTES >> 20} MiB; write one row per line")
        if number == 1 and b"\0" in line:
            raise UnreadableFile(f"{file}:{number}: holds a NUL byte, so it is no UTF-8 text; save it as UTF-8")
        yield number, line.removeprefix(_BOM)


def _first(lines: Iterator[tuple[int, bytes]]) -> tuple[int, bytes | None]:
    """The first line that is not blank."""
    return next(((number, line) for number, line in lines if line.strip()), (0, None))


def _objects(file: str, lines: Lines) -> Iterator[Row | BadRow]:
    for number, line in lines:
        if line.strip():
            yield _row(file, number, line.rstrip())


def _row(file: str, number: int, text: str | bytes) -> Row | BadRow:
    try:
        return Row(f"{file}:{number}", number, parse_object(text))
    except ValueError as error:
        return BadRow(f"{file}:{number}", number, str(error))


def _laid_out(file: str, lines: Lines) -> Iterator[Row | BadRow]:
    """Objects in a list or one after the other, over any number of lines. What cannot be read ends the file: nothing says where the next
    one begins."""
    text = _Text(file, iter(lines))
    listed = text.take("[")
    while text.ahead() not in ("", "]"):
        number = text.number
        try:
            value = text.value()
        except ValueError as error:
            what = error if isinstance(error, TooManyValues) else f"not JSON: {error}"
            yield BadRow(f"{file}:{number}", number, f"{what}{ENDS}")
            return
        yield _checked(file, number, value)
        if not text.take(",") and listed and text.ahead() not in ("", "]"):
            yield BadRow(f"{file}:{text.number}", text.number, f"not JSON: expecting ',' or ']', not {text.ahead()!r}{ENDS}")
            return
    if listed and not text.take("]"):
        yield BadRow(f"{file}:{text.number}", text.number, "the list does not end; the file is cut short")
    elif text.ahead():
        yield BadRow(f"{file}:{text.number}", text.number, f"more follows after the end of the list; write one object per line{ENDS}")


class _Text:
    """Lines as one text, of which no more is in memory than the value that is being read. number: the line that comes next."""

    def __init__(self, file: str, lines: Iterator[tuple[int, bytes]]) -> None:
        self._file, self._lines = file, lines
        self._text, self._at, self.number = "", 0, 0
        self._decoder = json.JSONDecoder(parse_constant=_no_constant)

    def ahead(self) -> str:
        """The next character that is not blank, "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at].isspace():
                self.number += self._text[self._at] == "\n"
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            line = next(self._lines, None)
            if line is None:
                return ""
            self.number, self._text, self._at = line[0], _decoded(self._file, *line), 0

    def take(self, character: str) -> bool:
        """Whether `character` comes next; it is then passed over."""
        found = self.ahead() == character
        self._at += found
        return found

    def value(self) -> Any:
        """The JSON value that comes next. Raises ValueError when there is none."""
        while True:
            _check_values(self._text, self._at)
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except RecursionError:
                raise ValueError("nested too deeply") from None
            except ValueError as error:
                if not self._grow():
                    raise ValueError(error.msg if isinstance(error, json.JSONDecodeError) else str(error)) from None
                continue
            self.number += self._text.count("\n", self._at, end)
            self._at = end
            return value

    def _grow(self) -> bool:
        """Twice as much text, since a value may go on in the lines that follow; False when there are none or it has grown too long."""
        kept = [self._text[self._at :]]
        want = 2 * len(kept[0])
        while sum(map(len, kept)) < min(want, MAX_LINE_BYTES) and (line := next(self._lines, None)) is not None:
            kept.append(_decoded(self._file, *line))
        self._text, self._at = "".join(kept), 0
        return len(kept) > 1


def _cells(file: str, lines: Lines) -> Iterator[Row | BadRow]:
    csv.field_size_limit(MAX_LINE_BYTES)
    numbers: list[int] = []

    def texts() -> Iterator[str]:
        for number, line in lines:
            numbers.append(number)
            yield _decoded(file, number, line)

    table = csv.reader(texts(), strict=True)
    try:
        header = [name.strip() for name in next(table)]
    except csv.Error as error:
        raise UnreadableFile(f"{file}:{numbers[0]}: the names of the columns are not CSV: {error}") from None
    if len(set(header)) < len(header) or not all(header):
        raise UnreadableFile(f"{file}:{numbers[0]}: a .csv begins with the names of its columns, each of them once, not {header}")
    while True:
        numbers.clear()
        try:
            cells = next(table, None)
        except csv.Error as error:
            yield BadRow(f"{file}:{numbers[0]}", numbers[0], f"not CSV: {error}{ENDS}")
            return
        if cells is None:
            return
        number = numbers[0]
        if cells and len(cells) != len(header):
            yield BadRow(f"{file}:{number}", number, f"has {len(cells)} cells, but the header names {len(header)} columns")
        elif cells:
            yield _of_cells(file, number, {name: text for name, text in zip(header, cells, strict=True) if text})


def _of_cells(file: str, number: int, cells: dict[str, str]) -> Row | BadRow:
    try:
        return _checked(file, number, {name: _cell(text) for name, text in cells.items()})
    except TooManyValues as error:
        return BadRow(f"{file}:{number}", number, str(error))


def _cell(text: str) -> Any:
    if text[:1] not in ("[", "{"):
        return text
    _check_values(text)
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text


def _columns(file: str, stream: BufferedReader[Any], arrow: bool) -> Iterator[Row | BadRow]:
    for number, value in column_rows(file, stream, arrow, MAX_VALUES):
        if isinstance(value, ValueError):
            yield BadRow(f"{file}:{number}", number, str(value))
        else:
            yield _checked(file, number, value)


def _paragraphs(file: str, lines: Lines) -> Iterator[Row | BadRow]:
    kept = StringIO()  # a list of lines, which may be of one letter, would take twenty times as much
    first = 0
    for number, line in chain(lines, [(0, b"")]):
        text = _decoded(file, number, line).rstrip("\r\n")
        if text.strip():
            first = first if kept.tell() else number
            kept.write(f"\n{text}" if kept.tell() else text)
            if kept.tell() > MAX_LINE_BYTES:
                raise UnreadableFile(
                    f"{file}:{first}: the paragraph is longer than {MAX_LINE_BYTES >> 20} Mi characters; put empty lines between documents"
                )
        elif kept.tell():
            yield _checked(file, first, {"text": kept.getvalue()})
            kept = StringIO()


def _checked(file: str, number: int, value: Any) -> Row | BadRow:
    try:
        return Row(f"{file}:{number}", number, _plain(value))
    except ValueError as error:
        return BadRow(f"{file}:{number}", number, str(error))


def _an_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object, not {type(value).__name__}")
    return value


def _plain(value: Any) -> dict[str, Any]:
    try:
        return plain_json(_an_object(value))
    except PayloadError as error:
        raise ValueError(str(error)) from None


def _decoded(file: str, number: int, line: bytes) -> str:
    if b"\0" in line:
        raise UnreadableFile(f"{file}:{number}: holds a NUL byte, so it is no text")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UnreadableFile(f"{file}:{number}: {_undecodable(error)}") from None


class TooManyValues(ValueError):
    """A row that nobody would write."""


def _check_values(text: str, start: int = 0) -> None:
    if more_values(text, MAX_VALUES, start):
        raise TooManyValues(f"holds more than {MAX_VALUES} JSON values; write them as several rows")


def _undecodable(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 text: byte {error.start + 1} of the line cannot be read; save the file as UTF-8"


def _is_object(line: bytes) -> bool:
    try:
        text = line.decode()
        return not more_values(text, MAX_VALUES) and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
