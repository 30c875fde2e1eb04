"""Advantages per token, how losses average, and objectives of one's own: values by hand, and plug-ins as a user writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, EpisodeGroup, Outcome, Reward, Task, Trajectory, Turn
from burnish.trainer.batch import GroupBatch, TokenBatch, plain_batch
from burnish.trainer.objectives.advantages import (
    best_of,
    centred,
    dr_grpo,
    grpo,
    grpo_per_turn,
    left_out,
    normalised,
    pass_at_k,
    reinforce_pp,
    rloo,
)
from burnish.trainer.objectives.config import ObjectiveConfig
from burnish.trainer.objectives.measures import probe_of
from burnish.trainer.objectives.objective import Objective, objective_of
from burnish.trainer.objectives.registry import find_advantage, find_loss, full_id, loss

pytestmark = pytest.mark.unit

DOWN = Failure(FailureKind.TOOL_ERROR, "gauge", "unplugged")


def episode(task: Task, sample: int, outcome: Outcome, turns: Sequence[int] = (2,)) -> Episode:
    """One token of prompt, then turns of so many sampled tokens with one token of the environment between them."""
    mask = [False]
    for i, length in enumerate(turns):
        mask += [False] * (i > 0) + [True] * length
    trainable = np.array(mask)
    n = len(mask)
    said = Trajectory(np.arange(n, dtype=np.int32), trainable, np.where(trainable, -0.5, 0).astype(np.float32), np.zeros(n, np.int32))
    sampled = [Turn(np.zeros(k, np.int32), np.zeros(k, np.float32), np.zeros(k, np.int32), "stop") for k in turns]
    return Episode(task, sample, (said,), (), outcome, tuple(sampled))


def groups(*rewards: Sequence[Outcome]) -> GroupBatch:
    made = []
    for g, outcomes in enumerate(rewards):
        task = Task(f"t{g}", g)
        made.append(EpisodeGroup(task, tuple(episode(task, i, outcome) for i, outcome in enumerate(outcomes))))
    return GroupBatch(tuple(made))


def test_grpo_divides_by_the_population_deviation() -> None:
    # mean 1/4, deviation sqrt(3)/4: the winner sqrt(3), the others -1/sqrt(3).
    values = normalised(np.array([1.0, 0.0, 0.0, 0.0]))
    np.testing.assert_allclose(values, [math.sqrt(3)] + [-1 / math.sqrt(3)] * 3, rtol=1e-5)


def test_dr_grpo_keeps_a_small_difference_small() -> None:
    np.testing.assert_allclose(centred(np.array([1.0, 0.0, 0.0, 0.0])), [0.75, -0.25, -0.25, -0.25])
    np.testing.assert_allclose(centred(np.array([1.0, 0.98])), [0.01, -0.01], rtol=1e-9)


@pytest.mark.parametrize("advantage", [normalised, centred])
@pytest.mark.parametrize("rewards", [[0.1, 0.1, 0.1], [0.7], [], [1.0, 1.000003], [1.0] * 7 + [0.99999]])
def test_a_group_without_variance_teaches_exactly_nothing(advantage, rewards: list[float]) -> None:
    assert advantage(np.array(rewards)).tolist() == [0.0] * len(rewards)


@pytest.mark.parametrize(
    "advantage",
    [grpo, dr_grpo, rloo, reinforce_pp, partial(reinforce_pp, baseline="group"), partial(pass_at_k, k=2), grpo_per_turn],
)
@pytest.mark.parametrize("rewards", [[1.0, 1.000003], [1.0] * 7 + [0.99999]])
def test_what_rounding_left_is_no_advantage_of_any_estimator(advantage, rewards: list[float]) -> None:
    assert advantage(groups([*map(Reward, rewards)])).tolist() == [0.0] * len(rewards) * 3
    beside = advantage(groups([*map(Reward, rewards)], [Reward(0.0), Reward(1.0)]))
    assert np.ptp(beside[: 3 * len(rewards)].reshape(-1, 3)[:, -1]) <= 2e-5, "alike, beside a group that differs"
    assert beside[3 * len(rewards) :].any()


def test_groups_that_differ_from_each_other_by_rounding_are_no_deviation_of_a_batch() -> None:
    assert not reinforce_pp(groups([Reward(1.0), Reward(1.0)], [Reward(1.000003), Reward(1.000003)])).any()
    assert best_of(np.array([1.0, 1.000003]), 2).tolist() == [0.0, 0.0]


def test_what_rounding_left_of_large_terms_is_no_advantage() -> None:
    """Two sums of terms of 1000 that differ by 1e-4, within 2e-7 of 1000; with terms of 1 they differ."""
    for size, equal in ((1000.0, True), (1.0, False)):
        batch = groups([Reward(0.0, size=size), Reward(1e-4, size=size)])
        assert batch.rewards.tolist() == ([0.0, 0.0] if equal else [0.0, 1e-4])
        assert (not grpo(batch).any()) == equal


def test_every_trained_token_carries_the_advantage_of_its_episode_and_no_other() -> None:
    batch = groups([Reward(1.0), DOWN, Reward(0.0)], [Reward(3.0), Reward(1.0)])
    assert batch.rewards.tolist() == [1.0, 0.0, 3.0, 1.0]
    assert batch.group.tolist() == [0, 0, 1, 1]
    assert dr_grpo(batch).tolist() == [0, 0.5, 0.5, 0, -0.5, -0.5, 0, 1, 1, 0, -1, -1]
    np.testing.assert_allclose(grpo(batch), [0, 1, 1, 0, -1, -1] * 2, rtol=1e-5)
    trained = batch.train(dr_grpo(batch))
    assert trained.group.tolist() == [0, 0, 1, 1] and trained.sequence.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert batch.group_means(batch.rewards).tolist() == [0.5, 0.5, 2.0, 2.0]


def test_turns_are_told_apart_over_trajectories_too() -> None:
    task = Task("t", 0)
    one = episode(task, 0, Reward(1.0), turns=(2, 1, 3))
    assert GroupBatch((EpisodeGroup(task, (one,)),)).tokens.turn.tolist() == [-1, 0, 0, -1, 1, -1, 2, 2, 2]
    first, second = episode(task, 0, Reward(1.0), turns=(2,)), episode(task, 0, Reward(1.0), turns=(1, 3))
    both = Episode(task, 0, (*first.trajectories, *second.trajectories), (), Reward(1.0), one.turns)
    assert GroupBatch((EpisodeGroup(task, (both,)),)).tokens.turn.tolist() == [-1, 0, 0, -1, 1, -1, 2, 2, 2]


def test_credit_per_turn_is_the_reward_to_go_less_that_of_the_others() -> None:
    task = Task("t", 0)
    # Totals 1.0 and 0.0. The first earns 0.2 in turn 0 and 0.3 in turn 1, and 0.5 at the end; to go: [1.0, 0.8]. The second has one turn.
    members = (episode(task, 0, Reward(1.0, credit=(0.2, 0.3)), (1, 1)), episode(task, 1, Reward(0.0), (1,)))
    batch = GroupBatch((EpisodeGroup(task, members),))
    np.testing.assert_allclose(grpo_per_turn(batch), [0, 0.5, 0, 0.0, 0, -0.5], atol=1e-7)
    plain = groups([Reward(1.0), Reward(0.0)])
    np.testing.assert_allclose(grpo_per_turn(plain), dr_grpo(plain))


def uneven() -> TokenBatch:
    """Three sequences of 1, 3 and 0 trained tokens."""
    masks = [[False, True], [False, True, True, True], [False]]
    return plain_batch([(np.zeros(len(mask), np.int32), np.array(mask)) for mask in masks])


@pytest.mark.parametrize(
    ("objective", "scale"),
    [
        (Objective(), [0, 0.25, 0, 0.25, 0.25, 0.25, 0]),
        (Objective(aggregation="sequence"), [0, 1 / 2, 0, 1 / 6, 1 / 6, 1 / 6, 0]),
        (Objective(aggregation="constant", constant_tokens=10), [0, 0.05, 0, 0.05, 0.05, 0.05, 0]),
    ],
)
def test_how_tokens_average(objective: Objective, scale: list[float]) -> None:
    batch = objective.with_scale(uneven())
    assert batch.scale is not None
    np.testing.assert_allclose(batch.scale, scale, rtol=1e-6)
    part = objective.with_scale(batch.select([1]))  # the denominator stays that of the whole batch
    assert part.scale is not None
    np.testing.assert_allclose(part.scale, scale[2:6], rtol=1e-6)


OWN = """
from burnish.trainer.objectives.losses import LossOutputs, per_sequence
from burnish.trainer.objectives.registry import advantage, loss

