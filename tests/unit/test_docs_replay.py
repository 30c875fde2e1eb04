"""What docs/replay.md says to paste runs, in its order, over a run of that name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tests.unit.stored_run import INSPECTS, played, recipe, seeded, stored, tiny_model
from typer.testing import CliRunner

from burnish.cli.main import app

pytestmark = pytest.mark.unit

PAGE = Path(__file__).resolve().parents[2] / "docs" / "replay.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `runs/` holds what the page names."""
    home = tmp_path_factory.mktemp("docs")
    run = recipe(tiny_model(home / "tiny"), "burnish/QualityInspection-v0", max_turns=6)
    stored(run, played(run, seeded(20), INSPECTS), home / "runs" / "inspection-20260101-120000", step=12)
    (home / "recipe.toml").write_text(
        'name = "r"\nmodel = "tiny"\nenvironment = "burnish/QualityInspection-v0"\nmulti_turn_rollouts = true\n'
        "[engine]\nmax_context = 4096\n"
    )
    (home / "brief.py").write_text(blocks("python")[0])
    return home


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if kind == language]


def commands() -> list[str]:
    return [line.removeprefix("burnish ") for text in blocks("") for line in text.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_page_runs(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(app, shlex.split(line))
    assert done.exit_code == 0, done.output
