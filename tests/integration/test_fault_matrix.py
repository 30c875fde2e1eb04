"""The fault matrix (`make faults`), and a few of its cells whenever the tests run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.integration.fault_matrix import CELLS, ROOT, Played, page, play_all
from tests.integration.started import Started

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

SUMMARY = ("engine killed", "engine stopped", "runner killed", "verifier raises", "driver killed", "disk full")
SEED = 0


@pytest.mark.slow
def test_faults_of_every_sort_end_well(
    tiny_model: Path, tmp_path: Path, start: Callable[..., Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [cell for cell in CELLS if cell.name in SUMMARY]
    assert len(cells) == len(SUMMARY)
    assert [one for one in play_all(tiny_model, tmp_path, start, cells, SEED, monkeypatch) if one.wrong] == []


@pytest.mark.slow
@pytest.mark.timeout(14_400)
def test_the_fault_matrix(tiny_model: Path, tmp_path: Path, start: Callable[..., Started], monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes docs/faults.md, also where a cell is not kept."""

    def report(played: Sequence[Played]) -> None:
        (ROOT / "docs" / "faults.md").write_text(page(played, SEED))

    played = play_all(tiny_model, tmp_path, start, CELLS, SEED, monkeypatch, report)
    assert [one for one in played if one.wrong] == []
