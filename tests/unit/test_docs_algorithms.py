"""The page "algorithms": its table is what the names are written out to, its recipes are read, and its own objectives train."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.unit.one_step import made_the_better_more_likely, make_policy, played

from burnish.trainer.objectives.losses import KL_ESTIMATES
from burnish.trainer.objectives.presets import PRESETS
from burnish.trainer.objectives.registry import OBJECTIVES, Advantage, full_id
from burnish.trainer.phases.rft import RFTPhaseConfig

pytestmark = pytest.mark.unit

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "algorithms.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table whose heading row begins so."""
    lines = PAGE[PAGE.index(f"| {heading} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def test_docs_the_table_is_what_the_names_stand_for() -> None:
    found = rows("algorithm")
    assert [row[0] for row in found] == list(PRESETS)
    for name, advantage, loss, bounds, aggregation, minibatches, further in found:
        phase = RFTPhaseConfig.model_validate({"algorithm": name, "objective": {"kl_coef": 0.1}})
        objective = phase.objective
        assert (objective.advantage, objective.loss, objective.aggregation) == (advantage, loss, aggregation)
        assert (list(objective.loss_args.values()), phase.minibatches) == ([float(x) for x in bounds.split(",") if x], int(minibatches))
        assert ("overlong" in further, "KL" in further) == (objective.overlong.action == "penalty", objective.kl_in == "reward")
        assert ("keep" in further) == (phase.equal_groups == "keep")


def test_docs_every_advantage_and_loss_has_its_row() -> None:
    ids = [listing.id for listing in OBJECTIVES.list() if listing.id.startswith("burnish/")]
    listed = {kind: {full_id(row[0].split("`")[0]) for row in table} for kind, table in kinds().items()}
    assert listed["advantages"] == {id for id in ids if isinstance(OBJECTIVES.get(id), Advantage)}
    assert listed["losses"] == {id for id in ids if not isinstance(OBJECTIVES.get(id), Advantage)} - {
        full_id("cross_entropy"),
        full_id("dpo"),
    }
    assert {row[0] for row in rows("`kl`")} == set(KL_ESTIMATES)


def kinds() -> dict[str, list[list[str]]]:
    return {"advantages": rows("name | A of every token of an episode | source"), "losses": rows("name | loss | source")}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("models") / "recorded")


def test_docs_its_recipes_are_read_and_its_own_objectives_train(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (own,) = blocks("python")
    assert len(own.splitlines()) <= 40
    (tmp_path / "my_objectives.py").write_text(own)
    named, *others, plain = (tomllib.loads(text)["rft"] for text in blocks("toml"))
    assert RFTPhaseConfig.model_validate(named).objective.loss == "gspo"
    for other in others:
        RFTPhaseConfig.model_validate(other)
    table: dict[str, Any] = {"groups_per_step": 4, "group_size": 4, "lr": 3e-4, **plain}
    loop, step = played(policy, RFTPhaseConfig.model_validate(table))
    assert made_the_better_more_likely(loop, step)
