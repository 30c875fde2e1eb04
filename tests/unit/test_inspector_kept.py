"""What a run whose recipe bounds its episodes says of those that are not kept."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.test_inspector_index import step
from tests.unit.test_rollout_episodes import episode
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.envs.types import Reward
from burnish.inspector.kept import kept_of
from burnish.inspector.pages.app import pages
from burnish.inspector.report import write_report
from burnish.inspector.stored import Which, chosen
from burnish.rollout.store.episodes import EpisodeStore
from burnish.rollout.store.keeping import EpisodesConfig, Keeping
from burnish.rollout.store.moments import Moment

pytestmark = pytest.mark.unit

PAGE = "/rollouts/kept-1"


def run_of(root: Path, bounds: Mapping[str, Any], steps: int = 4) -> Path:
    """A run that took so many steps, with what its bounds leave of it."""
    run = root / "kept-1"
    run.mkdir(parents=True)
    for name, content in (("config.json", {"name": "kept", "episodes": bounds}), ("seeds.json", {"run": 1}), ("versions.json", {})):
        (run / name).write_text(json.dumps(content))
    rows = [{"phase": "sft", "step": 1, "time": 1.0, "loss": 1.0}]
    rows += [{"phase": "rft", "step": number, "time": 2.0, "episodes": 8.0} for number in range(1, steps + 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with EpisodeStore(run / "episodes", run.name, keeping=Keeping(EpisodesConfig(**bounds), order=("sft", "rft"))) as store:
        store.put(Moment("base", 0, "heldout", "greedy"), [episode(1, 0, Reward(1.0))])
        for number in range(1, steps + 1):
            store.put(step(number), [episode(task, sample, Reward(0.5)) for task in range(4) for sample in range(2)])
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return run_of(tmp_path, {"keep": 2})


def test_pages_say_what_is_not_kept(run: Path) -> None:
    with TestClient(pages(run.parent)) as client:
        assert "The episodes of 2 of 4 training steps are kept: [episodes] keep = 2." in client.get(PAGE).text
        for asked in ("phase=rft&step=1", "step=2&order=worst", "step=1&split=train"):
            assert "Nothing here is like that; not kept: [episodes] keep = 2" in client.get(f"{PAGE}/episodes?{asked}").text
        for asked in ("phase=sft&step=1", "step=9", "step=1&split=heldout", "step=3&text=nobody", "text=nobody"):
            assert "Nothing here is like that." in client.get(f"{PAGE}/episodes?{asked}").text
        worst = client.get(f"{PAGE}/episodes?phase=rft&step=4&order=worst").text
        assert "8 episodes" in worst and "not kept" not in worst
        gone = client.get(f"{PAGE}/episode?phase=rft&step=1&split=train&mode=sampled&episode=train-1/0")
        assert gone.status_code == 410 and "no such episode; not kept: [episodes] keep = 2" in gone.text
        never = client.get(f"{PAGE}/episode?phase=rft&step=4&split=train&mode=sampled&episode=train-9/0")
        assert "it may have been dropped when the run was resumed" in never.text


def test_the_report_says_it_too(run: Path) -> None:
    page = write_report(run).read_text()
    assert "<dt>Episodes</dt><dd>The episodes of 2 of 4 training steps are kept: [episodes] keep = 2.</dd>" in page


def test_commands_that_ask_for_a_step_say_that_it_is_not_kept(run: Path) -> None:
    with pytest.raises(ValueError, match=r"no such episodes; stored are .*rft up to step 4; not kept: \[episodes\] keep = 2$"):
        list(chosen(run, Which("rft", 1)))
    with pytest.raises(ValueError, match=r"rft up to step 4$"):
        list(chosen(run, Which("rft", 9)))
    said = CliRunner().invoke(app, ["rollouts", str(run), "--phase", "rft", "--step", "2"])
    assert said.exit_code == 2 and "; not kept: [episodes] keep = 2" in " ".join(said.output.split())
    for asked in (["--json"], ["--json", "--order", "worst"]):
        said = CliRunner().invoke(app, ["rollouts", str(run), "--step", "1", *asked])
        assert said.exit_code == 2 and "; not kept: [episodes] keep = 2" in " ".join(said.output.split())
    said = CliRunner().invoke(app, ["rollouts", str(run), "--step", "3", "--limit", "1"])
    assert said.exit_code == 0 and "not kept" not in said.output


def test_an_id_without_a_step_may_be_of_one_that_is_not_kept(run: Path) -> None:
    why = "; not kept are the episodes of 2 training steps: [episodes] keep = 2"
    said = CliRunner().invoke(app, ["rollouts", str(run), "--episode", "train-9/0"])
    assert said.exit_code == 2 and said.stderr.rstrip().endswith(why), said.output
    with pytest.raises(ValueError, match=f"{re.escape(why)}$"):
        list(chosen(run, Which(episode="train-9/0")))  # as `replay` and `branch` do
    with pytest.raises(ValueError, match=r"rft up to step 4$"):
        list(chosen(run, Which("sft", episode="train-9/0")))
    with TestClient(pages(run.parent)) as client:
        assert f"Nothing here is like that{why}" in client.get(f"{PAGE}/episodes?task=train-9").text


def test_a_share_is_said_where_an_episode_is_missed(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"share": 0.25})
    assert kept_of(run).line == "Of the groups of each training step a share is stored: [episodes] share = 0.25."
    with TestClient(pages(tmp_path)) as client:
        why = "a share of the groups of each training step is stored: [episodes] share = 0.25"
        assert why in client.get(f"{PAGE}/episodes?step=1&task=train-77").text


def test_a_drift_says_that_a_step_is_not_kept_or_that_a_task_may_be_left_out(run: Path, tmp_path: Path) -> None:
    with TestClient(pages(run.parent)) as client:
        asked = {"before": "kept-1/rft.000001.train.sampled", "after": "kept-1/rft.000004.train.sampled"}
        assert "has no stored episodes; not kept: [episodes] keep = 2" in client.get("/rollouts/-/drift", params=asked).text
    run_of(tmp_path / "b", {"share": 0.25})
    with TestClient(pages(tmp_path / "b")) as client:
        why = "not played here, or left out: a share of the groups of each training step is stored: [episodes] share = 0.25."
        assert client.get("/rollouts/-/drift", params={**asked, "task": "train-77"}).text.count(why) == 2


def test_steps_whose_files_are_being_written_are_not_called_gone(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"keep": 9})
    for number in (3, 4):
        (run / "episodes" / step(number).file).unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"phase": "rft", "step": 5, "time": time.time() + 1000, "episodes": 8.0}) + "\n")
    assert kept_of(run).line == "The episodes of 3 of 5 training steps are kept: [episodes] keep = 9."
    (run / "transcripts").mkdir()
    for number in (3, 4):
        (run / "transcripts" / step(number).transcripts).write_text("")
    assert kept_of(run).line == "" and kept_of(run).why_none("rft", 4) == ""


def test_steps_are_gone_where_none_is_left(tmp_path: Path) -> None:
    """A run that went back to a checkpoint older than what it keeps, and one whose step after the last one was broken off."""
    run = run_of(tmp_path, {"keep": 1}, steps=3)
    (run / "episodes" / step(3).file).rename(run / "episodes" / step(4).file)
    assert kept_of(run).line == "The episodes of 0 of 3 training steps are kept: [episodes] keep = 1."
    (run / "episodes" / step(4).file).unlink()
    assert kept_of(run).why_none("rft", 2) == "not kept: [episodes] keep = 1"
    (run / "transcripts").mkdir()
    (run / "transcripts" / "episodes.jsonl").write_text("")  # an earlier burnish had every step in there
    assert kept_of(run).line == ""


def test_steps_that_went_under_a_bound_that_the_recipe_has_no_more_are_gone(run: Path) -> None:
    (run / "config.json").write_text(json.dumps({"name": "kept", "episodes": {}}))
    why = "removed by hand, or under the [episodes] of an earlier start"
    assert kept_of(run).line == f"The episodes of 2 of 4 training steps are kept; the others were {why}."
    assert kept_of(run).why_none("rft", 1) == f"not kept: {why}"
    for number in (3, 4):
        (run / "episodes" / step(number).file).unlink()
    assert kept_of(run).line == ""  # as of a loop that stores none


@pytest.mark.parametrize("bounds", [None, 7, {"keep": "<b>"}, {"keep": True}, {"keep": [1]}, {"share": "1"}, {"max_mb": 10**400}])
def test_a_config_of_anything_is_no_bound(run: Path, bounds: Any) -> None:
    (run / "config.json").write_text(json.dumps({"name": "kept", "episodes": bounds}))
    assert "[episodes] of an earlier start" in kept_of(run).line and (kept_of(run).until, kept_of(run).share) == ("", "")


def test_nothing_is_said_where_all_is_kept(tmp_path: Path) -> None:
    assert kept_of(run_of(tmp_path, {})).line == ""
