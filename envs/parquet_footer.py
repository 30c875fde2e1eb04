"""What the end of a Parquet file says of its columns. It is read here since pyarrow's `RowGroupMetaData.column` ends the process over a
column that contradicts itself: no exception of C++ comes through it.

The form is Thrift's compact protocol (https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md), what it says the
`FileMetaData` of https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift. A field of another kind than it
should have is passed over, one that stands there twice counts as it was said last, and the number of one has 16 bits, whatever is written:
so does the reader that reads the values. What is in a list is read there as it should be, whatever kind is written: one of another kind is
refused.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Final, TypeAlias, TypeVar

END: Final = b"PAR1"
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
"""Kinds of values."""
SIZES: Final = {BYTE: 1, DOUBLE: 8}
DEEPEST: Final = 64

Lists: TypeAlias = "Mapping[int, int | Lists]"
"""Of a struct, by the numbers of its fields: the kind of what is in a list, or the lists of a struct within."""
IN_FILE: Final[Lists] = {2: STRUCT, 4: STRUCT, 5: STRUCT, 7: STRUCT}
IN_GROUP: Final[Lists] = {1: STRUCT, 4: STRUCT}
IN_CHUNK: Final[Lists] = {8: {2: {1: BINARY}}}
IN_COLUMN: Final[Lists] = {2: I32, 3: BINARY, 8: STRUCT, 13: STRUCT, 16: {2: I64, 3: I64}, 17: {2: I32}}

T = TypeVar("T")


@dataclass(slots=True)
class Chunk:
    """A column in one row group. values: how many it has, nested ones and nulls included. unpacked: bytes that they take as they are
    written, once they are unpacked. Its kind and its name are as the schema says, at the same place: readers pass over what stands here."""

    values: int = 0
    unpacked: int = 0


@dataclass(slots=True)
class RowGroup:
    """Rows that were written together. rows: how many. chunks: their columns, in the order of the schema."""

    rows: int = 0
    chunks: list[Chunk] = field(default_factory=list)


def column_chunks(stream: BinaryIO) -> list[RowGroup]:
    """The columns of every row group of a file that is open, whose place is then another. Raises ValueError when its end is damaged.

    Example: `sum(chunk.values for group in column_chunks(stream) for chunk in group.chunks)`.
    """
    read = _Compact(_footer(stream))
    groups = list[RowGroup]()
    try:
        for number, kind in read.fields():
            if (number, kind) == (4, LIST):
                groups = read.structs(lambda: _group(read))
            else:
                read.skip(kind, IN_FILE.get(number))
    except IndexError:
        raise ValueError("what its end says of its columns is cut short") from None
    return groups


def _footer(stream: BinaryIO) -> bytes:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 8))
    tail = stream.read(8)
    length = struct.unpack("<I", tail[:4])[0] if len(tail) == 8 and tail[4:] == END else size
    if length > size - 8:
        raise ValueError("its end is not that of a Parquet file")
    stream.seek(size - 8 - length)
    return stream.read(length)


def _group(read: _Compact) -> RowGroup:
    found = RowGroup()
    for number, kind in read.fields():
        if (number, kind) == (1, LIST):
            found.chunks = read.structs(lambda: _chunk(read))
        elif (number, kind) == (3, I64):
            found.rows = read.signed()
        else:
            read.skip(kind, IN_GROUP.get(number))
    return found


def _chunk(read: _Compact) -> Chunk:
    found = Chunk()
    for number, kind in read.fields():
        if (number, kind) == (3, STRUCT):
            _describe(read, found)
        else:
            read.skip(kind, IN_CHUNK.get(number))
    return found


def _describe(read: _Compact, chunk: Chunk) -> None:
    for number, kind in read.fields():
        if (number, kind) == (5, I64):
            chunk.values = read.signed()
        elif (number, kind) == (6, I64):
            chunk.unpacked = read.signed()
        else:
            read.skip(kind, IN_COLUMN.get(number))


class _Compact:
    """Values of the compact protocol, one after the other. Raises IndexError past the end, and ValueError for what is none."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """The numbers and kinds of a struct's fields. Whoever takes one reads its value, or skips it."""
        number = 0
        while (head := self._content[self._at]) & 15:
            self._at += 1
            number = number + (head >> 4) if head >> 4 else self.signed()
            number = (number + 2**15) % 2**16 - 2**15
            yield number, head & 15
        self._at += 1

    def structs(self, item: Callable[[], T]) -> list[T]:
        """A list of structs, each of which `item` reads."""
        return [item() for _ in range(self._head(STRUCT)[1])]

    def signed(self) -> int:
        number = self._unsigned() & (2**64 - 1)
        return (number >> 1) ^ -(number & 1)

    def skip(self, kind: int, known: int | Lists | None = None, listed: bool = False, depth: int = 0) -> None:
        """Pass over a value. known: of a list, the kind of what should be in it, of a struct, its lists. listed: in a list, where a truth
        value has a byte of its own."""
        if depth > DEEPEST:
            raise ValueError(f"what its end says of its columns is nested more than {DEEPEST} levels deep")
        if kind in (TRUE, FALSE, BYTE, DOUBLE):
            self._pass(SIZES.get(kind, int(listed)))
            return
        if kind in (I16, I32, I64, BINARY):
            number = self._unsigned()
            self._pass(number if kind == BINARY else 0)
            return
        if kind in (LIST, SET):
            inner, count = self._head(known if kind == LIST and isinstance(known, int) else None)
            for _ in range(count):
                self.skip(inner, None, True, depth + 1)
            return
        if kind == MAP:
            self._skip_map(depth)
            return
        if kind != STRUCT:
            raise ValueError(f"what its end says of its columns has a value of kind {kind}, which is none")
        lists: Lists = known if isinstance(known, Mapping) else {}
        for number, inner in self.fields():
            self.skip(inner, lists.get(number), False, depth + 1)

    def _skip_map(self, depth: int) -> None:
        count = self._unsigned()
        self._pass(0, count)
        kinds = self._content[self._at] if count else 0
        self._pass(int(count > 0))
        for _ in range(count):
            self.skip(kinds >> 4, None, True, depth + 1)
            self.skip(kinds & 15, None, True, depth + 1)

    def _head(self, known: int | None) -> tuple[int, int]:
        """The kind of a list's values, and how many there are: each takes a byte at least. known: the kind that they should be of."""
        head = self._content[self._at]
        self._at += 1
        count = head >> 4 if head >> 4 < 15 else self._unsigned()
        self._pass(0, count)
        if count and known not in (None, head & 15):
            raise ValueError(f"what its end says of its columns has a list of kind {head & 15} where one of kind {known} belongs")
        return head & 15, count

    def _pass(self, length: int, more: int = 0) -> None:
        """Pass over so many bytes, behind which there must be `more`."""
        if length + more > len(self._content) - self._at:
            raise IndexError
        self._at += length

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._content[self._at]
            self._at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("what its end says of its columns has a number of more than ten bytes")
