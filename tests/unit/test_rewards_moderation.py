"""What a ruling is worth, worked out by hand: its parts, the price of each mistake, and the data that the judgement goes by."""

from __future__ import annotations

from typing import Any

import pytest

from burnish.envs.builtin.moderation.policies import DECISIONS
from burnish.envs.types import Message, Task
from burnish.rewards.builtin.moderation import NEEDLESS_ESCALATION, OVER_REMOVAL, UNDER_REMOVAL, moderation, verdict
from burnish.rewards.plugin import find_plugin, make_scorer
from burnish.rewards.remote.service import VERIFIERS
from burnish.rewards.types import RewardInput, Score

pytestmark = pytest.mark.unit


def ruled(answer: str | None, decision: str = "remove", rules: Any = (2,), **data: Any) -> RewardInput:
    messages = (Message("user", "…"), *(() if answer is None else (Message("assistant", answer),)))
    return RewardInput("t/0", Task("t", 1), messages, 0.0, data={"decision": decision, "rules": list(rules), **data})


@pytest.mark.parametrize(
    ("asked", "answer", "value", "parts"),
    [
        ("remove", "rule 2: remove", 1.0, {"correct", "decision", "rule", "form"}),
        ("remove", "rule 1: remove", 0.7, {"decision", "form"}),
        ("remove", "rule 2: allow", 0.3 + 0.1 - 0.4, {"rule", "form", "under_removal"}),
        ("remove", "rule 2: escalate", 0.3 + 0.1 - 0.1, {"rule", "form", "needless_escalation"}),
        ("escalate", "rule 3: label", 0.1 - 0.4, {"form", "under_removal"}),
        ("escalate", "rule 2: remove", 0.3 + 0.1 - 0.2, {"rule", "form", "over_removal"}),
        ("label", "rule 2: remove", 0.3 + 0.1 - 0.2, {"rule", "form", "over_removal"}),
        ("allow", "rule 2: label", 0.3 + 0.1, {"rule", "form"}),
        ("allow", "adverts, no record\nrule 2: allow", 1.0, {"correct", "decision", "rule", "form"}),
        ("allow", "let it be", -0.4, set()),
        ("remove", "rule 2: allow\nrule 2: remove", -0.4, set()),
        ("remove", None, -0.4, set()),
    ],
)
def test_a_ruling_is_worth_its_parts_less_the_price_of_its_mistake(asked: str, answer: str | None, value: float, parts: set[str]) -> None:
    score = moderation(ruled(answer, asked))
    assert score.value == pytest.approx(value)
    assert {name for name, part in score.parts.items() if part} == parts
    assert set(score.parts) == {"correct", "decision", "rule", "form", "over_removal", "under_removal", "needless_escalation"}
    assert score.labels["expected"] == asked


def test_letting_stand_costs_more_than_removing_and_that_more_than_asking_a_person() -> None:
    assert UNDER_REMOVAL > OVER_REMOVAL > NEEDLESS_ESCALATION > 0


def test_no_mistake_is_cheaper_than_saying_nothing_and_none_is_dearer_than_being_right() -> None:
    for asked in DECISIONS:
        right, silent = (moderation(ruled(answer, asked)).value for answer in (f"rule 2: {asked}", "…"))
        for said in DECISIONS:
            for rule in (1, 2):
                assert silent < moderation(ruled(f"rule {rule}: {said}", asked)).value <= right


def test_any_of_the_rules_that_say_so_will_do() -> None:
    for rule, right in ((1, 1.0), (2, 0.0), (3, 1.0)):
        assert moderation(ruled(f"rule {rule}: remove", rules=(1, 3))).parts["correct"] == right
    assert moderation(ruled("rule 3: remove", rules=(1.0, 3.0))).value == pytest.approx(1.0)  # as numbers come over the wire


async def test_the_registry_has_it_with_prices_of_ones_own() -> None:
    assert find_plugin("burnish/moderation-v1").function is moderation
    scorer = make_scorer("burnish/moderation-v1", params={"over_removal": 0.5})
    assert (await scorer.score(ruled("rule 2: remove", "label"))).value == pytest.approx(0.3 + 0.1 - 0.5)
    with pytest.raises(ValueError, match="over_removal"):
        make_scorer("burnish/moderation-v1", params={"over_removal": -1})


def test_the_verifier_says_the_same() -> None:
    assert VERIFIERS.get("burnish/moderation-verdict-v1") is verdict
    for answer in ("rule 2: remove", "rule 1: allow", "…"):
        assert verdict.function(ruled(answer)) == moderation(ruled(answer))
    assert isinstance(verdict.function(ruled("…")), Score)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"decision": "delete"}, "must have `decision`, one of allow, label, escalate, remove, not 'delete'"),
        ({"decision": None}, "not None"),
        ({"rules": []}, r"must have `rules`, the numbers of the rules that its decision rests on, not \[\]"),
        ({"rules": "2"}, r"not \['2'\]"),
        ({"rules": [True]}, r"not \[True\]"),
        ({"rules": [1.5]}, r"not \[1.5\]"),
    ],
)
def test_data_that_does_not_say_what_is_right_is_a_mistake_of_the_task_and_no_reward(data: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        moderation(ruled("rule 2: remove", **data))
