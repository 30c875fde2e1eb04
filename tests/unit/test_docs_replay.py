"""What docs/replay.md says to paste runs, in its order, over a run of that name."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from tests.unit.stored_run import INSPECTS, played, recipe, seeded, speaking, stored, tiny_model
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.envs.types import Task
from burnish.recipe.load import load_config
from burnish.rollout.store.episodes import EpisodeStore
from burnish.rollout.store.moments import Moment

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "replay.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `runs/` holds what the page names."""
    home = tmp_path_factory.mktemp("docs")
    graded = {"rewards": [{"use": "burnish/inspection-cost-v1", "name": "verdict"}], "environment_weight": 0.0}  # no verifier to start
    run = recipe(tiny_model(home / "tiny"), "burnish/QualityInspection-v0", max_turns=6, **graded)
    folder = stored(run, played(run, seeded(18), INSPECTS), home / "runs" / "inspection-20260101-120000")
    later = played(run, [Task(f"train-{i}", i) for i in range(284, 300)], INSPECTS)
    with EpisodeStore(folder / "episodes", folder.name) as store:
        store.put(Moment("rft", 12, "train", "sampled"), [episode for group in later for episode in group.episodes])
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


def test_the_page_names_what_the_demo_has() -> None:
    """A step samples its groups' tasks in order, and so many again at most in place of those that cannot teach."""
    rft = tomllib.loads((ROOT / "recipes" / "nano-inspection.toml").read_text())["rft"]
    page, groups = PAGE.read_text(), rft["groups_per_step"]
    places = [(int(step), int(task)) for step, task in re.findall(r"rft step (\d+), train-(\d+)", page)]
    assert len(places) == 4
    for step, task in places:
        assert groups * (step - 1) <= task < groups * (1 + rft["max_refills"]) * step
    assert set(re.findall(r"rft-(\d+)/", page)) == {str(rft["steps"])}
    demo = load_config(ROOT / "recipes" / "nano-inspection.toml")
    assert re.findall(r"--against (\w+)", page)[0] == "verdict" in {one.name for one in demo.scorers} and not demo.environment_weight
