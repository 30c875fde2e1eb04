"""Losses, learning rates and learner settings against values computed by hand."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from burnish.trainer.learner.config import OptimizerConfig
from burnish.trainer.learner.optimizer import learning_rate
from burnish.trainer.objectives.losses import (
    KL_ESTIMATES,
    LossInputs,
    cispo,
    correction_weights,
    cross_entropy,
    gspo,
    importance,
    k3,
    kl_of,
    per_sequence,
    ppo_clip,
    token_statistics,
)
from burnish.trainer.objectives.objective import Objective, whole_loss

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


@pytest.mark.parametrize(("ratio", "advantage", "slope"), [(1.1, 2.0, -2.2), (9.0, -1.0, 9.0), (0.1, 3.0, -0.3)])
def test_plain_importance_sampling_bounds_nothing(ratio: float, advantage: float, slope: float) -> None:
    logprobs = torch.tensor([math.log(ratio)], requires_grad=True)
    found = importance(inputs(logprobs, torch.zeros(1), torch.tensor([advantage])))
    found.terms["policy"].sum().backward()
    assert found.terms["policy"].item() == pytest.approx(-ratio * advantage, rel=1e-5)
    assert logprobs.grad is not None and logprobs.grad.item() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize(
    ("ratio", "weight", "clipped"),
    [(1.5, 1.5, 0.0), (6.0, 4.0, 1.0), (0.05, 0.5, 1.0)],  # between 1 - 0.5 and 1 + 3
)
def test_cispo_clips_the_weight_and_never_the_gradient(ratio: float, weight: float, clipped: float) -> None:
    logprobs = (torch.tensor([-1.0]) + math.log(ratio)).requires_grad_()
    found = cispo(inputs(logprobs, torch.tensor([-1.0]), torch.tensor([2.0])), clip_low=0.5, clip_high=3.0)
    found.terms["policy"].sum().backward()
    assert found.terms["policy"].item() == pytest.approx(-weight * 2.0 * (math.log(ratio) - 1.0), rel=1e-5)
    assert logprobs.grad is not None and logprobs.grad.item() == pytest.approx(-weight * 2.0, rel=1e-5)
    assert found.metrics["clip_fraction"].item() == clipped


def two_sequences(logprobs: torch.Tensor, advantages: torch.Tensor) -> LossInputs:
    """Tokens 0 and 1 of one sequence, token 2 of another; the old policy gave each log-probability 0."""
    given = inputs(logprobs, torch.zeros(3), advantages)
    return replace(given, trajectory=torch.tensor([0, 0, 1], dtype=torch.int32))


def test_gspo_clips_the_ratio_of_the_sequence() -> None:
    logprobs = torch.log(torch.tensor([1.44, 1.0, 0.5])).requires_grad_()  # geometric means 1.2 and 0.5
    found = gspo(two_sequences(logprobs, torch.tensor([1.0, 1.0, 1.0])), clip_low=0.1, clip_high=0.3)
    torch.testing.assert_close(found.terms["policy"], torch.tensor([-1.2, -1.2, -0.5]))
    (found.terms["policy"] * torch.tensor([0.25, 0.25, 0.5])).sum().backward()  # the mean over sequences of each one's mean
    # d/dlogp of -1/2 s with s = exp((a + b) / 2) is -1/4 s for each token, and -1/2 s for a sequence of one.
    torch.testing.assert_close(logprobs.grad, torch.tensor([-0.3, -0.3, -0.25]))
    held = gspo(two_sequences(logprobs, torch.tensor([1.0, 1.0, -1.0])), clip_low=0.1, clip_high=0.1)
    torch.testing.assert_close(held.terms["policy"], torch.tensor([-1.1, -1.1, 0.9]))
    assert held.metrics["clip_fraction"].tolist() == [1.0, 1.0, 1.0]


def test_gspo_has_the_gradient_of_the_sequences_own_loss_and_credits_single_tokens() -> None:
    for advantages in ([1.5, 1.5, -1.0], [1.0, -2.0, 1.0]):
        logprobs = torch.tensor([0.1, -0.05, 0.2], requires_grad=True)
        given = two_sequences(logprobs, torch.tensor(advantages))
        (gspo(given, clip_low=0.9, clip_high=9.0).terms["policy"] * torch.tensor([0.25, 0.25, 0.5])).sum().backward()
        s = torch.exp(torch.tensor([0.025, 0.025, 0.2]))
        torch.testing.assert_close(logprobs.grad, -s * torch.tensor(advantages) * torch.tensor([0.25, 0.25, 0.5]))


def test_corrections_by_hand() -> None:
    log_ratio, sequence = torch.log(torch.tensor([0.4, 1.5, 8.0, 1.0])), torch.tensor([0, 0, 1, 2])

    def weights(kind: str, low: float, high: float) -> list[float]:
        return correction_weights(kind, log_ratio, sequence, low, high).tolist()

    assert weights("truncate", 0.0, 2.0) == pytest.approx([0.4, 1.5, 2.0, 1.0])
    assert weights("mask", 0.5, 5.0) == pytest.approx([0.0, 1.5, 0.0, 1.0])
    assert weights("sequence_mask", 0.7, 1.3) == [1.0, 1.0, 0.0, 1.0]  # geometric means sqrt(0.6) = 0.77, 8 and 1


def test_a_correction_weighs_the_policys_terms_alone_and_carries_no_gradient() -> None:
    logprobs = torch.log(torch.tensor([1.5, 0.5])).requires_grad_()  # the sampler gave each token probability 1
    given = replace(inputs(logprobs, torch.zeros(2), torch.tensor([1.0, 1.0])), reference_logprobs=torch.zeros(2))
    objective = Objective("importance", kl_coef=0.5, kl="k2", correction="truncate", band=(0.0, 1.2), own_old=True)
    found = whole_loss(objective.resolved(), objective, given)
    torch.testing.assert_close(found.terms["policy"], torch.tensor([-1.2, -0.5]))
    torch.testing.assert_close(found.terms["kl"], 0.25 * logprobs.detach() ** 2)
    assert found.metrics["ratio"].tolist() == [1.0, 1.0]  # the old policy is the one that is trained
    found.terms["policy"].sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([-1.2, -0.5]))
    assert Objective("importance", correction="sequence_mask").resolved().level == "sequence"


def test_kl_estimates_by_hand_and_on_average() -> None:
    log_p, log_q = torch.log(torch.tensor([0.5])), torch.log(torch.tensor([0.25]))
    found = {name: estimate(log_p, log_q).item() for name, estimate in KL_ESTIMATES.items()}
    assert found == pytest.approx({"k1": math.log(2), "k2": math.log(2) ** 2 / 2, "k3": 0.5 - 1 + math.log(2)})
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.4, 0.4, 0.2])
    for name in ("k1", "k3"):
        torch.testing.assert_close((p * KL_ESTIMATES[name](p.log(), q.log())).sum(), (p * (p / q).log()).sum())


def test_kl_of_arrays_that_may_not_be_written() -> None:
    ours, theirs = np.array([-0.5, 0.0], np.float32), np.array([-1.0, 0.0], np.float32)
    ours.flags.writeable = theirs.flags.writeable = False
    assert kl_of("k1", ours, theirs).tolist() == [0.5, 0.0]


def slope_at(p: torch.Tensor, value: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The gradient of `value` of log-probabilities by the logits that give `p`."""
    logits = p.log().requires_grad_()
    value(logits.log_softmax(0)).backward()
    assert logits.grad is not None
    return logits.grad


def _mean_of(estimate: Callable[..., torch.Tensor], p: torch.Tensor, q: torch.Tensor, logp: torch.Tensor) -> torch.Tensor:
    return (p * estimate(logp, q)).sum()


def test_what_the_gradients_of_kl_estimates_are_on_average() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.4, 0.4, 0.2]).log()
    slopes = {name: slope_at(p, partial(_mean_of, estimate, p, q)) for name, estimate in KL_ESTIMATES.items()}
    torch.testing.assert_close(slopes["k1"], torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(slopes["k2"], slope_at(p, lambda logp: (logp.exp() * (logp - q)).sum()))  # KL(p || q)
    torch.testing.assert_close(slopes["k3"], slope_at(p, lambda logp: (q.exp() * (q - logp)).sum()))  # KL(q || p)


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
    late = OptimizerConfig(lr=1.0, warmup_steps=2, schedule="cosine", total_steps=8)
    assert [learning_rate(late, step, first=2) for step in (0, 1, 2, 3, 4, 6, 8)] == pytest.approx([0, 0, 0.5, 1.0, 1.0, 0.5, 0.0])


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
