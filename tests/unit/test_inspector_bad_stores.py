"""Stores that hold anything: each page of the inspector names what cannot be read, and none fails."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient
from tokenizers import Regex, Tokenizer, decoders, models

from burnish.envs.rows import MAX_VALUES
from burnish.inspector.database import Database
from burnish.inspector.index import build_segment
from burnish.inspector.library import MOST_ATTEMPTS, MOST_TOKENS, READ_AT_ONCE, Library
from burnish.inspector.listing import Wanted
from burnish.inspector.pages.app import pages
from burnish.inspector.stored import Which, stored_episodes
from burnish.rollout.store.episodes import SCHEMA
from burnish.rollout.store.moments import Moment

pytestmark = [pytest.mark.unit, pytest.mark.timeout(300)]

FILE = "rft.000001.train.sampled.parquet"
PAGES = ("", "/episodes", "/episodes?text=hi", "/episodes?order=worst", "/episode?EPISODE", "/episode?EPISODE&json=1")
EPISODE = "phase=rft&step=1&split=train&mode=sampled&episode=t/0"


def row(**changes: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "0"}]
    turn = {"tokens": 1, "stop": "stop", "generate_s": 0.1, "env_s": 0.1}
    return {
        "schema": 2, "run": "r", "phase": "rft", "step": 1, "split": "train", "mode": "sampled", "episode": "t/0", "task": "t",
        "environment": "", "prompt": 0, "task_data": "{}", "env_data": "{}", "seed": 1, "sample": 0, "engine": "e", "reward": 1.0,
        "parts": [("env", 1.0)], "labels": [], "metrics": [], "messages": json.dumps(said), "turns": [turn], "env_rewards": [1.0],
        "seconds": 0.1, "oldest_version": 0, "newest_version": 0, "sampled_tokens": 1, "context_tokens": 2, "lengths": [2],
        "token_ids": [1, 2], "mask": [False, True], "version": [-1, 0], "sampler_logprobs": [0.0, -0.1], **changes,
    }  # fmt: skip


def with_row(**changes: Any) -> Callable[[Path], None]:
    return lambda run: pq.write_table(pa.Table.from_pylist([row(**changes)], SCHEMA), run / "episodes" / FILE)


def step_as_text(run: Path) -> None:
    table = pa.Table.from_pylist([row()], SCHEMA)
    pq.write_table(table.set_column(SCHEMA.get_field_index("step"), "step", pa.array(["x"])), run / "episodes" / FILE)


def more_columns(run: Path) -> None:
    table = pa.Table.from_pylist([row()], SCHEMA)
    more = {
        "when": pa.array([0], pa.timestamp("us")),
        "stored_tokens": pa.array(["x"]),
        "id": pa.array([b"x"]),
        "number": pa.array([7]),
        "first": pa.array([[1]]),
    }
    for name, column in more.items():
        table = table.append_column(name, column)
    pq.write_table(table, run / "episodes" / FILE)


def junk_tokenizer(run: Path) -> None:
    with_row()(run)
    (run / "checkpoints" / "rft-1" / "model").mkdir(parents=True)
    (run / "checkpoints" / "rft-1" / "model" / "tokenizer.json").write_text("junk")


def normalizer_that_panics(run: Path) -> None:
    """Which nothing needs that only shows tokens."""
    with_row()(run)
    (run / "checkpoints" / "rft-1" / "model").mkdir(parents=True)
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    normalizer = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    whole = {"version": "1.0", "added_tokens": [], "normalizer": normalizer, "model": model}
    (run / "checkpoints" / "rft-1" / "model" / "tokenizer.json").write_text(json.dumps(whole))


def tokenizer_that_panics_at_a_token(run: Path) -> None:
    with_row()(run)
    tokenizer = Tokenizer(models.WordLevel({"b": 0, "a" * 40 + "!": 1, "c": 2}, unk_token="b"))
    tokenizer.decoder = decoders.Replace(Regex("(a+)+$"), "x")  # its engine gives up, after a while
    (run / "checkpoints" / "rft-1" / "model").mkdir(parents=True)
    tokenizer.save(str(run / "checkpoints" / "rft-1" / "model" / "tokenizer.json"))


def junk_index(run: Path) -> None:
    with_row()(run)
    (run / "episodes" / ".index" / "000001").mkdir(parents=True)
    (run / "episodes" / ".index" / "000001" / "segment.json").write_text("[" * 100_000)
    os.mkfifo(run / "episodes" / ".index" / "000001" / "rows.parquet")


@contextmanager
def shown(make: Callable[[Path], Any], home: Path) -> Iterator[TestClient]:
    """The pages over the run `r`, into which `make` has put its store."""
    run = home / "runs" / "r"
    (run / "episodes").mkdir(parents=True)
    for name, content in (("config.json", '{"name": "r"}'), ("seeds.json", "{}")):
        (run / name).write_text(content)
    make(run)
    with TestClient(pages(home / "runs"), base_url="http://127.0.0.1:8266", raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(
    "make",
    [
        lambda run: (run / "episodes" / FILE).write_bytes(b"PAR1junk"),
        lambda run: (run / "episodes" / FILE).write_bytes(b""),
        lambda run: pq.write_table(pa.table({"a": [1]}), run / "episodes" / FILE),
        step_as_text,
        junk_tokenizer,
        tokenizer_that_panics_at_a_token,
        with_row(messages="[" * 5000 + "]" * 5000), with_row(messages="5"), with_row(messages="[5]"), with_row(messages='{"a"'),
        with_row(messages='[{"role": "user", "content": "hi", "x": ' + "[" * 600 + "]" * 600 + "}]"),
        with_row(messages="[" + "{}," * MAX_VALUES + "{}]"), with_row(turn_parts='{"a":[' + "[]," * MAX_VALUES + "[]]}"),
        with_row(reward=None),
        with_row(messages=None), with_row(messages='[{"role": ["x"]}]'), with_row(messages='[{"role": "user"}]'),
        with_row(turn_parts='{"env": [1' + "0" * 400 + "]}"), with_row(turn_parts='{"env": [true]}'),
        with_row(turn_parts="5"), with_row(turn_parts='{"env": ["x"]}'), with_row(turn_parts='{"env": 5}'),
        with_row(mask=[False]), with_row(lengths=[-1, 3]), with_row(lengths=[None]), with_row(lengths=None), with_row(mask=[False, None]),
        with_row(token_ids=[1, None]), with_row(advantages=[1.0]), with_row(turns=None), with_row(turns=[None]), with_row(seconds=None),
        with_row(sampled_tokens=None), with_row(parts=[("env", None)]), with_row(version=[0]),
    ],
)  # fmt: skip
def test_a_store_that_cannot_be_read_is_named_by_every_page(make: Callable[[Path], Any], tmp_path: Path) -> None:
    with shown(make, tmp_path) as client:
        answers = {page: client.get(f"/rollouts/r{page.replace('EPISODE', EPISODE)}") for page in PAGES}
    assert {page: answer.status_code for page, answer in answers.items() if answer.status_code not in (200, 400, 410)} == {}
    assert any(answer.status_code == 400 for answer in answers.values()), "something says what is wrong"
    assert not any("Traceback" in answer.text for answer in answers.values())


@pytest.mark.parametrize("make", [with_row(), with_row(token_ids=[-1, 2**31 - 1]), more_columns, junk_index, normalizer_that_panics])
def test_what_is_odd_but_whole_is_shown(make: Callable[[Path], Any], tmp_path: Path) -> None:
    with shown(make, tmp_path) as client:
        for page in PAGES:
            assert client.get(f"/rollouts/r{page.replace('EPISODE', EPISODE)}").status_code == 200, page


def test_columns_that_nobody_knows_take_no_part_in_an_index(tmp_path: Path) -> None:
    (tmp_path / "episodes").mkdir()
    more_columns(tmp_path)
    assert build_segment(tmp_path / "episodes", Database())
    assert len(Library(tmp_path / "episodes").listed(Wanted(text="hi"))) == 1


def test_of_an_episode_of_millions_of_tokens_the_first_are_shown(tmp_path: Path) -> None:
    """14 kB of Parquet hold two million: they took 270 MB, and no page came of them."""
    n = 500_000
    tokens = {"token_ids": [1] * n, "mask": [False] + [True] * (n - 1), "version": [0] * n, "sampler_logprobs": [-0.1] * n}
    make = with_row(lengths=[MOST_TOKENS - 5, 3, n - MOST_TOKENS + 2], **tokens)
    with shown(make, tmp_path) as client:
        tracemalloc.start()
        found = client.get(f"/rollouts/r/episode?{EPISODE}&json=1").json()
        page = client.get(f"/rollouts/r/episode?{EPISODE}").text
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
        tracemalloc.stop()
    assert found["lengths"] == [MOST_TOKENS - 5, 3, 2] and found["stored_tokens"] == n
    assert [len(found[name]) for name in tokens] == [MOST_TOKENS] * 4
    assert page.count('<span class="t') == MOST_TOKENS and f"The first {MOST_TOKENS} of {n} tokens are shown" in page


def test_the_text_of_a_token_is_cut(tmp_path: Path) -> None:
    def make(run: Path) -> None:
        with_row(token_ids=[1, 1])(run)
        (run / "checkpoints" / "rft-1" / "model").mkdir(parents=True)
        tokenizer = Tokenizer(models.WordLevel({"b": 0, "a" * 1_000_000: 1}, unk_token="b"))
        tokenizer.save(str(run / "checkpoints" / "rft-1" / "model" / "tokenizer.json"))

    with shown(make, tmp_path) as client:
        page = client.get(f"/rollouts/r/episode?{EPISODE}").text
    assert page.count("a" * 200 + "…") == 4 and len(page) < 100_000, "twice as its text, twice in its title"


def test_a_run_called_as_a_pattern_shows_its_own_episodes(tmp_path: Path) -> None:
    """DuckDB takes a file's name for a pattern of names: `[m-n]ine` listed what `mine` holds."""
    for name in ("mine", "[m-n]ine", "m*", "b[", "??ne"):
        (tmp_path / name / "episodes").mkdir(parents=True)
        with_row(episode=name, task=name, messages=json.dumps([{"role": "user", "content": f"hi {name}"}]))(tmp_path / name)
    for name in ("mine", "[m-n]ine", "m*", "b[", "??ne"):
        library = Library(tmp_path / name / "episodes")
        for covered in (False, True):
            assert [row["episode"] for row in library.listed(Wanted())] == [name]
            assert [row["episode"] for row in library.listed(Wanted(text="hi"))] == [name]
            assert build_segment(tmp_path / name / "episodes", Database()) is not covered
        whole = library.one("rft", 1, "train", "sampled", name)
        assert whole is not None and whole["messages"][0]["content"] == f"hi {name}"
        assert [row["episode"] for row in library.group("rft", 1, "train", "sampled", name)] == [name]
        assert library.task_rewards(Moment("rft", 1, "train", "sampled")) == [(name, 1.0, 1)]
        assert [*library.conversations(library.listed(Wanted()))] == [whole["messages"]]


