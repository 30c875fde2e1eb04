"""docs/drug-discovery.md: its request and figures are the code's; tests/integration/test_drug_discovery_service.py runs its commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from burnish.envs.builtin.drug_discovery import wording
from burnish.envs.builtin.drug_discovery.cases import FEWEST, LEVELS, MOST, TRAIN_SEEDS, Case, make_case
from burnish.envs.builtin.drug_discovery.fragments import GROUPS, LINKERS, RINGS
from burnish.envs.builtin.drug_discovery.goals import Goal
from burnish.envs.builtin.drug_discovery.molecules import Exchange, Molecule
from burnish.guardrails.policy import load_policy
from burnish.recipe.load import load_config
from burnish.rewards.builtin import drug_discovery as worth

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "drug-discovery.md").read_text()
FLOWING = " ".join(PAGE.split())


def test_its_request_is_what_the_environment_says() -> None:
    molecule = Molecule(("benzene", "thiophene"), "amide", ("O", "Cl"))
    case = Case(1, molecule, (Goal("donors", "at_most", 1), Goal("logp", "at_least", 3.3)), moves=1)
    exchange = Exchange(0, "OC")
    assert exchange in case.fitting
    assert f"```text\n{wording.request(case)}\n```" in PAGE
    assert f"`{wording.answer(case, exchange, notes=False)}`" in PAGE and f"`{wording.note(case, exchange)}`" in PAGE
    assert f"`{wording.group_fact(molecule, exchange)}`" in FLOWING


def test_its_figures_are_the_codes() -> None:
    table = PAGE.partition("| | worth |")[2].partition("\n\n")[0]
    assert [float(value) for value in re.findall(r"\| ([\d.]+) \|$", table, re.MULTILINE)] == [
        worth.VALID, worth.FAIR, worth.GOALS, worth.SUCCESS,
    ]  # fmt: skip
    assert f"{TRAIN_SEEDS:,}" in PAGE and (len(RINGS), len(LINKERS), len(GROUPS), FEWEST, MOST, worth.MAX_GROUP) == (12, 6, 16, 2, 0.25, 4)
    assert f"({', '.join(f'`{group}`' for group in LEVELS[0].groups)})" in FLOWING and len(LEVELS[0].groups) == 8
    assert f"({', '.join(name for name, ring in RINGS.items() if ring.held_out)})" in PAGE
    cases = [make_case(seed, 0) for seed in range(1000)]
    blindly = sum(len(case.fitting) / len(list(case.exchanges())) for case in cases) / len(cases)
    assert blindly == pytest.approx(float(re.findall(r"one drawn blindly does in (\d+) %", PAGE)[0]) / 100, abs=0.01)
    config = load_config(ROOT / "recipes" / "drug-discovery.toml")
    assert config.sft is not None
    assert f"`guess = {config.sft.args['guess']}`" in FLOWING and f"`overlook = {config.sft.args['overlook']}`" in FLOWING
    assert f"{config.evaluation.tasks} held-out molecules" in PAGE
    assert f"{wording.MAX_SMILES} characters at most" in PAGE


def test_its_policy_denies_three_topics_always() -> None:
    policy = load_policy(ROOT / "examples" / "guardrails" / "medical.toml")
    assert len(policy.topics) == 3 and all(policy.categories[topic.category].always_on for topic in policy.topics)
