"""What a probe computes, by hand: pass@k, groups that teach, parts, verdicts asked twice, the cost of a step, and what it all means."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, EpisodeGroup, Message, Reward, Task, Turn
from burnish.rollout.replay import Replayed
from burnish.trainer.evaluation.advice import advice
from burnish.trainer.evaluation.outlook import AskedAgain, Outlook, asked_again, best_of, differ, latency, outlook, unreadable
from burnish.trainer.evaluation.step_cost import StepCost, Update, expected_groups, step_cost
from burnish.trainer.phases.rft import RFTPhaseConfig

pytestmark = pytest.mark.unit

TABLE = RFTPhaseConfig(groups_per_step=8, group_size=4, max_refills=2)
DOWN = Failure(FailureKind.VERIFIER_UNAVAILABLE, "verdicts", "nobody answers")


def turn(seconds: float = 0.2) -> Turn:
    return Turn(np.array([5, 2], np.int32), np.zeros(2, np.float32), np.zeros(2, np.int32), "stop", seconds, seconds / 10)


def episode(task: int, sample: int, success: float, cost: float = 0.0, **more: object) -> Episode:
    reward = Reward(success + cost, {"env": success, "cost": cost})
    messages = (Message("user", f"task {task}"), Message("assistant", f"{success:g}"))
    plain = Episode(Task(f"t-{task}", task), sample, (), messages, reward, (turn(),), metrics={"judge_seconds": 0.01})
    return replace(plain, **more)  # type: ignore[arg-type]


def groups(*successes: Sequence[float], cost: float = 0.0) -> list[EpisodeGroup]:
    """Groups of tasks whose attempts had these successes; each further attempt costs more."""
    return [
        EpisodeGroup(Task(f"t-{t}", t), tuple(episode(t, s, value, cost * s) for s, value in enumerate(values)))
        for t, values in enumerate(successes)
    ]


def seen(*successes: Sequence[float], greedy: Sequence[float] = (), cost: float = 0.0) -> Outlook:
    return outlook(groups(*successes, cost=cost), [episode(100 + t, 0, value) for t, value in enumerate(greedy)], "env")


def test_pass_at_k_is_the_unbiased_estimate_of_chen_et_al() -> None:
    n, c = 8, 3
    attempts = [1.0] * c + [0.0] * (n - c)
    for k in range(1, n + 1):
        assert best_of([attempts], k) == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k))
    assert best_of([attempts, [0.0] * n], 2) == pytest.approx((1 - 10 / 28) / 2)
    with pytest.raises(ValueError, match="the best of 4 attempts cannot be told from 3"):
        best_of([[1.0, 0.0, 0.0]], 4)


def test_graded_success_has_the_mean_of_the_best_over_all_sets() -> None:
    values = [0.1, 0.9, 0.4, 0.4, 0.0]
    for k in (1, 2, 3, 5):
        assert best_of([values], k) == pytest.approx(np.mean([max(chosen) for chosen in itertools.combinations(values, k)]))


def test_how_likely_a_group_differs_is_counted_over_all_sets() -> None:
    values = [0.0, 0.0, 1.0, 0.5]
    for k in (2, 3, 4):
        expected = np.mean([max(chosen) != min(chosen) for chosen in itertools.combinations(values, k)])
        assert differ(values, k) == pytest.approx(expected)
    assert differ([1.0, 1.0 + 1e-7], 2) == 0.0, "what rounding makes of equal rewards teaches nothing"
    assert differ([0.0, 1e-8], 2, size=1.0) == 0.0 and differ([0.0, 1e-8], 2) == 1.0
    assert differ([1.0], 1) == 0.0


def test_an_outlook_by_hand() -> None:
    found = seen([1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0], greedy=[1, 0])
    assert (found.episodes, found.groups, found.group_size) == (16, 4, 4)
    assert found.sampled.value == pytest.approx((0.25 + 0 + 1 + 0.5) / 4)
    assert found.greedy is not None and (found.greedy.value, found.greedy.n) == (0.5, 2)
    assert found.pass_at == pytest.approx({1: 1.75 / 4, 2: (0.5 + 0 + 1 + 5 / 6) / 4, 4: 3 / 4})
    assert (found.teaching, found.teaching_success) == (0.5, 0.5)
    assert found.teaching_half == pytest.approx((0.5 + 0 + 0 + 4 / 6) / 4)
    assert (found.all_failed, found.all_succeeded) == (0.25, 0.25)
    assert found.parts["cost"].constant and not found.parts["env"].constant
    assert found.latencies["engine"] == latency([0.2] * 16) and found.latencies["verifier"].median == pytest.approx(0.01)
    assert found.failures == {} and found.truncations == {}


def test_success_is_that_of_the_recipes_own_environment_and_what_can_be_learned_that_of_all() -> None:
    """Eight own tasks that are all right, but for a verdict that the other environment has not, and whose groups alone can teach."""

    def group(number: int, environment: str, *values: float) -> EpisodeGroup:
        task = Task(f"t-{number}", number, environment=environment)
        parts = [{"env": value} if environment else {"env": 0.5, "verdict": value} for value in values]
        labels = {"expected": "pass"} if environment else {}
        rewards = [Reward(value, part) for value, part in zip(values, parts, strict=True)]
        return EpisodeGroup(task, tuple(Episode(task, s, (), (), one, (), labels=labels) for s, one in enumerate(rewards)))

    own = [group(t, "", 1, 1, 1, 1) for t in range(8)]
    others = [group(t, "sums", 1, 0, 0, 0) for t in range(8, 16)]
    found = outlook([*own, *others], [one.episodes[0] for one in (*own, *others)], "verdict")
    assert (found.sampled.value, found.sampled.n) == (1.0, 8)
    assert found.greedy is not None and (found.greedy.value, found.greedy.n) == (1.0, 8)
    assert found.pass_at == {1: 1.0, 2: 1.0, 4: 1.0}
    assert (found.all_failed, found.all_succeeded) == (0.0, 1.0)
    assert found.parts["env"].constant and found.parts["verdict"].mean == 1.0 and found.unreadable == {}
    assert (found.episodes, found.groups) == (64, 16)
    assert (found.teaching, found.teaching_own, found.teaching_success) == (0.5, 0.0, 0.0)
    assert "the reward is about something else" not in weights(found)
    down = replace(others[0], episodes=tuple(replace(one, outcome=DOWN) for one in others[0].episodes))
    assert outlook([*own, down], [], "verdict").failures == {"verifier_unavailable": 4}, "a run would count them too"


def test_failed_episodes_are_counted_and_take_no_part() -> None:
    (group,) = groups([1, 0, 0, 0])
    broken = replace(group, episodes=(*group.episodes[:3], replace(group.episodes[3], outcome=DOWN, truncation=None)))
    found = outlook([broken, *groups([1, 1, 1, 1])], [], "env")
    assert found.failures == {"verifier_unavailable": 1}
    assert found.pass_at[4] == 1.0, "only the task that has four rewarded attempts"
    assert found.pass_at[1] == pytest.approx((1 / 3 + 1) / 2)


def test_what_could_not_be_read() -> None:
    labelled: list[Mapping[str, str]] = [
        {"expected": "pass", "predicted": "pass"},
        {"expected": "scrap", "predicted": "?"},
        {"expected": "pass"},
    ]
    episodes = [episode(i, 0, 0.0, labels=labels, metrics={"malformed_calls": float(i)}) for i, labels in enumerate(labelled)]
    assert unreadable(episodes) == pytest.approx({"malformed calls": 2 / 3, "no answer": 2 / 3})
    assert unreadable([episode(0, 0, 0.0)]) == {}


def test_verdicts_that_change_are_told_from_environments_that_answer_otherwise() -> None:
    first = episode(0, 0, 1.0)
    changed = replace(first, outcome=Reward(0.0, {"env": 0.0, "cost": 0.0}))
    other = replace(changed, messages=(Message("user", "something else"),))
    label = replace(first, labels={"predicted": "pass"})
    failed = replace(first, outcome=DOWN)
    rounded = replace(first, outcome=Reward(1.0 + 1e-8, {"env": 1.0 + 1e-8, "cost": 0.0}))
    reworded = replace(first, labels={"verdict.explanation": "the same in other words"})
    found = asked_again([Replayed(first, one) for one in (first, rounded, reworded, changed, other, label, failed)])
    assert (found.episodes, found.changed, found.other_answers, found.failed) == (7, 2, 1, 1)
    assert found.examples[:2] == ("episode t-0/0: env was 1, and is 0", "episode t-0/0: label predicted was None, and is 'pass'")


def test_groups_that_teach_nothing_are_replaced_until_the_refills_end() -> None:
    assert expected_groups(TABLE, 1.0) == (8, 8)
    assert expected_groups(TABLE, 0.5) == (16, 8)
    assert expected_groups(TABLE, 0.1) == (24, pytest.approx(2.4))
    assert expected_groups(TABLE, 0.0) == (24, 0)
    assert expected_groups(TABLE.model_copy(update={"equal_groups": "keep"}), 0.1) == (8, 8)


def test_a_step_costs_its_sampling_learning_and_sync() -> None:
    update = Update(groups=4, tokens=1000, score_s=1.0, pass_s=3.0, step_s=0.5, sync_s=0.7)
    two = RFTPhaseConfig(groups_per_step=8, group_size=4, minibatches=2, epochs=3)
    cost = step_cost(two, 1.0, 16.0, update)
    assert cost == StepCost(8, 8, sampling_s=8 * 4 / 16, learning_s=8 * (1.0 + 3 * 3.0) / 4 + 6 * 0.5, sync_s=0.7)
    assert cost.seconds == pytest.approx(2 + 20 + 3 + 0.7)
    assert step_cost(TABLE, 0.0, 16.0, None).seconds is None


def weights(found: Outlook, again: AskedAgain | None = None, **more: float) -> dict[str, str]:
    """The first words of each line of advice -> its weight."""
    lines = advice(found, again or AskedAgain(64), TABLE, more)
    return {line.text.partition(":")[0]: line.weight for line in lines}


def test_each_finding_is_said_in_its_case_and_in_no_other() -> None:
    fit: list[list[float]] = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]]
    assert weights(seen(*fit)) == {"there is something to learn": "go"}
    assert weights(seen(*[[1, 1, 1, 1]] * 20)) == {"nothing to gain": "stop"}
    assert weights(seen(*[[0, 0, 0, 0]] * 40, [0, 0, 0, 1])) == {"SFT first, or easier tasks": "stop"}
    rare = seen(*[[0, 0, 0, 0]] * 17, [1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0])
    assert weights(rare) == {"easier tasks": "mend", "there is something to learn": "go"}
    easy = seen(*[[1, 1, 1, 1]] * 18, [1, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0])
    assert weights(easy)["harder tasks"] == "mend"
    larger = seen(*[[1, 0, 0, 0]] * 8, *[[0, 0, 0, 0]] * 12)
    assert weights(larger) == {"larger groups": "mend", "there is something to learn": "go"}
    assert weights(seen(*fit, greedy=[1] * 8))["there is something to learn"] == "go"
    assert "Greedy is at 100%" in advice(seen(*fit, greedy=[1] * 8), AskedAgain(), TABLE)[-1].text


def test_a_reward_about_something_else_and_parts_that_never_vary_are_named() -> None:
    other = seen([0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], cost=-0.1)
    assert weights(other)["the reward is about something else"] == "mend"
    still = seen([1, 0, 0, 0], [1, 1, 0, 0])
    assert weights(still, cost=0.2) == {"reward part cost is always 0": "know", "there is something to learn": "go"}
    assert weights(still, cost=0.0) == {"there is something to learn": "go"}, "a part without a weight teaches nothing anyway"


def test_machinery_comes_first() -> None:
    found = seen([1, 0, 0, 0], [1, 1, 0, 0])
    lines = advice(
        replace(found, failures={"verifier_unavailable": 4}), AskedAgain(8, 2, 3, 1, ("episode t-0/0: env was 1, and is 0",)), TABLE
    )
    assert [line.weight for line in lines] == ["stop", "mend", "mend", "know"]
    assert lines[0].text.startswith("mend the infrastructure first: 4 of 8 episodes failed (4 verifier_unavailable)")
    assert "3 of 8 verdicts changed when the same conversation was judged again (episode t-0/0" in lines[1].text


def test_answers_that_cannot_be_read_ask_for_demonstrations() -> None:
    mute = seen(*[[0, 0, 0, 0]] * 8)
    lines = advice(replace(mute, unreadable={"no answer": 0.9}, truncations={"max_tokens": 0.5}), AskedAgain(), TABLE, before=["sft"])
    assert "answers cannot be read" in lines[0].text
    assert [line.text.partition(":")[0] for line in lines[1:]] == [
        "SFT on a few demonstrations first",
        "50% of the episodes were cut short by max_tokens",
        "this is the policy before sft, which the recipe trains first; what they leave",
    ]
