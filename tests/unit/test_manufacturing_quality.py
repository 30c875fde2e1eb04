"""The manufacturing recipes: two that differ by general data alone, their factory texts, and what their plan says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.envs.builtin.inspection.corpus import documents, factory_texts, logs, vocabulary
from burnish.envs.builtin.inspection.parts import FEATURE_NAMES, Feature, make_part
from burnish.envs.builtin.inspection.wording import standard
from burnish.envs.types import Message, Task
from burnish.recipe.load import load_config
from burnish.recipe.plan import make_plan
from burnish.recipe.resolve import resolve
from burnish.rewards.build import make_reward
from burnish.rewards.types import RewardInput, Scorer
from burnish.run.folder import differences
from burnish.trainer.data.task_files import read_task_files
from burnish.trainer.models.importing import ModelSize, new_model

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
BLENDED, OWN_ONLY = RECIPES / "manufacturing-quality.toml", RECIPES / "manufacturing-quality-own-only.toml"


def test_the_two_differ_by_general_data_alone() -> None:
    records: list[Any] = [resolve(load_config(file, ["model=nano"])).record for file in (BLENDED, OWN_ONLY)]
    assert {one.field for one in differences(*records)} == {
        "name", "cpt.blend_ratio", "cpt.curated", "sft.blend_ratio", "sft.curated", "rft.blend",
    }  # fmt: skip


@pytest.mark.parametrize("file", [BLENDED, OWN_ONLY], ids=lambda file: file.stem)
def test_their_plan_is_whole(file: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    new_model(vocabulary(0, 300), model, ModelSize(hidden=64, layers=1, heads=2, intermediate=32, vocab_size=400, max_position=2048))
    plan = make_plan(resolve(load_config(file, [f"model={model}", "engine.max_context=1600"])))
    assert [phase.name for phase in plan.phases] == ["cpt", "sft", "rft", "evaluation", "retention"]
    (kept,) = [phase.work for phase in plan.phases if phase.name == "retention"]
    assert kept.startswith("5 times burnish/plain-english-v1: ") and "at least 95% of each kept" in kept
    assert ("75.00% own" in plan.phases[0].work) == (file is BLENDED)


@pytest.mark.parametrize("name", FEATURE_NAMES)
def test_a_standard_says_what_the_verdict_will_be(name: str) -> None:
    rule = standard(name, 20)
    for deviation, words in ((20, "within: pass"), (-21, "Below -20: "), (21, "Above +20: ")):
        feature = Feature(name, 25_000, 20, deviation)
        said = re.search(re.escape(words) + r"([a-z]+: )?([a-z]+)\." if deviation != 20 else re.escape(words), rule)
        assert said is not None
        if deviation != 20:
            assert (said[1], said[2]) == (f"{feature.reason}: ", feature.verdict)


def test_factory_texts_are_standards_and_shop_floor_text() -> None:
    texts = list(factory_texts(3, 400))
    standards = [text for text in texts if text.startswith("Standard ")]
    assert 70 <= len(standards) <= 130 and list(factory_texts(3, 400)) == texts
    assert set(texts) - set(standards) <= set(documents(3, 400))


def test_the_page_shows_a_log_with_the_verdict_that_is_right_and_the_recipes_figures() -> None:
    page = (ROOT / "docs" / "manufacturing-quality.md").read_text()
    config = load_config(BLENDED)
    assert config.sft is not None and config.cpt is not None and config.sft.blend_ratio == config.cpt.blend_ratio == 0.75
    (log,) = logs(10, 1, error=0.25, repeat=0.2, notes=True)
    wrong, part = log[-1].text.splitlines()[-1], make_part(10, 0)
    said = [line for message in log[1:] for line in message.text.splitlines()]
    assert f"`{wrong}`" in page and all(line in page for line in said[:-1])
    assert f"verdict: {part.verdict}; reason: {part.reasons[0]}" in page and part.verdict not in wrong
    assert f"`error = {config.sft.args['error']}`" in page and f"`repeat = {config.sft.args['repeat']}`" in page
    assert f"{config.evaluation.tasks} held-out parts" in page and [entry.weight for entry in config.rewards] == [1.0, 0.2]


async def test_the_files_of_ones_own_on_the_page_are_planned_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, _, page = (ROOT / "docs" / "manufacturing-quality.md").read_text().partition("## 5. Your own parts")
    for name, text in re.findall(r"^`([\w.-]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        Path(name).write_text(text)
    (contamination, run) = re.findall(r"^burnish (.*)$", page, re.MULTILINE)
    done = CliRunner().invoke(app, contamination.split())
    assert done.exit_code == 0 and done.output.startswith("0 of 1 rows"), done.output
    new_model(
        ["verdict: scrap; reason: undersize"],
        tmp_path / "model",
        ModelSize(hidden=32, layers=1, heads=1, intermediate=32, vocab_size=300, max_position=2048),
    )
    config = load_config(Path(run.split()[1]), ["model=model"])
    plan = make_plan(resolve(config))
    assert [phase.name for phase in plan.phases] == ["cpt", "sft", "rft", "evaluation", "retention"]
    assert "75.00% own" in plan.phases[0].work and "75.00% own" in plan.phases[1].work
    scorer = cast(Scorer, make_reward(config.rewards[0]))
    assert config.tasks is not None
    for row in read_task_files(config.tasks).train:
        for said, value in (
            (f"verdict: {row.data['verdict']}; reason: {row.data['reason']}", 1.0),
            ("verdict: rework; reason: oversize", 0.0),
        ):
            messages = (*row.messages, Message("assistant", said))
            episode = RewardInput("a/0", Task(row.id, 0, row.messages, row.data), messages, 0.0, data=row.data)
            assert (await scorer.score(episode)).value == value
