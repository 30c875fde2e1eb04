"""The learning-rate range test (Smith 2017, arXiv 1506.01186): updates of a supervised phase at a rate that grows, and where it breaks.

Rates of AdamW grow by the same factor from update to update. After each, the loss is measured on examples that none of the updates saw, the
same ones every time, so that one number can be held against the next: the training loss of one batch differs from another's by more than
an update moves it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..data.supervised import SupervisedExample
from ..learner.config import OptimizerConfig
from ..objectives.objective import CROSS_ENTROPY
from ..updates import PolicyLearner
from .common import phase_optimizer
from .supervised import PhaseExamples, SupervisedConfig, example_batch, held_out_loss

BROKEN, LEAST = 0.5, 0.1
"""A rate is too high once the loss is above its lowest by half of what was learned, and by a tenth of what it was at the start, at least:
below that it moves by itself."""
MARGIN = 10.0
"""The rate that broke it over the one that is suggested."""


@dataclass(frozen=True, slots=True)
class RateTried:
    """One update. rate: it was made at. loss: of the examples kept aside, after it, in nats per trained token; NaN or infinite where the
    update or the loss was not finite."""

    rate: float
    loss: float


@dataclass(frozen=True, slots=True)
class RateRange:
    """What a test found. start: the loss before its first update. tried: its updates, the lowest rate first. trained_too: whether some of
    the examples that the losses are of were trained on, for want of others."""

    start: float
    tried: Sequence[RateTried]
    trained_too: bool = False

    @property
    def lowest(self) -> RateTried:
        """The update after which the loss was lowest; the start, at the rate 0, where none was below it."""
        finite = [one for one in self.tried if math.isfinite(one.loss)]
        return min([RateTried(0.0, self.start), *finite], key=lambda one: one.loss)

    @property
    def broke(self) -> RateTried | None:
        """The last update, where it is what ended the test."""
        return self.tried[-1] if self.tried and self._is_broken() else None

    @property
    def suggested(self) -> float | None:
        """A tenth of the rate that broke it, to two digits; None where no rate did, or nothing was learned before."""
        broke = self.broke
        if broke is None or self.lowest.rate == 0.0:
            return None
        return float(f"{broke.rate / MARGIN:.1e}")

    def _is_broken(self) -> bool:
        last, lowest = self.tried[-1].loss, self.lowest.loss
        return not math.isfinite(last) or last - lowest > max(BROKEN * (self.start - lowest), LEAST * self.start)


def rates(low: float, high: float, steps: int) -> list[float]:
    """From low to high, each the same factor above the one before: `rates(1e-4, 1e-2, 3)` is about [1e-4, 1e-3, 1e-2].

    Raises ValueError unless 0 < low < high <= 1, and for fewer than two.
    """
    if not 0 < low < high <= 1:
        raise ValueError(f"rates go from a low one to a high one, above 0 and at most 1; {low:g} to {high:g} do not")
    if steps < 2:
        raise ValueError(f"{steps} steps are too few to go from {low:g} to {high:g}; a test takes 2 at least, and 40 to say much")
    return [low * (high / low) ** (number / (steps - 1)) for number in range(steps)]


def ranged(shared: OptimizerConfig, table: SupervisedConfig, high: float) -> OptimizerConfig:
    """The optimizer of a test: the phase's, at its highest rate all along, which each update takes its share of."""
    return phase_optimizer(shared, table.model_copy(update={"lr": high, "schedule": "constant", "warmup_steps": 0}))


def range_test(learner: PolicyLearner, table: SupervisedConfig, data: PhaseExamples, tried: Sequence[float]) -> Iterator[RateRange]:
    """Train at one rate after the other until one breaks it, and give what is known after the start and after each update.

    learner: at the beginning of a phase of the optimizer that `ranged` gives for the last of the rates. The loss is of the phase's held-out
    examples, a batch of them, or, where it has none, of the batch that would come next.
    """
    aside = data.held_out[: table.batch] or data.examples(len(tried))
    kept = {example.token_ids.tobytes() for example in aside}
    found = RateRange(held_out_loss(learner, aside, table.batch), ())
    yield found
    for number, rate in enumerate(tried):
        examples = data.examples(number)
        seen = found.trained_too or any(example.token_ids.tobytes() in kept for example in examples)
        one = RateTried(rate, _after(learner, table, examples, aside, rate / tried[-1]))
        found = RateRange(found.start, (*found.tried, one), seen)
        yield found
        if found.broke is not None:
            return


def _after(
    learner: PolicyLearner,
    table: SupervisedConfig,
    examples: Sequence[SupervisedExample],
    aside: Sequence[SupervisedExample],
    scale: float,
) -> float:
    """The loss of the examples aside after one update at a share of the highest rate; NaN where the update was not finite."""
    learner.forward_backward(example_batch(examples), CROSS_ENTROPY)
    try:
        learner.step(scale)
    except FloatingPointError:
        return math.nan
    return held_out_loss(learner, aside, table.batch)
