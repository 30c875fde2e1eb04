"""What columns take in memory once they are Python's values, told before they are: a file of kilobytes may claim gigabytes.

Parquet stores a text that repeats once, and so many numbers that point at it; it is read in that form (`dictionary_columns`), and measured
in it (`value_bytes`). Arrow's buffers are compressed one by one, and each says how long it becomes (`unpacked_bytes`).

Not bounded: a page of Parquet is unpacked whole, and the page says itself how large it becomes, at most 2 GiB.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

from .parquet_footer import RowGroup
from .row_files import most_rows

FREE_BYTES: Final = 512 << 20
MOST_RATIO: Final = 250
"""Values may take so much, or so many times the size of their file."""
WIDTHS: Final = {"BOOLEAN": 1, "INT64": 8, "INT96": 12, "DOUBLE": 8}
"""Bytes of a value in memory; of a pointer to one, and of the others but `FIXED`, four."""
FIXED: Final = "FIXED_LEN_BYTE_ARRAY"
"""The kind of Parquet's columns whose values each take as many bytes as the column says."""
REPEATED: Final = "BYTE_ARRAY"
"""The kind of Parquet's columns that can be read as pointers to values."""
UNREAD: Final = ("_view", "run_end", "union")
"""In the names of Arrow's kinds whose values may share their bytes, dictionaries aside."""
FREE_COUNT: Final = 1 << 26
MOST_COUNT: Final = 32
"""A file may have so many values, or so many for each of its bytes."""


def dictionary_columns(metadata: Any) -> list[str]:
    """The columns of a Parquet file, by their paths, that are to be read as values and pointers to them (`read_dictionary`).

    metadata: a `FileMetaData`. Example: `ParquetFile(file, read_dictionary=dictionary_columns(read_metadata(file)))`.
    """
    columns = [metadata.schema.column(i) for i in range(len(metadata.schema))]
    return [column.path for column in columns if column.physical_type == REPEATED]


def check_values(metadata: Any, groups: Sequence[RowGroup], size: int) -> None:
    """Raise ValueError when a Parquet file, or a row group of it, has more rows or values than so many bytes can be meant to have.

    metadata: a `FileMetaData`. groups: its row groups (`column_chunks`), which are refused where pyarrow finds others, or where
    they have other rows than the file says. A number that repeats is stored once with how often it does, so that one row may hold any
    number of them.
    """
    check_counts(metadata.num_rows, 0, size)
    if [len(group.chunks) for group in groups] != [metadata.num_columns] * metadata.num_row_groups:
        raise ValueError("what its end says of its columns can be read in two ways; write it anew")
    rows = sum(group.rows for group in groups)
    if rows != metadata.num_rows or any(group.rows < 0 for group in groups):
        raise ValueError(f"its row groups have {rows} rows together, where it says {metadata.num_rows}; write it anew")
    if any(chunk.values < group.rows for group in groups for chunk in group.chunks):
        raise ValueError("a column has fewer values than its row group has rows; write it anew")
    columns = [metadata.schema.column(i) for i in range(metadata.num_columns)]
    widths = [max(4, one.length) if one.physical_type == FIXED else WIDTHS.get(one.physical_type, 4) for one in columns]
    for group in groups:
        claimed = sum(chunk.values * width for chunk, width in zip(group.chunks, widths, strict=True))
        if claimed > max(FREE_BYTES, MOST_RATIO * size):
            raise ValueError(f"rows that were written together hold {claimed} bytes of values, more than {MOST_RATIO} times the file")


def value_bytes(array: Any) -> int:
    """Bytes of what an array of pyarrow holds, values counted as often as they are pointed at.

    Raises ValueError for kinds whose values may share their bytes in other ways: views, runs, unions, dictionaries of lists.

    Example: `value_bytes(pa.array(["abc", "abc"]).dictionary_encode())` is about `2 * 3 + 2 * 4`.
    """
    import pyarrow as pa

    kind = array.type
    if pa.types.is_dictionary(kind):
        if pa.types.is_nested(kind.value_type):
            raise _unread(kind)
        return int(array.indices.nbytes) + _pointed_at(array)
    if pa.types.is_struct(kind) or pa.types.is_map(kind):
        return sum(map(value_bytes, _inner(array)))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return int(array.nbytes) if not _holds_dictionaries(kind) else 8 * len(array) + sum(map(value_bytes, _inner(array)))
    if isinstance(array, pa.ExtensionArray):
        return value_bytes(array.storage)
    if any(word in str(kind) for word in UNREAD):
        raise _unread(kind)
    return int(array.nbytes)


def _unread(kind: Any) -> ValueError:
    return ValueError(f"a column is {str(kind)[:60]}, which is not read; write it as its plain kind")