@pytest.mark.parametrize("folder", ["reward=9", "step=7", "episode=x", "id=5", "first=1/start=2", "word=hi", "filename=a", "lengths=3"])
def test_a_folder_called_as_a_column_and_its_value_changes_no_value(folder: str, tmp_path: Path) -> None:
    """DuckDB takes such a folder on a file's path for a column of the file: each reward of a run in `reward=9` was 9."""
    store = tmp_path / folder / "r" / "episodes"
    store.mkdir(parents=True)
    with_row(reward=0.25)(store.parent)
    library = Library(store)
    for covered in (False, True):
        for wanted in (Wanted(), Wanted(text="hi")):
            (found,) = library.listed(wanted)
            assert (found["reward"], found["step"], found["episode"]) == (0.25, 1, "t/0")
        assert library.rewards("rft") == [(1, 0.25, 0.25, 0.25)]
        assert build_segment(store, Database()) is not covered
    whole = library.one("rft", 1, "train", "sampled", "t/0")
    assert whole is not None and (whole["reward"], whole["lengths"]) == (0.25, [2])
    assert library.group("rft", 1, "train", "sampled", "t")[0]["reward"] == 0.25
    assert library.task_rewards(Moment("rft", 1, "train", "sampled")) == [("t", 0.25, 1)]
    assert pq.ParquetFile(store / ".index" / "000001" / "rows.parquet").read().column("reward").to_pylist() == [0.25]


