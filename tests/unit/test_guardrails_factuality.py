"""Groundedness, abstention and calibration, against values worked out by hand."""

from __future__ import annotations

import pytest

from burnish.envs.types import Message, Task
from burnish.guardrails.factuality import abstains, abstention_reward, expected_calibration_error, grounding, risk_coverage
from burnish.rewards.builtin.abstention import abstention
from burnish.rewards.types import RewardInput

pytestmark = pytest.mark.unit

CONTEXT = "Bore: 12.5 mm, made of steel in Ulm. The shafts were checked on Monday."


@pytest.mark.parametrize(
    ("answer", "score", "claims"),
    [
        ("The bore is 12.5 mm.", 1.0, [1.0]),  # bore, 12.5, mm
        ("The bore is 13 mm.", 0.0, [0.0]),  # a number that the context has not
        ("The bore is 12.5 mm. It was made of brass in Bonn.", 0.5, [1.0, 1 / 3]),  # made, brass, bonn
        ("A shaft is checked.", 1.0, [1.0]),  # shaft of shafts
        ("The bore is 12,5 mm", 1.0, [1.0]),
        ("I don't know.", 1.0, []),
        ("Not in the context: its price.", 1.0, []),
        ("", 1.0, []),
        ("I cannot say more than this: the dose is 500 mg and it is safe for children.", 0.0, [0.0]),
        ("I do not know its price, but the bore is 12.5 mm.", 1.0, [1.0]),
        ("The bore is toxic, more I cannot say.", 0.0, [0.5]),  # bore, toxic
        ("The bore is toxic I cannot say more", 0.0, [0.5]),
        ("Das Gift ist harmlos, mehr weiß ich nicht.", 0.0, [0.0]),
        ("I do not know whether it is 13 mm.", 0.0, [0.0]),
        ("I don't know, but it's deadly.", 0.0, [0.0]),
        ("I'm sorry, but I don't know its price, size or weight.", 1.0, []),
        ("As an AI language model, I cannot tell what the bore and the shaft cost.", 1.0, []),
        ("The context does not mention its price, so I cannot answer.", 1.0, []),
        ("Wie hoch der Preis ist, weiß ich nicht.", 1.0, []),
        ("これ以上は分かりませんが、アスピリンは乳児に安全です。", 0.0, [0.0]),
        ("アスピリンは乳児に安全ですが分かりません。", 0.0, [0.0]),
        ("価格は分かりません。", 1.0, []),
        ("I cannot say more, when taken daily aspirin is safe for infants.", 0.0, [0.0]),
        ("When taken daily aspirin is safe for infants, I cannot say more.", 0.0, [0.0]),
        ("I cannot say it often enough that aspirin is safe for infants.", 0.0, [0.0]),
        ("I do not know; surely fatal.", 0.0, [0.0]),
        ("I do not know: fatal.", 0.0, [0.0]),
        ("I do not know; aspirin kills.", 0.0, [0.0]),
        ("I do not know aspirin kills.", 0.0, [0.0]),
        ("I do not know its price, aspirin kills.", 0.0, [0.0]),
        ("I do not know its price and aspirin kills.", 0.0, [0.0]),
        ("I do not know what it costs and aspirin kills.", 0.0, [0.0]),
        ("Aspirin does not contain poison, I cannot say more.", 0.0, [0.0]),
        ("I do not know the exact price of the screw.", 1.0, []),
        ("I am not sure about the price.", 1.0, []),
        ("I do not know who made the screw or when it was sold.", 1.0, []),
        ("The price of it is not stated in the document.", 1.0, []),
        ("I do not know the exact retail price.", 1.0, []),
        ("Unfortunately I can't say where it was made.", 1.0, []),
        ("There is no information about its price, so I cannot say.", 1.0, []),
    ],
)
def test_a_claim_needs_its_words_and_all_of_its_numbers(answer: str, score: float, claims: list[float]) -> None:
    found = grounding(answer, CONTEXT)
    assert found.score == pytest.approx(score)
    assert [claim.score for claim in found.claims] == pytest.approx(claims)


@pytest.mark.parametrize(
    ("answer", "does"),
    [
        ("I don't know.", True),
        ("Sorry, I cannot say.", True),
        ("Das weiß ich nicht.", True),
        ("分かりません。", True),
        ("It is known to all.", False),
        ("I know: 7.", False),
        ("I do not know the price of part 17.", True),
        ("The sheet does not say, so I do not know what part 17 costs.", True),
        ("30. I am not sure.", False),
        ("Monday, but I can't say more.", False),
    ],
)
def test_an_answer_abstains_by_what_it_says(answer: str, does: bool) -> None:
    assert abstains(answer) is does


