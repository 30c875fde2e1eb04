"""The critic and the advantages that ask it: by hand, against autograd, and through a learner's steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.test_trainer_learner import folder as folder
from tests.unit.test_trainer_learner import make_learner
from transformers import LlamaForCausalLM

from burnish.envs.types import Episode, EpisodeGroup, Reward, Task, Trajectory
from burnish.trainer.batch import GroupBatch, TokenBatch
from burnish.trainer.learner.config import CriticConfig, LearnerConfig, LoRAConfig, OptimizerConfig
from burnish.trainer.learner.critic import value_loss
from burnish.trainer.learner.learner import Learner
from burnish.trainer.objectives.advantages import beyond_expected, gae, token_earnings
from burnish.trainer.objectives.objective import Objective
from burnish.trainer.phases.rft import RFTPhaseConfig
from burnish.trainer.updates import expectations

pytestmark = pytest.mark.unit


def episode(sample: int, trained: Sequence[int], reward: Reward, ids: Sequence[int] | None = None) -> Episode:
    """One trajectory, whose tokens at the places of `trained` that are 1 were sampled; a gap between them begins a turn."""
    mask = np.array(trained, bool)
    n = len(mask)
    tokens = np.array(ids if ids is not None else range(n), np.int32)
    return Episode(
        Task("t", 0), sample, (Trajectory(tokens, mask, np.zeros(n, np.float32), np.where(mask, 0, -1).astype(np.int32)),), (), reward
    )


def batch_of(*episodes: Episode, values: Sequence[float] | None = None, paid: Sequence[float] | None = None) -> GroupBatch:
    rows = [None if row is None else np.array(row, np.float32) for row in (paid, values)]
    return GroupBatch((EpisodeGroup(Task("t", 0), episodes),), *rows)


def test_advantages_skip_what_others_said_and_end_with_the_episode() -> None:
    # Two turns of two and one tokens with a prompt before and an answer of the environment between.
    batch = batch_of(episode(0, [0, 1, 1, 0, 1], Reward(1.0)), values=[9, 0.2, 0.4, 9, 0.6])
    assert token_earnings(batch).tolist() == [0, 0, 0, 0, 1]
    # deltas: 0.4 - 0.2, 0.6 - 0.4, 1 - 0.6; with lam = 0.5 from the back: 0.4, 0.2 + 0.2, 0.2 + 0.2
    np.testing.assert_allclose(beyond_expected(batch, 0.5), [0, 0.4, 0.4, 0, 0.4], atol=1e-7)
    np.testing.assert_allclose(beyond_expected(batch, 1.0), [0, 0.8, 0.6, 0, 0.4], atol=1e-7)
    np.testing.assert_allclose(beyond_expected(batch, 0.0), [0, 0.2, 0.2, 0, 0.4], atol=1e-7)


def test_credit_of_a_turn_is_earned_at_its_end_and_payments_where_they_are() -> None:
    said = Reward(1.0, credit=(0.25, -0.5))
    batch = batch_of(episode(0, [0, 1, 1, 0, 1], said), episode(1, [0, 1], Reward(2.0)), values=[0] * 7, paid=[9, -1, 0, 9, 0, 9, 0])
    assert token_earnings(batch).tolist() == [0, -1, 0.25, 0, 0.75, 0, 2]
    assert beyond_expected(batch, 1.0).tolist() == [0, 0, 1, 0, 0.75, 0, 2]


def test_normalised_advantages_have_mean_zero_and_deviation_one() -> None:
    batch = batch_of(episode(0, [0, 1], Reward(1.0)), episode(1, [0, 1], Reward(0.0)), values=[0, 0.5, 0, 0.5])
    assert gae(batch, normalise=False).tolist() == [0, 0.5, 0, -0.5]
    np.testing.assert_allclose(gae(batch), [0, 1, 0, -1], rtol=1e-6)


def test_what_rounding_left_of_rewards_and_values_is_no_advantage() -> None:
    batch = batch_of(episode(0, [0, 1], Reward(1.0)), episode(1, [0, 1], Reward(1.000003)), values=[0, 1.0, 0, 1.0])
    assert gae(batch).tolist() == [0.0] * 4


def test_without_a_critic_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(ValueError, match="needs a critic"):
        gae(batch_of(episode(0, [0, 1], Reward(1.0))))
    with pytest.raises(ValueError, match="must be from 0 to 1"):
        gae(batch_of(episode(0, [0, 1], Reward(1.0)), values=[0, 0]), lam=1.5)


def test_the_clip_of_the_value_by_hand() -> None:
    values, before, returns = (torch.tensor(row) for row in ([0.5, 0.1, -0.5], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]))
    assert value_loss(values, before, returns, None).tolist() == pytest.approx([0.125, 0.405, 1.125])
    assert value_loss(values, before, returns, 0.2).tolist() == pytest.approx([0.32, 0.405, 1.125])  # the first moved too far: 0.2 counts


def learner_with_critic(folder: Path, critic: CriticConfig | None = None, learner: LearnerConfig | None = None) -> Learner:
    made = make_learner(folder, learner)
    made.begin_phase(OptimizerConfig(lr=1e-2), critic or CriticConfig())
    return made


def credited(learner: Learner, rewards: Sequence[float] = (1.0, 0.0, 0.5)) -> TokenBatch:
    rng = np.random.default_rng(0)
    members = [episode(i, [0, 0, 1, 1, 1], Reward(r), rng.integers(0, 40, 5).tolist()) for i, r in enumerate(rewards)]
    bare = batch_of(*members)
    scored = learner.score(bare.tokens)
    batch = batch_of(*members, values=scored.tokens["value"].tolist())
    returns = np.where(bare.tokens.mask, beyond_expected(batch, 1.0) + scored.tokens["value"], 0).astype(np.float32)
    return replace(batch.train(gae(batch)), values=scored.tokens["value"], returns=returns, old_logprobs=scored.logprobs)


def test_a_new_critic_expects_nothing_and_starts_as_the_policys_body(folder: Path) -> None:
    learner = learner_with_critic(folder)
    assert learner.critic is not None
    batch = credited(learner)
    assert batch.values is not None and not batch.values.any()
    own, policy = learner.critic.model.model.state_dict(), learner.policy.model.state_dict()
    assert all(torch.equal(tensor, policy[name]) for name, tensor in own.items() if name != "lm_head.weight")
    assert own["lm_head.weight"].shape == (1, 32)
    assert learner.score(batch, reference=True).tokens == {}


def test_its_gradient_is_that_of_the_plain_model(folder: Path) -> None:
    learner = learner_with_critic(folder)
    assert learner.critic is not None
    torch.manual_seed(3)
    torch.nn.init.normal_(learner.critic.model.model.lm_head.weight)
    batch = credited(learner)
    learner.forward_backward(batch, Objective())
    plain = LlamaForCausalLM.from_pretrained(folder).eval()
    head = learner.critic.model.model.lm_head.weight.detach().clone().requires_grad_()
    ids = torch.from_numpy(batch.token_ids.astype(np.int64)).view(3, 5)
    values = (plain.model(ids).last_hidden_state @ head.T).squeeze(-1)[:, 1:4]  # what is known just before tokens 2, 3 and 4
    assert batch.values is not None and batch.returns is not None
    np.testing.assert_allclose(values.detach().flatten(), batch.values[batch.mask], atol=1e-5)
    returns = torch.from_numpy(batch.returns[batch.mask]).view(3, 3)
    (0.5 * (values - returns).square()).mean().backward()
    assert head.grad is not None
    torch.testing.assert_close(learner.critic.model.model.lm_head.weight.grad, head.grad, rtol=1e-4, atol=1e-6)
    for name, parameter in plain.model.named_parameters():
        torch.testing.assert_close(learner.critic.model.model.model.get_parameter(name).grad, parameter.grad, rtol=1e-3, atol=1e-5)


def test_it_learns_what_episodes_earn_while_the_policy_waits(folder: Path) -> None:
    learner = learner_with_critic(folder, CriticConfig(lr=1e-2, warmup_updates=60))
    before, start = learner.weights(), expectations(credited(learner))
    norms = []
    for _ in range(60):
        learner.forward_backward(credited(learner), Objective())
        norms.append(learner.step()["critic_grad_norm"])
    end = expectations(credited(learner))
    assert start["value_explained"] == pytest.approx(0.0, abs=1e-6)
    assert end["value_explained"] > 0.9
    assert end["return"] == pytest.approx(0.5)
    assert min(norms) > 0
    assert all(np.array_equal(tensor, before[name]) for name, tensor in learner.weights().items())
    learner.forward_backward(credited(learner), Objective())
    learner.step()
    assert any(not np.array_equal(tensor, before[name]) for name, tensor in learner.weights().items())


def test_the_policys_own_warm_up_begins_where_the_critic_no_longer_learns_alone(folder: Path) -> None:
    learner = make_learner(folder)
    optimizer = OptimizerConfig(lr=1e-2, warmup_steps=2, schedule="cosine", total_steps=6)
    learner.begin_phase(optimizer, CriticConfig(lr=2e-2, warmup_updates=2))
    assert learner.critic is not None
    policys, critics = [], []
    for _ in range(6):
        learner.forward_backward(credited(learner), Objective())
        policys.append(learner.step()["lr"])
        critics.append(learner.critic.optimizer.param_groups[0]["lr"])
    assert policys == pytest.approx([0, 0, 5e-3, 1e-2, 1e-2, 5e-3])  # risen over two updates, falling over two
    assert critics == pytest.approx([1e-2, 2e-2, *(1e-2 * (1 + np.cos(np.pi * done / 4)) for done in range(4))])


@pytest.mark.parametrize("config", [None, LearnerConfig(threads=1, lora=LoRAConfig(rank=2, alpha=4))], ids=["whole", "adapters"])
def test_training_goes_on_bitwise_after_a_restore(folder: Path, tmp_path: Path, config: LearnerConfig | None) -> None:
    through, broken = learner_with_critic(folder, learner=config), learner_with_critic(folder, learner=config)

    def update(learner: Learner) -> dict[str, Any]:
        measured = learner.forward_backward(credited(learner), Objective())
        return {**measured.terms, **{k: v for k, v in learner.step().items() if k != "seconds"}}

    expected = [update(through) for _ in range(4)]
    assert [update(broken) for _ in range(2)] == expected[:2]
    broken.save(tmp_path / "state")
    resumed = make_learner(folder, config)
    resumed.restore(tmp_path / "state")
    assert [update(resumed) for _ in range(2)] == expected[2:]
    assert resumed.critic is not None and through.critic is not None
    for name, tensor in through.critic.model.model.state_dict().items():
        assert torch.equal(resumed.critic.model.model.state_dict()[name], tensor)


def test_what_is_not_finite_steps_neither(folder: Path) -> None:
    learner = learner_with_critic(folder)
    batch = credited(learner)
    assert batch.returns is not None
    learner.forward_backward(replace(batch, returns=np.where(batch.mask, np.nan, 0).astype(np.float32)), Objective())
    before = learner.weights()
    with pytest.raises(FloatingPointError, match="of the critic"):
        learner.step()
    assert all(np.array_equal(tensor, before[name]) for name, tensor in learner.weights().items())


@pytest.mark.parametrize(
    ("rft", "says"),
    [
        ({"objective": {"advantage": "gae"}}, 'needs a critic: write algorithm = "ppo"'),
        ({"critic": {}}, 'critic has no effect with objective.advantage = "grpo"'),
        ({"algorithm": "rloo", "critic": {"lr": 1e-4}}, 'critic has no effect with objective.advantage = "rloo"'),
        (
            {"algorithm": "ppo", "steps": 10, "minibatches": 2, "critic": {"warmup_updates": 20}},
            "critic.warmup_updates = 20 leaves the policy none of the phase's 20 updates; lower it",
        ),
        (
            {"algorithm": "ppo", "steps": 9, "minibatches": 2, "schedule": "cosine", "warmup_steps": 4, "critic": {"warmup_updates": 10}},
            "critic.warmup_updates = 10 and a warm-up of 8 more leave the policy none of the phase's 18 updates",
        ),
    ],
)
def test_a_critic_that_nobody_asks_is_refused(rft: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        RFTPhaseConfig.model_validate(rft)
    assert says in str(caught.value)
    assert RFTPhaseConfig.model_validate({"critic": {}, "objective": {"advantage": "my_team/credit.py:asks"}}).critic == CriticConfig()
