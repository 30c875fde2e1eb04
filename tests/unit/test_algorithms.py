"""Algorithms by their names: what each writes into the config, what it refuses, and a step of each over a scripted engine."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from tests.unit.one_step import made_the_better_more_likely, make_policy, played
from tests.unit.scripted import ScriptedLearner
from tests.unit.test_core_plan import model as plan_model
from tests.unit.test_core_plan import recipe
from tests.unit.test_trainer_loop import ScriptedFleet, equal, group, make_loop, varied

from burnish.envs.types import EpisodeGroup, Reward, Task
from burnish.recipe.load import config_data, config_from_data, load_config
from burnish.recipe.pace import LEARNER_FLOPS
from burnish.recipe.plan import make_plan
from burnish.rollout.config import RolloutConfig
from burnish.trainer.data.tasks import training_tasks
from burnish.trainer.learner.config import LearnerConfig
from burnish.trainer.learner.optimizer import learning_rate
from burnish.trainer.loop import LoopSettings, PolicyLoop
from burnish.trainer.objectives.config import ObjectiveConfig, OverlongConfig
from burnish.trainer.objectives.objective import objective_of
from burnish.trainer.objectives.presets import PRESETS, Algorithm
from burnish.trainer.objectives.shaping import overlong_penalty, shaped, without_cut_short
from burnish.trainer.phases.common import phase_optimizer
from burnish.trainer.phases.rft import RFTPhaseConfig

pytestmark = pytest.mark.unit

plan_model = plan_model  # a fixture
NAMES = sorted(PRESETS)
PLAIN_CRITIC = {"lr": None, "lam": 1.0, "clip": 0.2, "warmup_updates": 0}
ARITHMETIC = {"name": "a", "model": "nano", "environment": "burnish/Arithmetic-v0", "rollout": {"max_tokens_per_turn": 50}}


def table(**rft: Any) -> dict[str, Any]:
    """The `[rft]` table of a recipe as its config.json shows it."""
    return config_data(config_from_data({**ARITHMETIC, "rft": rft}))["rft"]


def test_every_name_has_a_preset() -> None:
    assert set(NAMES) == set(get_args(Algorithm))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("grpo", {"minibatches": 1, "advantage": "grpo", "loss_args": {"clip_low": 0.2, "clip_high": 0.2}, "aggregation": "sequence"}),
        ("dr_grpo", {"advantage": "dr_grpo", "aggregation": "constant", "constant_tokens": 50, "correction": "none"}),
        ("dapo", {"minibatches": 4, "loss_args": {"clip_low": 0.2, "clip_high": 0.28}, "correction": "truncate", "aggregation": "token"}),
        ("dapo", {"overlong": {"action": "penalty", "tokens": 50, "buffer": 10, "penalty": 1.0}}),
        ("gspo", {"minibatches": 4, "loss": "gspo", "loss_args": {"clip_low": 3e-4, "clip_high": 4e-4}, "aggregation": "sequence"}),
        ("cispo", {"minibatches": 2, "loss": "cispo", "loss_args": {"clip_low": 1.0, "clip_high": 3.0}}),
        ("rloo", {"minibatches": 1, "advantage": "rloo", "loss": "importance", "loss_args": {}, "constant_tokens": 50}),
        ("reinforce_pp", {"minibatches": 4, "advantage": "reinforce_pp", "loss": "ppo_clip", "equal_groups": "keep"}),
        ("ppo", {"minibatches": 4, "advantage": "gae", "loss": "ppo_clip", "equal_groups": "keep", "critic": PLAIN_CRITIC}),
    ],
)
def test_a_name_is_written_out(name: str, wanted: dict[str, Any]) -> None:
    found = table(algorithm=name)
    shown = {**found, **found["objective"]}
    assert {key: shown[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"minibatches": 1, "equal_groups": "drop"},
        {"minibatches": 2, "epochs": 3, "groups_per_step": 2},
        {"minibatches": 1, "objective": {"correction": "mask"}},
        {"objective": {"kl_coef": 0.1, "aggregation": "token"}},
        {"objective": {"overlong": {"action": "none"}, "correction": "none"}},
        {"objective": {"overlong": {"action": "mask"}, "loss_args": {}}},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", [*NAMES, None])
def test_what_was_written_out_reads_back_equal(name: str | None, own: dict[str, Any], tmp_path: Path) -> None:
    config = config_from_data({**ARITHMETIC, "rft": {**({"algorithm": name} if name else {}), **own}})
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config_data(config)))
    assert load_config(file) == config


def test_what_the_recipe_says_goes_before_the_name() -> None:
    found = table(algorithm="dapo", minibatches=2, objective={"loss_args": {"clip_high": 0.4}, "overlong": {"buffer": 20}})
    assert (found["minibatches"], found["objective"]["loss_args"]) == (2, {"clip_low": 0.2, "clip_high": 0.4})
    assert found["objective"]["overlong"] == {"action": "penalty", "tokens": 50, "buffer": 20, "penalty": 1.0}
    assert table(algorithm="gspo", groups_per_step=2)["minibatches"] == 2
    assert table(algorithm="reinforce_pp", equal_groups="drop")["equal_groups"] == "drop"
    kl = table(algorithm="rloo", objective={"kl_coef": 0.1})["objective"]
    assert (kl["kl"], kl["kl_in"]) == ("k1", "reward")
    assert table(algorithm="grpo", objective={"kl_coef": 0.1})["objective"]["kl_in"] == "loss"


@pytest.mark.parametrize(
    ("rft", "says"),
    [
        ({"algorithm": "gspo", "objective": {"loss": "ppo_clip"}}, 'objective.loss = "ppo_clip" contradicts algorithm = "gspo"'),
        ({"algorithm": "rloo", "objective": {"advantage": "grpo"}}, 'objective.advantage = "grpo" contradicts algorithm = "rloo"'),
        ({"algorithm": "ppo", "objective": {"advantage": "grpo"}}, 'objective.advantage = "grpo" contradicts algorithm = "ppo"'),
        ({"algorithm": "grop"}, "rft.algorithm: 'grop' "),
        ({"minibatches": 20}, "minibatches = 20 is more than groups_per_step = 16"),
        (
            {"objective": {"correction": "mask", "loss_args": {"clip_high": 0.3}}},
            "objective.loss_args.clip_high has no effect with one update",
        ),
        ({"algorithm": "grpo", "objective": {"correction": "mask", "loss_args": {"clip_low": 0.3}}}, "clip_low has no effect"),
        (
            {"algorithm": "grpo", "objective": {"loss_args": {"clip_high": 0.28}}},
            "rft.objective.loss_args.clip_high: 0.28 has no effect with",
        ),
        ({"objective": {"loss_args": {"clip_low": 0.2}}}, "rft.objective.loss_args.clip_low: 0.2 has no effect with one update a step"),
        ({"minibatches": 2, "objective": {"loss_args": {"clip_low": 1.5}}}, "clip_low = 1.5 bounds no more than 1 does"),
        ({"algorithm": "ppo", "minibatches": 1, "critic": {"clip": 0.1}}, "critic.clip has no effect with one update a step"),
        ({"objective": {"correction_high": 3.0}}, 'correction_high has no effect with correction = "none"'),
        ({"minibatches": 2, "objective": {"correction_low": 0.5}}, 'correction_low has no effect with correction = "truncate"'),
        ({"objective": {"kl": "k2"}}, "kl has no effect with kl_coef = 0"),
        ({"objective": {"kl_in": "reward"}}, "kl_in has no effect with kl_coef = 0"),
        ({"objective": {"kl_coef": 0.1, "kl": "k1"}}, 'kl = "k1" in the loss has a gradient of zero on average'),
        ({"objective": {"constant_tokens": 5}}, "constant_tokens has no effect"),
        ({"objective": {"overlong": {"action": "mask", "penalty": 1.0}}}, 'penalty has no effect with action = "mask"'),
        ({"objective": {"overlong": {"action": "penalty", "tokens": 60}}}, "rft.objective.overlong.tokens: 60 is never reached"),
        ({"objective": {"overlong": {"action": "penalty", "tokens": 9, "buffer": 9}}}, "buffer = 9 must be less than tokens = 9"),
        ({"objective": 3}, "rft.objective: must be a table"),
    ],
    ids=str,
)
def test_what_contradicts_or_has_no_effect_is_refused(rft: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        table(**rft)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_that_names_it_is_planned(name: str, plan_model: Path) -> None:
    plan = make_plan(recipe(plan_model, rft={"algorithm": name, "steps": 3}))
    assert plan.phases[0].name == "rft"


@pytest.mark.parametrize(
    ("rft", "engine", "says"),
    [
        ({"algorithm": "grpo"}, {}, "rft: clip_low = 0.2 and clip_high = 0.2 of grpo cannot act"),
        ({"algorithm": "cispo"}, {}, "rft: clip_low = 1 of cispo cannot act"),
        ({"algorithm": "grpo", "epochs": 2}, {}, ""),
        ({"algorithm": "grpo", "rollouts": "one_step_off"}, {}, ""),
        ({"algorithm": "grpo"}, {"dtype": "bfloat16"}, ""),
        ({"objective": {"loss_args": {"clip_low": 1e-3, "clip_high": 1e-3}}}, {}, ""),
    ],
    ids=str,
)
def test_a_plan_says_which_bounds_of_an_algorithm_cannot_act(
    rft: dict[str, Any], engine: dict[str, Any], says: str, plan_model: Path
) -> None:
    said = [line for line in make_plan(recipe(plan_model, rft={"steps": 3, **rft}, engine=engine)).warnings if "cannot act" in line]
    assert [line[: len(says)] for line in said] == ([says] if says else [])


def test_a_critics_clip_stands_where_it_acts() -> None:
    assert table(algorithm="ppo")["critic"]["clip"] == 0.2
    assert table(algorithm="ppo", minibatches=1)["critic"]["clip"] is None
    assert table(algorithm="ppo", critic={"clip": 0.0})["critic"]["clip"] == 0.0


def test_a_plan_counts_every_pass_over_the_tokens(plan_model: Path) -> None:
    more = {"epochs": 2, "objective": {"kl_coef": 0.1}}
    once, twice = (make_plan(recipe(plan_model, rft={"steps": 3, **rft})).phases[0] for rft in ({}, more))
    assert once.seconds is not None and twice.seconds is not None
    # 6 for the second epoch, 2 for the old policy, 2 for the reference; the model has 420 parameters.
    assert twice.seconds - once.seconds == pytest.approx(10 * 420 * once.trained_tokens / LEARNER_FLOPS)


def test_a_plan_names_what_is_wrong_with_an_objective(plan_model: Path) -> None:
    objective = {"advantage": "pass_at_k", "loss": "ppo_clip", "loss_args": {"clip": 0.1}}
    with pytest.raises(ValueError, match=r"advantage 'pass_at_k' needs the option 'k'\nloss 'ppo_clip' has no option 'clip'"):
        make_plan(recipe(plan_model, rft={"objective": objective}))


def test_schedules_count_in_updates() -> None:
    phase = RFTPhaseConfig(steps=10, lr=1e-5, minibatches=2, epochs=2, warmup_steps=3, schedule="cosine")
    optimizer = phase_optimizer(LearnerConfig().optimizer, phase)
    assert (optimizer.total_steps, optimizer.warmup_steps) == (40, 12)


def test_the_schedule_goes_on_over_updates_that_were_not_made() -> None:
    """Of steps 1 to 4, with two updates each, the second has no group to learn from, and the third one; the second update of the first is
    left out. The last update is where the rate has come down."""
    phase = RFTPhaseConfig(
        steps=4, groups_per_step=2, group_size=2, minibatches=2, max_refills=0, lr=1.0, warmup_steps=1, schedule="cosine"
    )
    loop = make_loop(lambda n: equal(n) if n in (2, 3, 5) else varied(n), phase, broken=[2])
    for _ in range(4):
        loop.step()
    learner: Any = loop.learner
    assert learner.places == [0, 1, 4, 6, 7]
    optimizer = phase_optimizer(LearnerConfig().optimizer, phase)
    assert learning_rate(optimizer, learner.places[-1]) == pytest.approx(0.5 * (1 + math.cos(math.pi * 5 / 6)))


class Recording(ScriptedLearner):
    """Notes what it is asked to score. The reference gives every token 0.5 less than the policy."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, bool]] = []

    def score(self, batch: Any, temperature: float = 1.0, reference: bool = False) -> Any:
        self.asked.append((self.version, reference))
        measured = super().score(batch, temperature)
        ours = np.where(batch.mask, np.float32(-1.0 if reference else -0.5), np.float32(0))
        return replace(measured, logprobs=ours)