@advantage("own/best-of-group-v1")
def best_of_group(batch, *, margin: float = 0.0):
    return batch.per_token(batch.by_group(lambda rewards: (rewards >= rewards.max() - margin) - 0.5))

@loss("own/gspo-v1", level="sequence", aggregation="sequence")
def gspo(inputs, *, clip: float = 3e-4):
    ratio = per_sequence(inputs.logprobs - inputs.old_logprobs, inputs.trajectory).exp()
    return LossOutputs({"policy": -(ratio.clamp(1 - clip, 1 + clip) * inputs.advantages)})

def bare(batch):
    return batch.per_token(batch.rewards)
"""


def test_an_objective_of_ones_own_is_a_file_and_a_line(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    batch = groups([Reward(1.0), Reward(0.4)])
    assert find_advantage(f"{file}:best_of_group", {})(batch).tolist() == [0, 0.5, 0.5, 0, -0.5, -0.5]
    assert find_advantage("own/best-of-group-v1", {"margin": 1.0})(batch).tolist() == [0, 0.5, 0.5, 0, 0.5, 0.5]
    assert find_advantage(f"{file}:bare", {})(batch)[1] == 1.0
    found = find_loss(f"{file}:gspo", {"clip": 0.1})
    assert (found.id, found.level, found.aggregation) == ("own/gspo-v1", "sequence", "sequence")
    assert objective_of(ObjectiveConfig(loss=f"{file}:gspo"), 0.7) == Objective(f"{file}:gspo", temperature=0.7)
    with pytest.raises(ValueError, match="is a loss, not an advantage"):
        find_advantage("own/gspo-v1", {})
    with pytest.raises(ValueError, match=r"loss '.*own.py:gspo' has no option 'clip_high'.*did you mean 'clip'"):
        find_loss(f"{file}:gspo", {"clip_high": 0.1})


class Scaled:
    def __call__(self, inputs: Any, by: float = 1.0) -> Any:
        return by * inputs


def test_a_loss_given_as_a_function_takes_its_options_and_is_what_it_was_registered_as() -> None:
    def entropic(inputs: Any, by: float = 1.0) -> Any:
        return by * inputs

    def plain(inputs: Any, by: float = 1.0) -> Any:
        return by * inputs

    loss("tests/entropic-v1", level="token", aggregation="sequence", entropy=True)(entropic)
    for given in (entropic, partial(entropic, by=3.0)):
        found = Objective(given, {"by": 2.0}).resolved()
        assert (found.id, found.level, found.aggregation, found.entropy) == ("tests/entropic-v1", "token", "sequence", True)
        assert found.function(5.0) == 10.0
    assert Objective(partial(entropic, by=3.0)).resolved().function(5.0) == 15.0
    for given, name in ((plain, "plain"), (partial(plain, by=3.0), "plain"), (Scaled(), "Scaled.__call__")):
        found = Objective(given, {"by": 2.0}).resolved()
        assert found.id.endswith(name) and (found.level, found.function(5.0)) == ("sequence", 10.0)
    with pytest.raises(ValueError, match="has no option 'bye'"):
        Objective(plain, {"bye": 2.0})
    with pytest.raises(ValueError, match="is an advantage, not a loss"):
        Objective(grpo)  # type: ignore[arg-type]


def scaled(inputs: Any, factor: float, more: Any = None) -> Any:
    """A loss that fails where its factor is 0."""
    return factor * inputs if factor else 1 / factor


def test_a_loss_given_as_a_function_is_the_same_where_it_was_sent() -> None:
    """An objective goes to the learner pickled, which asks of its loss again what options it takes."""
    sent = cloudpickle.loads(cloudpickle.dumps(Objective(scaled, {"factor": 2.0})))
    loss = sent.resolved()
    assert (loss.id, loss.function(3)) == ("tests.unit.test_trainer_objectives:scaled", 6.0)
    broken = cloudpickle.loads(cloudpickle.dumps(Objective(scaled, {"factor": 0.0}))).resolved()
    with pytest.raises(ValueError, match="ZeroDivisionError") as caught:
        broken.function(3)
    assert str(caught.value).count("loss 'tests.unit.test_trainer_objectives:scaled'") == 1


def test_a_probe_leaves_an_engine_room_for_one_more_token() -> None:
    ids = np.arange(60, dtype=np.int32)
    assert probe_of([ids[:40], ids[:12], ids[:1]]).lengths.tolist() == [39, 12]
    assert probe_of([ids]).lengths.tolist() == [48]
    assert probe_of([ids[:2]]).tokens == 1


def test_names_that_are_not_there_are_suggested() -> None:
    assert full_id("dr_grpo") == "burnish/dr-grpo-v1"
    with pytest.raises(ValueError) as caught:
        find_advantage("grop", {})
    said = str(caught.value)
    assert said.startswith("rft.objective.advantage: 'grop' is unknown; registered are, the closest first: grpo, dr_grpo, ")
    assert "cispo" not in said, "a loss is no advantage"
    with pytest.raises(ValueError, match=r"rft\.objective\.loss: 'cipso' is unknown; registered are, the closest first: cispo, "):
        find_loss("cipso", {})
    with pytest.raises(ValueError, match="loss 'ppo_clip', option 'clip_low'"):
        find_loss("ppo_clip", {"clip_low": "wide"})


@pytest.mark.parametrize("values", [[1.0], [0, math.nan, 0, 0, 0, 0]])
def test_advantages_that_do_not_fit_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="advantages"):
        groups([Reward(1.0), Reward(0.0)]).train(values)


def test_a_constant_is_a_number_of_the_recipe_or_the_most_an_episode_may_sample() -> None:
    with pytest.raises(ValueError, match="constant_tokens has no effect"):
        ObjectiveConfig(constant_tokens=8)
    assert ObjectiveConfig(aggregation="constant").within(96).constant_tokens == 96
    assert ObjectiveConfig(aggregation="constant", constant_tokens=8).within(96).constant_tokens == 8


def test_leave_one_out_compares_with_the_others() -> None:
    # 1 against the mean of (0, 0), 0 against that of (1, 0); and 3 - 1, 1 - 3.
    batch = groups([Reward(1.0), Reward(0.0), Reward(0.0)], [Reward(3.0), Reward(1.0)])
    assert rloo(batch)[batch.tokens.mask].tolist() == [1, 1, -0.5, -0.5, -0.5, -0.5, 2, 2, -2, -2]
    assert left_out(np.array([4.0])).tolist() == [0.0]


def test_reinforce_pp_is_normalised_over_the_tokens_of_the_batch() -> None:
    # Tokens of rewards 1, 1, 0, 0 and 3, 3, 0, 0: mean 1, variance (0 + 1 + 4 + 1) / 4 = 1.5.
    batch = groups([Reward(1.0), Reward(0.0)], [Reward(3.0), Reward(0.0)])
    values = reinforce_pp(batch)[batch.tokens.mask]
    np.testing.assert_allclose(values, np.array([0, 0, -1, -1, 2, 2, -1, -1]) / math.sqrt(1.5), atol=1e-5)
    # Less each group's mean: 0.5, -0.5 and 1.5, -1.5: mean 0, variance (0.25 + 2.25) / 2 = 1.25.
    values = reinforce_pp(batch, baseline="group")[batch.tokens.mask]
    np.testing.assert_allclose(values, np.array([0.5, 0.5, -0.5, -0.5, 1.5, 1.5, -1.5, -1.5]) / math.sqrt(1.25), rtol=1e-5)
    assert not reinforce_pp(groups([Reward(1.0), Reward(1.0)])).any()


def test_pass_at_k_pays_for_raising_the_best_of_k() -> None:
    # The only success of four is the best of any two it is in; a failure never raises anything.
    assert best_of(np.array([1.0, 0.0, 0.0, 0.0]), 2).tolist() == [1.0, 0.0, 0.0, 0.0]
    # Two successes of three: the other one is among k - 1 = 1 others half of the time.
    assert best_of(np.array([1.0, 1.0, 0.0]), 2).tolist() == [0.5, 0.5, 0.0]
    assert best_of(np.array([1.0, 1.0, 0.0]), 3).tolist() == [0.0, 0.0, 0.0]
    # 3 against a random one of (1, 0): (2 + 3) / 2; 1 against (3, 0): (0 + 1) / 2.
    assert best_of(np.array([3.0, 1.0, 0.0]), 2).tolist() == [2.5, 0.5, 0.0]
    batch = groups([Reward(1.0), Reward(0.0), DOWN])
    assert pass_at_k(batch, k=3)[batch.tokens.mask].tolist() == [1, 1, 0, 0]  # two are left: the best of two
    with pytest.raises(ValueError, match="'k': must be at least 2, not 1"):
        pass_at_k(batch, k=1)


ADVANTAGES = (grpo, dr_grpo, rloo, reinforce_pp, partial(reinforce_pp, baseline="group"), partial(pass_at_k, k=2), grpo_per_turn)


@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_what_is_masked_changes_nothing_baselines_included(advantage) -> None:
    told = groups([Reward(1.0), DOWN, Reward(0.0), Reward(0.5)], [Reward(3.0), Reward(1.0), DOWN])
    bare = groups([Reward(1.0), Reward(0.0), Reward(0.5)], [Reward(3.0), Reward(1.0)])
    assert advantage(told).tolist() == advantage(bare).tolist()
    paid = np.where(bare.tokens.mask, np.float32(0.25), np.float32(0))
    loud = np.where(bare.tokens.mask, paid, np.float32(99))  # outside the mask, token rewards do not count
    assert advantage(GroupBatch(bare.groups, loud)).tolist() == advantage(GroupBatch(bare.groups, paid)).tolist()


def test_what_tokens_earn_is_part_of_the_reward() -> None:
    task = Task("t", 0)
    members = (episode(task, 0, Reward(1.0), (2, 1)), episode(task, 1, Reward(0.0), (1,)))
    earned = np.array([9, -0.25, -0.5, 9, -0.125, 9, -0.5], np.float32)  # 9 where nothing is trained
    batch = GroupBatch((EpisodeGroup(task, members),), earned)
    assert batch.rewards.tolist() == [0.125, -0.5]
    assert batch.to_go().tolist() == [0, 0.125, 0.375, 0, 0.875, 0, -0.5]
    assert dr_grpo(batch)[batch.tokens.mask].tolist() == [0.3125, 0.3125, 0.3125, -0.3125]
    # Turn 0: 0.125 against -0.5; only one got to turn 1.
    assert grpo_per_turn(batch)[batch.tokens.mask].tolist() == [0.3125, 0.3125, 0.0, -0.3125]


def test_minibatches_are_whole_groups_and_each_is_in_one() -> None:
    batch = groups(*([Reward(1.0), Reward(0.0)] for _ in range(5))).tokens
    parts = batch.minibatches(2, seed=3)
    assert sorted(len(part) for part in parts) == [4, 6]
    assert sorted(m for part in parts for m in part) == list(range(10))
    assert all(len(set(part) & {2 * g, 2 * g + 1}) in (0, 2) for part in parts for g in range(5))
    assert [part.tolist() for part in batch.minibatches(2, seed=3)] == [part.tolist() for part in parts]
    assert len(batch.minibatches(8, seed=0)) == 5
    at = batch.tokens_of([2, 0])
    assert at.tolist() == [6, 7, 8, 0, 1, 2] and batch.select([2, 0]).mask.tolist() == batch.mask[at].tolist()
