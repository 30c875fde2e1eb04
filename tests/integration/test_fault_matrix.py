"""The fault matrix (`make faults`), and a few of its cells whenever the tests run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.integration.fault_cells import CELLS, NODES, SUMMARY, Cell, Played, page
from tests.integration.fault_matrix import ROOT, play_all
from tests.integration.started import Started

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

SEED = 0


def test_a_summary_of_the_fault_matrix(
    tiny_model: Path, tmp_path: Path, start: Callable[..., Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [cell for cell in CELLS if cell.name in SUMMARY]
    assert len(cells) == len(SUMMARY)
    played = play_all(tiny_model, tmp_path, start, cells, SEED, monkeypatch)
    assert [one for one in played if one.wrong] == []
    assert {one.cell.name: one.how.partition(" with ")[0].partition(":")[0] for one in played} == {
        "engine killed": "goes on",
        "runner killed": "goes on",
        "verifier raises": "stops",
    }


@pytest.mark.slow
@pytest.mark.timeout(14_400)
@pytest.mark.parametrize("cells", [CELLS, NODES], ids=["parts", "nodes"])
def test_the_fault_matrix(
    cells: Sequence[Cell], tiny_model: Path, tmp_path: Path, start: Callable[..., Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes docs/faults.md, also where a cell is not kept."""
    file = ROOT / "docs" / "faults.md"
    before = file.read_text()

    def report(played: Sequence[Played]) -> None:
        file.write_text(page(played, cells, SEED, before))

    played = play_all(tiny_model, tmp_path, start, cells, SEED, monkeypatch, report)
    assert [one for one in played if one.wrong] == []
