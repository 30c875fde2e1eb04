"""Files of kilobytes that claim gigabytes: what they claim is told before it is taken."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import ipc

from burnish.envs import column_sizes, row_columns, row_files
from burnish.envs.column_sizes import check_values, dictionary_columns, unpacked_bytes, value_bytes, value_count
from burnish.envs.parquet_footer import column_chunks
from burnish.envs.rows import MAX_VALUES, BadRow, Row, read_rows
from burnish.rollout.store import reading
from burnish.rollout.store.episodes import SCHEMA

pytestmark = [pytest.mark.unit, pytest.mark.timeout(300)]

LONG = "x" * 24_000_000
MANY = 2_000_000


def messages(stream: bytes) -> list[Any]:
    source, found = pa.BufferReader(stream), []
    while True:
        try:
            found.append(ipc.read_message(source))
        except EOFError:
            return found


def as_stream(table: pa.Table, compression: str | None, file: bool = False) -> bytes:
    out = io.BytesIO()
    with (ipc.new_file if file else ipc.new_stream)(out, table.schema, options=ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return out.getvalue()


def bomb(folder: Path, name: str) -> Path:
    """A file of a few kilobytes."""
    file, repeated = folder / name, pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), pa.array([LONG]))
    many = pa.ListArray.from_arrays(pa.array([0, MANY], pa.int32()), pa.array(np.full(MANY, 7, np.int32)))
    if name == "text.parquet":
        pq.write_table(pa.table({"text": repeated}), file, compression="zstd", dictionary_pagesize_limit=1 << 30, store_schema=False)
    elif name == "list.parquet":
        pq.write_table(pa.table({"ids": many}), file, compression="zstd")
    elif name == "zeros.arrow":
        file.write_bytes(as_stream(pa.table({"a": many}), "zstd"))
    else:
        file.write_bytes(as_stream(pa.table({"text": repeated}), "zstd", file=name == "file.arrow"))
    assert file.stat().st_size < 20_000
    return file


@pytest.mark.parametrize("name", ["text.parquet", "stream.arrow", "file.arrow"])
def test_a_small_file_takes_no_gigabytes(name: str, tmp_path: Path) -> None:
    """64 rows of one text of 24 MB: 1.5 GB as Python's values, and several times that on the way."""
    code = (
        "import resource, sys, pyarrow.parquet\nfrom burnish.envs.rows import read_rows\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: print(len(list(read_rows(sys.argv[1]))))\n"
        "except ValueError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10)"
    )
    done = subprocess.run([sys.executable, "-c", code, bomb(tmp_path, name)], capture_output=True, text=True, check=True, timeout=200)
    said, megabytes = done.stdout.strip().splitlines()
    assert "more than" in said and int(megabytes) < 500, done.stdout


@pytest.mark.parametrize("name", ["list.parquet", "zeros.arrow"])
def test_numbers_that_repeat_are_counted_before_they_are_unpacked(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = bomb(tmp_path, name)
    assert len(list(read_rows(file))) == 1
    monkeypatch.setattr(row_columns, "BATCH_BYTES", 4 * MANY - 1)
    monkeypatch.setattr(column_sizes, "FREE_BYTES", 4 * MANY - 1)
    monkeypatch.setattr(row_columns, "value_bytes", lambda array: pytest.fail("the values are there already"))
    with pytest.raises(ValueError, match="rows that were written together"):
        list(read_rows(file))


def test_values_of_a_fixed_width_count_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10_000, np.int32)), pa.array([b"x" * 1000], pa.binary(1000)))
    file, ends = tmp_path / "a.parquet", pa.array([0, 10_000], pa.int32())
    pq.write_table(pa.table({"a": pa.ListArray.from_arrays(ends, values.dictionary_decode())}), file, compression="zstd")
    assert file.stat().st_size < 10_000 and len(list(read_rows(file))) == 1
    monkeypatch.setattr(column_sizes, "FREE_BYTES", 10_000_000 - 1)
    monkeypatch.setattr(row_columns, "value_bytes", lambda array: pytest.fail("the values are there already"))
    with pytest.raises(ValueError, match="hold 10000000 bytes of values"):
        list(read_rows(file))


