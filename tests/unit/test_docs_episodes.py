"""docs/episodes.md says of every column of stored episodes what it is, and its block reads them."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.stored_run import played, recipe, seeded, stored, tiny_model

from burnish.rollout.store.episodes import SCHEMA, SCHEMA_VERSION
from burnish.rollout.store.reading import MAY_BE_NULL, MAY_LACK

pytestmark = pytest.mark.unit

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "episodes.md").read_text()


ROWS = re.findall(r"^\| `(\w+)` \| `(.+?)` \| (yes)? ?\| (.+) \|$", TEXT, re.MULTILINE)


def types(schema: pa.Schema) -> list[tuple[str, str]]:
    """Columns and their types as the table says them: without the names that elements and entries have in memory or in a file."""
    return [(field.name, re.sub(r"\b(item|element): | \('\w+'\)", "", str(field.type))) for field in schema]


def test_the_table_is_the_schema() -> None:
    assert [(name, kind) for name, kind, _, _ in ROWS] == types(SCHEMA)
    assert {name for name, _, null, _ in ROWS if null} == MAY_BE_NULL
    assert all(meaning for _, _, _, meaning in ROWS)
    assert {name: meaning for name, _, _, meaning in ROWS}["schema"].endswith(f" {SCHEMA_VERSION}")
    added = TEXT.partition("Version 2 added")[2].partition(" Files of")[0]
    assert set(MAY_LACK) == set(re.findall(r"`(\w+)`", added.partition("version 3")[2]))


def test_the_block_reads_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = recipe(tiny_model(tmp_path / "tiny"), "burnish/Arithmetic-v0")
    folder = stored(run, played(run, seeded(2), ["7", "12"], 2), tmp_path / "run")
    (file,) = (folder / "episodes").glob("*.parquet")
    assert types(pq.read_schema(file)) == [(name, kind) for name, kind, _, _ in ROWS]
    (block,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    exec(block.replace("runs/inspection-20260101-120000", str(folder)), {})
    first, of_trajectory = capsys.readouterr().out.splitlines()
    assert first.startswith("train-") and "'env'" in first
    assert re.fullmatch(r"\d+ tokens, of which the policy sampled [1-9]\d*", of_trajectory)
