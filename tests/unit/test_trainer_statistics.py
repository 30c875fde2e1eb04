"""Statistics against values worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, Message, Outcome, Reward, Task, Trajectory, Turn
from burnish.trainer.evaluation import statistics
from burnish.trainer.evaluation.statistics import BestConstant, EvaluationResult, compare, paired_bootstrap, summarize, wilson_interval

pytestmark = pytest.mark.unit


def episode(task: str, outcome: Outcome | float, sample: int = 0, tokens: int = 3, **changes: Any) -> Episode:
    ids = np.arange(tokens, dtype=np.int32)
    trainable = np.ones(tokens, bool)
    trainable[0] = False
    trajectory = Trajectory(ids, trainable, np.zeros(tokens, np.float32), np.full(tokens, 3, np.int32))
    turn = Turn(ids[1:], np.zeros(tokens - 1, np.float32), np.full(tokens - 1, 3, np.int32), "stop")
    if isinstance(outcome, float):
        outcome = Reward(outcome, {"verdict": outcome})
    return Episode(Task(task, 1), sample, (trajectory,), (Message("assistant", "scrap"),), outcome, (turn,), **changes)


def said(expected: str, predicted: str | None) -> dict[str, str]:
    return {"expected": expected} | ({"predicted": predicted} if predicted is not None else {})


def test_paired_bootstrap_of_a_constant_gain_is_certain() -> None:
    result = paired_bootstrap([0.0, 0.25, 0.5], [0.5, 0.75, 1.0], seed=1, resamples=999)
    assert (result.difference, result.low, result.high, result.n) == (0.5, 0.5, 0.5, 3)
    assert result.p_value == 1 / 1000, "never zero: bounded by the number of resamples"


def test_paired_bootstrap_against_the_exact_distribution() -> None:
    # Differences (1, -1): a resample of two has mean 1, 0, -1 with probability 1/4, 1/2, 1/4, so P(mean <= 0) = 3/4.
    result = paired_bootstrap([0.0, 1.0], [1.0, 0.0], seed=0, resamples=40_000)
    assert result.difference == 0.0
    assert result.p_value == pytest.approx(0.75, abs=0.01)
    assert (result.low, result.high) == (-1.0, 1.0)
    # Differences (1, 0, 0): P(mean <= 0) = (2/3)^3 = 8/27.
    assert paired_bootstrap([0, 0, 0], [1, 0, 0], resamples=40_000).p_value == pytest.approx(8 / 27, abs=0.01)


def test_paired_bootstrap_of_no_difference_is_not_better() -> None:
    assert paired_bootstrap([1, 0, 1], [1, 0, 1], resamples=100).p_value == 1.0
    # 0.1 + 0.2 - 0.3 is not 0 in floating point; that must not count as better.
    assert paired_bootstrap([0.3, 0.3], [0.1 + 0.2, 0.1 + 0.2], resamples=100).p_value == 1.0


def test_paired_bootstrap_interval_matches_the_normal_one() -> None:
    before = np.zeros(400)
    after = (np.arange(400) < 100).astype(float)  # mean 0.25, standard error sqrt(0.25 * 0.75 / 400) = 0.02165
    result = paired_bootstrap(before, after, seed=3)
    assert result.low == pytest.approx(0.25 - 1.96 * 0.02165, abs=0.003)
    assert result.high == pytest.approx(0.25 + 1.96 * 0.02165, abs=0.003)


def test_paired_bootstrap_depends_on_its_seed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    before, after = generator.random(50), generator.random(50)
    once = paired_bootstrap(before, after, seed=5, resamples=200)
    monkeypatch.setattr(statistics, "CHUNK", 50 * 7)  # seven resamples at a time
    assert paired_bootstrap(before, after, seed=5, resamples=200) == once
    assert paired_bootstrap(before, after, seed=6, resamples=200) != once


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [([1, 0], [1], "shapes"), ([1], [1], "at least two tasks"), ([1, 0], [1, float("nan")], "finite"), ([[1, 0]], [[1, 0]], "shapes")],
)
def test_paired_bootstrap_refuses_what_is_not_paired(before: Any, after: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(before, after)


def test_wilson_interval() -> None:
    # 8 of 10, worked by hand with z = 1.96: centre 0.7168, half width 0.2266.
    low, high = wilson_interval(0.8, 10)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson_interval(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_recall_and_the_best_constant_policy() -> None:
    # Six "rework" (four found), three "pass" (never said), one "scrap" (found, though called rework once more by nobody).
    pairs = [("rework", "rework")] * 4 + [("rework", "scrap")] * 2 + [("pass", "rework")] * 3 + [("scrap", "scrap")]
    counts = statistics.confusion(pairs)
    assert counts == {"pass": {"rework": 3}, "rework": {"rework": 4, "scrap": 2}, "scrap": {"scrap": 1}}
    assert statistics.recalls(counts) == {"pass": 0.0, "rework": 4 / 6, "scrap": 1.0}
    assert statistics.best_constant(counts) == BestConstant("rework", 0.6, 1 / 3)
    tie = statistics.confusion([("b", "b"), ("a", "a")])
    assert statistics.best_constant(tie).label == "a"


def test_summary_of_an_evaluation() -> None:
    episodes = [
        episode("t1", 1.0, 0, tokens=3, labels=said("scrap", "scrap"), metrics={"tool_calls": 2.0, "cost": 4.0}),
        episode("t1", 0.0, 1, tokens=5, labels=said("scrap", "pass"), metrics={"tool_calls": 4.0}),
        episode("t2", 1.0, 0, labels=said("pass", "pass"), metrics={"tool_calls": 3.0}),
        episode("t2", 1.0, 1, labels=said("pass", "pass"), metrics={"tool_calls": 3.0}),
        episode("t3", 0.0, 0, labels=said("pass", None), metrics={"tool_calls": 3.0}, truncation="max_turns"),
        episode("t3", Failure(FailureKind.VERIFIER_TIMEOUT, "verdicts", "late"), 1, metrics={"tool_calls": 99.0}),
    ]
    result = summarize(episodes, "verdict", "greedy")
    assert (result.mode, result.success_part, result.episodes, result.rewarded) == ("greedy", "verdict", 6, 5)
    assert result.task_success == {"t1": 0.5, "t2": 1.0, "t3": 0.0}
    assert result.success == pytest.approx(0.5)
    assert (result.success_low, result.success_high) == wilson_interval(0.5, 3)
    assert result.reward == pytest.approx(3 / 5)
    assert result.parts == {"verdict": pytest.approx(3 / 5)}
    assert result.confusion == {"pass": {"": 1, "pass": 2}, "scrap": {"pass": 1, "scrap": 1}}
    assert result.recall == {"pass": pytest.approx(2 / 3), "scrap": 0.5}
    assert result.macro_recall == pytest.approx(7 / 12)
    assert result.best_constant == BestConstant("pass", 0.6, 0.5)
    assert result.expected_labels == {"pass": 3, "scrap": 2}
    assert result.predicted_labels == {"": 1, "pass": 3, "scrap": 1}
    assert (result.turns, result.tokens) == (1.0, pytest.approx((2 + 4 + 2 + 2 + 2) / 5))
    assert (result.tool_calls, result.cost) == (3.0, 4.0)
    assert result.failures == {"verifier_timeout": 1}
    assert result.truncations == {"max_turns": 1}


def test_summary_survives_json_unchanged() -> None:
    result = summarize([episode("t1", 1.0, labels=said("a", "b")), episode("t2", 0.0)], "verdict")
    assert EvaluationResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_a_task_without_labels_has_no_recall() -> None:
    result = summarize([episode("t1", 1.0), episode("t2", 0.0)], "verdict")
    assert (result.recall, result.macro_recall, result.best_constant) == ({}, None, None)


def test_summaries_that_make_no_sense_are_refused() -> None:
    failed = episode("t1", Failure(FailureKind.ENGINE_LOST, "engine-0", "gone"))
    with pytest.raises(ValueError, match="none of 1 episodes has a reward \\(1 engine_lost\\)"):
        summarize([failed], "verdict")
    with pytest.raises(ValueError, match="no reward part 'verdct' to call success; did you mean 'verdict'"):
        summarize([episode("t1", 1.0)], "verdct")
    with pytest.raises(ValueError, match="lies between 0 and 1"):
        summarize([episode("t1", -0.5)], "verdict")
    with pytest.raises(ValueError, match="sucess: an evaluation has no such field"):
        EvaluationResult.from_dict({"sucess": 1.0})
    with pytest.raises(ValueError, match="success_part: Field required"):
        EvaluationResult.from_dict({"mode": "greedy"})


def test_compare_pairs_by_task() -> None:
    before = summarize([episode("t1", 0.0), episode("t2", 0.0), episode("t3", 1.0)], "verdict")
    after = summarize([episode("t4", 1.0), episode("t2", 1.0), episode("t1", 0.0)], "verdict")
    result = compare(before, after)
    assert (result.difference, result.n, result.unpaired) == (0.5, 2, 2)
    with pytest.raises(ValueError, match="different mode"):
        compare(before, summarize([episode("t1", 1.0)], "verdict", "greedy"))
