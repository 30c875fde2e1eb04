"""What a Parquet file says of its columns is understood as the readers of its values understand it, however it is written."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from burnish.envs import column_sizes, row_columns
from burnish.envs.column_sizes import check_values
from burnish.envs.parquet_footer import RowGroup, column_chunks
from burnish.envs.rows import read_rows
from burnish.rollout.store.episodes import SCHEMA
from burnish.rollout.store.reading import check_store, count_rows

pytestmark = [pytest.mark.unit, pytest.mark.timeout(60)]

ROWS = 3000
NUMBERS = pa.schema([pa.field("n", pa.int64())])


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def zigzag(number: int) -> bytes:
    return varint(number << 1 if number >= 0 else (-number << 1) - 1)


FIELDS = {
    "row_groups": (b"\x19\x1c\x19\x1c", 0, 4),
    "columns": (b"\x19\x1c\x19\x1c", 2, 1),
    "meta_data": (b"\x26\x00\x1c\x15", 2, 3),
    "num_values": (b"\x15\x0c\x16", 2, 5),
    "num_rows": (b"\x16" + zigzag(ROWS) + b"\x26", 0, 3),
}
"""Of a file of `numbers`: bytes that stand there, where among them a field begins, and its number."""


def numbers(old: bytes = b"", new: bytes = b"") -> bytes:
    """A Parquet file of one row group and one column of zeros, changed."""
    out = io.BytesIO()
    table = pa.table({"n": [0] * ROWS}, NUMBERS)
    pq.write_table(table, out, compression="zstd", store_schema=False, write_statistics=False)
    return changed(out.getvalue(), old, new)


def changed(content: bytes, old: bytes, new: bytes) -> bytes:
    """A Parquet file of which the last bytes that are `old`, of what it says of itself, are others."""
    start = len(content) - 8 - int(struct.unpack("<I", content[-8:-4])[0])
    said = content[start:-8]
    assert old in said
    before, _, after = said.rpartition(old) if old else (said, b"", b"")
    said = before + new + after
    return content[:start] + said + struct.pack("<I", len(said)) + b"PAR1"


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("add", [1 << 16, -(1 << 16), 1 << 32, 1 << 40])
def test_the_number_of_a_field_has_sixteen_bits(field: str, add: int) -> None:
    old, at, number = FIELDS[field]
    content = numbers(old, old[:at] + bytes([old[at] & 15]) + zigzag(number + add) + old[at + 1 :])
    assert pq.read_table(io.BytesIO(content)).num_rows == ROWS
    assert column_chunks(io.BytesIO(content)) == column_chunks(io.BytesIO(numbers()))


def test_the_number_of_a_field_has_sixteen_bits_after_a_step() -> None:
    old, _, number = FIELDS["row_groups"]
    content = numbers(old, b"\x01" + zigzag(number - 10 + (1 << 16)) + b"\xa9" + old[1:])
    assert pq.read_table(io.BytesIO(content)).num_rows == ROWS
    assert column_chunks(io.BytesIO(content)) == column_chunks(io.BytesIO(numbers()))


@pytest.mark.parametrize("found", [[], [RowGroup(ROWS)]], ids=["no row group", "no column"])
def test_a_file_of_which_pyarrow_finds_more_is_refused(found: list[RowGroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(numbers())
    with file.open("rb") as stream:
        check_values(pq.read_metadata(file), column_chunks(stream), file.stat().st_size)
    assert len(list(read_rows(file))) == count_rows(file, NUMBERS, "numbers") == ROWS
    monkeypatch.setattr(row_columns, "column_chunks", lambda stream: found)
    monkeypatch.setattr("burnish.rollout.store.reading.column_chunks", lambda stream: found)
    with pytest.raises(ValueError, match=r"a\.parquet: .*can be read in two ways"):
        list(read_rows(file))
    with pytest.raises(ValueError, match=r"a\.parquet: .*can be read in two ways"):
        count_rows(file, NUMBERS, "numbers")


def test_values_are_of_the_kind_that_the_schema_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(numbers(b"\x00\x1c\x15\x04", b"\x00\x1c\x15\x00"))  # the column says BOOLEAN, the schema INT64
    monkeypatch.setattr(column_sizes, "FREE_BYTES", 8 * ROWS)
    assert pq.read_table(file).num_rows == count_rows(file, NUMBERS, "numbers") == ROWS
    monkeypatch.setattr(column_sizes, "FREE_BYTES", 8 * ROWS - 1)
    monkeypatch.setattr(column_sizes, "MOST_RATIO", 1)
    with pytest.raises(ValueError, match=rf"hold {8 * ROWS} bytes of values"):
        count_rows(file, NUMBERS, "numbers")


def test_messages_are_the_column_that_the_schema_calls_so(tmp_path: Path) -> None:
    file, said = tmp_path / "a.parquet", [str(i) * 500 for i in range(300)]
    columns = {field.name: pa.nulls(len(said), field.type) for field in SCHEMA}
    pq.write_table(pa.table({**columns, "messages": said}, SCHEMA), file, store_schema=False, write_statistics=False)
    taken = check_store(file)
    assert taken > sum(map(len, said))
    file.write_bytes(changed(file.read_bytes(), b"\x08messages", b"\x08somewhat"))
    assert pq.read_table(file, columns=["messages"]).column(0).to_pylist() == said and check_store(file) == taken


@pytest.mark.parametrize(
    ("old", "at"),
    [
        (b"\x19\x2c\x35", 1),
        (b"\x19\x1c\x19\x1c", 1),
        (b"\x19\x1c\x19\x1c", 3),
        (b"\x19\x35", 1),
        (b"\x19\x18\x01n", 1),
        (b"\x19\x1c\x1c", 1),
    ],
    ids=["schema", "row_groups", "columns", "encodings", "path_in_schema", "column_orders"],
)
@pytest.mark.parametrize("kind", [1, 3, 6, 7, 9])
def test_what_is_in_a_list_is_of_the_kind_that_readers_take_it_for(old: bytes, at: int, kind: int) -> None:
    """They read over what is written, and what is passed over as of another kind ends elsewhere."""
    content = numbers(old, old[:at] + bytes([old[at] & 0xF0 | kind]) + old[at + 1 :])
    assert pq.read_table(io.BytesIO(content)).num_rows == ROWS
    with pytest.raises(ValueError, match=rf"has a list of kind {kind} where one of kind \d+ belongs"):
        column_chunks(io.BytesIO(content))


def test_a_column_has_a_value_in_each_row(tmp_path: Path) -> None:
    file, old = tmp_path / "a.parquet", b"\x15\x0c\x16" + zigzag(ROWS)
    for values in (0, ROWS - 1, -ROWS):
        file.write_bytes(numbers(old, old[:3] + zigzag(values)))
        with pytest.raises(ValueError, match=r"a\.parquet: .*a column has fewer values than its row group has rows"):
            count_rows(file, NUMBERS, "numbers")


@pytest.mark.parametrize("rows", [1, -1, ROWS + 1])
def test_a_file_has_the_rows_of_its_row_groups(rows: int, tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    whole = b"\x16" + zigzag(ROWS) + b"\x19\x1c"  # what the file says before its row groups
    file.write_bytes(numbers(whole, b"\x16" + zigzag(rows) + b"\x19\x1c"))
    assert pq.read_table(file).num_rows == ROWS and pq.read_metadata(file).num_rows == rows
    refused = rf"a\.parquet: .*its row groups have {ROWS} rows together, where it says {rows}"
    with pytest.raises(ValueError, match=refused):
        list(read_rows(file))
    with pytest.raises(ValueError, match=refused):
        count_rows(file, NUMBERS, "numbers")
