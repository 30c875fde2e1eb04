"""Losses, learning rates and learner settings against values computed by hand."""

import math

import pytest
import torch

from burnish.trainer.learner.config import OptimizerConfig
from burnish.trainer.learner.optimizer import learning_rate
from burnish.trainer.objectives.losses import LossInputs, cross_entropy, k3, per_sequence, ppo_clip, token_statistics

pytestmark = pytest.mark.unit


def inputs(logprobs: torch.Tensor, old: torch.Tensor | None = None, advantages: torch.Tensor | None = None) -> LossInputs:
    """What a loss sees of tokens of one sequence each; whatever is not given is zero."""
    n = len(logprobs)
    zero, whole = torch.zeros(n), torch.zeros(n, dtype=torch.int32)
    known = zero if old is None else old
    given = zero if advantages is None else advantages
    return LossInputs(logprobs, zero, known, known, None, given, torch.ones(n), torch.ones(n, dtype=torch.bool), whole, whole, whole, whole)


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
    found = ppo_clip(inputs(logprobs, old, torch.tensor([advantage])), clip_low=0.2, clip_high=0.2)
    found.terms["policy"].sum().backward()
    assert found.terms["policy"].item() == pytest.approx(loss, rel=1e-5)
    assert logprobs.grad is not None and logprobs.grad.item() == pytest.approx(slope, abs=1e-5)
    assert found.metrics["clip_fraction"].item() == (slope == 0.0)
    assert found.metrics["ratio"].item() == pytest.approx(ratio, rel=1e-5)


def test_the_upper_bound_may_be_wider_than_the_lower() -> None:
    logprobs = torch.log(torch.tensor([1.25, 0.75]))
    found = ppo_clip(inputs(logprobs, torch.zeros(2), torch.tensor([1.0, -1.0])), clip_low=0.2, clip_high=0.3)
    torch.testing.assert_close(found.terms["policy"], torch.tensor([-1.25, 0.8]))


def test_k3_averages_to_the_kl_divergence() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.4, 0.4, 0.2])
    estimate = k3(p.log(), q.log())
    assert (estimate >= 0).all()
    torch.testing.assert_close((p * estimate).sum(), (p * (p / q).log()).sum())
    assert k3(p.log(), p.log()).tolist() == [0.0, 0.0, 0.0]


def test_cross_entropy_is_the_negative_logprob() -> None:
    assert cross_entropy(inputs(torch.tensor([-0.5]))).terms["cross_entropy"].tolist() == [0.5]


def test_the_mean_of_a_sequence_stands_at_each_of_its_tokens() -> None:
    values = torch.tensor([1.0, 3.0, 10.0], requires_grad=True)
    means = per_sequence(values, torch.tensor([0, 0, 1], dtype=torch.int32))
    assert means.tolist() == [2.0, 2.0, 10.0]
    means.sum().backward()
    assert values.grad is not None and values.grad.tolist() == [1.0, 1.0, 1.0]


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