def test_a_conversation_of_more_values_than_any_has_is_refused_before_any_is_made(tmp_path: Path) -> None:
    """Some kilobytes of Parquet hold a text of hundreds of megabytes, and each two bytes of it made an object."""
    for name in ("messages", "task_data", "env_data"):
        (tmp_path / name / "episodes").mkdir(parents=True)
        with_row(**{name: "[" + "{}," * 2_000_000 + "{}]"})(tmp_path / name)
        tracemalloc.start()
        with pytest.raises(ValueError, match="holds more than 500000 JSON values"):
            list(stored_episodes(tmp_path / name / "episodes", Which()))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
        tracemalloc.stop()


def repeated(store: Path, times: int, named: str = "t/0", **changes: Any) -> None:
    """A file of kilobytes: what repeats is stored once. named: what each episode is called, of its number."""
    store.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([row(**changes)], SCHEMA).take([0] * times)
    names = pa.array([named.format(i) for i in range(times)])
    pq.write_table(table.set_column(SCHEMA.get_field_index("episode"), "episode", names), store / FILE, compression="zstd")
    assert (store / FILE).stat().st_size < 200_000


@pytest.fixture
def measured() -> Iterator[Callable[[], int]]:
    """The most that Python held so far, in bytes."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def test_more_rows_than_a_file_can_be_meant_to_have_are_not_read(tmp_path: Path) -> None:
    repeated(tmp_path / "episodes", 200_000)
    library = Library(tmp_path / "episodes")
    for ask in (lambda: library.group("rft", 1, "train", "sampled", "t"), lambda: library.listed(Wanted()), library.choices):
        with pytest.raises(ValueError, match="it has more rows than bytes: 200000"):
            ask()
    with pytest.raises(ValueError, match="it has more rows than bytes: 200000"):
        build_segment(tmp_path / "episodes", Database())


def test_of_a_task_with_any_number_of_attempts_the_first_are_shown(tmp_path: Path, measured: Callable[[], int]) -> None:
    with shown(lambda run: repeated(run / "episodes", 100_000), tmp_path) as client:
        page = client.get(f"/rollouts/r/episode?{EPISODE}").text
    assert page.count("<tr data-row") == MOST_ATTEMPTS and f"The same task, the first {MOST_ATTEMPTS} attempts" in page
    assert measured() < 100 << 20


def test_conversations_of_a_list_take_no_more_than_is_read_at_once(tmp_path: Path, measured: Callable[[], int]) -> None:
    said = json.dumps([{"role": "user", "content": "hi " * 350_000}])
    repeated(tmp_path / "episodes", 60, "t/{}", messages=said)
    library = Library(tmp_path / "episodes")
    rows = library.listed(Wanted())
    found = [chat is not None for chat in library.conversations(rows)]
    assert len(found) == 50 and found == sorted(found, reverse=True) and sum(found) == READ_AT_ONCE // len(said)
    assert measured() < 4 * READ_AT_ONCE


def test_of_an_episode_that_a_file_holds_any_number_of_times_one_conversation_is_read(tmp_path: Path, measured: Callable[[], int]) -> None:
    repeated(tmp_path / "episodes", 100_000)
    library = Library(tmp_path / "episodes")
    chats = [*library.conversations(library.listed(Wanted(most=2)))]
    assert [chat[0]["content"] for chat in chats if chat] == ["hi", "hi"] and measured() < 32 << 20


def test_a_text_that_repeats_is_not_written_out_into_an_index(tmp_path: Path) -> None:
    repeated(tmp_path / "episodes", 1000, failure="x" * 1_000_000)
    with pytest.raises(ValueError, match=r"its names and labels take 1000\d{6} bytes, more than 32 times its files"):
        build_segment(tmp_path / "episodes", Database())


def test_a_column_whose_name_is_no_text_is_a_store_that_cannot_be_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"namenamename": [1]}), tmp_path / FILE, store_schema=False)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes().replace(b"namenamename", b"\xff" * 12))
    with pytest.raises(ValueError, match="the stored episodes cannot be read"):
        Database().table("SELECT * FROM read_parquet(?)", [[str(tmp_path / FILE)]])
