"""Rows out of files of every form: what is read, where a row is said to be, and what is refused and how."""

from __future__ import annotations

import gzip
import json
import lzma
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from burnish.cli.models import TextSource
from burnish.envs import rows
from burnish.envs.rows import ENDS, MAX_LINE_BYTES, MAX_VALUES, BadRow, Problems, Row, parse_object, read_rows, suffix_problem
from burnish.envs.types import message_from_dict
from burnish.trainer.data.forms import Document
from burnish.trainer.data.sources import sources_of
from burnish.trainer.phases.cpt import CPTConfig

pytestmark = pytest.mark.unit

BOM = b"\xef\xbb\xbf"
ROWS: list[dict[str, Any]] = [{"text": "one", "n": 1}, {"text": "zwei ü 🙂", "n": 2}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def read(tmp_path: Path, name: str, content: str | bytes, prose: bool = False) -> list[tuple[int, Any]]:
    """Each row's number, and its value or what is wrong with it."""
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    found = []
    for row in read_rows(file, prose):
        assert row.where == f"{file}:{row.number}"
        found.append((row.number, row.value if isinstance(row, Row) else row.problem))
    return found


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.json", "a.Jsonl.GZ", "a.parquet"])
@pytest.mark.parametrize("mark", [b"", BOM])
def test_lines_are_rows_whatever_the_suffix(tmp_path: Path, name: str, mark: bytes) -> None:
    content = mark + LINES.replace("\n", "\r\n").encode()
    packed = gzip.compress(content, mtime=0) if name.endswith("GZ") else content
    assert read(tmp_path, name, packed) == [(1, ROWS[0]), (2, ROWS[1])]


@pytest.mark.parametrize("name", ["a.ndjson", "a.json", "a.JSONL", "a.csv", "a.jsonl.gz", "a.parquet"])
def test_where_documents_are_asked_for_rows_are_rows_and_no_prose(tmp_path: Path, name: str) -> None:
    texts = [{"text": "one"}, {"text": "two words"}]
    file = tmp_path / name
    if name.endswith("csv"):
        file.write_text("text\none\ntwo words\n")
    elif name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(texts), file)
    else:
        lines = "".join(json.dumps(row) + "\n" for row in texts).encode()
        file.write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
    assert [row.value if isinstance(row, Row) else row.problem for row in read_rows(file, prose=True)] == texts
    (own,) = sources_of(CPTConfig(steps=1, data=str(file)).supervised_rows, seed=0)
    assert [found.text for found in own.found() if isinstance(found, Document)] == ["one", "two words"], "which is what `cpt.data` trains"
    assert list(TextSource(files=(file,)).texts(0)) == ["one", "two words"], "and what `models new --text` reads"


def test_a_list_is_rows_however_it_is_laid_out(tmp_path: Path) -> None:
    assert read(tmp_path, "a.json", json.dumps(ROWS)) == [(1, ROWS[0]), (1, ROWS[1])]
    assert read(tmp_path, "a.jsonl", BOM + json.dumps(ROWS, indent=2).encode()) == [(2, ROWS[0]), (6, ROWS[1])]
    pretty = "\n".join(json.dumps(row, indent=1) for row in ROWS)
    assert read(tmp_path, "a.json", pretty) == [(1, ROWS[0]), (5, ROWS[1])]
    assert read(tmp_path, "a.json", "[]") == []


def test_joined_files_have_a_mark_in_the_middle(tmp_path: Path) -> None:
    assert [value["n"] for _, value in read(tmp_path, "a.jsonl", (BOM + LINES.encode()) * 2)] == [1, 2, 1, 2]


