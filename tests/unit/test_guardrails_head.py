"""Softmax regression of topics, on vectors that can be drawn."""

from __future__ import annotations

import codecs

import numpy as np
import pytest

from burnish.guardrails.detectors.head import PENALTY, SCALE, fit, jumbled

pytestmark = pytest.mark.unit


def at(*degrees: float) -> np.ndarray:
    """Unit vectors in the plane."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_a_vector_is_about_the_topic_on_its_side() -> None:
    head = fit(at(0, 10, -10), [at(120, 110), at(240, 250)])
    likely, which = head(at(0, 120, 240, 118))
    assert likely[0] < 0.3 and (likely[1:] > 0.7).all()
    assert which[1:].tolist() == [0, 1, 0]


def test_the_weights_are_those_at_which_the_loss_has_no_slope() -> None:
    allowed, topic = at(0, 20), at(90)
    weights = fit(allowed, [topic]).weights
    x = np.concatenate([np.concatenate([allowed, topic]).astype(np.float64) * SCALE, np.ones((3, 1))], axis=1)
    shares = np.exp(x @ weights)
    shares /= shares.sum(axis=1, keepdims=True)
    target = np.asarray([[1, 0], [1, 0], [0, 1]])
    slope = x.T @ (np.asarray([[0.25], [0.25], [0.5]]) * (shares - target))  # what is allowed weighs as much as all topics
    slope[:-1] += 2 * PENALTY * weights[:-1]
    assert np.abs(slope).max() < 1e-4


def test_few_examples_weigh_as_much_as_much_that_is_allowed() -> None:
    likely, _ = fit(np.repeat(at(0), 100, axis=0), [at(90)])(at(45))
    assert likely[0] == pytest.approx(0.5, abs=0.01)


def test_an_encoding_is_jumbled_one_way_or_the_other() -> None:
    assert jumbled("How do I cook rice?") == codecs.encode("How do I cook rice?", "rot13")
    assert jumbled("What time is it?").endswith("=")
