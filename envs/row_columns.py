"""Files of columns as rows: Parquet, and both of Arrow's formats."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader
from typing import Any, Final

from ..rpc.extras import require
from .column_sizes import check_counts, check_values, dictionary_columns, unpacked_bytes, value_bytes, value_count
from .parquet_footer import column_chunks
from .row_files import UnreadableFile, is_packed, size_of

COLUMN_ROWS: Final = 64
"""Rows of a Parquet file that are in memory at once; of an Arrow file, as many as it was written with."""
BATCH_BYTES: Final = 512 << 20
"""What they may take, told before they do, or the whole of an Arrow file that is larger: a file of a few kilobytes may claim gigabytes."""

Value = dict[str, Any] | ValueError
"""A row, or why it cannot be read."""


def column_rows(file: str, stream: BufferedReader[Any], arrow: bool, most: int) -> Iterator[tuple[int, Value]]:
    """Every row with its place, from 1. arrow: of an Arrow file rather than a Parquet one. most: values of a row, nested ones included. A
    null is a key that is not there.

    Raises ValueError when pyarrow is missing, Unreadable naming the file where it is damaged, packed, has two columns of one name, or
    more rows or values than a file of its size can be meant to have.
    """
    require(file, ["pyarrow"], "train")
    from pyarrow import ArrowException

    if is_packed(stream):
        raise UnreadableFile(f"{file}: a Parquet or Arrow file is compressed inside; unpack it")
    number = values = 0
    size = size_of(stream)
    try:
        for batch in _arrow_batches(stream) if arrow else _parquet_batches(stream):
            claimed = sum(map(value_bytes, batch.columns))
            if claimed > max(BATCH_BYTES, size if arrow else 0):
                raise UnreadableFile(f"{file}: {batch.num_rows} rows after row {number} take {claimed} bytes, more than {BATCH_BYTES}")
            names = batch.schema.names
            if len(set(names)) < len(names):
                raise UnreadableFile(f"{file}: a column's name stands there twice: {', '.join(names)}")
            check_counts(number + batch.num_rows, values, size)
            for start in range(0, batch.num_rows, COLUMN_ROWS):
                part = batch.slice(start, COLUMN_ROWS)
                values += sum(map(value_count, part.columns))
                check_counts(number, values, size)
                for value in _values(part, most):
                    number += 1
                    yield number, value
    except UnreadableFile:
        raise
    except (ArrowException, MemoryError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UnreadableFile(
            f"{file}: the file cannot be read after row {number}: {(str(error).splitlines() or ['no memory'])[0]}"
        ) from error


def _parquet_batches(stream: BufferedReader[Any]) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile, read_metadata

    metadata = read_metadata(stream)
    check_values(metadata, column_chunks(stream), size_of(stream))
    columns = dictionary_columns(metadata)
    stream.seek(0)
    file = ParquetFile(stream, read_dictionary=columns)
    for group in range(metadata.num_row_groups):  # each has dictionaries of its own, and pyarrow makes no lists of several
        yield from file.iter_batches(batch_size=COLUMN_ROWS, row_groups=[group])


def _arrow_batches(stream: BufferedReader[Any]) -> Iterator[Any]:
    """Of a file, which is a stream between two marks, or of a stream, which is what `datasets` saves."""
    from pyarrow import PythonFile, ipc

    begin = 8 if stream.peek(6)[:6] == b"ARROW1" else 0
    most = max(BATCH_BYTES, size_of(stream))
    stream.seek(begin)
    source = PythonFile(stream, "r")
    for message in _messages(source):
        claimed = unpacked_bytes(message)
        if claimed > most:
            raise ValueError(f"rows that were written together take {claimed} bytes, more than {most}")
    stream.seek(begin)
    for batch in ipc.open_stream(stream):
        _check_offsets(batch)
        yield batch


def _check_offsets(batch: Any) -> None:
    """Raise ArrowInvalid when the values of a batch do not lie within its own bytes: pyarrow goes where the file says, into other memory or
    to the end of the process. Bytes that are no UTF-8 are left to the row that holds them."""
    from pyarrow import ArrowInvalid

    try:
        batch.validate(full=True)
    except ArrowInvalid:
        batch.validate()  # what a look at it as another kind relies on
        for column in batch.columns:
            column.view(_of_any_bytes(column.type)).validate(full=True)


def _of_any_bytes(kind: Any) -> Any:
    """The kind that lies in memory as this one does, and whose texts may be any bytes."""
    import pyarrow as pa

    is_a = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _of_any_bytes(kind.storage_type)
    if is_a.is_string(kind) or is_a.is_large_string(kind):
        return pa.binary() if is_a.is_string(kind) else pa.large_binary()
    if is_a.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _of_any_bytes(kind.value_type))
    if is_a.is_struct(kind):
        return pa.struct([_field_of_any_bytes(field) for field in kind])
    if is_a.is_map(kind):
        return pa.map_(_field_of_any_bytes(kind.key_field), _field_of_any_bytes(kind.item_field))
    if is_a.is_fixed_size_list(kind):
        return pa.list_(_field_of_any_bytes(kind.value_field), kind.list_size)
    if is_a.is_list(kind) or is_a.is_large_list(kind):
        return (pa.list_ if is_a.is_list(kind) else pa.large_list)(_field_of_any_bytes(kind.value_field))
    return kind


def _field_of_any_bytes(field: Any) -> Any:
    return field.with_type(_of_any_bytes(field.type))


def _messages(source: Any) -> Iterator[Any]:
    """Of Arrow's stream, as they lie in the file."""
    from pyarrow import ipc

    while True:
        try:
            yield ipc.read_message(source)
        except EOFError:
            return


def _values(batch: Any, most: int) -> list[Value]:
    """The rows of a batch. One that holds too many values says so, or one that Python has not (a date past the year 9999, bytes in a
    text)."""
    if sum(map(value_count, batch.columns)) > most:
        return _one_by_one(batch, most, f"holds more than {most} values; write them as several rows")
    try:
        return [_without_nulls(value) for value in batch.to_pylist()]
    except (ValueError, OverflowError) as error:
        return _one_by_one(batch, most, f"a value cannot be read: {error}")


def _one_by_one(batch: Any, most: int, problem: str) -> list[Value]:
    if batch.num_rows == 1:
        return [ValueError(problem)]
    return [value for i in range(batch.num_rows) for value in _values(batch.slice(i, 1), most)]


def _without_nulls(value: Any) -> Any:
    """Every struct of a Parquet column has all keys that any of them has: null stands for a key that is not there."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