@pytest.mark.parametrize("name", ["messages", "token_ids"])
def test_a_store_of_kilobytes_takes_no_gigabytes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = pa.ListArray.from_arrays(pa.array([0, MANY], pa.int32()), pa.array(np.full(MANY, 7, np.int32)))
    column = many if name == "token_ids" else pa.array(["x" * 1_000_000] * 16)
    file, kind = tmp_path / "a.parquet", SCHEMA.field(name).type
    pq.write_table(pa.table({name: column.cast(kind)}), file, compression="zstd", dictionary_pagesize_limit=1 << 30)
    monkeypatch.setattr(reading, "BATCH_BYTES", 8_000_000)
    monkeypatch.setattr(column_sizes, "FREE_BYTES", 4 * MANY - 1)
    with pytest.raises(ValueError, match="more than"):
        list(reading.stored_rows(file, reading.episode_columns(name), "stored episodes"))


def test_values_count_as_often_as_they_are_pointed_at() -> None:
    text = pa.array(["abc", None, "abc", "de"]).dictionary_encode()
    assert value_bytes(text) == text.indices.nbytes + 8
    nested = pa.array([[{"a": "abc"}], [{"a": "abc"}, {"a": "abc"}]])
    kind = pa.list_(pa.struct([("a", pa.dictionary(pa.int32(), pa.string()))]))
    assert value_bytes(nested.cast(kind)) >= 9 and value_bytes(pa.array([1, 2], pa.int64())) == 16
    with pytest.raises(ValueError, match="is not read"):
        value_bytes(pa.array(["a"], pa.string_view()))


EMPTY = pa.StructArray.from_buffers(pa.struct([]), MANY, [None])
WITHOUT = pa.Array.from_buffers(pa.binary(0), MANY, [None, pa.py_buffer(b"")])


@pytest.mark.parametrize("name", ["nulls", "empty", "zero_width", "no_column", "bits", "pointers"])
def test_a_file_has_no_more_rows_than_bytes(name: str, tmp_path: Path) -> None:
    columns = {"nulls": pa.nulls(MANY), "empty": EMPTY, "zero_width": WITHOUT, "bits": pa.array(np.zeros(MANY, np.bool_))}
    columns["pointers"] = pa.DictionaryArray.from_arrays(pa.array(np.zeros(MANY, np.int8)), pa.array(["a"]))
    batch = pa.RecordBatch.from_struct_array(EMPTY) if name == "no_column" else pa.record_batch([columns[name]], ["a"])
    files = [tmp_path / "a.arrow"]
    files[0].write_bytes(as_stream(pa.Table.from_batches([batch]), "zstd"))
    if name in ("nulls", "pointers"):
        files.append(tmp_path / "a.parquet")
        pq.write_table(pa.Table.from_batches([batch]), files[1])
    for file in files:
        with pytest.raises(ValueError, match=rf"{file.name}: .* more rows than bytes: {MANY} in {file.stat().st_size}"):
            next(read_rows(file))


def test_a_packed_file_has_no_more_rows_than_it_may_unpack_to_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.envs.row_files.FREE_ROWS", 500)
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b"{}\n" * 100_000))
    most = row_files.MAX_RATIO * file.stat().st_size
    with pytest.raises(ValueError, match=rf"a\.jsonl\.gz:{most + 1}: the file has more than 250 times as many rows as bytes"):
        list(read_rows(file))
    file.write_bytes(gzip.compress(b"{}\n" * 500))
    assert len(list(read_rows(file))) == 500


def test_packed_rows_that_are_much_alike_are_all_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.envs.row_files.FREE_ROWS", 500)
    sums = [{"messages": [{"role": "user", "content": f"{n // 100} + {n % 100}?"}], "reference_answer": "19"} for n in range(10_000)]
    file = tmp_path / "a.jsonl.xz"
    file.write_bytes(lzma.compress("\n".join(map(json.dumps, sums)).encode()))
    assert file.stat().st_size < len(sums)
    assert [row.value for row in read_rows(file) if isinstance(row, Row)] == sums


@pytest.mark.parametrize("inner", [pa.nulls(MANY), EMPTY, WITHOUT], ids=["nulls", "empty", "zero_width"])
@pytest.mark.parametrize("fixed", [False, True])
def test_a_row_holds_no_more_values_than_one_of_json(inner: pa.Array, fixed: bool, tmp_path: Path) -> None:
    many = pa.FixedSizeListArray.from_arrays(inner, MANY) if fixed else pa.ListArray.from_arrays(pa.array([0, MANY], pa.int32()), inner)
    file, fine = tmp_path / "a.arrow", pa.nulls(1, many.type)
    if not fixed:
        many = pa.concat_arrays([fine, many])
    file.write_bytes(as_stream(pa.table({"a": many, "n": list(range(len(many)))}), None))
    *before, last = read_rows(file)
    assert [row.value for row in before if isinstance(row, Row)] == [{"n": 0}] * (len(many) - 1)
    assert isinstance(last, BadRow) and last.problem == f"holds more than {MAX_VALUES} values; write them as several rows"


