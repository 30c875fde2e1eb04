"""docs/faults.md: its rows are the cells of the fault matrix, whose tests are tests/integration/test_fault_matrix.py."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.integration.fault_cells import CELLS, NODES, REST_S, SUMMARY, WAITS, Played, bound_of, limit_of, other_limits, page
from tests.integration.fault_matrix import RECIPE

from burnish.trainer.nodes import lost_node

pytestmark = pytest.mark.unit

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "faults.md").read_text()
EVERY = [*CELLS, *NODES]


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.match(r"\| (?!place|---)", line)]


def test_the_page_has_a_row_for_each_cell_in_its_order_and_each_is_kept() -> None:
    assert [tuple(re.split(r" *\| *", row)[1:3]) for row in rows(PAGE)] == [(cell.place, cell.fault) for cell in EVERY]
    assert [row for row in rows(PAGE) if not row.endswith("| yes |")] == []
    assert f"{len(EVERY)} of {len(EVERY)} cells are kept" in PAGE


def test_the_page_is_what_the_matrix_writes() -> None:
    (seed,) = re.findall(r"\(seed (\d+)\)", PAGE)
    assert page([], [], int(seed), PAGE) == PAGE


def test_a_row_that_is_played_again_takes_the_place_of_its_own_alone() -> None:
    first, second = CELLS[:2]
    before = page([Played(first, "goes on", 3.0), Played(second, "goes on", 9.0)], CELLS, 0)
    assert len(rows(before)) == len(EVERY) and "2 of " in before and "the longest took\n9 s" in before
    after = page([Played(first, "is gone (-9)", 4.0, ("left a|b behind",))], [first], 0, before)
    assert rows(after)[:2] == [f"| {first.place} | {first.fault} | is gone (-9) | left a\\|b behind |", rows(before)[1]]
    assert "1 of " in after and "the longest took\n9 s" in after
    assert rows(page([], CELLS, 0, before))[:2] == [f"| {cell.place} | {cell.fault} | not played | |" for cell in (first, second)]


def test_a_lost_node_is_named_as_the_cells_of_nodes_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    book = {"NodeID": "5f0c2b7a91de44", "NodeManagerAddress": "10.0.0.7", "NodeManagerHostname": "worker-3.example", "Alive": False}
    monkeypatch.setattr("burnish.trainer.nodes.ray", SimpleNamespace(nodes=lambda: [book, {**book, "NodeID": "b", "Alive": True}]))
    gone = lost_node(str(book["NodeID"]))
    assert gone == "its node 10.0.0.7 (worker-3.example, 5f0c2b7a91de) is gone" and lost_node("b") == lost_node("") == ""
    assert all(re.search(cell.culprit, f"failed: rollout-1 died and did not come back within 120 s ({gone}): late") for cell in NODES)


def test_a_cell_has_the_limit_that_the_recipe_of_the_matrix_names() -> None:
    recipe = tomllib.loads(RECIPE.format_map(defaultdict(str)))
    every = {cell.name: cell for cell in EVERY}
    assert set(WAITS) <= set(every) and {limit_of(every[name], recipe) for name in set(every) - set(WAITS)} == {0.0}
    assert {name: limit_of(every[name], recipe) for name in WAITS} == {
        "engine stopped": 10.0, "runner stopped": 60.0, "environment killed": 8.0, "environment stopped": 8.0, "verifier stopped": 3.0,
        "learner stopped": 120.0, "node lost": 240.0,
    }  # fmt: skip
    assert bound_of(every["environment killed"], recipe) == 2 * 8.0 + REST_S and bound_of(every["engine slow"], recipe) == REST_S
    said = "reset: no answer within 9 s (episode tried 2 times)"
    assert other_limits(every["environment stopped"], said, recipe) == ["waited 9 s, not 8"]
    assert (
        other_limits(every["environment stopped"], said.replace("9", "8"), recipe) == other_limits(every["engine slow"], said, recipe) == []
    )


@pytest.mark.parametrize("row", rows(PAGE))
def test_what_a_row_says_of_a_wait_is_the_recipes_limit(row: str) -> None:
    (cell,) = [one for one in EVERY if row.startswith(f"| {one.place} | {one.fault} |")]
    assert other_limits(cell, row, tomllib.loads(RECIPE.format_map(defaultdict(str)))) == []


def test_the_summary_is_of_cells_that_there_are() -> None:
    assert set(SUMMARY) <= {cell.name for cell in EVERY}
    assert f"{', '.join(SUMMARY)}." in PAGE
