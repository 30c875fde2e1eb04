"""What a plan says of the order of phases, on the model that each of them will find."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from burnish.recipe.doubts import order_doubts
from burnish.recipe.load import config_from_data
from burnish.recipe.resolve import resolve
from burnish.trainer.models.manifest import Ancestor, Stage
from burnish.trainer.phases.transitions import TRANSITIONS, doubts, standing

pytestmark = pytest.mark.unit

ROWS = {"steps": 4, "generate": "m:f"}
CURATED = {**ROWS, "blend_ratio": 0.75, "curated": True}
DOCUMENTS, IMITATION = TRANSITIONS[-2].why, TRANSITIONS[-1].why


@pytest.mark.parametrize(
    ("stages", "phases", "said"),
    [
        (["none", "post-training"], [{"kind": "sft", **ROWS}], [f"phase sft on a model of stage post-training: {IMITATION}"]),
        (["none", "post-training"], [{"kind": "sft", **CURATED}], []),
        (
            ["none", "post-training"],
            [{"kind": "sft", **CURATED, "blend_ratio": 1.0}],
            [f"phase sft on a model of stage post-training: {IMITATION}"],
        ),
        (["none", "post-training"], [{"kind": "cpt", **CURATED}, {"kind": "sft", **CURATED}, {"kind": "rft"}], []),
        (["none", "sft"], [{"kind": "cpt", **ROWS}, {"kind": "sft", **ROWS}], []),
        (["none", "sft"], [{"kind": "cpt", **ROWS}, {"kind": "rft"}], [f"phase cpt on a model of stage sft: {DOCUMENTS}"]),
        (["none", "sft", "mid-training"], [{"kind": "rft"}], []),
        ([], [{"kind": "cpt", **ROWS}, {"kind": "rft"}], []),
        ([], [{"kind": "rft"}, {"kind": "cpt", **ROWS}], [f"phase cpt on a model of stage rft: {DOCUMENTS}"]),
    ],
)
def test_a_plan_doubts_neither_what_a_recipe_does_nor_what_a_model_was_taught_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: list[Stage], phases: list[dict[str, Any]], said: list[str]
) -> None:
    lineage = tuple(Ancestor(digest=f"{i:064x}", name="x", stage=stage) for i, stage in enumerate(stages[:-1]))
    found = SimpleNamespace(stage=stages[-1], lineage=lineage) if stages else None
    monkeypatch.setattr("burnish.recipe.doubts.own_manifest", lambda _: found)
    run = resolve(
        config_from_data({"name": "x", "model": "m", "environment": "burnish/Arithmetic-v0", "platform": "cpu", "phases": phases})
    )
    assert list(order_doubts(run.phases, tmp_path, [50] * len(phases))) == said


def test_general_texts_beside_documents_are_no_talks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "A river flows to the sea."}\n')
    said = 'id = "my-team/general-v1"\n[sets.texts]\nfile = "texts.jsonl"\nabout = "Texts."\nlicence = "MIT"\n'
    (tmp_path / "catalog.toml").write_text(said)
    monkeypatch.setattr("burnish.recipe.doubts.own_manifest", lambda _: SimpleNamespace(stage="sft", lineage=()))
    data = {"name": "x", "model": "m", "environment": "burnish/Arithmetic-v0", "platform": "cpu"}
    for catalogs, doubted in (([str(tmp_path)], True), ([str(tmp_path), "burnish/general-v2"], False)):
        phases = [{"kind": "cpt", **CURATED, "curated": catalogs}, {"kind": "rft"}]
        run = resolve(config_from_data({**data, "phases": phases}))
        assert bool(list(order_doubts(run.phases, tmp_path, [50, None]))) is doubted


def test_documents_make_no_base_model_of_one_that_was_taught_to_answer() -> None:
    assert standing(["sft", "rft", "mid-training"]) == "rft"
    assert standing(["none", "mid-training"]) == "mid-training" and list(doubts("mid-training", "rft"))
