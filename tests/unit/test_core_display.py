"""What the terminal says of an evaluation: figures with their n, what a constant policy would score, and a fall as a fall."""

from __future__ import annotations

from typing import Any

import pytest

from burnish.rollout.store.records import BestConstant, Comparison, EvaluationResult
from burnish.run.display import evaluation_line
from burnish.trainer.phases.rft import _line

pytestmark = pytest.mark.unit


def result(tasks: int, **more: Any) -> EvaluationResult:
    success = {f"t{i}": 0.5 for i in range(tasks)}
    return EvaluationResult("sampled", "verdict", tasks, tasks, 0.5, 0.4, 0.6, 0.5, 3.0, 40.0, success, **more)


def test_success_stands_beside_its_n_and_the_best_constant_policy() -> None:
    labelled = result(
        8, best_constant=BestConstant("pass", 0.625, 0.5), macro_recall=0.45, confusion={"pass": {"pass": 4, "": 1}, "b": {"pass": 2}}
    )
    assert evaluation_line("sft", labelled, {}) == (
        "after sft (sampled, n = 8): success 50.0% [40%, 60%], best constant policy 62.5% (pass), macro-recall 45.0% (n = 7), turns 3.0"
    )


def test_the_line_of_a_step_has_the_n_of_its_success() -> None:
    metrics = {"reward_mean": 0.47, "success": 0.53, "episodes": 64.0, "rewarded": 30.0, "episodes_per_second": 13.0, "groups_trained": 8.0}
    assert _line({**metrics, "failed": 2.0}, 8) == "reward 0.47  success 53% (n = 30)  13 episodes/s  8/8 groups  2 failed"


def test_a_gain_and_a_fall_name_their_side_and_test() -> None:
    gain = Comparison(0.25, 0.1, 0.4, 0.00001, 8, p_worse=1.0, test="sign test")
    fall = Comparison(-0.25, -0.4, -0.1, 0.99, 8, p_worse=0.0352, test="sign test")
    assert evaluation_line("sft", result(8), {"base": gain}).endswith("+25.0% against base (one-sided p < 0.0001, sign test, n = 8)")
    assert evaluation_line("rft", result(8), {"base": gain, "sft": fall}).endswith(
        "-25.0% against sft (a fall, one-sided p = 0.0352, sign test, n = 8)"
    )


def test_one_task_is_measured_and_compared_with_nothing() -> None:
    assert evaluation_line("rft", result(1), {}).endswith("turns 3.0, one task compares nothing")
