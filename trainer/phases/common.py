"""What all phases of training share: their names, seeds, schedules, and the optimizer that each gets. Torch is not imported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator

from ...envs.types import Episode
from ...rollout.store.moments import PerEpisode
from ..guards import Alarm
from ..learner.config import OptimizerConfig

Phase = Literal["cpt", "sft", "rft"]
PHASES: tuple[Phase, ...] = ("cpt", "sft", "rft")
"""In the order they run."""

MAX_SEED = 2**31 - 1

Schedule = Literal["constant", "cosine"]


def _check_range(seeds: tuple[int, int]) -> tuple[int, int]:
    if not 0 <= seeds[0] < seeds[1] <= MAX_SEED:
        raise ValueError(f"[{seeds[0]}, {seeds[1]}] must be a range [first, last + 1] with 0 <= first < last + 1 <= {MAX_SEED}")
    return seeds


SeedRange = Annotated[tuple[int, int], AfterValidator(_check_range)]
"""Task seeds as a half-open range `[first, end)`."""


TRAIN_SEEDS: SeedRange = (0, 1_000_000_000)
HELD_OUT_SEEDS: SeedRange = (1_000_000_000, 2_000_000_000)


class Scheduled(Protocol):
    """A phase's table, as far as its optimizer goes. updates: of the optimizer, in each of its steps."""

    @property
    def steps(self) -> int: ...
    @property
    def updates(self) -> int: ...
    @property
    def lr(self) -> float | None: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def schedule(self) -> Schedule: ...


def check_warmup(table: Scheduled) -> None:
    """Raise ValueError when the rate would still rise where it has to fall."""
    if table.schedule == "cosine" and table.warmup_steps >= table.steps:
        raise ValueError(f'warmup_steps = {table.warmup_steps} leaves none of {table.steps} steps to schedule = "cosine"; lower it')


PHASE_OWNS = frozenset({"lr", "warmup_steps", "schedule", "total_steps", "min_lr_ratio"})
"""What of an optimizer's settings belongs to a phase."""


def phase_optimizer(shared: OptimizerConfig, phase: Scheduled) -> OptimizerConfig:
    """The optimizer of a phase: the shared settings with the phase's rate, warm-up and schedule, which count its updates.

    Raises ValueError when the phase has no rate yet (`rates.with_rate` gives it one).
    """
    if phase.lr is None:
        raise ValueError("rft.lr: the default follows from the model's size, and the model is not here yet; import it, or write a rate")
    own: dict[str, Any] = {"lr": phase.lr, "warmup_steps": phase.warmup_steps * phase.updates, "schedule": phase.schedule}
    if phase.schedule == "cosine":
        own["total_steps"] = phase.steps * phase.updates
    kept = {key: getattr(shared, key) for key in OptimizerConfig.model_fields if key not in PHASE_OWNS}
    return OptimizerConfig(**kept, **own)


@dataclass(frozen=True)
class PhaseStep:
    """What one step of a phase did: its number, from 1; what was measured; a line for a person; whether it was the phase's last; the
    episodes it played; what the guards say of it; and what was measured of the tokens of those episodes that it trained on."""

    step: int
    metrics: Mapping[str, float]
    line: str
    last: bool
    episodes: Sequence[Episode] = ()
    alarms: Sequence[Alarm] = ()
    measured: PerEpisode = field(default_factory=dict)
