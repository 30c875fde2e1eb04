"""Supervised training: cross-entropy through the learner's primitives, for continued pre-training and fine-tuning alike."""

from __future__ import annotations

from collections.abc import Sequence

from ..batch import TokenBatch, plain_batch
from ..data.supervised import SupervisedExample
from ..loop import PolicyLearner
from ..objectives.objective import CROSS_ENTROPY


def example_batch(examples: Sequence[SupervisedExample]) -> TokenBatch:
    """The examples end to end, as the learner takes them."""
    return plain_batch([(example.token_ids, example.trainable) for example in examples])


def supervised_step(learner: PolicyLearner, examples: Sequence[SupervisedExample]) -> dict[str, float]:
    """One optimizer step on cross-entropy, averaged over the trainable tokens of the examples.

    Returns loss, entropy (nats per token), grad_norm (before clipping), lr, tokens (trained), packed_tokens (computed) and seconds. Raises
    ValueError when there is nothing to train on, FloatingPointError (before stepping) when loss or gradient are not finite.
    """
    batch = example_batch(examples)
    measured = learner.forward_backward(batch, CROSS_ENTROPY)
    stepped = learner.step()
    counts = {"tokens": float(batch.tokens), "packed_tokens": float(measured.packed_tokens)}
    return {**measured.means(batch), **stepped, **counts, "seconds": measured.seconds + stepped["seconds"]}
