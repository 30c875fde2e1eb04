"""The index over stored episodes: it answers as the store does, follows what changes there, and the database keeps to its limits."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient
from tests.unit.test_inspector_pages import root as root
from tests.unit.test_rollout_episodes import episode, stored

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Message, Reward, ToolCall
from burnish.inspector import index
from burnish.inspector.database import Database, DatabaseLimits
from burnish.inspector.index import FOLDER, KINDS, LONGEST_WORD, VERSION, build_segment, coverage
from burnish.inspector.library import Library
from burnish.inspector.listing import EXACT, ORDERS, PLACE, RANGES, Order, Wanted
from burnish.inspector.pages import indexing
from burnish.inspector.pages.app import pages
from burnish.inspector.pages.indexing import Indexer
from burnish.inspector.postings import PART
from burnish.rollout.store.moments import Moment

pytestmark = pytest.mark.unit

TEXTS = ["", "plain", "PLA", "of one", "a\nb", "nb", "12.5", "漢字", "measure bore", "role", "call_0", "user", "né", "ud83d", "quo", "<b>"]
"""What is searched for: words, parts of words, escapes, and words of the form that messages are stored in."""
BOUNDS: list[tuple[float | None, float | None]] = [(None, 1), (-1.5, None), (0, 0.5), (2, 3)]
NO_KINDS = json.dumps({name: [] for name in KINDS})
WEIGHTS: tuple[Order, ...] = ("oldest weights", "newest weights")


@pytest.fixture
def db() -> Iterator[Database]:
    made = Database()
    yield made
    made.close()


def step(number: int) -> Moment:
    return Moment("rft", number, "train", "sampled")


def put(store: Path, number: int, *said: str, each: int = 2) -> None:
    episodes = [episode(number, sample, Reward(0.1 * sample + number), text) for sample, text in enumerate(said or ["plain"] * each)]
    stored(store, *episodes, moment=step(number))


def varied(store: Path) -> None:
    """Steps whose episodes differ in all that lists are narrowed and sorted by."""
    call = ToolCall("call_0", "Measure", {"feature": "bore"})
    put(store, 1, "half \ud83d of one", 'a "quoted\\n" a\nb', "naïve né 漢字漢", "12.50 <b>bold</b>")
    odd = replace(
        episode(9, 0, Reward(0.5), "so"), messages=(Message("assistant", "so", (call,)),), truncation="max_tokens", engine="rollout-2"
    )
    asked = Message("tool", 'a "b"', tool_call_id="call_0", name="Measure"), Message("tool", "12", name='in "text"')
    odd = replace(odd, messages=(*odd.messages, *asked))
    stored(store, odd, episode(9, 1, Failure(FailureKind.TOOL_ERROR, "gauge", "unplugged")), moment=step(2))
    judged = Reward(-1.0, {"verdict": 0.5, "it's": -2.0})
    stored(store, episode(3, 0, Reward(1e200)), episode(3, 1, judged), moment=Moment("rft", 2, "heldout", "greedy"))


@pytest.mark.parametrize("indexed", [False, True])
def test_lists_are_narrowed_to_ranges_a_tool_and_a_part(tmp_path: Path, db: Database, indexed: bool) -> None:
    varied(tmp_path)
    if indexed:
        assert build_segment(tmp_path, db)
    library = Library(tmp_path, db)
    versions: dict[tuple[float | None, float | None], int] = {
        (8, None): 8,
        (None, 7): 8,
        (9, None): 0,
        (None, 6): 0,
        (7, 7): 8,
    }  # each was sampled from weights 7 and 8
    assert {bounds: library.count(Wanted(between={"version": bounds})) for bounds in versions} == versions
    assert [row["episode"] for row in library.listed(Wanted(between={"reward": (1.1, 1.25)}, order="best"))] == ["train-1/2", "train-1/1"]
    called = {"Measure": ["train-9/0"], 'in "text"': ["train-9/0"], "measure": [], "text": [], "call_0": []}
    assert {tool: [row["episode"] for row in library.listed(Wanted(tool=tool))] for tool in called} == called
    (judged,) = library.listed(Wanted(part="it's", order="part lowest"))
    assert (judged["episode"], judged["part"]) == ("train-3/1", -2.0)
    assert (library.choices()["part"], library.choices()["culprit"]) == (["it's", "verdict"], ["gauge"])


@pytest.mark.parametrize("indexed", [False, True])
def test_an_episode_in_which_nothing_was_sampled_is_of_no_weights_and_comes_last(tmp_path: Path, db: Database, indexed: bool) -> None:
    stored(tmp_path, episode(1, 0, Failure(FailureKind.ENV_ERROR, "env", "no"), pieces=0), episode(1, 1, Reward(0.0)), moment=step(1))
    assert not indexed or build_segment(tmp_path, db)
    found = [[(row["episode"], row["oldest_version"]) for row in Library(tmp_path, db).listed(Wanted(order=order))] for order in WEIGHTS]
    assert found == [[("train-1/1", 7), ("train-1/0", -1)]] * 2


def answers(library: Library) -> Any:
    asked = [Wanted(order=order, part="verdict" if order.startswith("part") else "") for order in ORDERS]
    asked += [Wanted(between={name: bounds}, part="it's") for name in RANGES for bounds in BOUNDS]
    asked += [Wanted(tool=tool) for tool in ("Measure", "measure", "bore", 'in "text"')] + [
        Wanted(part="verdict", tool="Measure", text="so")
    ]
    asked += [
        Wanted({name: value}) for name in EXACT for value in ("rft", "train", "greedy", "train-9", "tool_error", "max_tokens", "rollout-2")
    ]
    asked += [Wanted(text=text) for text in TEXTS] + [Wanted(failed=True), Wanted(failed=False), Wanted(step=2), Wanted(first=1, most=2)]
    found = {repr(one): (library.count(one), library.listed(one)) for one in asked}
    return found, library.choices(), library.rewards("rft")


def test_what_the_index_answers_is_what_the_store_answers(tmp_path: Path, db: Database) -> None:
    varied(tmp_path)
    library = Library(tmp_path, db)
    without = answers(library)
    assert build_segment(tmp_path, db) and not build_segment(tmp_path, db)
    assert not coverage(tmp_path).rest
    assert answers(library) == without
    put(tmp_path, 3)
    assert [file.name for file in coverage(tmp_path).rest] == [step(3).file]
    partly = answers(library)
    shutil.rmtree(tmp_path / FOLDER)
    assert answers(library) == partly


@pytest.mark.parametrize("indexed", [False, True])
def test_every_episode_is_on_one_page_of_a_list(tmp_path: Path, db: Database, indexed: bool) -> None:
    places = [Moment(phase, 40, "heldout", mode) for phase in ("sft", "rft") for mode in ("sampled", "greedy")]
    for moment in places:
        stored(tmp_path, *(episode(number, 0, Reward(0.5, {"it": 0.5})) for number in range(12)), moment=moment)
    assert not indexed or build_segment(tmp_path, db)
    for order in ORDERS:
        parts = [Library(tmp_path, db).listed(Wanted(part="it", order=order, first=first, most=5)) for first in range(0, 48, 5)]
        found = [tuple(row[name] for name in PLACE) for part in parts for row in part]
        assert len(found) == len(set(found)) == 48, order
        columns = [name for term in ORDERS[order].split(", ") for name in PLACE if name in term.split()]
        assert set(columns) == set(PLACE), order


@pytest.mark.parametrize("indexed", [False, True])
def test_failures_of_a_kind_or_a_culprit_stand_together_and_the_shortest_first(tmp_path: Path, db: Database, indexed: bool) -> None:
    failed = [(FailureKind.TOOL_ERROR, "gauge"), (FailureKind.ENV_ERROR, "lathe"), (FailureKind.TOOL_ERROR, "drill")]
    stored(
        tmp_path,
        episode(1, 0, Reward(0.5), pieces=3),
        *(episode(2, i, Failure(kind, culprit, "broke"), pieces=2 - i % 2) for i, (kind, culprit) in enumerate(failed)),
        moment=step(1),
    )
    assert not indexed or build_segment(tmp_path, db)

    def order(name: Order) -> list[str]:
        return [row["episode"] for row in Library(tmp_path, db).listed(Wanted(order=name))]

    assert order("by failure") == ["train-2/1", "train-2/0", "train-2/2", "train-1/0"]
    assert order("by culprit") == ["train-2/2", "train-2/0", "train-2/1", "train-1/0"]
    assert order("shortest") == ["train-2/1", "train-2/0", "train-2/2", "train-1/0"]


@pytest.mark.parametrize("indexed", [False, True])
def test_the_latest_are_of_the_last_phase_though_an_earlier_one_took_more_steps(tmp_path: Path, db: Database, indexed: bool) -> None:
    store = tmp_path / "episodes"
    ran = [("cpt", 500), ("sft", 120), ("rft", 40)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"phase": phase, "step": step, "time": 1.0}) + "\n" for phase, step in ran))
    for phase, number in [("base", 0), *ran, ("rft", 41)]:
        stored(store, episode(1, 0, Reward(0.5, {"it": 0.5})), moment=Moment(phase, number, "heldout", "sampled"))
    stored(store, episode(1, 0, Reward(0.5, {"it": 0.5})), moment=Moment("rft", 41, "train", "sampled"))
    assert not indexed or build_segment(store, db)
    for order in ORDERS:
        found = [(row["phase"], row["step"], row["split"]) for row in Library(store, db).listed(Wanted(part="it", order=order))]
        found = [found[4], found[5], *found[3::-1]] if order == "earliest" else found
        assert found == [
            ("rft", 41, "heldout"), ("rft", 41, "train"), ("rft", 40, "heldout"), ("sft", 120, "heldout"), ("cpt", 500, "heldout"),
            ("base", 0, "heldout"),
        ]  # fmt: skip
    stored(store, episode(1, 0, Reward(0.5)), moment=Moment("again", 1, "train", "sampled"))  # it has taken no step yet
    assert Library(store, db).listed(Wanted())[0]["phase"] == "again"


@pytest.mark.parametrize("indexed", [False, True])
def test_every_word_of_a_text_must_be_part_of_a_word_that_was_said(tmp_path: Path, db: Database, indexed: bool) -> None:
    varied(tmp_path)
    if indexed:
        assert build_segment(tmp_path, db)
    library = Library(tmp_path, db)
    expected = {
        "one half": ["train-1/0"], "ONE": ["train-1/0"], "nb": [], "quo a": ["train-1/1"], "quo n": ["train-1/1"], "AÏV": ["train-1/2"],
        "né": ["train-1/2"], "字": ["train-1/2"],
        "12 50": ["train-1/3"], "<b>bold</b>": ["train-1/3"], "feat bore": ["train-9/0"], "or": [], "ud83d": [], "...": [], "content": [],
    }  # fmt: skip
    for text, found in expected.items():
        assert [row["episode"] for row in library.listed(Wanted(text=text))] == found, text
    with pytest.raises(ValueError, match="a list goes down to its episode 10,000; narrow it"):
        library.listed(Wanted(first=10_000, most=1))
    with pytest.raises(ValueError, match="16 words can be searched for at once, not 17"):
        library.count(Wanted(text=" ".join(f"word{i}" for i in range(17))))


def test_words_are_kept_up_to_a_length(tmp_path: Path, db: Database) -> None:
    put(tmp_path, 1, "x" * (LONGEST_WORD - 1) + "yz")
    library = Library(tmp_path, db)
    assert library.count(Wanted(text="xyz")) == 1
    assert build_segment(tmp_path, db)
    assert (library.count(Wanted(text="xxy")), library.count(Wanted(text="xyz"))) == (1, 0)


def test_segments_fill_up_and_then_stay(tmp_path: Path, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "FULL", 6)
    for number in (1, 2):
        put(tmp_path, number)
        assert build_segment(tmp_path, db)
    assert [segment.files for segment in coverage(tmp_path).segments] == [(step(1).file, step(2).file)]  # the first was made again
    for number in (3, 4):
        put(tmp_path, number)
    while build_segment(tmp_path, db):
        pass
    full, small = sorted(coverage(tmp_path).segments, key=lambda one: one.files)
    assert (full.episodes, full.files, small.files) == (6, tuple(step(i).file for i in (1, 2, 3)), (step(4).file,))
    assert len(list((tmp_path / FOLDER).iterdir())) == 2
    assert [row["episode"] for row in Library(tmp_path, db).listed(Wanted(order="worst", most=3))] == [
        "train-1/0",
        "train-1/1",
        "train-2/0",
    ]


def test_words_are_counted_in_parts_where_conversations_are_long(tmp_path: Path, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "WORDS_AT_ONCE", 1)
    put(tmp_path, 1, "one shared", "two shared", "three shared")
    assert build_segment(tmp_path, db)
    (segment,) = coverage(tmp_path).segments
    assert len(segment.words) == 3
    assert [Library(tmp_path, db).count(Wanted(text=word)) for word in ("shared", "two", "four")] == [3, 1, 0]


def test_words_of_few_and_of_many_episodes_are_found_in_all_segments(tmp_path: Path, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "FULL", 40)
    for number in (1, 2, 3):
        put(tmp_path, number, *(f"shared {'rare' if i in (3, 39) else ''} {'odd' if i % 2 else 'even'}{number}" for i in range(40)))
        assert build_segment(tmp_path, db)
    library = Library(tmp_path, db)
    assert len(coverage(tmp_path).segments) == 3
    counted = {"shared": 120, "rare": 6, "odd": 60, "even2": 20, "rare even": 0, "rare odd3": 2, "e": 0, "ed": 0, "are": 120, "d2": 0}
    assert {text: library.count(Wanted(text=text)) for text in counted} == counted
    assert {text: len(library.listed(Wanted(text=text, most=200))) for text in counted} == counted
    assert library.count(Wanted(text="odd", step=2)) == 20
    assert [row["episode"] for row in library.listed(Wanted(text="rare", step=2, order="best"))] == ["train-2/39", "train-2/3"]


@pytest.mark.parametrize("there", [b"", b"\xff" * 7])
def test_an_index_whose_postings_do_not_fit_its_words_is_refused_by_its_place(tmp_path: Path, db: Database, there: bytes) -> None:
    put(tmp_path, 1, *(["plain"] + ["other"] * 39))
    assert build_segment(tmp_path, db)
    (tmp_path / FOLDER / "000001" / "words-0.postings").write_bytes(there)
    with pytest.raises(
        ValueError, match=r"the index in .*000001 cannot be read: words-0.postings does not hold what its words say; delete"
    ):
        Library(tmp_path, db).count(Wanted(text="plain"))


def test_a_step_that_is_taken_again_is_read_from_the_store_until_it_is_indexed_again(tmp_path: Path, db: Database) -> None:
    put(tmp_path, 1, "before")
    put(tmp_path, 2, "before")
    assert build_segment(tmp_path, db)
    put(tmp_path, 2, "after the resume")
    library = Library(tmp_path, db)
    counted = {"before": 1, "resume": 1}
    assert {word: library.count(Wanted(text=word)) for word in counted} == counted
    assert build_segment(tmp_path, db)
    assert {word: library.count(Wanted(text=word)) for word in counted} == counted
    (tmp_path / step(1).file).unlink()
    assert library.count(Wanted()) == 1


def test_pandas_reads_a_store_with_an_index_as_it_did(tmp_path: Path, db: Database) -> None:
    put(tmp_path, 1)
    assert build_segment(tmp_path, db)
    assert len(pd.read_parquet(tmp_path)) == 2


def test_an_index_is_neither_read_nor_written_through_a_link(tmp_path: Path, db: Database) -> None:
    store, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    put(store, 1)
    elsewhere.mkdir()
    (store / FOLDER).symlink_to(elsewhere)
    with pytest.raises(ValueError, match="is a link; an index is written into the store itself"):
        build_segment(store, db)
    assert not list(elsewhere.iterdir())
    (store / FOLDER).unlink()
    assert build_segment(store, db)
    shutil.move(store / FOLDER / "000001" / "rows.parquet", elsewhere)
    (store / FOLDER / "000001" / "rows.parquet").symlink_to(elsewhere / "rows.parquet")
    index._read_segment.cache_clear()
    assert coverage(store).segments == ()


def test_an_index_of_nonsense_is_made_again(tmp_path: Path, db: Database) -> None:
    put(tmp_path, 1)
    for content in (
        "{",
        "[]",
        '{"version": 1}',
        f'{{"version": 0, "files": {{}}, "episodes": 1, "kinds": {NO_KINDS}, "words": []}}',
        f'{{"version": {VERSION}, "files": {{}}, "episodes": 1, "kinds": {NO_KINDS}, "words": []}}',
        f'{{"version": {VERSION}, "files": {{}}, "episodes": 0, "kinds": {NO_KINDS}, "words": [0]}}',
        f'{{"version": {VERSION}, "files": {{}}, "episodes": 70000, "kinds": {NO_KINDS}, "words": [70000]}}',
        f'{{"version": {VERSION}, "files": {{}}, "episodes": 1, "kinds": {NO_KINDS}, "words": [1]}}',
        f'{{"version": {VERSION}, "files": {{}}, "episodes": 1e999, "kinds": {NO_KINDS}, "words": [1]}}',
        f'{{"version": {VERSION}, "files": {{}}, "episodes": 1, "kinds": {NO_KINDS}, "words": [1e999]}}',
        f'{{"version": {VERSION}, "files": {{}}, "episodes": 1, "kinds": {NO_KINDS}, "words": ["1"]}}',
        f'{{"version": {VERSION}, "files": {{"a": [1e999, 1]}}, "episodes": 0, "kinds": {NO_KINDS}, "words": []}}',
    ):
        folder = tmp_path / FOLDER / "000007"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "segment.json").write_text(content)
        assert coverage(tmp_path).segments == ()
        assert build_segment(tmp_path, db)
        assert not folder.exists() and Library(tmp_path, db).count(Wanted(text="plain")) == 2
        shutil.rmtree(tmp_path / FOLDER)


@pytest.mark.parametrize("indexed", [False, True])
def test_the_reward_of_a_step_is_of_the_own_environment(tmp_path: Path, db: Database, indexed: bool) -> None:
    own = [episode(number, 0, Reward(0.2)) for number in range(9)]
    sums = [episode(number, 0, Reward(1.0)) for number in range(9, 12)]
    stored(tmp_path, *own, *(replace(one, task=replace(one.task, environment="sums")) for one in sums), moment=step(1))
    if indexed:
        assert build_segment(tmp_path, db)
    ((at, mean, low, high),) = Library(tmp_path, db).rewards("rft")
    assert at == 1 and (mean, low, high) == pytest.approx((0.2, 0.2, 0.2))
    assert {row["environment"] for row in Library(tmp_path, db).listed(Wanted())} == {"", "sums"}


def test_a_segment_holds_no_more_episodes_than_it_has_room_for(tmp_path: Path, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, 1)
    assert build_segment(tmp_path, db)
    folder = tmp_path / FOLDER / "000001"
    record = json.loads((folder / "segment.json").read_text())
    (folder / "segment.json").write_text(json.dumps({**record, "words": [PART] * 200_000, "episodes": PART * 200_000}))
    index._read_segment.cache_clear()
    monkeypatch.setattr(index, "own_file", lambda folder, name: folder if name == "segment.json" else pytest.fail("a file for each part"))
    assert coverage(tmp_path).segments == ()


def forge(folder: Path, what: str) -> None:
    record = json.loads((folder / "segment.json").read_text())
    if what == "files":
        record["files"] = {}
    elif what == "episodes":
        record |= {"episodes": PART, "words": [PART]}
    elif what == "rows":
        rows = pq.read_table(folder / "rows.parquet")
        pq.write_table(pa.concat_tables([rows] * 3), folder / "rows.parquet")
    elif what == "kind":
        rows = pq.read_table(folder / "rows.parquet")
        text = pa.array(["high"] * rows.num_rows)
        pq.write_table(rows.set_column(rows.schema.get_field_index("reward"), "reward", text), folder / "rows.parquet")
    else:  # of kilobytes
        words = pq.read_table(folder / "words-0.parquet").slice(0, 1)
        pq.write_table(words.take([0] * 1_000_000), folder / "words-0.parquet")
    (folder / "segment.json").write_text(json.dumps(record))


@pytest.mark.parametrize("what", ["files", "episodes", "rows", "kind", "words"])
def test_an_index_that_holds_more_than_it_is_of_is_made_again(tmp_path: Path, db: Database, what: str) -> None:
    put(tmp_path, 1)
    assert build_segment(tmp_path, db)
    forge(tmp_path / FOLDER / "000001", what)
    index._read_segment.cache_clear()
    index._rested.cache_clear()
    assert coverage(tmp_path).segments == () and Library(tmp_path, db).count(Wanted(text="plain")) == 2
    assert build_segment(tmp_path, db) and len(coverage(tmp_path).segments) == 1
    assert Library(tmp_path, db).count(Wanted(text="plain")) == 2


def test_an_index_of_an_earlier_version_is_made_again(tmp_path: Path, db: Database) -> None:
    put(tmp_path, 1)
    assert build_segment(tmp_path, db)
    record = tmp_path / FOLDER / "000001" / "segment.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "version": VERSION - 1}))
    index._read_segment.cache_clear()
    index._rested.cache_clear()
    assert coverage(tmp_path).segments == () and Library(tmp_path, db).count(Wanted()) == 2
    assert build_segment(tmp_path, db) and not build_segment(tmp_path, db)
    assert json.loads(record.read_text())["version"] == VERSION


@pytest.mark.parametrize("other", ["indexes too", "takes a step back", "takes all back", "writes a step again"])
def test_an_index_goes_on_where_another_process_was_first_or_took_files_back(
    tmp_path: Path, db: Database, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        put(tmp_path, number)
    asked = Database.table

    def meanwhile(self: Database, question: str, values: Any) -> Any:
        monkeypatch.setattr(Database, "table", asked)
        if other == "indexes too":
            assert build_segment(tmp_path, Database())
        elif other == "writes a step again":
            (tmp_path / step(1).file).unlink()
            put(tmp_path, 1, "another")
        else:
            for number in (1, 2) if other == "takes all back" else (1,):
                (tmp_path / step(number).file).unlink()
        return asked(self, question, values)

    monkeypatch.setattr(Database, "table", meanwhile)
    assert build_segment(tmp_path, db)
    while build_segment(tmp_path, db):
        pass
    left = {"indexes too": 4, "takes a step back": 2, "takes all back": 0, "writes a step again": 3}[other]
    assert not coverage(tmp_path).rest and Library(tmp_path, db).count(Wanted()) == left
    assert not list((tmp_path / FOLDER).glob("partial-*"))


def test_a_part_of_an_index_that_another_process_adds_meanwhile_stays(
    tmp_path: Path, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, 1)
    looked = index.coverage

    def meanwhile(store: Path) -> index.Coverage:
        found = looked(store)
        monkeypatch.setattr(index, "coverage", looked)
        assert build_segment(store, db)
        return found

    monkeypatch.setattr(index, "coverage", meanwhile)
    assert build_segment(tmp_path, db)
    assert [one.name for one in sorted((tmp_path / FOLDER).iterdir())] == ["000001", "000002"]
    assert not build_segment(tmp_path, db)
    assert [one.name for one in sorted((tmp_path / FOLDER).iterdir())] == ["000002"] and Library(tmp_path, db).count(Wanted()) == 2


def test_where_no_index_can_be_written_the_pages_say_so_and_work(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "WORTH", 1)
    run = next(one for one in root.iterdir() if one.name.startswith("nano") and not one.is_symlink())
    (run / "episodes" / FOLDER).write_text("a file is in the way")
    looked = Indexer(Database())
    looked.look(run / "episodes")
    while looked._waiting:
        os.sched_yield()
    assert "no index can be kept in" in looked.look(run / "episodes").note
    (run / "episodes" / FOLDER).unlink()
    assert looked._waiting == [] and looked.look(run / "episodes").note, "it is tried again, but not at once"
    looked._failed = {store: (why, 0.0) for store, (why, _) in looked._failed.items()}  # a minute later
    looked.look(run / "episodes")
    while looked._waiting:
        os.sched_yield()
    assert looked.look(run / "episodes") == indexing.Looked("", None)
    shutil.rmtree(run / "episodes" / FOLDER)
    (run / "episodes" / FOLDER).write_text("a file is in the way")
    with TestClient(pages(root)) as client:
        assert "3 episodes" in client.get(f"/rollouts/{run.name}/episodes").text
        assert "The reward's interval is of the latest steps alone. " in client.get(f"/rollouts/{run.name}").text


def test_a_store_that_somebody_looks_at_is_indexed_in_the_background(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "WORTH", 1)
    run = next(one for one in root.iterdir() if one.name.startswith("nano") and not one.is_symlink())
    with TestClient(pages(root)) as client:
        while "An index of this run is being made" in client.get(f"/rollouts/{run.name}/episodes").text:
            pass
    assert not coverage(run / "episodes").rest


# -------------------------------------------------------------------------------------------------------------------------- the database


def test_a_question_that_takes_too_much_is_refused_in_a_line() -> None:
    db = Database(DatabaseLimits(memory_mb=64))
    with pytest.raises(ValueError, match=r"takes more than 64 MB of memory; narrow it, or allow more \(--memory-mb\)"):
        db.ask("SELECT list(i) AS l FROM range(50000000) t(i)", [])
    assert db.ask("SELECT 1 AS one", []) == [{"one": 1}]


def test_what_does_not_fit_is_spilled_where_it_may_be_and_removed(tmp_path: Path) -> None:
    db = Database(DatabaseLimits(spill=tmp_path))
    (spill,) = tmp_path.iterdir()
    assert db.ask("SELECT current_setting('temp_directory') AS t", [])[0]["t"] == str(spill)
    db.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"--spill: nothing can be written in .*missing: No such file"):
        Database(DatabaseLimits(spill=tmp_path / "missing"))
    with pytest.raises(ValueError, match="64 MB of memory and one thread at least"):
        Database(DatabaseLimits(threads=0))
