"""What docs/replay.md says to paste runs, in its order, over a run of that name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tests.unit.stored_run import played, recipe, seeded, stored, tiny_model
from typer.testing import CliRunner

from burnish.cli.main import app

pytestmark = pytest.mark.unit

PAGE = Path(__file__).resolve().parents[2] / "docs" / "replay.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `runs/` holds what the page names."""
    home = tmp_path_factory.mktemp("docs")
    run = recipe(tiny_model(home / "tiny"), "burnish/QualityInspection-v0", max_turns=6)
    answers = ['measure(1, "bore")', "verdict: pass, within", "verdict: scrap, oversize"]
    stored(run, played(run, seeded(20), answers), home / "runs" / "inspection-20260101-120000", step=12)
    return home


def commands() -> list[str]:
    found = re.findall(r"^```\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [line.removeprefix("burnish ") for text in found for line in text.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_page_runs(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(app, shlex.split(line))
    assert done.exit_code == 0, done.output
