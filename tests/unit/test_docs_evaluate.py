"""docs/evaluate.md: its files, pasted, and its commands, run on them; the engine is scripted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_docs_blend_data import paste

from burnish.recipe.load import load_config
from burnish.recipe.plan import make_plan
from burnish.recipe.resolve import resolve
from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.worker import RolloutWorker, WorkerSetup
from burnish.run import suites
from burnish.trainer.evaluation.alone import LoneFleet
from burnish.trainer.evaluation.suites.scores import ItemScore, Scores
from burnish.trainer.evaluation.suites.suite import SUITES
from burnish.trainer.evaluation.suites.transitions import change
from burnish.trainer.models.importing import ModelSize, new_model

pytestmark = pytest.mark.unit

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "evaluate.md").read_text()
FILES: Mapping[str, str] = dict(re.findall(r"^`([\w./]+)`[^`\n]*:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS: Sequence[str] = [text for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if not kind]


def follow(folder: Path, commands: str) -> str:
    """What a block of commands prints for somebody who follows the page: only the files that it has shown before are there."""
    before = PAGE[: PAGE.index(f"```\n{commands}```")]
    for name, text in FILES.items():
        if f"`{name}`" in before and text in before:
            (folder / name).write_text(text)
    return paste(commands)


@contextmanager
def scripted_fleet(setup: WorkerSetup, name: str, stall_s: float) -> Iterator[LoneFleet]:
    worker = RolloutWorker(setup, name, engine=ScriptedEngine([[65, 66]], max_context=setup.engine.max_context))
    try:
        yield LoneFleet(worker, stall_s)
    finally:
        worker.close()


def test_the_page_measures_compares_and_brings_a_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suites, "lone_fleet", scripted_fleet)
    monkeypatch.setattr("burnish.cli.evaluate_command.needs_engine", lambda command: None)
    size = ModelSize(hidden=32, layers=1, heads=1, intermediate=48, vocab_size=300, max_position=1024)
    new_model(["Which of these is a fruit?"], tmp_path / "models" / "smollm2", size)
    _, look, calls, measure, compare, plan, own, python = (partial(follow, tmp_path, text) for text in COMMANDS)
    said = look()
    assert all(f"`{row.id}`" in PAGE and row.id in said for row in SUITES.list() if row.id.startswith("burnish/"))
    assert "chance 25%" in said and "'choice': 'A'" in said
    said = calls()
    assert "1 items, played by burnish/FunctionCalls-v0, judged by itself" in said and "Where is order 17?" in said
    assert "burnish/plain-english-v1: perplexity 1.65 [1.65, 1.65] of 20 texts" in measure(), "e to the half"
    compared = compare()
    assert "0 lost, 0 gained, n = 20" in compared and "perplexity 1.65 -> 1.65, retention 1.000" in compared
    assert "retention" in plan()
    said = own()
    assert "my-team/support-v1: 0.0%" in said and "2 items, played by" in said, "as many as the file has"
    assert "{'checks': {'number': 0}}" in python()


def test_the_recipe_of_the_page_is_one_and_its_plan_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text(FILES["recipe.toml"])
    (tmp_path / "talks.jsonl").write_text(FILES["talks.jsonl"])
    size = ModelSize(hidden=32, layers=1, heads=1, intermediate=48, vocab_size=300, max_position=1024)
    new_model(["Which of these is a fruit?"], tmp_path / "models" / "smollm2", size)
    plan = make_plan(resolve(load_config(tmp_path / "recipe.toml")))
    (work,) = [phase.work for phase in plan.phases if phase.name == "retention"]
    assert work == "3 times burnish/choices-v1, burnish/plain-english-v1: at least 95% of each kept, at most 10% of the items lost"
    (sampled,) = [phase.sampled_tokens for phase in plan.phases if phase.name == "retention"]
    assert sampled == 3 * 50 * 16, "three times 50 answers of 16 tokens; texts are only read"


def test_the_numbers_of_the_page_are_those_of_the_code() -> None:
    def scores(right: Sequence[int]) -> Scores:
        rows: list[Any] = [ItemScore(str(i), 0, i, float(one), "", 1) for i, one in enumerate(right)]
        return Scores("a/a-v1", "answers", 1.0, 0.25, 0.0, tuple(rows))

    found = change(scores([1] * 64 + [0] * 36), scores([1] * 50 + [0] * 14 + [1] * 10 + [0] * 26))
    assert f"retention {found.retention:.3f}; {found.forgotten:.1%}".replace("%", " %") in PAGE.replace("\n", " ")
    assert f"{found.learned:.1%}".replace("%", " %") in PAGE
