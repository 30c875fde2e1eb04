"""One policy step over a scripted fleet: what trains, what is dropped and why, budgets, and books that balance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import pytest

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, EpisodeGroup, Outcome, Reward, Task
from burnish.rollout.config import RolloutConfig
from burnish.trainer.data.tasks import held_out_tasks, training_tasks
from burnish.trainer.loop import ErrorBudgetSpent, PolicyProgress, collect_batch, rollout_metrics, why_not
from burnish.trainer.phases.config import RFTPhaseConfig

pytestmark = pytest.mark.unit

PHASE = RFTPhaseConfig(groups_per_step=2, group_size=2, max_refills=2)
DOWN = Failure(FailureKind.VERIFIER_UNAVAILABLE, "verdict@127.0.0.1:1", "connection refused")
STREAM = partial(training_tasks, (0, 1000), 0)


def group(task: Task, *outcomes: Outcome) -> EpisodeGroup:
    return EpisodeGroup(task, tuple(Episode(task, i, (), (), outcome) for i, outcome in enumerate(outcomes)))


class ScriptedFleet:
    """Gives every task the outcomes that `script` says for its number in the stream."""

    def __init__(self, script: Callable[[int], tuple[Outcome, ...]]) -> None:
        self.script, self.tasks = script, list[Task]()

    def run(self, tasks: Sequence[Task], group_size: int, temperature: float) -> Iterator[EpisodeGroup]:
        for task in reversed(tasks):  # out of order, as groups finish
            self.tasks.append(task)
            yield group(task, *self.script(int(task.id.removeprefix("train-"))))


def varied(number: int) -> tuple[Outcome, ...]:
    return Reward(1.0), Reward(0.0)


def test_groups_with_equal_rewards_are_dropped_and_replaced() -> None:
    fleet = ScriptedFleet(lambda n: (Reward(1.0), Reward(1.0)) if n == 0 else varied(n))
    progress = PolicyProgress()
    batch = collect_batch(fleet, progress, PHASE, RolloutConfig(), STREAM)
    assert [g.task.id for g in batch.groups] == ["train-1", "train-2"]
    assert (batch.rounds, progress.position, len(batch.sampled)) == (2, 3, 3)
    assert dict(progress.ledger.dropped) == {"zero_variance": 2}
    progress.ledger.settle(batch.groups)
    progress.ledger.check()
    assert progress.ledger.trained_count == 4


def test_refilling_ends_when_nothing_can_be_learned() -> None:
    progress = PolicyProgress()
    batch = collect_batch(ScriptedFleet(lambda n: (Reward(0.0), Reward(0.0))), progress, PHASE, RolloutConfig(), STREAM)
    assert batch.groups == () and batch.rounds == 3
    progress.ledger.check()


def test_a_failed_member_is_masked_and_the_rest_of_its_group_trains() -> None:
    phase = RFTPhaseConfig(groups_per_step=1, group_size=3)
    progress = PolicyProgress()
    batch = collect_batch(ScriptedFleet(lambda n: (Reward(1.0), DOWN, Reward(0.0))), progress, phase, RolloutConfig(), STREAM)
    progress.ledger.settle(batch.groups)
    progress.ledger.check()
    assert (progress.ledger.trained_count, dict(progress.ledger.masked)) == (2, {"verifier_unavailable": 1})


@pytest.mark.parametrize(
    ("outcomes", "limits", "reason"),
    [
        ((Reward(1.0), Reward(0.0)), RolloutConfig(), None),
        ((Reward(0.5), Reward(0.5)), RolloutConfig(), "zero_variance"),
        ((Reward(1.0), DOWN), RolloutConfig(), "too_few"),
        ((Reward(1.0), Reward(0.0), DOWN), RolloutConfig(failure_action="drop"), "failed_member"),
        ((Reward(1.0), Reward(0.0), DOWN), RolloutConfig(on_failure={FailureKind.TOOL_ERROR: "drop"}), None),
    ],
)
def test_why_a_group_cannot_be_learned_from(outcomes: tuple[Outcome, ...], limits: RolloutConfig, reason: str | None) -> None:
    assert why_not(group(Task("t", 0), *outcomes), limits) == reason


def test_a_group_too_small_for_what_compares_it_is_dropped() -> None:
    two = replace(group(Task("train-0", 0), Reward(1.0), Reward(0.0), DOWN), comparable=False)
    assert why_not(two, RolloutConfig()) == "too_few"


def test_the_error_budget_stops_the_run_and_says_what_failed() -> None:
    phase = RFTPhaseConfig(groups_per_step=16, group_size=8)
    down = ScriptedFleet(lambda n: (Reward(1.0), Reward(0.0), *(DOWN,) * 6))
    with pytest.raises(ErrorBudgetSpent, match=r"96 of 128 episodes failed.*96 verifier_unavailable"):
        collect_batch(down, PolicyProgress(), phase, RolloutConfig(error_budget=0.1), STREAM)


def test_a_failure_that_the_recipe_answers_with_stop_stops_at_once() -> None:
    limits = RolloutConfig(on_failure={FailureKind.VERIFIER_UNAVAILABLE: "stop"})
    with pytest.raises(ErrorBudgetSpent, match="verifier_unavailable in verdict@"):
        collect_batch(ScriptedFleet(lambda n: (Reward(1.0), DOWN)), PolicyProgress(), PHASE, limits, STREAM)


def test_metrics_leave_failed_episodes_out_of_every_mean() -> None:
    progress = PolicyProgress()
    phase = RFTPhaseConfig(groups_per_step=1, group_size=3)
    outcomes = (Reward(1.0, {"verdict": 1.0}), Reward(0.0, {"verdict": 0.0}), DOWN)
    batch = collect_batch(ScriptedFleet(lambda n: outcomes), progress, phase, RolloutConfig(), STREAM)
    metrics = rollout_metrics(batch, "verdict")
    assert (metrics["reward_mean"], metrics["success"], metrics["failed"], metrics["episodes"]) == (0.5, 0.5, 1.0, 3.0)


def test_the_task_stream_is_a_function_of_its_position() -> None:
    whole = training_tasks((0, 10**9), 7, 0, 20)
    assert training_tasks((0, 10**9), 7, 12, 8) == whole[12:]
    assert len({task.seed for task in whole}) == 20


def test_a_small_range_is_visited_in_epochs() -> None:
    seeds = [task.seed for task in training_tasks((100, 105), 7, 0, 10)]
    assert sorted(seeds[:5]) == sorted(seeds[5:]) == [100, 101, 102, 103, 104]


def test_held_out_tasks_are_always_the_same() -> None:
    assert [task.seed for task in held_out_tasks((50, 90), 3)] == [50, 51, 52]
