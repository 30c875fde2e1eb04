"""docs/content-moderation.md: its request, prices and figures are the code's; tests/integration/test_moderation.py runs its commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from burnish.envs.builtin.moderation import wording
from burnish.envs.builtin.moderation.cases import TRAIN_SEEDS, Case
from burnish.envs.builtin.moderation.policies import HELD_OUT_SHARE, Condition, Facts, ModerationPolicy, ModerationRule
from burnish.recipe.load import load_config
from burnish.rewards.builtin import moderation as prices

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "content-moderation.md").read_text()


def test_its_request_is_what_the_environment_says() -> None:
    rules = (
        ModerationRule("adverts", "label", Condition("removals", 2), "remove"),
        ModerationRule("insults", "remove"),
        ModerationRule("rumours", "escalate", Condition("staff"), "allow"),
        ModerationRule(None, "allow"),
    )
    case = Case(1, ModerationPolicy(rules), Facts(("adverts",), "newcomer", 3, 2), labels=1, sayings=(1,))
    assert f"```text\n{wording.request(case)}\n```" in PAGE
    assert f"`{wording.ruling_text(case.ruling.decision, case.ruling.rules[0])}`" in PAGE
    assert f"`{wording.note(rules[0], case.facts)}`" in PAGE


def test_its_figures_are_the_codes() -> None:
    table = PAGE.partition("| | worth |")[2].partition("\n\n")[0]
    worth = [float(value.replace("−", "-")) for value in re.findall(r"\| (−?[\d.]+)[^|]*\|$", table, re.MULTILINE)]
    assert worth == [
        prices.DECISION_RIGHT, prices.RULE_RIGHT, prices.FORM_RIGHT, -prices.OVER_REMOVAL, -prices.UNDER_REMOVAL,
        -prices.NEEDLESS_ESCALATION, -max(prices.OVER_REMOVAL, prices.UNDER_REMOVAL, prices.NEEDLESS_ESCALATION),
    ]  # fmt: skip
    assert f"{TRAIN_SEEDS:,}" in PAGE and HELD_OUT_SHARE == 8
    config = load_config(ROOT / "recipes" / "content-moderation.toml")
    assert config.sft is not None
    assert f"`slip = {config.sft.args['slip']}`" in PAGE and f"`overlook = {config.sft.args['overlook']}`" in PAGE
    assert f"{config.evaluation.tasks} held-out policies" in PAGE
