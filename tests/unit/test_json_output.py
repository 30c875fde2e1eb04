"""What a program reads: `--json` of the commands that have it, as it runs them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.unit.command_tree import commands
from tests.unit.guard_policy import TOML
from tests.unit.paper_model import write_paper_model
from tests.unit.test_compare import make_run
from tests.unit.test_core_cli_data import run_folder, talk, transcript, write
from tests.unit.test_models_registry import trained
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.cli.tune import tune
from burnish.recipe.load import config_from_data
from burnish.recipe.plan import make_plan
from burnish.recipe.plan_row import plan_row
from burnish.recipe.resolve import resolve
from burnish.run.tuning import Tried, Tuned
from burnish.trainer.models.importing import ModelSize, new_model

pytestmark = pytest.mark.unit

PAGE = Path(__file__).resolve().parents[2] / "docs" / "exit-codes.md"
SIZE = ModelSize(hidden=32, layers=1, heads=1, intermediate=32, vocab_size=280, max_position=64)
ESCAPE = "\x1b[31m"
REWARD = """
from burnish import RewardInput, reward

@reward("told/loud-v1")
def loud(episode: RewardInput, most: int = 9) -> float:
    '''Counts, and talks while it does.'''
    print("a word on stdout")
    return float(min(most, len(episode.messages))) / most