def test_values_are_counted_without_being_made() -> None:
    assert value_count(pa.array([[None, None], None])) == 4
    assert value_count(pa.array([{"a": [1, 2], "b": "x"}])) == 5
    assert value_count(pa.array([[("k", 1), ("l", 2)]], pa.map_(pa.string(), pa.int32()))) == 5
    kind = pa.map_(pa.string(), pa.list_(pa.null()))
    maps = pa.array([[("a", [None, None])], None, [("b", [None])]], kind)
    assert value_count(maps) == 3 + 2 + 2 + 3
    assert value_count(maps.slice(2)) == 1 + 1 + 1 + 1 and value_count(maps.slice(0, 2)) == 2 + 1 + 1 + 2
    nested = pa.DictionaryArray.from_arrays(pa.array([0, 0], pa.int8()), pa.array([[1]]))
    sparse = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])
    dense = pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])])
    for unread in (nested, sparse, dense):
        with pytest.raises(ValueError, match="is not read"):
            value_bytes(unread)


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
@pytest.mark.parametrize("file", [False, True])
def test_columns_of_every_kind_are_read_as_they_were(compression: str | None, file: bool, tmp_path: Path) -> None:
    rows = [{"id": str(i), "n": i, "talk": [{"role": "user", "content": "x" * i}], "deep": {"a": ["b"]}} for i in range(200)]
    table = pa.Table.from_pylist(rows)
    table = table.append_column("kind", pa.array(["one", "two"] * 100).dictionary_encode())
    stream = as_stream(table, compression, file)
    (tmp_path / "a.arrow").write_bytes(stream)
    pq.write_table(table, tmp_path / "a.parquet")
    wanted = [{**row, "kind": ("one", "two")[i % 2]} for i, row in enumerate(rows)]
    for name in ("a.arrow", "a.parquet"):
        assert [one.value for one in read_rows(tmp_path / name) if isinstance(one, Row)] == wanted
    unpacked = sum(unpacked_bytes(message) for message in messages(stream[8:] if file else stream))
    assert (unpacked > 0) == (compression is not None)
    assert dictionary_columns(pq.read_metadata(tmp_path / "a.parquet"))
    with (tmp_path / "a.parquet").open("rb") as parquet:
        check_values(pq.read_metadata(tmp_path / "a.parquet"), column_chunks(parquet), 1)


def test_all_rows_together_hold_no_more_values_than_a_file_can_be_meant_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.arrow"
    file.write_bytes(as_stream(pa.table({"a": [[None] * 10] * 640}), "zstd"))
    assert len(list(read_rows(file))) == 640
    monkeypatch.setattr(column_sizes, "FREE_COUNT", 6000)
    monkeypatch.setattr(column_sizes, "MOST_COUNT", 1)
    found = read_rows(file)
    with pytest.raises(ValueError, match=r"after row 512: its rows hold more than 6000 values, in \d+ bytes"):
        for _ in range(640):
            next(found)


TEXTS = ["abcdefghi", "jklmnopqr", "stuvwxyzA"]


def patched(table: pa.Table, offsets: tuple[int, ...], others: tuple[int, ...]) -> bytes:
    """The stream of a table, of which it says other offsets."""
    stream, old = as_stream(table, None), struct.pack(f"<{len(offsets)}i", *offsets)
    assert stream.count(old) == 1
    return stream.replace(old, struct.pack(f"<{len(others)}i", *others))


