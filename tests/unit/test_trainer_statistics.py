"""Statistics against values worked out by hand."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, EpisodeGroup, Message, Outcome, Reward, Task, Trajectory, Turn
from burnish.rollout.config import RolloutConfig
from burnish.rollout.store.intervals import wilson_interval
from burnish.rollout.store.records import BestConstant, EvaluationResult
from burnish.rollout.weights import SyncProofError, SyncReceipt
from burnish.session import Session
from burnish.trainer.evaluation import statistics
from burnish.trainer.evaluation.comparison import agresti_min_interval, compare, comparisons, paired_bootstrap, paired_test
from burnish.trainer.evaluation.evaluate import evaluate
from burnish.trainer.evaluation.statistics import EvaluationFailed, summarize

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
    assert statistics.best_constant((expected, expected) for expected, _ in pairs) == BestConstant("rework", 0.6, 1 / 3)
    assert statistics.best_constant([("b", "b"), ("a", "a")]) == BestConstant("a", 0.5, 0.5)


def test_the_best_constant_policy_says_an_answer_and_not_that_it_is_right() -> None:
    labels = [{**said("right", "right"), "constant": str(i % 5)} for i in range(10)]
    labels += [{**said("abstained", "wrong"), "constant": "I do not know"} for _ in range(4)]
    result = summarize([episode(f"t{i}", 1.0, labels=given) for i, given in enumerate(labels)], "verdict")
    assert result.best_constant == BestConstant("I do not know", 4 / 14, 0.5)
    assert result.recall == {"abstained": 0.0, "right": 1.0}
    often = summarize([episode(f"t{i}", 1.0, labels=given) for i, given in enumerate([labels[0]] * 6 + labels)], "verdict")
    assert often.best_constant == BestConstant("0", 8 / 20, 0.25), "eight of the sixteen right ones, and none of the others"


def test_few_tasks_say_no_more_than_they_can() -> None:
    """Five wins of five: one in 32 by chance, where a bootstrap would say 0.0001; and the interval keeps its width."""
    five = paired_test([0.0] * 5, [1.0] * 5)
    assert (five.difference, five.p_value, five.p_worse, five.n, five.test) == (1.0, 1 / 32, 1.0, 5, "sign test")
    assert (five.low, five.high) == (pytest.approx(5 / 7 - 1.96 * math.sqrt(6 - 25 / 7) / 7, abs=1e-4), 1.0)
    assert five.significance == "one-sided p = 0.0312, sign test"
    two = paired_test([0.0, 0.0], [1.0, 1.0])
    assert two.p_value == 1 / 4


def test_the_sign_test_counts_only_tasks_that_changed_whatever_their_number() -> None:
    """Of 200 tasks 8 were won and 2 lost: P(at least 8 of 10) = (45 + 10 + 1) / 1024."""
    before, after = [0.0] * 8 + [1.0] * 192, [1.0] * 8 + [0.0] * 2 + [1.0] * 190
    result = paired_test(before, after)
    assert (result.difference, result.n, result.test) == (pytest.approx(0.03), 200, "sign test")
    assert (result.p_value, result.p_worse) == (pytest.approx(56 / 1024), pytest.approx(1 - 11 / 1024))
    assert paired_test([0.5, 0.0, 0.2], [0.75, 0.25, 0.45]).p_value == 1 / 8, "graded values that moved alike"
    assert paired_test([0.0] * 1200, [1.0] * 1200).significance == "one-sided p < 0.0001, sign test"


def test_a_fall_is_called_one() -> None:
    fall = paired_test([1.0] * 7 + [0.0], [0.0] * 7 + [1.0])
    assert (fall.difference, fall.p_value, fall.p_worse) == (-0.75, pytest.approx(255 / 256), pytest.approx(9 / 256))
    assert fall.significance == "a fall, one-sided p = 0.0352, sign test"
    same = paired_test([1.0, 0.0], [1.0, 0.0])
    assert (same.difference, same.p_value, same.p_worse, same.significance) == (0.0, 1.0, 1.0, "no difference")
    assert fall.high < 0 < paired_test([1.0, 1.0], [0.0, 0.0]).high, "two tasks do not prove a fall"


def test_graded_values_of_few_tasks_are_judged_by_every_flip_of_their_signs() -> None:
    """Changes of +3, +2 and -1 tenths: of 8 ways to sign them, 2 sum to at least +4 (+++ and ++-), 7 to at most +4."""
    result = paired_test([0.1, 0.2, 0.5], [0.4, 0.4, 0.4])
    assert (result.p_value, result.p_worse, result.test) == (2 / 8, 7 / 8, "sign-flip test")
    deviation = math.sqrt((0.3**2 + 0.2**2 + 0.1**2 - 3 * (0.4 / 3) ** 2) / 2)
    assert result.low == pytest.approx(0.4 / 3 - 4.302653 * deviation / math.sqrt(3))


def test_graded_values_of_many_tasks_are_resampled() -> None:
    before = np.random.default_rng(0).random(60)
    result = paired_test(before, np.minimum(before + np.random.default_rng(1).random(60) / 3, 1.0), seed=4)
    assert (result.test, result.p_value) == ("bootstrap", 1 / 10_001)
    assert result == paired_bootstrap(before, np.minimum(before + np.random.default_rng(1).random(60) / 3, 1.0), seed=4)


def test_graded_values_of_few_tasks_have_students_interval_however_many_moved() -> None:
    """18 tasks, all of which moved: 0.03, 0.06, ... 0.27 up, and half of that down; t of 17 degrees of freedom is 2.109816."""
    up = 0.03 * np.arange(1, 10)
    changes = np.concatenate([up, -up / 2])
    result = paired_test(np.full(18, 0.4), 0.4 + changes)
    half = 2.109816 * changes.std(ddof=1) / math.sqrt(18)
    assert (result.test, result.n) == ("bootstrap", 18)
    assert (result.low, result.high) == (pytest.approx(0.0375 - half), pytest.approx(0.0375 + half))


def test_the_interval_of_agresti_and_min_by_hand() -> None:
    """94 pairs, of which 16 were won and 4 lost; half an observation more in each of four cells."""
    low, high = agresti_min_interval(16, 4, 94)
    centre, half = 12 / 96, 1.959964 * math.sqrt(21 - 144 / 96) / 96
    assert (low, high) == (pytest.approx(centre - half), pytest.approx(centre + half))


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
    assert result.best_constant is None, "of one answer there is no policy that could tell another"
    assert EvaluationResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_a_task_without_labels_has_no_recall() -> None:
    result = summarize([episode("t1", 1.0), episode("t2", 0.0)], "verdict")
    assert (result.recall, result.macro_recall, result.best_constant) == ({}, None, None)


def test_summaries_that_make_no_sense_are_refused() -> None:
    failed = episode("t1", Failure(FailureKind.ENGINE_LOST, "engine-0", "gone"))
    with pytest.raises(EvaluationFailed, match=r"1 of 1 episodes failed \(1 engine_lost\); the first: engine_lost in engine-0: gone"):
        summarize([failed], "verdict")
    with pytest.raises(EvaluationFailed, match="there are no episodes"):
        summarize([], "verdict")
    with pytest.raises(ValueError, match="the episode has no reward part 'verdct'; did you mean 'verdict'"):
        summarize([episode("t1", 1.0)], "verdct")
    with pytest.raises(ValueError, match="lies between 0 and 1"):
        summarize([episode("t1", -0.5)], "verdict")
    with pytest.raises(ValueError, match="sucess: an evaluation has no such field"):
        EvaluationResult.from_dict({"sucess": 1.0})
    with pytest.raises(ValueError, match="success_part: is required"):
        EvaluationResult.from_dict({"mode": "greedy"})


def test_compare_pairs_by_task() -> None:
    before = summarize([episode("t1", 0.0), episode("t2", 0.0), episode("t3", 1.0)], "verdict")
    after = summarize([episode("t4", 1.0), episode("t2", 1.0), episode("t1", 0.0)], "verdict")
    result = compare(before, after)
    assert (result.difference, result.p_value, result.n, result.unpaired) == (0.5, 0.5, 2, 2)
    with pytest.raises(ValueError, match="different mode"):
        compare(before, summarize([episode("t1", 1.0)], "verdict", "greedy"))


def test_fewer_than_two_shared_tasks_compare_nothing() -> None:
    one, other = summarize([episode("t1", 0.0)], "verdict"), summarize([episode("t1", 1.0)], "verdict")
    assert comparisons({"base": one}, other) == {}
    wide = summarize([episode("t1", 0.0), episode("t2", 0.0)], "verdict")
    assert list(comparisons({"base": one, "sft": wide}, wide)) == ["sft"]


def test_an_evaluation_of_which_too_much_failed_is_no_result() -> None:
    lost = [episode(f"f{i}", Failure(FailureKind.VERIFIER_UNAVAILABLE, "verdicts", "connection refused")) for i in range(2)]
    good = [episode(f"t{i}", 1.0) for i in range(18)]
    assert summarize([*good, *lost], "verdict", error_budget=0.1).failures == {"verifier_unavailable": 2}
    says = r"no result: 2 of 19 .* more than evaluation\.error_budget = 0\.1 allows \(2 verifier_unavailable\); the first: .*refused"
    with pytest.raises(EvaluationFailed, match=says):
        summarize([*good[1:], *lost], "verdict", error_budget=0.1)


class Replay:
    """A fleet that has these episodes, and counts how many were fetched."""

    def __init__(self, episodes: list[Episode]) -> None:
        self.episodes, self.given = episodes, 0

    def submit(self, tasks: Sequence[Task], group_size: int, temperature: float) -> None:
        assert (list(tasks), group_size) == ([one.task for one in self.episodes], 1)

    def stop(self) -> None:
        pass

    def poll(self) -> list[EpisodeGroup]:
        self.given += 1
        one = self.episodes[self.given - 1]
        return [EpisodeGroup(one.task, (one,))]

    def sync(self, snapshot: Any) -> list[SyncReceipt]:
        raise AssertionError("an evaluation sends no weights")

    def score(self, *probe: Any, **options: Any) -> Any:
        raise AssertionError("an evaluation proves no sync")

    def evaluate(
        self, success: str, on_group: Callable[[EpisodeGroup], None] | None = None, version: int | None = None
    ) -> EvaluationResult:
        return evaluate(self, [one.task for one in self.episodes], "sampled", 1.0, success, on_group, version=version)[0]


def parts(task: str, **values: float) -> Episode:
    return episode(task, Reward(0.0, {"env": 0.0, **{f"env.{name}": value for name, value in values.items()}}))


def test_what_other_weights_sampled_is_no_measurement_of_these() -> None:
    """A runner that died between training and evaluation comes back with the weights it was built from."""
    episodes = [parts("t1", won=1.0), parts("t2", won=0.0)]  # sampled by weights 3
    assert Replay(episodes).evaluate("env.won", version=3).success == 0.5
    late = replace(episodes[1], turns=(replace(episodes[1].turns[0], policy_version=np.array([3, 4], np.int32)),))
    with pytest.raises(SyncProofError, match="episode t2/0 was sampled by weights 4, and 3 are to be measured"):
        Replay([episodes[0], late]).evaluate("env.won", version=3)


def test_a_session_measures_its_learners_weights() -> None:
    fleet = Replay([parts("t1", won=1.0)])
    recipe = SimpleNamespace(
        rollout=RolloutConfig(), success="env.won", evaluation=SimpleNamespace(error_budget=0.1), tasks=SimpleNamespace()
    )
    held_out = [one.task for one in fleet.episodes]
    session = SimpleNamespace(
        loop=SimpleNamespace(settle=lambda: None), recipe=recipe, algo=SimpleNamespace(fleet=fleet), held_out=held_out, version=4
    )
    with pytest.raises(SyncProofError, match="4 are to be measured"):
        Session.evaluate(cast(Session, session))


def test_an_episode_that_lacks_a_part_has_none_of_it() -> None:
    """An environment that gives `won` on its last step only: the episode that was cut short is one that was not won."""
    episodes = [parts("t1", won=1.0), parts("t2"), parts("t3", won=0.0), parts("t4")]
    result = Replay(episodes).evaluate("env.won")
    assert (result.success, result.parts["env.won"]) == (0.25, 0.25)
    assert result.task_success == {"t1": 1.0, "t2": 0.0, "t3": 0.0, "t4": 0.0}


def test_what_is_wrong_with_the_part_called_success_is_said_as_soon_as_it_shows() -> None:
    seen: list[str] = []
    replay = Replay([parts(f"t{i}", won=1.5 if i == 2 else 1.0) for i in range(200)])
    with pytest.raises(ValueError, match=r"success: reward part 'env.won' of episode t2/0 is 1.5; .* lies between 0 and 1"):
        replay.evaluate("env.won", lambda group: seen.append(group.task.id))
    assert (replay.given, seen) == (3, ["t0", "t1", "t2"]), "what was played was handed over all the same"
    replay = Replay([parts(f"t{i}", won=1.0) for i in range(200)])
    with pytest.raises(
        ValueError, match=r"none of 32 episodes has a reward part 'env.one'; did you mean 'env.won'\?.*declares it: reward_parts"
    ):
        replay.evaluate("env.one")
    assert replay.given == 32


@pytest.mark.parametrize(
    ("confusion", "recall", "said"),
    [
        ({"a": {"a": 1}}, {}, "recall: label 'a' has none"),
        ({"a": {"a": 0}}, {"a": 0.0}, "confusion: label 'a' is not of one episode or more"),
        ({"a": {}}, {"a": 0.0}, "confusion: label 'a' is not of one episode or more"),
        ({"a": {"a": 2, "b": -1}}, {"a": 0.0}, "confusion: label 'a' is not of one episode or more"),
        ({"a": {"a": 10**400}}, {"a": 0.0}, "confusion: label 'a' is not of one episode or more"),
    ],
)
def test_a_confusion_that_no_recall_can_be_shown_of_is_refused_when_it_is_read(confusion: Any, recall: Any, said: str) -> None:
    shares = dict.fromkeys(("success", "success_low", "success_high", "reward", "turns", "tokens"), 0.5)
    row = {"mode": "greedy", "success_part": "env", "episodes": 1, "rewarded": 1, **shares, "task_success": {"t": 0.5}}
    assert EvaluationResult.from_dict(row).confusion == {}
    with pytest.raises(ValueError, match=re.escape(said)):
        EvaluationResult.from_dict({**row, "confusion": confusion, "recall": recall})