def test_a_table_has_a_header_and_cells_that_may_span_lines(tmp_path: Path) -> None:
    table = 'id,messages,note\n1,"[{""role"": ""user"", ""content"": ""2 + 2?""}]",\n\n2,plain,"two\nlines"\n3,short\n[x,"{y",z\n'
    assert read(tmp_path, "a.csv", BOM + table.encode()) == [
        (2, {"id": "1", "messages": [{"role": "user", "content": "2 + 2?"}]}),
        (4, {"id": "2", "messages": "plain", "note": "two\nlines"}),
        (6, "has 2 cells, but the header names 3 columns"),
        (7, {"id": "[x", "messages": "{y", "note": "z"}),
    ]
    assert read(tmp_path, "a.csv", 'a\n"open\n') == [(2, f"not CSV: unexpected end of data{ENDS}")]
    with pytest.raises(ValueError, match=r"a\.csv:1: a \.csv begins with the names of its columns, each of them once, not \['a', 'a'\]"):
        read(tmp_path, "a.csv", "a,a\n1,2\n")


def test_a_parquet_file_is_rows_and_its_nulls_are_keys_left_out(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "name": "n"}]
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": messages, "id": 7}, {"messages": messages}]), file)
    first, second = read_rows(file)
    assert (first, second) == (Row(f"{file}:1", 1, {"messages": messages, "id": 7}), Row(f"{file}:2", 2, {"messages": messages}))
    assert isinstance(first, Row) and message_from_dict(first.value["messages"][1]).name == "n"
    with pytest.raises(ValueError, match=r"cut\.parquet: the file cannot be read after row 0"):
        read(tmp_path, "cut.parquet", file.read_bytes()[:-30])


def text_of(data: bytes) -> Any:
    """A column of text that holds whatever bytes, as a file by another program may."""
    offsets = (0).to_bytes(4, "little") + len(data).to_bytes(4, "little")
    return pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(data)])


@pytest.mark.parametrize(
    "cell",
    [
        text_of(b"\xff"),
        pyarrow.array([2**30], pyarrow.date32()),
        pyarrow.array([2**62], pyarrow.duration("s")),
        pyarrow.array([1], pyarrow.timestamp("us", tz="Nowhere/Land")),
    ],
    ids=["bytes that are no text", "a date past the year 9999", "a long duration", "an unknown time zone"],
)
def test_a_cell_of_a_parquet_file_that_python_cannot_hold_is_a_bad_row(tmp_path: Path, cell: Any) -> None:
    file = tmp_path / "a.parquet"
    fine = pyarrow.nulls(1, cell.type)
    cells = pyarrow.chunked_array([fine, cell, fine]).combine_chunks()
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2, 3], "cell": cells}), file)
    first, second, third = read_rows(file)
    assert (first, third) == (Row(f"{file}:1", 1, {"n": 1}), Row(f"{file}:3", 3, {"n": 3}))
    assert isinstance(second, BadRow) and second.where == f"{file}:2" and second.problem.startswith("a value cannot be read: ")


def test_a_parquet_file_of_many_row_groups_is_read_whole(tmp_path: Path) -> None:
    """As a large one is written: chats are lists, whose texts each group stores in a dictionary of its own."""
    rows = [{"messages": [{"role": "user", "content": f"{i} + 1?"}, {"role": "assistant", "content": str(i + 1)}]} for i in range(90)]
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=40)
    assert pyarrow.parquet.read_metadata(file).num_row_groups == 3
    assert [row.value for row in read_rows(file) if isinstance(row, Row)] == rows


def test_a_parquet_file_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"]), file)
    with pytest.raises(ValueError, match=r"a\.parquet: a column's name stands there twice: a, a"):
        list(read_rows(file))


def test_a_small_file_that_unpacks_to_far_more_than_text_does_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.envs.row_files.FREE_BYTES", 1 << 16)
    bomb = gzip.compress((LINES + "\n" * 2**22).encode(), mtime=0)
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz:\d+: the compressed file unpacks to more than 250 times its size"):
        read(tmp_path, "a.jsonl.gz", bomb)
    assert len(read(tmp_path, "b.jsonl.gz", gzip.compress(LINES.encode() * 1000, mtime=0))) == 2000


