"""docs/grounded-answers.md: its sheet, its answers and what they earn are the code's, and its figures the recipe's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.envs.builtin.grounded.sheets import NOT_KNOWN, TRAIN_SEEDS, Case, SheetLine
from burnish.recipe.load import load_config

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "grounded-answers.md").read_text()


def test_its_sheet_is_one_that_the_environment_asks_about() -> None:
    case = Case((SheetLine("K", {"due": "Friday", "part": "gears", "pieces": "30"}), SheetLine("K", {"pieces": "40"})), "K", "pieces", 1)
    assert f"```text\n{case.text}\n```" in PAGE
    assert case.kind == "contradicting" and f"| {NOT_KNOWN} |" in PAGE


def test_its_answers_earn_what_it_says(tmp_path: Path) -> None:
    (answers,) = re.findall(r"^```jsonl\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "answers.jsonl").write_text(answers)
    tried = CliRunner().invoke(app, ["rewards", "try", "burnish/abstention-v1", str(tmp_path / "answers.jsonl"), "--json"])
    assert tried.exit_code == 0, tried.output
    earned = [row["score"] for row in json.loads(tried.stdout)]
    assert earned == [1, -1, -1, 0] and "They earn 1, −1, −1 and 0." in PAGE


def test_its_figures_are_the_recipes() -> None:
    config = load_config(ROOT / "recipes" / "grounded-answers.toml")
    (habit,) = [table.model_dump() for table in config.phases if table.name == "habit"]
    assert f"`unsure = {habit['args']['unsure']}`" in PAGE
    assert f"{config.evaluation.tasks} held-out sheets are asked, sampled and greedy" in PAGE
    assert f"{TRAIN_SEEDS:,}" in PAGE and f"models new {config.model} " in PAGE