def value_count(array: Any) -> int:
    """Values that an array of pyarrow becomes in Python, nested ones included: those that are null, or hold nothing, take no byte in it.

    array: of a kind that `value_bytes` takes. Example: `value_count(pa.array([[None, None], None]))` is 4.
    """
    import pyarrow as pa

    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return value_count(array.storage)
    if pa.types.is_nested(kind):
        return len(array) + sum(map(value_count, _inner(array)))
    return len(array)


def check_counts(rows: int, values: int, size: int) -> None:
    """Raise ValueError when a file of so many bytes cannot be meant to have so many rows, or values in them.

    Example: `check_counts(2_000_000, 2_000_000, 400)` raises.
    """
    if rows > most_rows(size):
        raise ValueError(f"it has more rows than bytes: {rows} in {size}")
    if values > max(FREE_COUNT, MOST_COUNT * size):
        raise ValueError(f"its rows hold more than {max(FREE_COUNT, MOST_COUNT * size)} values, in {size} bytes; split it")


def _inner(array: Any) -> list[Any]:
    """What the structs, lists or maps of an array hold, one after the other."""
    import pyarrow as pa

    if pa.types.is_struct(array.type):
        return list(array.flatten())
    if not pa.types.is_map(array.type):
        return [array.flatten()]
    start, end = array.offsets[0].as_py(), array.offsets[-1].as_py()  # keys and items are those of the whole
    return [array.keys.slice(start, end - start), array.items.slice(start, end - start)]


def _pointed_at(array: Any) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc

    values, pointers = array.dictionary, array.indices.drop_null()
    if not len(pointers) or not len(values):
        return 0
    if str(values.type) in ("string", "large_string", "binary", "large_binary"):
        lengths = pc.fill_null(pc.binary_length(values), 0)
        return int(pc.sum(lengths.take(pointers)).as_py() or 0)
    if pa.types.is_primitive(values.type):
        return 8 * len(pointers)
    return len(pointers) * max(value_bytes(values.slice(i, 1)) for i in range(len(values)))


def _holds_dictionaries(kind: Any) -> bool:
    return any(word in str(kind) for word in ("dictionary", "extension", *UNREAD))


def unpacked_bytes(message: Any) -> int:
    """What the buffers of a message of Arrow's stream become once unpacked; 0 where they are not compressed, or there are none.

    The head of a message is a flatbuffer (https://arrow.apache.org/docs/format/Columnar.html#recordbatch-message), of which pyarrow shows
    nothing, so that it is read here. Raises ValueError when it is damaged.
    """
    head = message.metadata.to_pybytes()
    try:
        start = _Table(head, struct.unpack_from("<I", head)[0])
        batch = start.table(2)
        if start.number(1, "B") == 2 and batch is not None:  # values that pointers point at
            batch = batch.table(1)
        if start.number(1, "B") not in (2, 3) or batch is None or batch.place(3) is None:
            return 0
        return sum(_unpacked(message.body, offset, length) for offset, length in batch.pairs(2))
    except struct.error as error:
        raise ValueError(f"a message is damaged: {error}") from None


def _unpacked(body: Any, offset: int, length: int) -> int:
    """Each compressed buffer begins with how long it becomes, -1 where it is as it was."""
    if length < 8 or not 0 <= offset <= body.size - 8:
        return max(0, length)
    declared = int(struct.unpack_from("<q", body, offset)[0])
    return declared if declared >= 0 else length


class _Table:
    """A table of a flatbuffer: its fields are found through a table of their places."""

    def __init__(self, content: bytes, at: int) -> None:
        self._content, self._at = content, at
        self._places = at - struct.unpack_from("<i", content, at)[0]
        if self._places < 0:
            raise struct.error("a table lies before its beginning")

    def place(self, field: int) -> int | None:
        (size,) = struct.unpack_from("<H", self._content, self._places)
        if 4 + 2 * field >= size:
            return None
        (offset,) = struct.unpack_from("<H", self._content, self._places + 4 + 2 * field)
        return self._at + offset if offset else None

    def number(self, field: int, form: str) -> int:
        at = self.place(field)
        return 0 if at is None else int(struct.unpack_from(f"<{form}", self._content, at)[0])

    def table(self, field: int) -> _Table | None:
        at = self.place(field)
        return None if at is None else _Table(self._content, at + struct.unpack_from("<I", self._content, at)[0])

    def pairs(self, field: int) -> list[tuple[int, int]]:
        at = self.place(field)
        if at is None:
            return []
        at += struct.unpack_from("<I", self._content, at)[0]
        (count,) = struct.unpack_from("<I", self._content, at)
        if count > len(self._content) // 16:
            raise struct.error("more buffers than a head can name")
        return [struct.unpack_from("<qq", self._content, at + 4 + 16 * i) for i in range(count)]
