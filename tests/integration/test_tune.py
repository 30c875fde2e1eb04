"""The page "tune", pasted: two trials under Ray Tune, of which the one that learns nothing is pruned in the middle and ends cleanly."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.inspector.runs import read_metrics
from burnish.run import trials
from burnish.trainer.models.checkpoints import list_checkpoints

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tune.md").read_text()


@pytest.fixture
def command(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The first command of the page, in a folder with the page's files, over a scripted engine."""
    monkeypatch.chdir(tmp_path)
    for name, text in re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text.replace('"smollm2"', json.dumps(str(tiny_model))))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(trials, "PROGRAM", (sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.integration.scripted_trial"))
    given, *_ = re.findall(r"^```\nburnish (tune .*?)$", PAGE, re.MULTILINE)
    return [*shlex.split(given), "--run-dir", "tuned"]


def test_docs_the_page_finds_the_rate_that_learns(command: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "tuned" / "tune.json").read_text())
    assert [(one["state"], one["overrides"]) for one in found["trials"]] == [("finished", ["sft.lr=0.001"]), ("pruned", ["sft.lr=1e-09"])]
    assert [one["step"] for one in found["trials"]] == [12, 3]
    assert done.output.rstrip().endswith("burnish run recipe.toml --set 'sft.lr=0.001'")
    assert "trial 2 pruned at step 3, loss " in done.output
    whole, pruned = (tmp_path / "tuned" / f"trial-{number}" for number in (1, 2))
    assert len(list(read_metrics(whole / "metrics.jsonl"))) == 12 and list_checkpoints(whole)[-1].step == 12
    assert len(list(read_metrics(pruned / "metrics.jsonl"))) in (3, 4), "it stood still after its fourth step, or was ended before"
    said = (tmp_path / "tuned" / "trial-2.log").read_text()
    assert "terminated" in said and "--resume" in said, "it ended as by Ctrl-C, and says how to go on"


def test_a_search_in_which_all_failed_says_why(command: list[str]) -> None:
    done = CliRunner().invoke(app, [one.replace("[1e-3, 1e-9]", "[0.7, 0.8]") for one in command])
    assert done.exit_code == 1 and "Traceback" not in done.output, done.output
    assert "all 2 trials failed; the first: failed: the rate is too large (exit code 1, " in done.output, done.output


REINFORCED = """
name = "sums"
model = {model}
environment = "burnish/Arithmetic-v0"
success = "digits"
plugins = ["digits.py"]

[[rewards]]
use = "sums/digits-v1"
name = "digits"

[rft]
steps = 2
groups_per_step = 2
group_size = 3
equal_groups = "keep"

[rollout]
max_tokens_per_turn = 6

[engine]
max_context = 128

[learner]
threads = 1

[evaluation]
before = false
after = false
"""

DIGITS = """
from burnish import RewardInput, reward


@reward("sums/digits-v1")
def digits(episode: RewardInput) -> float:
    return min(1.0, sum(character.isdigit() for character in episode.messages[-1].text) / 4)
"""


def test_a_trial_of_reinforcement_is_scored_by_its_success(command: list[str], tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "sums.toml").write_text(REINFORCED.format(model=json.dumps(str(tiny_model))))
    (tmp_path / "digits.py").write_text(DIGITS)
    done = CliRunner().invoke(app, ["tune", "sums.toml", "--space", "rft.lr=[1e-3]", "--run-dir", "tuned"])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "tuned" / "tune.json").read_text())
    (trial,) = found["trials"]
    rows = list(read_metrics(tmp_path / "tuned" / "trial-1" / "metrics.jsonl"))
    assert (found["metric"], found["mode"], trial["state"], trial["step"], len(rows)) == ("success", "max", "finished", 2, 2)
    assert 0.0 < trial["score"] == pytest.approx(sum(row.values["success"] for row in rows) / 2)
    assert "1 trials of sums" in done.output and "by success of rft (max)" in done.output
