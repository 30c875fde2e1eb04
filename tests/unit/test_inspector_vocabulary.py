"""The words of an index's full segments in one file: searches answer as without it, whatever became of the segments or of the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.test_inspector_index import db as db
from tests.unit.test_inspector_index import put

from burnish.inspector import index, library, vocabulary
from burnish.inspector.database import Database
from burnish.inspector.index import FOLDER, build_segment, coverage
from burnish.inspector.library import Library
from burnish.inspector.listing import Wanted
from burnish.inspector.pages import indexing
from burnish.inspector.pages.indexing import Indexer
from burnish.inspector.vocabulary import NAME, build_vocabulary, is_due, word_files

pytestmark = pytest.mark.unit

WORDS = ("bore", "gauge 3", "ore", "4", "plain", "absent")
FOUND = {"bore": ["train-1/0", "train-3/0"], "gauge 3": ["train-3/1"], "ore": ["train-1/0", "train-3/0"], "4": ["train-4/1"]}


@pytest.fixture
def store(tmp_path: Path, db: Database, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two full segments and one that is not, each of two episodes but the last, of one."""
    monkeypatch.setattr(index, "FULL", 2)
    monkeypatch.setattr(vocabulary, "FULL", 2)
    monkeypatch.setattr(vocabulary, "DUE", 2)
    monkeypatch.setattr(vocabulary, "SORTED_AT_ONCE", 3)
    monkeypatch.setattr(indexing, "WORTH", 1)
    put(tmp_path, 1, "the bore", "gauge 1")
    put(tmp_path, 3, "a bore", "gauge 3")
    put(tmp_path, 4, "plain", "gauge 4", each=1)
    while build_segment(tmp_path, db):
        pass
    return tmp_path


def found(store: Path, db: Database) -> dict[str, list[str]]:
    listed = {word: [row["episode"] for row in Library(store, db).listed(Wanted(text=word, order="earliest"))] for word in WORDS}
    return {word: episodes for word, episodes in listed.items() if episodes and word != "plain"}


def searched(store: Path) -> list[str]:
    return [str(Path(file).relative_to(store / FOLDER)) for file in word_files(store, coverage(store).segments)]


def test_words_are_looked_for_in_one_file_and_in_the_segments_that_it_is_not_of(store: Path, db: Database) -> None:
    put(store, 5)
    while build_segment(store, db):
        pass
    assert is_due(store) and found(store, db) == FOUND
    shutil.rmtree(store / FOLDER)
    while build_segment(store, db):
        pass
    (store / "rft.000005.train.sampled.parquet").unlink()
    before = searched(store)
    build_vocabulary(store, db)
    assert not is_due(store) and found(store, db) == FOUND
    assert searched(store)[0] == NAME and len(searched(store)) < len(before)
    words = pq.read_table(store / FOLDER / NAME).column("word").to_pylist()
    assert words == sorted(words) and words.count("bore") == 2
    put(store, 6, "another bore", "so")
    while build_segment(store, db):
        pass
    assert found(store, db)["bore"] == ["train-1/0", "train-3/0", "train-6/0"]


def test_a_segment_that_has_anothers_number_is_searched_by_itself(store: Path, db: Database) -> None:
    build_vocabulary(store, db)
    number = max(segment.number for segment in coverage(store).segments)
    record = store / FOLDER / f"{number:06}" / "segment.json"
    record.write_text(json.dumps(json.loads(record.read_text())))  # of the same content, made at another time
    index._read_segment.cache_clear()
    assert NAME not in searched(store) and found(store, db) == FOUND and is_due(store)
    build_vocabulary(store, db)
    assert searched(store)[0] == NAME and found(store, db) == FOUND


@pytest.mark.parametrize("what", ["nothing", "text", "columns", "note", "link"])
def test_a_vocabulary_that_cannot_be_read_is_made_again(store: Path, db: Database, what: str) -> None:
    build_vocabulary(store, db)
    file = store / FOLDER / NAME
    if what == "link":
        outside = store.parent / f"{store.name}-outside.parquet"
        file.rename(outside)
        file.symlink_to(outside)
    elif what in ("columns", "note"):
        table = pq.read_table(file)
        table = (
            table.drop_columns(["size"]) if what == "columns" else table.replace_schema_metadata({"burnish.segments": '{"1": "x", "x": 1}'})
        )
        pq.write_table(table, file)
    else:
        file.write_bytes(b"" if what == "nothing" else b"words")
    assert NAME not in searched(store) and found(store, db) == FOUND and is_due(store)
    build_vocabulary(store, db)
    assert searched(store)[0] == NAME and found(store, db) == FOUND and not file.is_symlink()


def test_whoever_looks_at_an_indexed_store_has_its_vocabulary_made(store: Path, db: Database) -> None:
    put(store, 6)
    indexer = Indexer(db)
    indexer.look(store)
    while indexer._waiting:
        pass
    assert searched(store)[0] == NAME and indexer.look(store).note == ""


def test_a_vocabulary_that_cannot_be_written_says_so(store: Path, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "ParquetWriter", full)
    with pytest.raises(ValueError, match=r"no index can be kept in .*No space left"):
        build_vocabulary(store, db)
    assert [one.name for one in (store / FOLDER).iterdir() if one.name.startswith("partial-")] == []


def as_a_stranger(store: Path, word: str, rows: int) -> Path:
    """The store, the words of whose first segment are one word over and over, of which its file holds the text once."""
    file = store / FOLDER / "000001" / "words-0.parquet"
    one = pq.read_table(file).slice(0, 1)
    many = one.take([0] * rows).set_column(0, "word", pa.array([word] * rows))
    pq.write_table(many, file, compression="zstd")
    return store


def test_words_longer_than_the_index_keeps_are_left_out_and_never_read_whole(
    store: Path, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_a_stranger(store, "z" * 8000, 5000)
    monkeypatch.setattr(pq, "read_table", lambda *_, **__: pytest.fail("a whole column is in memory"))
    monkeypatch.setattr(vocabulary, "FREE_TEXT", 10_000)
    build_vocabulary(store, db)
    monkeypatch.undo()
    words = pq.read_table(store / FOLDER / NAME).column("word").to_pylist()
    assert "bore" in words and max(map(len, words)) <= index.LONGEST_WORD


def test_words_that_take_more_than_their_files_are_not_sorted(store: Path, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    as_a_stranger(store, "z" * 200, 50_000)
    monkeypatch.setattr(vocabulary, "FREE_TEXT", 1_000_000)
    with pytest.raises(ValueError, match=r"\.index: its words take 100\d{5} bytes, more than 32 times their files; remove it"):
        build_vocabulary(store, db)
    assert [one.name for one in (store / FOLDER).iterdir() if one.name.startswith("partial-")] == []


def test_a_search_holds_so_many_words_at_once(store: Path, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "HITS_AT_ONCE", 2048)
    sizes, marked = list[int](), library._mark_hits

    def counted(marks: Any, batch: Any, *rest: Any) -> None:
        sizes.append(batch.num_rows)
        marked(marks, batch, *rest)

    monkeypatch.setattr(library, "_mark_hits", counted)
    as_a_stranger(store, "bore", 10_000)
    assert "train-3/0" in found(store, db)["bore"] and len(sizes) > 5 and max(sizes) <= 2048
