"""burnish/Arithmetic-v0: the question follows the seed, the last number of the reply is judged."""

from __future__ import annotations

import pytest
from gymnasium.error import ResetNeeded

from burnish.envs.builtin.arithmetic import Arithmetic

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("operation", ["+", "-", "*"])
def test_the_answer_is_that_of_the_question(operation: str) -> None:
    for seed in range(20):
        (question,), info = Arithmetic(12, [operation]).reset(seed=seed)
        a, sign, b = question.text.removeprefix("What is ").removesuffix("?").split()
        assert sign == operation
        assert 0 <= int(a) <= 12 and 0 <= int(b) <= 12
        assert info["data"]["answer"] == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]


@pytest.mark.parametrize(
    ("reply", "reward"),
    [("{}", 1.0), ("It is {}.", 1.0), ("3, no, {}", 1.0), ("{}0", 0.0), ("{}, or 999", 0.0), ("", 0.0), ("٣", 0.0), ("9" * 10_000, 0.0)],
)
def test_the_last_number_counts(reply: str, reward: float) -> None:
    env = Arithmetic()
    _, info = env.reset(seed=4)
    assert info["data"]["answer"] != 0  # else "{}0" would be right
    assert env.step(reply.format(info["data"]["answer"])) == ((), reward, True, False, {"reward_parts": {"correct": reward}})
    with pytest.raises(ResetNeeded):
        env.step("7")


@pytest.mark.parametrize(
    ("reply", "reward"),
    [("12.0", 1.0), ("012", 1.0), ("1,2", 0.0), ("12.5", 0.0), ("5.12", 0.0), ("12,000", 0.0), ("It is 12.", 1.0), ("4, 12", 1.0)],
)
def test_the_last_number_is_compared_as_a_number(reply: str, reward: float) -> None:
    assert asked_for(12).step(reply)[1] == reward


def test_thousands_may_be_set_apart() -> None:
    assert asked_for(1000).step("1,000")[1] == asked_for(1234000).step("It is 1,234,000.0.")[1] == 1.0
    assert asked_for(0).step("1,000")[1] == asked_for(0).step("12.0")[1] == 0.0, "the end of a number is none"


def asked_for(answer: int) -> Arithmetic:
    env = Arithmetic()
    env.reset(seed=0)
    env._answer = answer
    return env


def test_negative_answers_keep_their_sign() -> None:
    env = Arithmetic(operations=["-"])
    seed = next(seed for seed in range(100) if env.reset(seed=seed)[1]["data"]["answer"] < 0)
    answer = env.reset(seed=seed)[1]["data"]["answer"]
    assert env.step(str(answer))[1] == 1.0
    env.reset(seed=seed)
    assert env.step(str(-answer))[1] == 0.0


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="max_operand must be at least 1, not 0"):
        Arithmetic(0)
    with pytest.raises(ValueError, match=r"operations must be some of \+, -, \*, not \['/'\]"):
        Arithmetic(operations=["/"])
