"""Names of any length in a store of anybody: they are offered to nobody, cut where they are shown, and in no index."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.test_inspector_bad_stores import EPISODE, FILE, repeated, row, shown

from burnish.inspector import index
from burnish.inspector.database import Database
from burnish.inspector.index import FOLDER, KINDS, build_segment
from burnish.inspector.library import Library
from burnish.inspector.listing import Wanted
from burnish.rollout.store.episodes import SCHEMA

pytestmark = [pytest.mark.unit, pytest.mark.timeout(60)]

NAMES = {"culprit": "c", "engine": "e", "failure": "f", "truncation": "t"}
LONG = 90_000


def put(run: Path, indexed: bool) -> None:
    """Two episodes, one with names of `LONG` letters, and one with the longest that are offered."""
    rows = [
        row(episode="x" * LONG, parts=[("p" * LONG, 1.0)], labels=[("expected", "l" * LONG)], **{k: v * LONG for k, v in NAMES.items()}),
        row(parts=[("p" * 200, 1.0)], **{name: letter * 200 for name, letter in NAMES.items()}),
    ]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), run / "episodes" / FILE)
    if indexed:
        assert build_segment(run / "episodes", Database())
        (segment,) = (run / "episodes" / FOLDER).glob("*/segment.json")
        record = json.loads(segment.read_text())
        assert {name: record["kinds"][name] for name in NAMES} == {name: [letter * 200] for name, letter in NAMES.items()}
        kinds = {name: [*record["kinds"][name], name * LONG] for name in KINDS}
        segment.write_text(json.dumps({**record, "kinds": kinds}))  # as anybody may have written it


@pytest.mark.parametrize("indexed", [False, True])
def test_long_names_are_cut_in_lists_and_not_offered(tmp_path: Path, indexed: bool) -> None:
    with shown(lambda run: put(run, indexed), tmp_path) as client:
        choices = Library(tmp_path / "runs" / "r" / "episodes").choices()
        page, one = client.get("/rollouts/r/episodes").text, client.get(f"/rollouts/r/episode?{EPISODE}").text
    assert {name: choices[name] for name in KINDS} == {**{name: [letter * 200] for name, letter in NAMES.items()}, "part": ["p" * 200]}
    assert page.count("<tr data-row") == one.count("<tr data-row") == 2 and max(len(page), len(one)) < LONG / 2
    assert all(f"{letter * 199}…" in page for letter in "xlcft") and f"{'f' * 199}…" in one
    assert page.count("&amp;episode=") + page.count("&episode=") == 1, "what is too long for an address is no link"


def test_long_names_of_tools_are_in_no_index(tmp_path: Path) -> None:
    calls = [{"id": "a", "type": "function", "function": {"name": name * 200, "arguments": "{}"}} for name in ("n", "ab")]
    said = [{"role": "assistant", "content": "", "tool_calls": calls}, {"role": "tool", "content": "", "name": "cd" * 200}]
    store = tmp_path / "episodes"
    repeated(store, 3, "t/{}", messages=json.dumps(said, separators=(",", ":")))
    called = [[one["episode"] for one in Library(store).listed(Wanted(tool=name * 200))] for name in ("n", "ab", "cd")]
    assert called == [["t/0", "t/1", "t/2"], [], []]
    assert build_segment(store, Database())
    (rows,) = (store / FOLDER).glob("*/rows.parquet")
    assert pq.read_table(rows).column("called").to_pylist() == [["n" * 200]] * 3


def test_names_of_tools_that_repeat_are_not_written_out_into_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [{"id": "", "type": "function", "function": {"name": f"{i:0200}", "arguments": "{}"}} for i in range(100)]
    said = json.dumps([{"role": "assistant", "content": "", "tool_calls": calls}], separators=(",", ":"))
    repeated(tmp_path / "episodes", 100, "t/{}", messages=said)
    monkeypatch.setattr(index, "FREE_TEXT", 1 << 20)
    with pytest.raises(ValueError, match=r"its names and labels take 200\d{4} bytes, more than 32 times its files"):
        build_segment(tmp_path / "episodes", Database())
