"""Supervised tokens inside policy steps: a stream of cross-entropy on demonstrations beside the policy loss.

Before each update of the optimizer, the learner goes over a few demonstrations too, and their gradient is added to the policy's: what is
minimised is `policy loss + weight x mean negative log-likelihood of the demonstrations' trained tokens`. The two have denominators of
their own, so neither the number of demonstrations nor their length changes what the policy loss weighs.

How many there are follows from how many sequences the updates of a phase have trained so far, in exact fractions: after T of them, the
first floor(T x share / (1 - share)) demonstrations of the stream were learned. So the share is kept to within one sequence after every
update, whatever groups were dropped; no demonstration is skipped; and T is all that a checkpoint has to hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol

import numpy as np

from .batch import TokenBatch, plain_batch
from .data.supervised import SupervisedExample
from .objectives.measures import Measured
from .objectives.objective import CROSS_ENTROPY, Objective


class ExampleStream(Protocol):
    """An endless stream of examples by their positions, blended as asked (`data.prepared.PreparedData`)."""

    def at(self, positions: range) -> Sequence[SupervisedExample]: ...

    def shares(self, samples: int) -> dict[str, float]:
        """The share of the first samples that each source had; empty where there is one source."""
        ...

    def taught(self, samples: int) -> dict[str, int]:
        """Tokens that each source teaches in the first samples."""
        ...

    def blend_lines(self, phase: str, samples: int) -> Iterator[str]: ...


class GradientLearner(Protocol):
    """Of `updates.PolicyLearner`, what demonstrations use."""

    def forward_backward(self, batch: TokenBatch, objective: Objective) -> Measured: ...
    def discard(self) -> None: ...


@dataclass(frozen=True)
class Demonstrations:
    """The stream of a phase. weight: of the mean negative log-likelihood. share: of all sequences that are learned from.

    Example: `Demonstrations(PreparedData(folder), weight=0.1, share=Fraction(1, 5)).begun(0)`.
    """

    stream: ExampleStream
    weight: float
    share: Fraction

    def learned(self, sequences: int) -> int:
        """How many demonstrations were learned once that many sequences of episodes were trained."""
        return math.floor(sequences * self.share / (1 - self.share))

    def positions(self, before: int, after: int) -> range:
        """Those of the updates that trained the sequences from `before` to `after`."""
        return range(self.learned(before), self.learned(after))

    def begun(self, sequences: int) -> Learning:
        """What to learn beside the updates of a step. sequences: that the phase has trained before it."""
        return Learning(self, sequences)

    def metrics(self, sequences: int) -> dict[str, float]:
        """After a step: replay_position, the demonstrations learned in the phase so far; replay_share, theirs of all sequences so far; and,
        of a blend, `replay_blend/NAME`, each source's share of the demonstrations so far."""
        learned = self.learned(sequences)
        found = {"replay_position": float(learned), "replay_share": learned / max(1, learned + sequences)}
        return found | {f"replay_blend/{name}": share for name, share in self.stream.shares(learned).items()}


@dataclass
class Learning:
    """The demonstrations of one step, update after update. sequences: that the phase has trained so far."""

    of: Demonstrations
    sequences: int
    seconds: float = 0.0
    _loss: float = 0.0
    _tokens: int = 0
    _learned: int = 0

    def beside(self, learner: GradientLearner, sequences: int) -> None:
        """Add the gradient of what belongs beside an update of that many sequences, before its step. An update that is not applied after
        all counts too: its demonstrations are past."""
        positions = self.of.positions(self.sequences, self.sequences + sequences)
        self.sequences += sequences
        if not positions:
            return
        plain = plain_batch([(one.token_ids, one.trainable) for one in self.of.stream.at(positions)])
        try:
            found = learner.forward_backward(replace(plain, weights=plain.weights * np.float32(self.of.weight)), CROSS_ENTROPY)
        except BaseException:
            learner.discard()  # nor may the policy's half of the gradient reach a later step
            raise
        self._loss -= float(found.logprobs[plain.mask].sum(dtype=np.float64))
        self._tokens, self._learned = self._tokens + plain.tokens, self._learned + len(positions)
        self.seconds += found.seconds

    @property
    def metrics(self) -> dict[str, float]:
        """replay_sequences; and where there was one, replay_tokens, those that were trained, and replay_loss, their mean negative
        log-likelihood."""
        found = {"replay_sequences": float(self._learned)}
        return found if not self._tokens else {**found, "replay_tokens": float(self._tokens), "replay_loss": self._loss / self._tokens}
