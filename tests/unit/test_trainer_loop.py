"""One policy step over a scripted fleet: what trains, what is dropped and why, budgets, and books that balance."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from tests.unit.scripted import ScriptedLearner

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, EpisodeGroup, Float32, Int32, Outcome, Reward, Task, Trajectory
from burnish.rewards.config import RewardConfig, declared_sizes
from burnish.rollout.config import RolloutConfig
from burnish.rollout.weights import SyncProofError, SyncReceipt
from burnish.trainer.batch import TokenBatch
from burnish.trainer.data.tasks import held_out_tasks, training_tasks
from burnish.trainer.evaluation.statistics import summarize
from burnish.trainer.loop import LoopSettings, PolicyLoop
from burnish.trainer.objectives.measures import Measured
from burnish.trainer.objectives.objective import Objective
from burnish.trainer.phases.rft import RFTPhaseConfig
from burnish.trainer.schedule.groups import ErrorBudgetSpent, why_not
from burnish.trainer.schedule.progress import PolicyProgress

pytestmark = pytest.mark.unit

PHASE = RFTPhaseConfig(groups_per_step=2, group_size=2, max_refills=2)
DOWN = Failure(FailureKind.VERIFIER_UNAVAILABLE, "verdict@127.0.0.1:1", "connection refused")
STREAM = partial(training_tasks, (0, 1000), 0)


def group(task: Task, *outcomes: Outcome, version: int = 0) -> EpisodeGroup:
    ids, mask = np.array([5, 6, 7], np.int32), np.array([False, True, True])
    said = Trajectory(ids, mask, np.array([0, -0.5, -0.5], np.float32), np.full(3, version, np.int32))
    return EpisodeGroup(task, tuple(Episode(task, i, (said,), (), outcome, engine="rollout-1") for i, outcome in enumerate(outcomes)))


class ScriptedFleet:
    """Gives every task the outcomes that `script` says for its number in the stream, the latest first."""

    def __init__(self, script: Callable[[int], tuple[Outcome, ...]]) -> None:
        self.script, self.tasks, self.under_way, self.synced = script, list[Task](), list[Task](), list[int]()
        self.off, self.behind, self.scored = 0.0, 0, 0

    def submit(self, tasks: Sequence[Task], group_size: int, temperature: float) -> None:
        self.tasks += tasks
        self.under_way += tasks

    def stop(self) -> None:
        self.under_way.clear()

    def poll(self) -> list[EpisodeGroup]:
        task = self.under_way.pop()
        return [group(task, *self.script(int(task.id.removeprefix("train-"))), version=self.synced[-1] if self.synced else 0)]

    def sync(self, snapshot: int) -> list[SyncReceipt]:
        self.synced.append(snapshot)
        return [SyncReceipt("rollout-1", snapshot + self.behind, 1, 1, 0.0, 0.0)]

    def score(self, sequences: Sequence[Int32]) -> dict[str, list[Float32]]:
        self.scored += 1
        return {"rollout-1": [np.full(len(ids) - 1, -0.5 - self.off, np.float32) for ids in sequences]}


def make_loop(
    script: Callable[[int], tuple[Outcome, ...]], phase: RFTPhaseConfig, limits: RolloutConfig | None = None, broken: Sequence[int] = ()
) -> PolicyLoop:
    settings = LoopSettings(phase, limits or RolloutConfig(), "verdict")
    return PolicyLoop(ScriptedFleet(script), ScriptedLearner(broken), settings, STREAM)


def varied(number: int) -> tuple[Outcome, ...]:
    return Reward(1.0), Reward(0.0)


def equal(number: int) -> tuple[Outcome, ...]:
    return Reward(0.0), Reward(0.0)


def test_groups_with_equal_rewards_are_dropped_and_replaced() -> None:
    loop = make_loop(lambda n: equal(n) if n == 0 else varied(n), PHASE)
    step = loop.step()
    assert [g.task.id for g in step.collected.groups] == ["train-1", "train-2"]
    assert (step.metrics["rounds"], loop.progress.position, step.metrics["groups_sampled"]) == (2, 3, 3)
    assert (step.metrics["dropped/zero_variance"], dict(loop.progress.ledger.dropped)) == (1, {"zero_variance": 2})
    assert loop.progress.ledger.trained_count == 4


def test_another_task_takes_a_dropped_ones_place_while_the_rest_is_under_way() -> None:
    loop = make_loop(lambda n: equal(n) if n == 1 else varied(n), PHASE)  # the fleet finishes the latest first: 1, then 2, then 0
    seen = []
    loop.on_group = lambda g: seen.append((g.task.id, len(loop.fleet.under_way)))  # type: ignore[attr-defined]
    loop.step()
    assert seen == [("train-1", 2), ("train-2", 1), ("train-0", 0)]


def test_refilling_ends_when_nothing_can_be_learned() -> None:
    loop = make_loop(equal, PHASE)
    step = loop.step()
    assert (step.collected.groups, step.batch, len(step.collected.sampled)) == ((), None, 6)
    assert (loop.progress.idle, loop.exhausted) == (1, False)
    for _ in range(4):
        loop.step()
    assert loop.exhausted and loop.learner.version == 0


def test_a_step_that_kept_few_groups_is_that_much_smaller() -> None:
    phase = RFTPhaseConfig(groups_per_step=4, group_size=2, max_refills=0)
    loop = make_loop(lambda n: varied(n) if n == 2 else equal(n), phase)
    batch = loop.step().batch
    assert batch is not None and batch.weights[batch.mask].tolist() == [1.0] * batch.tokens
    full = make_loop(varied, phase)
    full.step()
    assert (loop.learner.scales, full.learner.scales) == ([0.25], [1.0])  # type: ignore[attr-defined]


def test_new_weights_go_out_after_each_update_and_only_then() -> None:
    loop = make_loop(lambda n: varied(n) if n < 2 else equal(n), PHASE)
    loop.sync()
    loop.step()
    loop.step()
    assert loop.fleet.synced == [0, 1]  # type: ignore[attr-defined]


def test_an_engine_that_computes_with_other_weights_fails_the_probe_after_a_sync() -> None:
    loop = make_loop(varied, PHASE)
    loop.sync()
    assert loop.fleet.scored == 0  # type: ignore[attr-defined]  # nothing to probe with before the first batch
    loop.step()
    assert [(proof.engine, proof.version, proof.mean) for proof in loop.proofs] == [("rollout-1", 1, 0.0)]
    loop.fleet.off = 0.001  # type: ignore[attr-defined]
    with pytest.raises(SyncProofError, match=r"engine rollout-1: log-probabilities of 4 tokens of version 2 differ"):
        loop.step()


def test_an_engine_that_did_not_take_over_is_named() -> None:
    loop = make_loop(varied, PHASE)
    loop.fleet.behind = -1  # type: ignore[attr-defined]
    with pytest.raises(SyncProofError, match="engine rollout-1 took over version -1, and the learner is at 0"):
        loop.sync()


def test_a_mismatch_of_sampled_tokens_ends_the_run_only_when_it_lasts() -> None:
    loop = make_loop(varied, PHASE)
    learner = loop.learner
    loop.sync()
    for off, apart in ((0.01, 1), (0.01, 2), (0.0, 0), (0.01, 1), (0.01, 2)):
        learner.off = off  # type: ignore[attr-defined]
        step = loop.step()
        assert loop.progress.apart == apart
        assert step.metrics["learner/parity_mean"] == pytest.approx(off, abs=1e-6)
    version = learner.version
    with pytest.raises(SyncProofError, match="for 3 steps, engine rollout-1: log-probabilities"):
        loop.step()
    assert learner.version == version


def test_an_update_that_is_not_finite_is_skipped_and_counted_before_it_ends_the_run() -> None:
    loop = make_loop(varied, PHASE, broken=[1, 3, 4, 5])
    assert loop.step().metrics["learner/updates_skipped"] == 1
    assert dict(loop.progress.ledger.dropped) == {"non_finite": 4}
    assert "learner/updates_skipped" not in loop.step().metrics
    assert [(loop.step().metrics["learner/updates_skipped"], loop.progress.skipped) for _ in range(2)] == [(1, 1), (1, 2)]
    with pytest.raises(FloatingPointError):
        loop.step()


class Overflowing(ScriptedLearner):
    """Its log-probabilities are NaN while it is `lost`."""

    lost = False

    def _lost(self, found: Measured, batch: TokenBatch) -> Measured:
        lost = np.where(batch.mask, np.float32(np.nan), found.logprobs)
        return replace(found, logprobs=lost) if self.lost else found

    def forward_backward(self, batch: TokenBatch, objective: Objective) -> Measured:
        return self._lost(super().forward_backward(batch, objective), batch)

    def score(self, batch: TokenBatch, temperature: float = 1.0, reference: bool = False) -> Measured:
        return self._lost(super().score(batch, temperature, reference), batch)


@pytest.mark.parametrize("more", [{}, {"epochs": 2}, {"objective": {"kl_coef": 0.1, "kl_in": "reward"}}])
def test_a_learner_that_overflows_is_skipped_counted_and_blamed_and_no_engine_is(more: dict[str, Any]) -> None:
    phase = RFTPhaseConfig(groups_per_step=2, group_size=2, max_refills=2, **more)
    loop = PolicyLoop(ScriptedFleet(varied), Overflowing(), LoopSettings(phase, RolloutConfig(), "verdict"), STREAM)
    loop.step()
    loop.learner.lost = True  # type: ignore[attr-defined]
    for skipped in (1, 2):
        did = loop.step()
        metrics = did.metrics
        assert (metrics["learner/updates_skipped"], loop.progress.skipped, loop.learner.version) == (phase.updates, skipped, phase.updates)
        assert all(map(math.isfinite, metrics.values()))
        assert did.measured is not None and did.batch is not None
        assert np.isnan(did.measured.logprobs[did.batch.mask]).all(), "what nobody measured is no number, 0 least of all: it says certain"
    assert dict(loop.progress.ledger.dropped) == {"non_finite": 8}
    with pytest.raises(FloatingPointError, match=r"the learner's log-probabilities of 8 of 8 tokens are .* no engine is to blame"):
        loop.step()


def test_a_learner_that_overflows_at_a_sync_is_blamed_and_no_engine_is() -> None:
    loop = PolicyLoop(ScriptedFleet(varied), Overflowing(), LoopSettings(PHASE, RolloutConfig(), "verdict"), STREAM)
    loop.step()
    loop.learner.lost = True  # type: ignore[attr-defined]
    with pytest.raises(FloatingPointError, match="the learner's log-probabilities of 4 of 4 tokens"):
        loop.sync()


def test_a_log_probability_of_an_engine_that_is_not_finite_is_the_engines() -> None:
    loop = make_loop(varied, PHASE)
    loop.step()
    loop.fleet.off = math.nan  # type: ignore[attr-defined]
    with pytest.raises(SyncProofError, match=r"engine rollout-1: \d of \d log-probabilities of version 1 are not finite"):
        loop.sync()


def test_the_bound_of_a_sync_proof_is_that_of_the_temperature() -> None:
    """At temperature 0.5 the differences of log-probabilities double: 8e-5 is within 2 x 5e-5, and not within 5e-5."""
    for temperature, apart in ((0.5, 0), (1.0, 1), (2.0, 1)):
        loop = make_loop(varied, PHASE, RolloutConfig(temperature=temperature))
        loop.learner.off = 8e-5  # type: ignore[attr-defined]
        loop.step()
        assert loop.progress.apart == apart, temperature


def test_a_skipped_update_leaves_numbers_in_the_row_and_ends_its_step() -> None:
    loop = make_loop(varied, RFTPhaseConfig(groups_per_step=2, group_size=2, minibatches=2, epochs=3), broken=[2])
    metrics = loop.step().metrics
    assert all(math.isfinite(value) for value in metrics.values())
    assert "learner/loss" not in metrics and "learner/ratio" in metrics  # both minibatches had a pass
    assert (metrics["learner/updates"], metrics["learner/updates_skipped"], loop.progress.skipped) == (1, 5, 1)
    loop = make_loop(varied, RFTPhaseConfig(groups_per_step=2, group_size=2, minibatches=2, epochs=3), broken=[1])
    assert "learner/ratio" not in loop.step().metrics  # one had none
    assert (loop.learner.version, loop.progress.skipped) == (0, 1)


def test_a_failed_member_is_masked_and_the_rest_of_its_group_trains() -> None:
    loop = make_loop(lambda n: (Reward(1.0), DOWN, Reward(0.0)), RFTPhaseConfig(groups_per_step=1, group_size=3))
    loop.step()
    assert (loop.progress.ledger.trained_count, dict(loop.progress.ledger.masked)) == (2, {"verifier_unavailable": 1})


def test_progress_survives_its_row() -> None:
    loop = make_loop(lambda n: (Reward(7.0), Reward(-3.0), DOWN), RFTPhaseConfig(groups_per_step=2, group_size=3))
    loop.step()
    assert list(loop.progress.recent) == [(6, {"verifier_unavailable": 2})]
    row = json.loads(json.dumps(loop.progress.row()))
    assert PolicyProgress.from_row(row) == PolicyProgress.from_row({**row, "rewards": [-3.0, 7.0]}) == loop.progress


@pytest.mark.parametrize(
    ("rewards", "size", "kept"),
    [
        ([0.0, 0.1 + 0.2 - 0.3], 1.0, False),  # 5.6e-17: nothing but the rounding of what was taken from each other
        ([0.0, float(np.float32(0.3)) - 0.3], 1.0, False),  # 1.2e-8, of a verifier that computes in float32
        ([0.0, 0.1 + 0.2 - 0.3], 0.0, True),  # nothing shows that what they are the sums of was larger
        ([1e-6, 2e-6], 1.0, True),
        ([1e-6, 1.5e-6, 2e-6], 2e-6, True),
        ([0.0, 0.001], 1000.0, True),
        ([0.0, 1e-4], 1000.0, False),
    ],
)
def test_near_zero_rounding_is_told_by_the_size_of_the_terms(rewards: list[float], size: float, kept: bool) -> None:
    given = [Reward(reward, size=size) for reward in rewards]
    assert (why_not(group(Task("t", 0), *given), RolloutConfig()) is None) == kept


ROUNDED = (Reward(0.0), Reward(0.1 + 0.2 - 0.3, size=0.6))


@pytest.mark.parametrize("which", [0, 1])
def test_what_rounding_left_trains_nothing_whichever_group_finishes_first(which: int) -> None:
    loop = make_loop(lambda n: ROUNDED if n == which else varied(n), PHASE)
    metrics = loop.step().metrics
    assert (metrics["groups_trained"], dict(loop.progress.ledger.dropped)) == (2, {"zero_variance": 2})


def judged(value: float) -> Reward:
    return Reward(0.5 * value, {"verdict": value})


def test_a_success_that_differs_by_rounding_trains_nothing_where_the_recipe_weighs_it() -> None:
    rewards = [RewardConfig(use="my-team/verdict-v1", weight=0.5), RewardConfig(use="my-team/cost-v1", clip=(0.0, 10.0), weight=-0.1)]
    assert declared_sizes(rewards, 1.0, "verdict") == {"verdict": 0.5} and declared_sizes(rewards, 2.0, "env") == {"env": 2.0}
    assert declared_sizes(rewards[:1], 1.0, "env.won") == {}, "nothing is said of what the environment or the reward gives"
    mapped = [RewardConfig(use="my/a-v1", normalize="minmax", range=(0.0, one)) for one in (1.0, 1e9)]
    assert declared_sizes(mapped[:1], 1.0, "x") == {"a": 1.0} and declared_sizes(mapped[1:], 1.0, "x") == {}
    settings = LoopSettings(PHASE, RolloutConfig(), "verdict", declared={"verdict": 0.5})
    loop = PolicyLoop(ScriptedFleet(lambda n: (judged(0.0), judged(1e-8))), ScriptedLearner(()), settings, STREAM)
    assert loop.step().metrics["groups_trained"] == 0
    small = PolicyLoop(ScriptedFleet(lambda n: (judged(1e-6), judged(2e-6))), ScriptedLearner(()), settings, STREAM)
    assert small.step().metrics["groups_trained"] == 2


@pytest.mark.parametrize("low_and_high", [(1.0, 0.0), (150.0, 0.0)])
def test_a_bound_that_no_reward_comes_near_makes_none_equal(low_and_high: tuple[float, float]) -> None:
    """A clip that only cuts off negatives, and a success of a large weight that is the same in all."""
    wide = [RewardConfig(use="my/b-v1", clip=(0.0, 1e9)), RewardConfig(use="my/verdict-v1", weight=1e9)]
    rewards = [Reward(one, {"b": one, "verdict": 0.0}, size=one) for one in low_and_high]
    assert why_not(group(Task("t", 0), *rewards), RolloutConfig(), declared=declared_sizes(wide, 0.0, "verdict")) is None


@pytest.mark.parametrize(
    ("rewards", "kept"),
    [
        ([1.0, 1.000003], False),  # rounding of a float32 verifier
        ([1.0] * 7 + [0.99999], False),
        ([0.0, 1e-6], True),  # small rewards are rewards
        ([1000.0, 1000.1], True),
        ([1.0, 0.99], True),  # the price of one call
    ],
)
def test_rewards_that_differ_by_rounding_count_as_equal(rewards: list[float], kept: bool) -> None:
    assert (why_not(group(Task("t", 0), *map(Reward, rewards)), RolloutConfig()) is None) == kept


@pytest.mark.parametrize("outlier", [-20000.0, -5e6, -1e8])
def test_one_outlier_does_not_make_the_rewards_of_other_groups_equal(outlier: float) -> None:
    loop = make_loop(lambda n: (Reward(0.0), Reward(outlier)) if n == 0 else varied(n), PHASE)
    assert [loop.step().metrics["groups_trained"] for _ in range(4)] == [2, 2, 2, 2]


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


def test_a_group_whose_policy_said_nothing_trains_nothing() -> None:
    silent = replace(
        group(Task("t", 0), Reward(1.0), Reward(0.0)), episodes=tuple(Episode(Task("t", 0), i, (), (), Reward(i)) for i in (0, 1))
    )
    assert why_not(silent, RolloutConfig()) == "no_tokens"


def test_a_group_too_small_for_what_compares_it_is_dropped() -> None:
    two = replace(group(Task("train-0", 0), Reward(1.0), Reward(0.0), DOWN), comparable=False)
    assert why_not(two, RolloutConfig()) == "too_few"


def test_the_error_budget_stops_the_run_and_says_what_failed() -> None:
    phase = RFTPhaseConfig(groups_per_step=16, group_size=8)
    loop = make_loop(lambda n: (Reward(1.0), Reward(0.0), *(DOWN,) * 6), phase, RolloutConfig(error_budget=0.1))
    with pytest.raises(ErrorBudgetSpent, match=r"48 of the last 64 .*48 verifier_unavailable; the last one: verifier_unavailable in verd"):
        loop.step()


@pytest.mark.parametrize(("size", "stops_in"), [(4, 8), (2, 16), (16, 2)])
def test_the_error_budget_judges_small_steps_over_as_many_as_hold_64_episodes(size: int, stops_in: int) -> None:
    """Half of all episodes fail; two groups of `size` a step, so that 64 are together after `stops_in` steps."""
    half = size // 2 if size > 2 else 1
    loop = make_loop(
        lambda n: (Reward(1.0), *(Reward(0.0),) * (size - half - 1), *(DOWN,) * half),
        RFTPhaseConfig(groups_per_step=2, group_size=size, max_refills=0, equal_groups="keep", steps=100),
        RolloutConfig(error_budget=0.1),
    )
    for _ in range(stops_in - 1):
        loop.step()
    with pytest.raises(ErrorBudgetSpent, match=rf"{64 * half // size} of the last 64 episodes failed"):
        loop.step()


def test_the_error_budget_forgets_steps_that_it_need_not_look_back_on() -> None:
    """Eight steps of eight episodes are 64: what failed before them is past, in a resumed run too."""
    phase = RFTPhaseConfig(groups_per_step=2, group_size=4, steps=1000)
    script = lambda n: (*varied(n), *varied(n)) if n % 16 else (Reward(1.0), Reward(0.0), DOWN, DOWN)  # noqa: E731  2 of 64
    loop = make_loop(script, phase, RolloutConfig(error_budget=0.05))
    for _ in range(40):
        loop.step()
    row = json.loads(json.dumps(loop.progress.row()))
    assert PolicyProgress.from_row(row) == loop.progress


def test_every_group_is_heard_of_before_what_it_holds_stops_the_run() -> None:
    limits = RolloutConfig(on_failure={FailureKind.VERIFIER_UNAVAILABLE: "stop"})
    loop, heard = make_loop(lambda n: (Reward(1.0), DOWN), PHASE, limits), list[str]()
    loop.on_group = lambda group: heard.append(group.task.id)
    with pytest.raises(ErrorBudgetSpent):
        loop.step()
    assert heard, "its transcript says why"


def test_the_error_budget_remembers_the_steps_before_a_resume() -> None:
    phase = RFTPhaseConfig(groups_per_step=8, group_size=4)
    loop = make_loop(lambda n: (*varied(n), *varied(n)) if n < 8 else (Reward(1.0), Reward(0.0), DOWN, DOWN), phase)
    loop.step()
    resumed = make_loop(lambda n: (Reward(1.0), Reward(0.0), DOWN, DOWN), phase)
    resumed.progress = PolicyProgress.from_row(json.loads(json.dumps(loop.progress.row())))
    for each in (loop, resumed):
        with pytest.raises(ErrorBudgetSpent, match="16 of the last 64 episodes failed"):
            each.step()


def test_a_step_of_failures_only_says_their_cause_however_few_they_are() -> None:
    with pytest.raises(ErrorBudgetSpent, match=r"all 12 episodes of step 1 failed: 12 verifier_unavailable; one of them: verifier_unava"):
        make_loop(lambda n: (DOWN, DOWN), PHASE).step()
    assert make_loop(lambda n: (DOWN, DOWN), PHASE, RolloutConfig(error_budget=1.0)).step().metrics["failed"] == 12


def test_an_outage_after_many_good_steps_spends_the_budget_too() -> None:
    phase = RFTPhaseConfig(groups_per_step=16, group_size=2)
    loop = make_loop(lambda n: varied(n) if n < 400 * 16 else (DOWN, DOWN), phase, RolloutConfig(error_budget=0.1))
    for _ in range(400):
        loop.step()
    with pytest.raises(ErrorBudgetSpent, match=r"failed, more than rollout\.error_budget = 0\.1 allows: \d+ verifier_unavailable"):
        loop.step()


def test_a_failure_that_the_recipe_answers_with_stop_stops_at_once() -> None:
    limits = RolloutConfig(on_failure={FailureKind.VERIFIER_UNAVAILABLE: "stop"})
    with pytest.raises(ErrorBudgetSpent, match="verifier_unavailable in verdict@"):
        make_loop(lambda n: (Reward(1.0), DOWN), PHASE, limits).step()


def test_metrics_leave_failed_episodes_out_of_every_mean() -> None:
    outcomes = (Reward(1.0, {"verdict": 1.0}), Reward(0.0, {"verdict": 0.0}), DOWN)
    metrics = make_loop(lambda n: outcomes, RFTPhaseConfig(groups_per_step=1, group_size=3)).step().metrics
    assert (metrics["reward_mean"], metrics["success"], metrics["failed"], metrics["episodes"]) == (0.5, 0.5, 1.0, 3.0)


def test_an_episode_without_a_part_that_others_have_has_none_of_it_as_in_an_evaluation() -> None:
    outcomes = (Reward(1.0, {"env.won": 1.0}), Reward(0.0), Reward(0.0), DOWN)
    settings = LoopSettings(RFTPhaseConfig(groups_per_step=1, group_size=4), RolloutConfig(), "env.won")
    step = PolicyLoop(ScriptedFleet(lambda n: outcomes), ScriptedLearner(), settings, STREAM).step()
    assert step.metrics["success"] == step.metrics["reward/env.won"] == pytest.approx(1 / 3)
    assert summarize(step.collected.episodes, "env.won").parts == {"env.won": pytest.approx(1 / 3)}


def test_failures_are_counted_by_kind() -> None:
    slow = Failure(FailureKind.ENV_TIMEOUT, "env", "30 s")
    metrics = make_loop(lambda n: (*varied(n), slow, DOWN, DOWN), RFTPhaseConfig(groups_per_step=1, group_size=5)).step().metrics
    assert (metrics["failed"], metrics["failed/verifier_unavailable"], metrics["failed/env_timeout"]) == (3, 2, 1)


def test_the_task_stream_is_a_function_of_its_position() -> None:
    whole = training_tasks((0, 10**9), 7, 0, 20)
    assert training_tasks((0, 10**9), 7, 12, 8) == whole[12:]
    assert len({task.seed for task in whole}) == 20


def test_a_small_range_is_visited_in_epochs() -> None:
    seeds = [task.seed for task in training_tasks((100, 105), 7, 0, 10)]
    assert sorted(seeds[:5]) == sorted(seeds[5:]) == [100, 101, 102, 103, 104]


def test_held_out_tasks_are_always_the_same() -> None:
    assert [task.seed for task in held_out_tasks((50, 90), 3)] == [50, 51, 52]