def loop_of(phase: RFTPhaseConfig, limits: RolloutConfig | None = None, script: Any = varied) -> PolicyLoop:
    stream = partial(training_tasks, (0, 1000), 0)
    return PolicyLoop(ScriptedFleet(script), Recording(), LoopSettings(phase, limits or RolloutConfig(), "verdict"), stream)


def test_minibatches_and_epochs_make_updates_against_the_policy_at_the_start_of_the_step() -> None:
    loop = loop_of(RFTPhaseConfig(groups_per_step=4, group_size=2, minibatches=2, epochs=2))
    learner: Any = loop.learner
    loop.sync()
    step = loop.step()
    assert (learner.steps, learner.version, loop.fleet.synced) == (4, 4, [0, 4])  # type: ignore[attr-defined]
    assert learner.asked[0] == (0, False), "the old policy is scored before the first update"
    assert all(part.old_logprobs[part.mask].tolist() == [-0.5] * part.tokens for part in learner.batches)
    for first, second in (learner.batches[:2], learner.batches[2:]):  # every group is in one minibatch of each epoch
        assert sorted({*first.group.tolist()} | {*second.group.tolist()}) == [0, 1, 2, 3] and len(first.lengths) == 4
    assert (step.metrics["learner/updates"], loop.progress.ledger.trained_count) == (4, 8)
    assert step.measured is not None and step.measured.logprobs[step.batch.mask].tolist() == [-0.5] * 16  # type: ignore[union-attr]
    loop.step()
    assert loop.learner.version == 8


