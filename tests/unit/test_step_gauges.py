"""What Ray's metrics say of a step: of reinforcement, and of a phase on examples."""

from __future__ import annotations

import pytest

from burnish.trainer.observe import SHOWN, StepGauges

pytestmark = pytest.mark.unit


class Kept:
    """In the place of Ray's gauge: every value by the gauge's name."""

    values: dict[str, list[float]]

    def __init__(self, name: str, description: str) -> None:
        assert description
        self.set = self.values.setdefault(name, []).append


@pytest.fixture
def values(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    Kept.values = {}
    monkeypatch.setattr("burnish.trainer.observe.Gauge", Kept)
    return Kept.values


def test_a_step_on_examples_is_shown_beside_those_of_reinforcement(values: dict[str, list[float]]) -> None:
    gauges = StepGauges()
    gauges.show({"loss": 2.5, "tokens": 300.0, "seconds": 1.5, "lr": 1e-5, "held_out_loss": 2.25})
    gauges.show({"reward_mean": 0.75, "learner/loss": 0.125, "learner/tokens": 9.0, "learner/seconds": 3.0})
    assert {name: shown for name, shown in values.items() if shown} == {
        "burnish_loss": [2.5],
        "burnish_held_out_loss": [2.25],
        "burnish_step_seconds": [1.5],
        "burnish_trained_tokens_per_second": [200.0],
        "burnish_reward": [0.75],
        "burnish_policy_loss": [0.125],
        "burnish_update_seconds": [3.0],
    }


def test_a_step_that_was_left_out_has_no_rate(values: dict[str, list[float]]) -> None:
    StepGauges().show({"seconds": 0.0, "tokens": 8.0, "updates_skipped": 1.0})
    assert values["burnish_trained_tokens_per_second"] == []


def test_no_two_metrics_share_a_gauge() -> None:
    assert len({name for name, _ in SHOWN.values()}) == len(SHOWN)
