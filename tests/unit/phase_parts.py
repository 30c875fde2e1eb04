"""What a supervised phase trains with, without a loop that plays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from burnish.trainer.phases.common import PhaseParts
from burnish.trainer.updates import PolicyLearner


def on(learner: PolicyLearner, done: Sequence[Mapping[str, float]] = ()) -> PhaseParts:
    """A learner, and the metrics of the steps that it took."""
    nothing = cast(Any, None)
    return PhaseParts(learner, nothing, nothing, done)
