"""What docs/replay.md says to paste runs, in its order, over a run of that name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tests.unit.stored_run import INSPECTS, played, recipe, seeded, speaking, stored, tiny_model
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
    return home


def test_whoever_follows_the_page_can_run_every_command_of_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order: a file is there once the page has said what is in it."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("burnish.cli.branch.needs_engine", lambda command: None)  # tests/integration/test_branch.py has a real one
    monkeypatch.setattr("burnish.rollout.engine.make_engine", speaking("verdict: pass; reason: within"))
    monkeypatch.setattr("burnish.trainer.models.finding.verified_model", lambda model: folder / "tiny")  # a stored run has no checkpoint
    shown = re.findall(r"^(?:`([\w./]+)`:\n\n)?```(\w*)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    commands = 0
    for name, kind, text in shown:
        if name:
            (folder / name).write_text(text)
        for line in text.replace("\\\n", " ").splitlines() if not kind else ():
            done = CliRunner().invoke(app, shlex.split(line.removeprefix("burnish ")))
            assert done.exit_code == 0, f"{line}: {done.output}"
            commands += 1
    assert commands == 7