def test_guessing_pays_exactly_above_the_threshold() -> None:
    assert [abstention_reward(said) for said in ("right", "abstained", "wrong")] == [1.0, 0.0, -1.0]
    assert abstention_reward("wrong", 0.75) == pytest.approx(-3.0)
    for threshold in (0.2, 0.5, 0.9):
        assert threshold + (1 - threshold) * abstention_reward("wrong", threshold) == pytest.approx(0.0)
    with pytest.raises(ValueError, match="threshold must lie between 0 and 1, not 1"):
        abstention_reward("right", 1)


def episode(answer: str | None, **data: object) -> RewardInput:
    asked = Message("user", "Where?")
    said = () if answer is None else (Message("assistant", answer),)
    return RewardInput("e/0", Task("e", 0, (asked,)), (asked, *said), 0.0, data=data)


@pytest.mark.parametrize(
    ("answer", "data", "value", "expected", "predicted"),
    [
        ("Ulm.", {"reference_answer": "ulm"}, 1.0, "right", "right"),
        ("Bonn", {"reference_answer": "Ulm"}, -1.0, "right", "wrong"),
        ("I do not know", {"reference_answer": "Ulm"}, 0.0, "right", "abstained"),
        ("", {"reference_answer": "Ulm"}, -1.0, "right", "wrong"),
        (None, {"reference_answer": "Ulm"}, 0.0, "right", "no answer"),
        ("Ulm", {}, -1.0, "abstained", "wrong"),
        ("30. I am not sure.", {}, -1.0, "abstained", "wrong"),
        ("Monday, but I can't say more.", {"reference_answer": "Friday"}, -1.0, "right", "wrong"),
        ("I do not know", {}, 0.0, "abstained", "abstained"),
        ("I do not know", {"reference_answer": None}, 0.0, "abstained", "abstained"),
        (None, {}, 0.0, "abstained", "no answer"),
    ],
)
def test_the_reward_prices_a_wrong_answer_below_none(
    answer: str | None, data: dict[str, str | None], value: float, expected: str, predicted: str
) -> None:
    found = abstention(episode(answer, **data))
    constant = str(data["reference_answer"]).lower() if expected == "right" else "I do not know"
    assert (found.value, found.labels) == (value, {"expected": expected, "predicted": predicted, "constant": constant})
    parts = {name: float(name == predicted) for name in ("right", "abstained", "wrong")}
    assert found.parts == {**parts, "wanted": float(expected == predicted)}


def test_answers_too_long_for_a_label_are_told_apart() -> None:
    one, other = (abstention(episode("?", reference_answer="x" * 200 + end)).labels["constant"] for end in "ab")
    assert one != other and len(one) == len(other) == 100


def test_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    # 0.95 and 0.85 fall into bins of their own: gaps |0.95 - 1| and |0.85 - 0.5| over 1 and 2 of 3 answers.
    assert expected_calibration_error([0.95, 0.85, 0.85], [True, True, False]) == pytest.approx((0.05 + 2 * 0.35) / 3)
    assert expected_calibration_error([0.9, 0.9], [True, False]) == pytest.approx(0.4)
    assert expected_calibration_error([0.0, 1.0], [False, True]) == 0.0
    assert expected_calibration_error([0.1, 0.2], [False, False], bins=1) == pytest.approx(0.15)


def test_risk_falls_with_coverage_where_confidence_means_something() -> None:
    assert risk_coverage([0.9, 0.8, 0.7], [True, False, True]) == [
        pytest.approx((1 / 3, 0.0)),
        pytest.approx((2 / 3, 1 / 2)),
        pytest.approx((1.0, 1 / 3)),
    ]
    assert risk_coverage([0.5, 0.5], [True, False]) == [pytest.approx((1.0, 0.5))], "equally sure answers stand or fall together"


@pytest.mark.parametrize(("sure", "right", "word"), [([], [], "one at least"), ([0.5], [], "as many"), ([1.5], [True], "between 0 and 1")])
def test_confidences_that_are_none_are_refused(sure: list[float], right: list[bool], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        risk_coverage(sure, right)