@pytest.mark.parametrize("name", ["text", "list", "backwards", "pointers", "among bad texts"])
def test_offsets_that_leave_the_file_are_refused_before_anything_follows_them(name: str, tmp_path: Path) -> None:
    """pyarrow follows them: into memory of something else, or to the end of the process."""
    lists = pa.table({"n": pa.array([[1, 2, 3], [4, 5], [6, 7, 8, 9]], pa.list_(pa.int64()))})
    pointers = pa.table({"a": pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.int32()), pa.array(["a", "b"]))})
    mixed = pa.table({"bad": not_utf8(3), "text": TEXTS})
    file = tmp_path / "a.arrow"
    file.write_bytes(
        {
            "text": lambda: patched(pa.table({"text": TEXTS}), (0, 9, 18, 27), (0, 9, 18, 200 << 20)),
            "list": lambda: patched(lists, (0, 3, 5, 9), (0, 3, 5, 20_000_000)),
            "backwards": lambda: patched(pa.table({"text": TEXTS}), (0, 9, 18, 27), (0, 9, -90_000_000, 27)),
            "pointers": lambda: patched(pointers, (0, 1, 0, 0), (0, 90_000_000, 0, 0)),
            "among bad texts": lambda: patched(mixed, (0, 9, 18, 27), (0, 9, 18, 200 << 20)),
        }[name]()
    )
    code = (
        "import sys\nfrom burnish.envs.rows import read_rows\n"
        "try: print(list(read_rows(sys.argv[1])))\nexcept ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True, timeout=100)
    assert "a.arrow: the file cannot be read after row 0: " in done.stdout


def not_utf8(rows: int, large: bool = False) -> pa.Array:
    content = pa.array([b"fine"] * (rows - 1) + [b"\xff\xfe"], pa.large_binary() if large else pa.binary())
    return pa.Array.from_buffers(pa.large_string() if large else pa.string(), rows, content.buffers())


def test_a_text_that_is_no_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    texts, ones, file = not_utf8(2), pa.array([0, 1, 2], pa.int32()), tmp_path / "a.arrow"
    columns = {
        "text": texts,
        "large": not_utf8(2, large=True),
        "struct": pa.StructArray.from_arrays([texts], ["a"]),
        "list": pa.ListArray.from_arrays(ones, texts),
        "large list": pa.LargeListArray.from_arrays(ones.cast(pa.int64()), texts),
        "fixed": pa.FixedSizeListArray.from_arrays(texts, 1),
        "map": pa.MapArray.from_arrays(ones, pa.array(["a", "b"]), texts),
        "json": pa.ExtensionArray.from_storage(pa.json_(), texts),
        "dictionary": pa.DictionaryArray.from_arrays(ones[:2], texts),
    }
    for name, column in columns.items():
        file.write_bytes(as_stream(pa.table({name: column, "n": [1, 2]}), None))
        first, second = read_rows(file)
        assert isinstance(first, Row) and isinstance(second, BadRow) and "'utf-8' codec can't decode" in second.problem, name
    file.write_bytes(as_stream(pa.table({"view": pa.array(["a", "b"], pa.string_view()), "text": texts}), None))
    with pytest.raises(ValueError, match="a column is string_view, which is not read"):
        list(read_rows(file))


@pytest.mark.parametrize("version", ["1.0", "2.6"])
def test_columns_are_read_as_pyarrow_reads_them(version: str, tmp_path: Path) -> None:
    rows = [{"id": str(i), "n": i, "x": i / 7, "deep": [{"a": ["b"] * i}], "yes": bool(i % 2), "none": None} for i in range(300)]
    pq.write_table(
        pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=70, version=version, compression="zstd", write_page_index=True
    )
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [[group.column(i) for i in range(group.num_columns)] for group in groups]
    wanted = [[(one.num_values, one.total_uncompressed_size) for one in group] for group in columns]
    with (tmp_path / "a.parquet").open("rb") as parquet:
        found = column_chunks(parquet)
    assert [[(one.values, one.unpacked) for one in group.chunks] for group in found] == wanted
    assert [group.rows for group in found] == [group.num_rows for group in groups]


def test_no_damage_to_what_a_parquet_file_says_of_itself_ends_the_process(tmp_path: Path) -> None:
    """pyarrow's own objects for it did over a histogram of another length, and over a column that the schema has not."""
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"a": [["x"]], "b": 1}]), out, compression="none", write_statistics=False, store_schema=False)
    (tmp_path / "sound.parquet").write_bytes(out.getvalue())
    code = (
        "import sys\nfrom pathlib import Path\nimport pyarrow as pa\nfrom burnish.envs.rows import read_rows\n"
        "from burnish.rollout.store.reading import count_rows\n"
        "sound, file = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])\n"
        "for at in range(len(sound) - 8 - int.from_bytes(sound[-8:-4], 'little'), len(sound)):\n"
        "    for bit in (1, 16, 64):\n"
        "        file.write_bytes(sound[:at] + bytes([sound[at] ^ bit]) + sound[at + 1 :])\n"
        "        for read in (read_rows, lambda file: [count_rows(file, pa.schema([]), 'rows')]):\n"
        "            try: list(read(file))\n"
        "            except ValueError as error: assert str(file) in str(error)\n"
        "print('all')"
    )
    files = [tmp_path / "sound.parquet", tmp_path / "damaged.parquet"]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=False, timeout=200)
    assert done.stdout == "all\n", done.stderr[-2000:]