"""


def told(*arguments: str | Path, code: int = 0) -> Any:
    """What a command prints with `--json`: one value, ASCII, on one line."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == code, done.output
    assert done.stdout.isascii() and done.stdout.count("\n") == 1
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, the second made from the first."""
    folder = tmp_path_factory.mktemp("json") / "models"
    new_model(["some text to train on"], folder / "tiny", SIZE)
    return folder


def test_the_page_lists_every_command_that_prints_json() -> None:
    listed = set[str]()
    for row in re.findall(r"^\| [a-z]+ \| (`burnish .*) \|$", PAGE.read_text(), re.MULTILINE):
        group = ""
        for words in re.findall(r"`([a-z][a-z -]*)`", row):
            of_group, _, name = words.removeprefix("burnish ").rpartition(" ")
            group = of_group if words.startswith("burnish ") else group
            listed.add(f"{group} {name}".strip())
    have = {name for name, command in commands().items() if any("--json" in one.opts for one in command.params)}
    assert listed == have and len(have) > 45


def test_models(models: Path, tmp_path: Path) -> None:
    trained(models / "tiny", models / "moved", 0.5)
    where = ("--models-dir", models)
    rows = {row["name"]: row for row in told("models", "list", *where)}
    assert set(rows) == {"tiny", "moved"} and rows["moved"]["stage"] == "sft" and rows["tiny"]["parameters"] > 0
    shown = told("models", "show", "moved", *where)
    assert shown["digest"] == rows["moved"]["digest"] and "model.safetensors" in shown["files"]
    assert told("models", "lineage", "moved", *where)[0]["digest"] == rows["moved"]["digest"]
    checked = told("models", "check", "tiny", *where)
    assert (checked["layout"], checked["digest"]) == ("burnish", rows["tiny"]["digest"])
    compared = told("models", "compare", "tiny", "moved", *where)
    assert compared["models"] == ["tiny", "moved"] and compared["relative"] > 0 and compared["facts"]["stage"] == ["none", "sft"]
    assert told("models", "merge", "tiny", "moved", "both", *where)["name"] == "both"
    assert told("models", "export", "tiny", tmp_path / "out", *where)["folder"] == str(tmp_path / "out")
    again = told("models", "import", tmp_path / "out", "--name", "again", *where)
    assert again["same_as"] == ["tiny"]
    assert told("models", "new", "fresh", "--seed", "7", *where)["architecture"] == "LlamaForCausalLM"
    assert told("models", "delete", "both", *where)["digest"] and "both" not in {row["name"] for row in told("models", "list", *where)}


def test_a_model_that_is_not_sound(models: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(models / "tiny", broken)
    (broken / "tokenizer_config.json").write_text("{}")
    for layout, word in (("burnish", "tokenizer_config.json"), ("bedrock", "")):
        asked = ["models", "check", str(broken), "--layout", layout]
        plain, done = CliRunner().invoke(app, asked), CliRunner().invoke(app, [*asked, "--json"])
        found = json.loads(done.stdout)
        assert (found["folder"], found["layout"]) == (str(broken.resolve()), layout) and word in found["problems"][0]
        assert plain.exit_code == done.exit_code == 2 and plain.stdout == "" and plain.stderr == done.stderr
        assert all(problem in done.stderr for problem in found["problems"])
    assert told("models", "check", models / "tiny")["problems"] == []


def test_a_policy(tmp_path: Path) -> None:
    file = tmp_path / "bank.toml"
    file.write_text(TOML)
    whole = told("guard", "check", file)
    assert whole["policy"].endswith(f"@{whole['digest'][:12]}") and whole["broken"] == []
    facts = {"kind": "safety", "always_on": True, "enabled": True, "action": "refuse", "where": ["input", "output"]}
    assert whole["categories"]["weapons"] == {**facts, "found_by": ["explosives", "agents"]}
    assert "email" in whole["categories"]["personal"]["found_by"]
    file.write_text(f'{TOML}\n[[allowed]]\nname = "history"\nexamples = ["who made nerve gas first"]\n')
    assert told("guard", "check", file, code=1)["broken"] == ["allowed.history: refuse by agents: 'who made nerve gas first'"]


def test_data(tmp_path: Path) -> None:
    place = write(tmp_path / "a.jsonl", talk(f"Is part nine {ESCAPE} here?"), talk("is part nine [31m here"), {"what": 1})
    other = write(tmp_path / "b.jsonl", talk("Is part nine [31m here?"))
    checked = told("data", "check", place, code=1)
    assert (checked["rows"], checked["unfit"]) == ({"conversation": 2}, 1) and "a.jsonl:3" in checked["problems"][0]
    (sizes,) = told("data", "stats", place)
    assert (sizes["rows"], sizes["unfit"], sizes["tokens"]) == (2, 1, None)
    assert sizes["characters"]["all"] == sizes["characters"]["mean"] * 2
    found = told("data", "contamination", place, "--against", other, code=1)
    assert (found["rows"], found["unfit"], found["found"][0]["share"]) == (1, 1, 1.0)
    repeated = told("data", "dedup", place)
    assert (repeated["new"], repeated["exact"], repeated["duplicates"][0]["of"]) == (1, 1, f"{place}:1")
    assert "burnish/general-v1" in {row["id"] for row in told("data", "catalog")}
    sets = told("data", "catalog", "burnish/general-v1", "--show", "1")["sets"]
    assert sets and all(len(one["sha256"]) == 64 for one in sets.values())
    run = run_folder(tmp_path, {}, [{"phase": "rft", "step": 4}])
    write(run / "transcripts" / "episodes.jsonl", transcript("train-9", 1, None), transcript("train-9", 0, 0.25))
    traced = told("data", "trace", run, "4")
    assert [row.get("reward") for row in traced["rollouts"]] == [0.25, None]
    assert traced["rollouts"][1]["failure"] == {"kind": "env_error", "culprit": "bench"}


def test_environments_and_rewards(tmp_path: Path) -> None:
    plugin = tmp_path / "loud.py"
    plugin.write_text(REWARD)
    assert "burnish/Arithmetic-v0" in {row["id"] for row in told("env", "list")}
    assert {"id": "told/loud-v1", "source": f"{plugin}:loud"} in told("rewards", "list", "--plugin", plugin)
    shown = told("rewards", "show", "told/loud-v1")
    assert shown["options"] == [{"name": "most", "type": "int", "default": "9", "description": ""}] and shown["timeout_s"] == 10
    (report,) = told("rewards", "check", "told/loud-v1")
    assert report["passed"] and {"name", "status", "detail"} == set(report["checks"][0])
    rows = write(tmp_path / "rows.jsonl", talk("2 + 2?"))
    (row,) = told("rewards", "try", "told/loud-v1", rows)
    assert row["score"] == pytest.approx(2 / 9)
    (report,) = told("env", "check", "burnish/Arithmetic-v0")
    assert report["subject"] == "burnish/Arithmetic-v0" and not report["failed"]


def test_a_check_that_fails_prints_its_reports_too(tmp_path: Path) -> None:
    plugin = tmp_path / "wrong.py"
    plugin.write_text(REWARD.replace("loud", "wrong").replace("return float", "return 'much' or float"))
    done = CliRunner().invoke(app, ["check", str(plugin), "--json"])
    assert done.exit_code == 2 and done.stderr.endswith("error: told/wrong-v1 does not keep the contract\n")
    (report,) = json.loads(done.stdout)
    assert report["failed"] and "fail" in {check["status"] for check in report["checks"]}


def test_a_plan(tmp_path: Path) -> None:
    model = write_paper_model(tmp_path / "tiny")
    given = {"name": "p", "model": str(model), "environment": "burnish/Arithmetic-v0", "rft": {"steps": 3, "group_size": 2}}
    row = json.loads(json.dumps(plan_row(make_plan(resolve(config_from_data(given))), ["rehearsed"]), allow_nan=False))
    assert (row["run"], row["model"]["parameters"], row["rehearsal"]) == ("p", 420, ["rehearsed"])
    assert [phase["phase"] for phase in row["phases"]] == ["rft", "evaluation"]
    assert row["at_most_s"] > row["phases"][0]["at_most_s"] > 0
    done = CliRunner().invoke(app, ["run", "r.toml", "--json"])
    assert done.exit_code == 2 and "--json is of --dry-run" in done.stderr


def test_a_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = Tried(1, ("rft.lr=1e-06",), "finished", 4, 0.25)
    monkeypatch.setattr("burnish.run.tuning.tune", lambda *given: Tuned(tmp_path, (best,), "loss", "min", best, "burnish run r.toml"))
    tune(tmp_path / "r.toml", ["rft.lr=[1e-6, 1e-5]"], as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["best"], found["metric"], found["folder"]) == (1, "loss", str(tmp_path))
    assert found["trials"][0]["overrides"] == ["rft.lr=1e-06"] and found["trials"][0]["score"] == 0.25


def test_a_bundle_and_what_only_serves(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "first", 0, 1e-5)
    made = told("inspect", run.parent, "--bundle", tmp_path / "pages")
    assert made["file"] == str(tmp_path / "pages" / "index.html") and made["runs"] == 1
    done = CliRunner().invoke(app, ["inspect", str(run.parent), "--json"])
    assert done.exit_code == 2 and "--json is of a bundle" in done.stderr
