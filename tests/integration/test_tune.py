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

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tune.md").read_text()


def test_docs_the_page_finds_the_rate_that_learns(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text.replace('"smollm2"', json.dumps(str(tiny_model))))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(trials, "PROGRAM", (sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.integration.scripted_trial"))
    command, *_ = re.findall(r"^```\nburnish (tune .*?)$", PAGE, re.MULTILINE)
    done = CliRunner().invoke(app, [*shlex.split(command), "--run-dir", "tuned"])
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
