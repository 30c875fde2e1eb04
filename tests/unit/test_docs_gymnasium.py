"""What the page on ordinary Gymnasium environments says to paste keeps the contract."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from tests.unit.test_docs_all_pages import ROOT, blocks

from burnish.envs.checks.environment import check_environment, render
from burnish.envs.contract import make_env

pytestmark = pytest.mark.unit

PAGE = ROOT / "docs" / "gymnasium-environments.md"


def test_the_words_of_the_page_play_the_environment_of_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (words,) = blocks(PAGE, "python")
    (tmp_path / "words.py").write_text(words)
    (table,) = blocks(PAGE, "toml")
    recipe = tomllib.loads(table)
    report = check_environment(recipe["environment"], recipe["environment_args"], (0, 1), replies=["right"], other_process=False)
    assert report.passed, render(report)
    env = make_env(recipe["environment"], **recipe["environment_args"])
    (first,), _ = env.reset(seed=1)
    assert "the flag at +0.50" in first.text
    (answer,), *_ = env.step("backwards")
    assert answer.text == "Answer left, wait or right."
    assert recipe["success"].removeprefix("env.") in env.step("Right.")[4]["reward_parts"]
