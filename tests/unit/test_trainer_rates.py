"""The rate of reinforcement that a recipe leaves out: by size, by method, and written out where the model is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from burnish.recipe.load import config_from_data
from burnish.recipe.resolve import ResolvedRun, resolve
from burnish.run.folder import create_run
from burnish.trainer.learner.config import LoRAConfig
from burnish.trainer.models.importing import ModelSize, new_model
from burnish.trainer.phases.common import phase_optimizer
from burnish.trainer.phases.rates import ADAPTERS, HIGHEST, LOWEST, default_rate, with_rate
from burnish.trainer.phases.rft import RFTPhaseConfig

pytestmark = pytest.mark.unit


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that reads like a model of less than 100,000 parameters."""
    folder = tmp_path / "model"
    new_model(["part one bore", "part two limit"] * 20, folder, ModelSize(hidden=32, layers=1, heads=1, intermediate=32, vocab_size=300))
    return folder


def recipe(model: Path | str, **tables: Any) -> ResolvedRun:
    return resolve(
        config_from_data({"name": "r", "model": str(model), "environment": "burnish/Arithmetic-v0", "platform": "cpu", **tables})
    )


def test_the_rate_falls_as_the_model_grows_within_bounds() -> None:
    assert default_rate(135_000_000) == 1e-4
    assert default_rate(270_000_000) == 5e-5
    assert default_rate(1_540_000_000) == 8.8e-6
    assert default_rate(7_000_000_000) == 1.9e-6
    assert default_rate(32_000_000_000) == LOWEST
    assert default_rate(3_500_000) == HIGHEST
    assert default_rate(135_000_000, LoRAConfig()) == pytest.approx(ADAPTERS * 1e-4)


def test_the_resolved_recipe_and_its_record_say_the_rate(model: Path, tmp_path: Path) -> None:
    full, lora = recipe(model), recipe(model, learner={"lora": {"rank": 4}})
    assert full.phase("rft").optimizer.lr == HIGHEST and lora.phase("rft").optimizer.lr == pytest.approx(10 * HIGHEST)
    assert full.record["rft"]["lr"] == HIGHEST
    folder = create_run(full, run_dir=tmp_path / "run")
    assert json.loads(folder.config_file.read_text())["rft"]["lr"] == HIGHEST
    assert folder.recipe().phase("rft").optimizer.lr == HIGHEST
    assert list(folder.differences(recipe(model))) == [], "a run that began with the default resumes with it"


def test_what_a_recipe_says_counts_first(model: Path) -> None:
    assert recipe(model, rft={"lr": 3e-5}).phase("rft").optimizer.lr == 3e-5
    assert with_rate(RFTPhaseConfig(lr=2e-5), model, LoRAConfig()).lr == 2e-5


def test_without_the_model_there_is_no_rate_yet() -> None:
    waiting = recipe("pypi:llm-nowhere==1.0")
    assert waiting.record["rft"]["lr"] is None
    with pytest.raises(ValueError, match="the default follows from the model's size, and the model is not here yet"):
        _ = waiting.phase("rft").optimizer
    with pytest.raises(ValueError, match="write a rate"):
        phase_optimizer(waiting.learner.optimizer, RFTPhaseConfig())