def test_plain_text_is_paragraphs_where_documents_are_asked_for(tmp_path: Path) -> None:
    text = BOM + b"one\r\nline two\r\n\r\n  \r\nthree\r\n"
    assert read(tmp_path, "a.txt", text, prose=True) == [(1, {"text": "one\nline two"}), (5, {"text": "three"})]
    assert read(tmp_path, "a.md", "", prose=True) == []
    with pytest.raises(ValueError, match=r"a\.txt: rows are asked for, not plain text; they come from \.jsonl"):
        read(tmp_path, "a.txt", text)
    with pytest.raises(ValueError, match=r"a\.txt: begins with a JSON object; call it \.jsonl"):
        read(tmp_path, "a.txt", LINES, prose=True)


@pytest.mark.parametrize("name", ["a.docx", "a", "a.txt.zip", "a.pdf", "a.csv.bz2.zip"])
def test_an_unknown_suffix_is_refused_by_name(name: str) -> None:
    assert "is unknown; known are .jsonl, .ndjson, .json, .csv, .parquet, .arrow, .txt, .text, .md" in (
        suffix_problem(name, prose=True) or ""
    )
    assert suffix_problem("data/Train.JSONL.gz") is None


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a"', "not JSON: Expecting ':' delimiter at character 5 of the line"),
        (b'{"a": NaN}', "not JSON: NaN is no JSON number"),
        (b'{"a": 1e999}', "a is inf, not a finite number"),
        (b'{"a": {"b": "\\ud800"}}', "a.b holds a lone surrogate, which is no valid text"),
        (b'{"a": "\xff"}', "not UTF-8 text: byte 8 of the line cannot be read; save the file as UTF-8"),
        (b"[1]", "must be a JSON object, not list"),
        (b"null", "must be a JSON object, not NoneType"),
        (b"[" * 100_000, "not JSON: nested too deeply"),
        (b'{"a":' * 100_000, "not JSON: nested too deeply"),
        (b'{"a":' * 50 + b"1" + b"}" * 50, "a.a.a.a.a"),
        (b"text", "not JSON: Expecting value at character 1 of the line"),
    ],
)
def test_a_bad_line_is_named_and_the_others_are_read(tmp_path: Path, line: bytes, problem: str) -> None:
    rows = read(tmp_path, "a.jsonl", b'{"n": 1}\n\n' + line + b'\n{"n": 2}')
    assert [(number, value) for number, value in rows if number != 3] == [(1, {"n": 1}), (4, {"n": 2})]
    assert rows[1][0] == 3 and rows[1][1].startswith(problem)


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ('[{"a": 1},\n{"a": 2}', 2, "the list does not end; the file is cut short"),
        ('[{"a": 1}\n{"a": 2}]', 2, f"not JSON: expecting ',' or ']', not '{{'{ENDS}"),
        ('[{"a": 1},\n{"a": }]', 2, f"not JSON: Expecting value{ENDS}"),
        ('[{"a": 1}]\n{"a": 2}', 2, f"more follows after the end of the list; write one object per line{ENDS}"),
        ("[" * 100_000, 1, f"not JSON: nested too deeply{ENDS}"),
    ],
)
def test_a_list_that_goes_wrong_ends_there(tmp_path: Path, content: str, line: int, problem: str) -> None:
    assert read(tmp_path, "a.json", content)[-1] == (line, problem)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", LINES.encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("a.jsonl", LINES.encode("utf-16-le"), "a.jsonl:1: holds a NUL byte"),
        ("a.csv", b"a\n\xff\n", "a.csv:2: not UTF-8 text: byte 1 of the line"),
        ("a.jsonl.gz", gzip.compress(LINES.encode() * 99, mtime=0)[:-9], "the compressed file is damaged or cut short"),
        ("a.jsonl.gz", gzip.compress(b"x", mtime=0)[:4] + b"\xff" * 40, "the compressed file is damaged or cut short"),
        ("a.csv", b'"a"b,c\n1,2\n', "a.csv:1: the names of the columns are not CSV: ',' expected after"),
        ("a.csv", b'"a\n', "a.csv:1: the names of the columns are not CSV: unexpected end of data"),
        ("a.csv", b"a\rb\r1\r", "a.csv:1: the names of the columns are not CSV: new-line character seen"),
        ("a.jsonl", b'{"text": "' + b"x" * MAX_LINE_BYTES + b'"}', "a.jsonl:1: the line is longer than 64 MiB"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(tmp_path, name, content)
    assert says in str(caught.value) and str(tmp_path / name) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.jsonl: there is no such file"):
        list(read_rows(tmp_path / "none.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"folder\.jsonl: the folder holds no file of rows"):
        list(read_rows(tmp_path / "folder.jsonl"))


def test_no_more_is_in_memory_than_is_read(tmp_path: Path) -> None:
    """A generator: the first rows of a file come before its broken end is met."""
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode() * 10_000, mtime=0)[:-9])
    rows = read_rows(tmp_path / "a.jsonl.gz")
    assert [next(rows) for _ in range(2)] == [Row(f"{tmp_path}/a.jsonl.gz:{i + 1}", i + 1, ROWS[i]) for i in range(2)]


def test_problems_are_said_up_to_twenty_and_counted() -> None:
    problems = Problems()
    problems.check()
    for i in range(31):
        problems.add(f"a.jsonl:{i}: wrong")
    with pytest.raises(ValueError, match=r"^a\.jsonl:0: wrong\n(.*\n){19}… and 11 more problems$"):
        problems.check()


def test_a_bad_row_is_a_value_of_its_own() -> None:
    assert parse_object('{"a": [1, null]}') == {"a": [1, None]}
    assert BadRow("a:1", 1, "x") != Row("a:1", 1, {})


@contextmanager
def at_most(mebibytes: int) -> Iterator[None]:
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < mebibytes << 20


def test_a_paragraph_ends_where_a_line_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 KB of .txt.xz hold a paragraph of 36 MB in lines of two letters, which took 867 MB."""
    file = tmp_path / "a.txt.xz"
    file.write_bytes(lzma.compress(b"ab\n" * 1_000_000, preset=1))
    with at_most(40):
        (row,) = read_rows(file, prose=True)
    assert isinstance(row, Row) and len(row.value["text"]) == 2_999_999
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 1 << 20)
    with pytest.raises(ValueError, match=r"a\.txt\.xz:1: the paragraph is longer than 1 Mi characters; put empty lines between documents"):
        list(read_rows(file, prose=True))
    assert read(tmp_path, "b.txt", "\n" * 9 + "a\n\n" * 600_000, prose=True)[-1] == (1_200_008, {"text": "a"}), "many short ones are read"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"a":1}\n{"a":[' + "{}," * MAX_VALUES + "0]}\n"),
        ("a.json", '[{"a":1},\n{"a":[' + "{}," * MAX_VALUES + "0]}]"),
        ("a.json", '[{"a":1}, {"a":[' + "{}," * MAX_VALUES + "0]}]"),
        ("a.csv", 'a\n1\n"[' + "{}," * MAX_VALUES + '0]"\n'),
    ],
)
def test_a_row_of_more_values_than_anybody_writes_is_refused_before_any_is_made(tmp_path: Path, name: str, content: str) -> None:
    """5.7 MB of `{},` took 297 MB, and a line may have 64 MiB."""
    with at_most(16):
        (_, first), (_, problem) = read(tmp_path, name, content)
    assert first["a"] in (1, "1") and problem.startswith("holds more than 500000 JSON values; write them as several rows")


def test_a_list_of_many_rows_in_one_line_is_read(tmp_path: Path) -> None:
    assert len(read(tmp_path, "a.json", "[" + '{"a": 1},' * MAX_VALUES + "{}]")) == MAX_VALUES + 1
