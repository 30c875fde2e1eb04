"""What one policy step is expected to take, from the pace at which episodes were played and what one update took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


class StepTable(Protocol):
    """What is read of a phase's table (`phases.rft.RFTPhaseConfig`)."""

    @property
    def groups_per_step(self) -> int: ...
    @property
    def group_size(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def updates(self) -> int: ...
    @property
    def max_refills(self) -> int: ...
    @property
    def equal_groups(self) -> Literal["drop", "keep"]: ...


@dataclass(frozen=True, slots=True)
class Update:
    """Seconds of one update over a number of groups: scoring before it, forward and backward pass, the optimizer, and the way of the new
    weights to the engines. tokens: packed ones. Example: `Update(24, 5000, 0.0, 2.1, 0.1, 0.6)`."""

    groups: int
    tokens: int
    score_s: float
    pass_s: float
    step_s: float
    sync_s: float


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step is expected to be. sampled_groups, trained_groups: how many. sampling_s, learning_s, sync_s: seconds; the last two are
    None where no group taught anything, so that no update could be made."""

    sampled_groups: float
    trained_groups: float
    sampling_s: float
    learning_s: float | None
    sync_s: float | None

    @property
    def seconds(self) -> float | None:
        """Of the whole step, None when a part of it is not known."""
        return None if self.learning_s is None or self.sync_s is None else self.sampling_s + self.learning_s + self.sync_s


def expected_groups(table: StepTable, teaching: float) -> tuple[float, float]:
    """Groups that a step samples and trains on when a share `teaching` of them can teach: each that cannot is replaced, `max_refills`
    rounds at most.

    Example: of 8 a step, half of which teach, with 2 refills: `(16.0, 8.0)`; with a tenth: `(24.0, 2.4)`.
    """
    asked = float(table.groups_per_step)
    if table.equal_groups == "keep":
        return asked, asked
    most = asked * (1 + table.max_refills)
    sampled = min(most, asked / teaching) if teaching > 0 else most
    return sampled, min(asked, sampled * teaching)


def step_cost(table: StepTable, teaching: float, episodes_per_second: float, update: Update | None) -> StepCost:
    """See `StepCost`. Sampling goes at the pace that was measured, and learning takes as long per group as the update that was made.

    Example: 16 groups of 8 at 32 episodes/s are 4 seconds of sampling.
    """
    sampled, trained = expected_groups(table, teaching)
    sampling_s = sampled * table.group_size / episodes_per_second
    if update is None:
        return StepCost(sampled, trained, sampling_s, None, None)
    per_group = (update.score_s + table.epochs * update.pass_s) / update.groups
    return StepCost(sampled, trained, sampling_s, per_group * trained + table.updates * update.step_s, update.sync_s)
