"""The command that an episode's page makes to continue it: of any turn, by any checkpoint of the run, quoted, and started by nobody."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.test_inspector_bundle import db as db
from tests.unit.test_inspector_bundle import files
from tests.unit.test_inspector_bundle import run as run
from tests.unit.test_inspector_pages import NAME, Elements
from tests.unit.test_inspector_pages import client as client
from tests.unit.test_inspector_pages import root as root
from tests.unit.test_rollout_episodes import episode, stored
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.envs.types import Reward
from burnish.inspector.database import Database
from burnish.inspector.pages.branching import branching_of
from burnish.inspector.pages.bundle import write_bundle
from burnish.inspector.pages.runs import RunLine
from burnish.inspector.stored import Which
from burnish.rollout.store.moments import Moment

pytestmark = pytest.mark.unit

AT = f"{NAME}/episode?phase=rft&step=4&split=train&mode=sampled&episode=train-7/0"


def spoken(run: Path) -> None:
    """An episode in which the policy spoke three times."""
    said = replace(episode(7, 0, Reward(1.0)), turns=episode(7, 0, Reward(1.0)).turns * 3)
    stored(run / "episodes", said, moment=Moment("rft", 4, "train", "sampled"))


@pytest.fixture
def talk(root: Path) -> Path:
    """A run with such an episode."""
    spoken(root / "nano-20260101-000000")
    return root / "nano-20260101-000000"


def checkpoints(run: Path, *names: str) -> None:
    rows = [{"event": "saved", "phase": "rft", "step": int(name.partition("-")[2]), "created_at": "2026-01-01T00:00:00Z"} for name in names]
    refused = [{"event": "not_promoted", "name": names[-1], "why": "it forgot"}]
    for name in names:
        (run / "checkpoints" / name / "model").mkdir(parents=True)
    (run / "checkpoints.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows + refused))


def command(page: str) -> list[str]:
    (said,) = re.findall(r'<pre class="card">(burnish branch .*)</pre>', page)
    return shlex.split(html.unescape(said))


def test_the_command_is_for_any_turn_and_any_checkpoint_of_the_run(talk: Path, client: TestClient) -> None:
    checkpoints(talk, "rft-2", "rft-4")
    page = client.get(AT).text
    assert '<details id="branch">' in page and "this page starts nothing" in page
    assert command(page)[command(page).index("--turn") + 1] == "3" and "--model" not in " ".join(command(page))
    assert re.findall(r'<option value="rft-[^>]*>([^<]*)<', page) == ["rft-4 (refused)", "rft-2"]
    page = client.get(f"{AT}&turn=2&checkpoint=rft-2&colour=ratio&text=ok").text
    assert '<details id="branch" open>' in page and '<option value="rft-2" selected>' in page
    hidden = {attrs["name"]: attrs["value"] for tag, attrs in Elements(page).found if tag == "input" and attrs.get("type") == "hidden"}
    place = {"phase": "rft", "step": "4", "split": "train", "mode": "sampled", "episode": "train-7/0"}
    assert hidden == {**place, "colour": "ratio", "text": "ok"}
    said = command(page)
    assert f"--model={talk}/checkpoints/rft-2" in said and said[said.index("--turn") + 1] == "2"


def test_the_command_is_one_that_the_command_line_takes(talk: Path, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints(talk, "rft-2", "rft-4")
    taken = dict[str, Any]()

    def chosen(run: Path, which: Which) -> Iterator[None]:
        taken.update(run=run, which=which)
        return iter([None])

    def speaks(model: str) -> Path:
        taken["model"] = model
        raise ValueError("nobody speaks")

    monkeypatch.setattr("burnish.inspector.stored.chosen", chosen)
    monkeypatch.setattr("burnish.trainer.models.finding.verified_model", speaks)
    for name in ("cli.branch.needs_engine", "recipe.recorded.load_recipe", "recipe.resolve.resolve"):
        monkeypatch.setattr(f"burnish.{name}", lambda *_: None)
    program, *arguments = command(client.get(f"{AT}&turn=2&checkpoint=rft-2").text)
    assert program == "burnish" and "nobody speaks" in CliRunner().invoke(app, arguments).output
    assert (taken["run"], taken["which"].episode, taken["which"].step) == (talk, "train-7/0", 4)
    assert taken["model"] == str(talk / "checkpoints" / "rft-2")


def test_a_checkpoint_whose_folder_is_gone_takes_no_other_from_the_choice(talk: Path, client: TestClient) -> None:
    checkpoints(talk, "rft-2", "rft-3", "rft-4")
    shutil.rmtree(talk / "checkpoints" / "rft-3")
    page = client.get(AT).text
    options = re.findall(r'<option value="rft-."( disabled)?>([^<]*)<', page)
    assert options == [("", "rft-4 (refused)"), (" disabled", "rft-3 (gone)"), ("", "rft-2")]
    assert "cannot be read" not in page and f"--model={talk}/checkpoints/rft-2" in command(client.get(f"{AT}&checkpoint=rft-2").text)
    refused = client.get(f"{AT}&checkpoint=rft-3")
    assert refused.status_code == 400 and "the folder of rft-3 is gone" in refused.text


@pytest.mark.parametrize("asked", ["turn=0", "turn=4", "turn=x", "checkpoint=rft-3", "checkpoint=../../etc"])
def test_a_turn_or_a_checkpoint_that_is_not_there_is_said_in_a_line(talk: Path, client: TestClient, asked: str) -> None:
    checkpoints(talk, "rft-2")
    answer = client.get(f"{AT}&{asked}")
    assert answer.status_code == 400 and asked.partition("=")[0] in answer.text


def test_a_run_without_checkpoints_or_with_broken_ones_still_shows_its_episodes(talk: Path, client: TestClient) -> None:
    assert "The run has no checkpoint yet" in client.get(AT).text
    (talk / "checkpoints.jsonl").write_text("<script>\n")
    page = client.get(AT).text
    assert "The checkpoints cannot be read" in page and command(page) and 'name="checkpoint"' not in page


def test_a_bundle_has_the_command_of_the_last_turn_and_no_form(talk: Path, tmp_path: Path, db: Database) -> None:
    write_bundle(talk, tmp_path / "bundle", 100, db)
    (page,) = (page for page in files(tmp_path / "bundle").values() if "<h1>train-7/0</h1>" in page)
    assert command(page)[command(page).index("--turn") + 1] == "3" and "--turn says another turn, of 3" in page and "<form" not in page


def test_a_command_to_be_copied_quotes_what_a_run_calls_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = {"episode": "--plugin=x; touch /tmp/y $(id)", "phase": "rft", "step": 3, "split": "train", "mode": "sampled", "turns": [{}, {}]}
    asked = "burnish branch --phase rft --step 3 --split train --mode sampled --turn 2 -n 8 --"
    for place, shown in (
        (Path("runs/a b"), "'runs/a b'"),
        (tmp_path / "elsewhere/a;b", "'elsewhere/a;b'"),
        (tmp_path.parent / "$(id)", f"'{tmp_path.parent}/$(id)'"),
        (Path(os.fsdecode(b"runs/a\xff")), "'runs/a\ufffd'"),
    ):
        made = branching_of(RunLine("any", place, 0.0, False), found)
        assert made is not None
        said = made.command
        assert said == f"{asked} {shown} '--plugin=x; touch /tmp/y $(id)'"
        said.encode()
