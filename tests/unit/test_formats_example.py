"""examples/formats: a recipe on tasks out of a file, judged by grader JSON and by a reward Lambda, works as it is."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from burnish.cli.main import app
from burnish.envs.types import Message
from burnish.recipe.components import check_components
from burnish.recipe.load import config_from_data, load_config
from burnish.recipe.resolve import resolve
from burnish.rewards.plugin import make_scorer
from burnish.rewards.types import RewardInput, Score
from burnish.trainer.data.task_files import read_task_files

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def scores(answer: str) -> tuple[Score, Score]:
    """What the two rewards of the recipe give an answer to the first held-out row."""
    config = load_config("examples/formats/recipe.toml")
    assert config.tasks is not None
    task = read_task_files(config.tasks).held_out_tasks(1)[0]
    episode = RewardInput(f"{task.id}/0", task, (*task.prompt, Message("assistant", answer)), 0.0, data=task.data)

    async def both() -> tuple[Score, Score]:
        grader, handler = (make_scorer(str(entry.use), params=entry.args) for entry in config.scorers)
        return await grader.score(episode), await handler.score(episode)

    return asyncio.run(both())


def test_the_recipe_finds_all_its_parts() -> None:
    config = load_config("examples/formats/recipe.toml")
    check_components(resolve(config))
    assert [entry.name for entry in config.scorers] == ["openai-grader", "reward-lambda"]


def test_both_rewards_judge_as_they_should() -> None:
    row = json.loads(Path("examples/formats/held_out.jsonl").read_text().splitlines()[0])
    right = row["reference_answer"]
    assert scores(json.dumps(right)) == (
        Score(1.0, {"verdict": 1.0, "reason": 1.0, "reason.passed": 1.0}),
        Score(1.0, {"form": 1.0, "verdict": 1.0}),
    )
    grader, handler = scores(json.dumps({**right, "ship": not right["ship"]}))
    assert (grader.value, grader.parts["verdict"], handler.value) == (0.0, 0.0, 0.2)
    grader, handler = scores("Yes, we can.")
    assert (grader.value, grader.parts["verdict.unreadable"], handler.value) == (0.0, 1.0, 0.0)


def test_what_the_page_shows_works(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "formats.md").read_text()
    for name in ("handler.py", "grader.json", "recipe.toml"):
        assert (ROOT / "examples" / "formats" / name).read_text().strip() in page, f"docs/formats.md and examples/formats/{name} differ"
    commands = re.findall(r"^\.venv/bin/burnish (rewards try .*)$", page, re.MULTILINE)
    for command in commands:
        app(shlex.split(command), standalone_mode=False)
    shown = capsys.readouterr().out
    assert (len(commands), shown.count("3 scored: mean")) == (2, 2)


def test_tables_of_the_page_are_accepted() -> None:
    base = {"name": "page", "model": "m", "environment": "burnish/SingleTurn-v0"}
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "formats.md").read_text(), re.DOTALL)
    for block in blocks:
        data = tomllib.loads(block)
        tasks = {"tasks": {"train": "examples/formats/train.jsonl", "held_out": "examples/formats/held_out.jsonl"}}
        config_from_data({**base, **tasks, **data}, "docs/formats.md")
    assert len(blocks) >= 4