def test_one_update_stays_one_pass_over_what_the_engine_sampled_with() -> None:
    loop = loop_of(RFTPhaseConfig(groups_per_step=2, group_size=2))
    loop.step()
    learner: Any = loop.learner
    (batch,) = learner.batches
    assert learner.asked == [(1, False)], "nothing is scored but the probe after the sync"
    assert batch.old_logprobs is batch.sampler_logprobs or batch.old_logprobs.tolist() == batch.sampler_logprobs.tolist()


def test_groups_whose_updates_all_failed_are_dropped_and_the_others_train() -> None:
    loop = make_loop(varied, RFTPhaseConfig(groups_per_step=4, group_size=2, minibatches=2), broken=[2])
    step = loop.step()
    assert (loop.progress.ledger.trained_count, dict(loop.progress.ledger.dropped)) == (4, {"non_finite": 4})
    assert (step.metrics["learner/updates"], step.metrics["learner/updates_skipped"], step.metrics["weight_version"]) == (1, 1, 1)


def test_fewer_groups_than_minibatches_make_fewer_updates() -> None:
    phase = RFTPhaseConfig(groups_per_step=4, group_size=2, minibatches=2, max_refills=0)
    loop = make_loop(lambda n: varied(n) if n == 2 else equal(n), phase)
    loop.step()
    learner: Any = loop.learner
    assert learner.steps == 1
    assert learner.scales == [0.5]  # one of the two groups of a minibatch


