"""Losses, advantages, learning rates and learner settings against values computed by hand."""

import math

import numpy as np
import pytest
import torch

from burnish.trainer.learner.config import OptimizerConfig
from burnish.trainer.learner.optimizer import learning_rate
from burnish.trainer.objectives.advantages import ADVANTAGES, group_centred, group_normalised
from burnish.trainer.objectives.losses import cross_entropy, is_clipped, k3, ppo_clip, token_statistics

pytestmark = pytest.mark.unit


def test_grpo_divides_by_the_population_deviation() -> None:
    # mean 1/4, deviation sqrt(3)/4: the winner sqrt(3), the others -1/sqrt(3).
    advantages = group_normalised(np.array([1.0, 0.0, 0.0, 0.0]))
    np.testing.assert_allclose(advantages, [math.sqrt(3)] + [-1 / math.sqrt(3)] * 3, rtol=1e-5)


def test_dr_grpo_keeps_a_small_difference_small() -> None:
    np.testing.assert_allclose(group_centred(np.array([1.0, 0.0, 0.0, 0.0])), [0.75, -0.25, -0.25, -0.25])
    np.testing.assert_allclose(group_centred(np.array([1.0, 0.98])), [0.01, -0.01], rtol=1e-9)


@pytest.mark.parametrize("advantage", sorted(ADVANTAGES))
@pytest.mark.parametrize("rewards", [[0.1, 0.1, 0.1], [0.7], []])
def test_a_group_without_variance_teaches_exactly_nothing(advantage: str, rewards: list[float]) -> None:
    assert ADVANTAGES[advantage](np.array(rewards)).tolist() == [0.0] * len(rewards)


def test_token_statistics_of_a_known_distribution() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [1.0, 1.0, 1.0]]))
    statistics = token_statistics(logits, torch.tensor([1, 2]))
    torch.testing.assert_close(statistics.logprobs, torch.log(torch.tensor([0.25, 1 / 3])))
    torch.testing.assert_close(statistics.entropy, torch.tensor([1.5 * math.log(2), math.log(3)]))


def test_temperature_divides_the_logits() -> None:
    # p proportional to (4, 1) at temperature 2 is proportional to (2, 1).
    statistics = token_statistics(torch.log(torch.tensor([[4.0, 1.0]])), torch.tensor([0]), temperature=2.0)
    torch.testing.assert_close(statistics.logprobs, torch.log(torch.tensor([2 / 3])))


def test_entropy_carries_a_gradient_only_when_asked() -> None:
    logits = torch.randn(2, 5, requires_grad=True)
    assert not token_statistics(logits, torch.tensor([0, 1])).entropy.requires_grad
    assert token_statistics(logits, torch.tensor([0, 1]), entropy_grad=True).entropy.requires_grad


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.1, 2.0, -2.2, -2.2),  # inside the bounds: -r A
        (1.5, 2.0, -2.4, 0.0),  # above, and good: held at 1 + 0.2
        (1.5, -2.0, 3.0, 3.0),  # above, and bad: the full penalty
        (0.5, 2.0, -1.0, -1.0),  # below, and good: the full pull
        (0.5, -2.0, 1.6, 0.0),  # below, and bad: held at 1 - 0.2
    ],
)
def test_ppo_clip_and_where_it_stops_the_gradient(ratio: float, advantage: float, loss: float, slope: float) -> None:
    old = torch.tensor([-1.0])
    logprobs = (old + math.log(ratio)).requires_grad_()
    value = ppo_clip(logprobs, old, torch.tensor([advantage]), 0.2, 0.2)
    value.sum().backward()
    assert value.item() == pytest.approx(loss, rel=1e-5)
    assert logprobs.grad is not None and logprobs.grad.item() == pytest.approx(slope, abs=1e-5)
    assert is_clipped(logprobs, old, torch.tensor([advantage]), 0.2, 0.2).item() == (slope == 0.0)


def test_the_upper_bound_may_be_wider_than_the_lower() -> None:
    logprobs = torch.log(torch.tensor([1.25, 0.75]))
    loss = ppo_clip(logprobs, torch.zeros(2), torch.tensor([1.0, -1.0]), clip_low=0.2, clip_high=0.3)
    torch.testing.assert_close(loss, torch.tensor([-1.25, 0.8]))


def test_k3_averages_to_the_kl_divergence() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.4, 0.4, 0.2])
    estimate = k3(p.log(), q.log())
    assert (estimate >= 0).all()
    torch.testing.assert_close((p * estimate).sum(), (p * (p / q).log()).sum())
    assert k3(p.log(), p.log()).tolist() == [0.0, 0.0, 0.0]


def test_cross_entropy_is_the_negative_logprob() -> None:
    assert cross_entropy(torch.tensor([-0.5])).tolist() == [0.5]


def test_learning_rate_warms_up_then_follows_half_a_cosine() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=2, schedule="cosine", total_steps=6, min_lr_ratio=0.1)
    rates = [learning_rate(config, step) for step in (0, 1, 2, 4, 6, 100)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.55, 0.1, 0.1])
    assert learning_rate(OptimizerConfig(lr=0.3), 1000) == 0.3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schedule": "cosine"}, "needs total_steps"),
        ({"schedule": "cosine", "total_steps": 5, "warmup_steps": 5}, "greater than warmup_steps"),
        ({"total_steps": 5}, "no effect"),
        ({"learning_rate": 1.0}, "Extra inputs"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        OptimizerConfig.model_validate(options)
