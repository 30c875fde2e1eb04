"""The drug discovery recipes: two that differ by general data alone, what their plan says, and what they are trained and measured on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from burnish.envs.builtin.drug_discovery.cases import make_case
from burnish.envs.builtin.drug_discovery.corpus import notebooks, vocabulary
from burnish.envs.builtin.drug_discovery.wording import parse_smiles
from burnish.recipe.load import load_config
from burnish.recipe.plan import make_plan
from burnish.recipe.resolve import resolve
from burnish.run.folder import differences
from burnish.trainer.models.importing import ModelSize, new_model

pytestmark = pytest.mark.unit

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
BLENDED, OWN_ONLY = RECIPES / "drug-discovery.toml", RECIPES / "drug-discovery-own-only.toml"


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


def test_what_is_trained_on_is_of_one_side_and_what_is_measured_of_the_other() -> None:
    config = load_config(BLENDED)
    train, held_out = config.train_seeds, config.evaluation.seeds
    assert not any(make_case(seed, 0).molecule.held_out for seed in (train[0], train[1] - 1))
    assert all(make_case(seed, 0).molecule.held_out for seed in (held_out[0], held_out[1] - 1))


def test_the_history_needs_judgement_beyond_it() -> None:
    """Between half and four fifths of the notebooks' molecules meet their goals: something to begin with, and something to gain."""
    table = load_config(BLENDED).sft
    assert table is not None
    right = 0
    for seed, talk in enumerate(notebooks(0, 600, **table.args)):
        case = make_case(seed, 0)
        right += parse_smiles(talk[-1].text) in {case.molecule.exchanged(exchange).smiles for exchange in case.fitting}
    assert 0.5 < right / 600 < 0.8