def test_a_kl_in_the_reward_is_seen_by_the_advantage() -> None:
    objective = ObjectiveConfig(advantage="rloo", loss="importance", kl_coef=0.1, kl="k1", kl_in="reward")
    loop = loop_of(RFTPhaseConfig(groups_per_step=1, group_size=2, objective=objective))
    step = loop.step()
    # Every token pays 0.1 x (-0.5 - -1.0), both answers have two: 1 - 0.1 against 0 - 0.1, so the difference stays.
    assert loop.objective.kl_coef == 0.0
    assert step.metrics["learner/reference_kl"] == pytest.approx(0.5)
    assert step.batch is not None and step.batch.advantages[step.batch.mask].tolist() == [1, 1, -1, -1]
    with_to_go = ObjectiveConfig(advantage="reinforce_pp", kl_coef=0.1, kl="k1", kl_in="reward")
    step = loop_of(RFTPhaseConfig(groups_per_step=1, group_size=2, objective=with_to_go)).step()
    # To go: 0.9, 0.95 and -0.1, -0.05; mean 0.425, deviations 0.475, 0.525, -0.525, -0.475.
    wanted = np.array([0.475, 0.525, -0.525, -0.475]) / math.sqrt((0.475**2 + 0.525**2) / 2)
    assert step.batch is not None
    np.testing.assert_allclose(step.batch.advantages[step.batch.mask], wanted, rtol=1e-4)


def test_equal_groups_are_kept_where_they_teach() -> None:
    phase = RFTPhaseConfig(groups_per_step=2, group_size=2, equal_groups="keep", objective=ObjectiveConfig(advantage="reinforce_pp"))
    step = loop_of(phase, script=lambda n: varied(n) if n else equal(n)).step()
    assert (step.metrics["groups_trained"], step.metrics["groups_sampled"]) == (2, 2)
    # Rewards 0, 0 and 1, 0: mean 1/4, deviation sqrt(3)/4.
    assert step.batch is not None
    np.testing.assert_allclose(step.batch.advantages[step.batch.mask][:4], [-1 / math.sqrt(3)] * 4, rtol=1e-4)


def test_the_overlong_penalty_by_hand() -> None:
    assert [overlong_penalty(n, 100, 20, 2.0) for n in (0, 80, 85, 90, 100, 130)] == [0, 0, -0.5, -1.0, -2.0, -2.0]
    said = group(Task("t", 0), Reward(1.0, {"env": 1.0}), Reward(0.0))  # two tokens each
    found = shaped(said, OverlongConfig(action="penalty", tokens=4, buffer=3, penalty=0.6)).episodes
    assert [e.reward.total for e in found if e.reward] == pytest.approx([0.8, -0.2])
    assert found[0].reward is not None and found[0].reward.parts == {"env": 1.0, "overlong": pytest.approx(-0.2)}


