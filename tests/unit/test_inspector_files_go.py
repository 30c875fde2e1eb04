"""Files of a store that go while somebody reads or indexes them, since a run keeps so many: they are passed over, and nothing fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_inspector_index import put, step
from tests.unit.test_inspector_pages import root as root

from burnish.inspector import index, library
from burnish.inspector.database import Database
from burnish.inspector.index import build_segment, coverage
from burnish.inspector.library import Library
from burnish.inspector.listing import Wanted
from burnish.inspector.pages import indexing
from burnish.inspector.pages.indexing import Indexer
from burnish.inspector.runs import read_run_transcripts
from burnish.inspector.stored import Which, stored_episodes
from burnish.rollout.store import own_files, reading
from burnish.rollout.store.moments import moments

pytestmark = pytest.mark.unit


@pytest.fixture
def db() -> Iterator[Database]:
    made = Database()
    yield made
    made.close()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "episodes"
    for number in (1, 2, 3):
        put(folder, number)
    (tmp_path / "run" / "config.json").write_text("{}")
    return folder


def goes_before(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, file: Path) -> None:
    """Let a file go right before something is called for the first time."""
    real: Callable[..., Any] = getattr(where, name)

    def called(*args: Any, **named: Any) -> Any:
        if file.exists():
            file.unlink()
            os.utime(file.parent, ns=(1, 1 + file.parent.stat().st_mtime_ns))  # as a clock that is fine enough would say
        return real(*args, **named)

    monkeypatch.setattr(where, name, called)


@pytest.mark.parametrize("name", ["check_store", "named"])
@pytest.mark.parametrize("indexed", [False, True])
def test_a_question_is_asked_anew_of_what_is_there(
    store: Path, db: Database, monkeypatch: pytest.MonkeyPatch, name: str, indexed: bool
) -> None:
    if indexed:
        assert build_segment(store, db)
        put(store, 4)
    gone, rest = store / step(4 if indexed else 1).file, {1, 2, 3} if indexed else {2, 3}
    goes_before(monkeypatch, library, name, gone)
    assert {row["step"] for row in Library(store, db).listed(Wanted())} == rest
    assert Library(store, db).choices()["step"] == sorted(rest) and not gone.exists()


@pytest.mark.parametrize("name", ["check_store", "named"])
def test_an_episode_that_goes_is_none(store: Path, db: Database, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    goes_before(monkeypatch, library, name, store / step(1).file)
    assert Library(store, db).one("rft", 1, "train", "sampled", "train-1/0") is None
    assert Library(store, db).group("rft", 1, "train", "sampled", "train-1") == []


def test_what_is_wrong_with_a_file_that_stays_is_still_said(store: Path, db: Database) -> None:
    (store / step(2).file).write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"rft\.000002\.train\.sampled\.parquet: cannot be read as stored episodes"):
        Library(store, db).listed(Wanted())


def test_the_index_counts_no_episode_of_a_file_that_is_gone_and_lasts_until_half_is(
    store: Path, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "FULL", 6)
    for number in range(4, 7):
        put(store, number)
    while build_segment(store, db):
        pass
    made = {one.folder for one in coverage(store).segments}
    assert len(made) == 2
    for number, left in ((1, 5), (2, 4), (5, 3), (3, 2)):
        (store / step(number).file).unlink()
        asked, fresh = Library(store, db), Library(store, db)
        for wanted in (Wanted(), Wanted(text="plain"), Wanted({"split": "train"}, text="plain"), Wanted({"split": "train"})):
            assert asked.count(wanted) == len(asked.listed(wanted)) == 2 * left, (number, wanted)
        assert [row[0] for row in asked.rewards("rft")] == fresh.choices()["step"]
        assert ({one.folder for one in coverage(store).segments} == made) == (number == 1), "more than half of the first is gone"
    while build_segment(store, db):
        pass
    assert {file for one in coverage(store).segments for file in one.files} == {step(4).file, step(6).file}
    assert Library(store, db).count(Wanted(text="plain")) == 4


def test_files_that_went_here_and_there_are_so_many_ranges(store: Path, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4, 9):
        put(store, number)
    assert build_segment(store, db)
    for number in (2, 3, 5):
        (store / step(number).file).unlink()
    (segment,) = coverage(store).segments
    first = segment.number * index.ROOM
    assert segment.gone == ((first + 2, first + 5), (first + 8, first + 9)) and Library(store, db).count(Wanted(text="plain")) == 10
    monkeypatch.setattr(index, "RANGES", 1)
    assert index._coverage(store).segments == ()


@pytest.mark.parametrize("name", ["pq.read_metadata", "_write", "said_bytes"])
def test_a_file_that_goes_while_the_index_is_made_is_in_none_of_it(
    store: Path, db: Database, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    where, _, last = name.rpartition(".")
    goes_before(monkeypatch, getattr(index, where) if where else index, last, store / step(1).file)
    while build_segment(store, db):
        pass
    assert [one.files for one in coverage(store).segments] == [(step(2).file, step(3).file)]


def test_a_look_at_a_store_of_which_a_file_goes_says_how_much_is_indexed(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "WORTH", 1)
    monkeypatch.setattr(indexing, "start", lambda *_: None)
    goes_before(monkeypatch, index, "_stamp", store / step(1).file)
    assert Indexer(Database()).look(store).note.endswith("lists are of 0% of its episodes.")


@pytest.mark.parametrize("name", ["pq.read_schema", "pq.read_metadata", "column_chunks", "pq.ParquetFile"])
def test_transcripts_and_stored_episodes_pass_over_it(store: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    where, _, last = name.rpartition(".")
    place = getattr(reading, where) if where else reading
    with monkeypatch.context() as patched:
        goes_before(patched, place, last, store / step(1).file)
        assert [one.step for one in read_run_transcripts(store.parent)][-4:] == [2, 2, 3, 3]
    with monkeypatch.context() as patched:
        goes_before(patched, place, last, store / step(2).file)
        assert [one.moment.step for one in stored_episodes(store, Which())][-2:] == [3, 3]
    (store / step(3).file).write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"rft\.000003\.train\.sampled\.parquet: cannot be read"):
        list(stored_episodes(store, Which()))


def test_a_file_that_goes_is_no_pipe(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, real = store / step(1).file, Path.exists

    def there(self: Path, **named: Any) -> bool:
        found = real(self, **named)
        if self == gone:
            gone.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Path, "exists", there)
    own_files.check_own(store.parent, gone)
    assert [moment.step for _, moment in moments(store)][-2:] == [2, 3]