def cut(n: int) -> EpisodeGroup:
    whole = group(Task(f"train-{n}", n), Reward(1.0), Reward(0.0), Reward(0.5))
    last = replace(whole.episodes[2], truncation="max_tokens")
    return replace(whole, episodes=(*whole.episodes[:2], last))


def test_masked_episodes_leave_no_trace_in_the_baseline_and_are_in_the_books() -> None:
    learned, masked = without_cut_short(cut(0), OverlongConfig(action="mask"))
    assert ([e.sample for e in learned.episodes], [e.sample for e in masked]) == ([0, 1], [2])
    objective = ObjectiveConfig(advantage="dr_grpo", overlong=OverlongConfig(action="mask"))
    loop = loop_of(RFTPhaseConfig(groups_per_step=1, group_size=3, objective=objective))
    loop.fleet.poll = lambda: [cut(int(loop.fleet.under_way.pop().id.removeprefix("train-")))]  # type: ignore[attr-defined,method-assign]
    step = loop.step()
    assert step.batch is not None and step.batch.advantages[step.batch.mask].tolist() == [0.5, 0.5, -0.5, -0.5]
    assert (loop.progress.ledger.trained_count, dict(loop.progress.ledger.dropped)) == (2, {"cut_short": 1})
    assert step.metrics["episodes"] == 3


def test_pass_at_k_takes_as_many_as_the_mask_leaves_and_no_more_than_a_group_has() -> None:
    def phase(k: int) -> RFTPhaseConfig:
        objective = ObjectiveConfig(advantage="pass_at_k", advantage_args={"k": k}, overlong=OverlongConfig(action="mask"))
        return RFTPhaseConfig(groups_per_step=1, group_size=3, objective=objective)

    loop = loop_of(phase(3))
    loop.fleet.poll = lambda: [cut(int(loop.fleet.under_way.pop().id.removeprefix("train-")))]  # type: ignore[attr-defined,method-assign]
    batch = loop.step().batch
    assert batch is not None and batch.advantages[batch.mask].tolist() == [1, 1, 0, 0]  # the best of the two that are left
    for k in (1, 4):
        with pytest.raises(ValueError, match=f"advantage_args.k: must be from 2 to group_size = 3, not {k}"):
            phase(k)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("models") / "recorded")


EXTRA: dict[str, dict[str, Any]] = {
    "kl in the loss": {"algorithm": "grpo", "objective": {"kl_coef": 0.01, "entropy_coef": 0.001}},
    "kl in the reward": {"algorithm": "rloo", "objective": {"kl_coef": 0.01}},
    "two epochs": {"algorithm": "dapo", "epochs": 2},
    "masked in one pass": {"objective": {"correction": "mask"}},
    "sequences masked": {"objective": {"correction": "sequence_mask", "correction_low": 0.5, "correction_high": 2.0}},
    "pass@k": {"objective": {"advantage": "pass_at_k", "advantage_args": {"k": 2}}},
    "the group's baseline": {"algorithm": "reinforce_pp", "objective": {"advantage_args": {"baseline": "group"}}},
}


@pytest.mark.parametrize("rft", [*({"algorithm": name} for name in NAMES), *EXTRA.values()], ids=[*NAMES, *EXTRA])
def test_a_step_makes_what_was_better_more_likely(rft: dict[str, Any], policy: Path) -> None:
    phase = RFTPhaseConfig.model_validate({"groups_per_step": 4, "group_size": 4, "lr": 3e-4, **rft})
    loop, step = played(policy, phase)
    assert made_the_better_more_likely(loop, step)
    assert loop.learner.version == phase.updates == step.metrics["learner/updates"]
    assert all(math.isfinite(value) for value in step.metrics.values())
    assert ("learner/value_explained" in step.metrics) == ("learner/critic_grad_norm" in step.metrics) == (phase.critic is not None)


def test_the_objective_of_a_step_says_what_its_updates_need() -> None:
    one, many = ObjectiveConfig(correction="mask"), ObjectiveConfig(correction="truncate", correction_high=3.0)
    assert (objective_of(one, 1.0, 1).own_old, objective_of(one, 1.0, 1).band) == (True, (0.5, 5.0))
    assert (objective_of(many, 1.0, 4).own_old, objective_of(many, 1.0, 4).band) == (False, (0.0, 3.0))
    assert objective_of(ObjectiveConfig(kl_coef=0.1, kl_in="reward"), 1.0).kl_coef == 0.0
