"""What the steps of a run took: time, tokens, and hours of the processors and GPUs that it was given."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .runs import RecordedRun, phases_of

LONGEST_S = 2.0**53
"""What is more is no step's: the folder may be anybody's."""
MOST = 1e6
"""Processors, or GPUs, that a run may say it was given."""


@dataclass(frozen=True, slots=True)
class PhaseEffort:
    """What a phase took. steps: how many of them say how long they took. sampled, trained: tokens, None where no step counts them.
    cpu_hours, gpu_hours: `seconds` on all of what the run was given, busy or not, None where the run does not say what that was.

    Example: `PhaseEffort("rft", 2, 7200.0, 9000.0, 6000.0, 8.0, 4.0)`, on four processors and two GPUs.
    """

    phase: str
    steps: int
    seconds: float
    sampled: float | None
    trained: float | None
    cpu_hours: float | None
    gpu_hours: float | None

    @property
    def clock(self) -> str:
        """Example: "2:00:00"."""
        minutes, seconds = divmod(round(self.seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


@dataclass(frozen=True, slots=True)
class Effort:
    """cpus, gpus: what the run was given, None where it does not say. phases: in their order, and with more than one, their sum at the end,
    with the phase "". evaluated: tokens sampled in evaluations, 0 where there was none."""

    cpus: float | None
    gpus: float | None
    phases: tuple[PhaseEffort, ...]
    evaluated: float

    @property
    def reckoning(self) -> str:
        """How the hours came about, in sentences."""
        had = [(self.cpus, "CPU"), (self.gpus, "GPU")]
        told = [f"{count:g} {what}{'s' * (count != 1)}" for count, what in had if count is not None]
        if not told:
            return "What the run was given is not recorded, so there are no hours."
        hours = f"Hours are that times all that the run was given, busy or not: {' and '.join(told)}."
        return hours if self.cpus is not None else f"{hours} The CPUs of a cluster that a run joins are not all its own."


def effort_of(run: RecordedRun) -> Effort:
    """What the steps of a run took, in the order of its phases, each step counted once."""
    cpus, gpus = given(run, "cpus"), given(run, "gpus")
    seconds = step_seconds(run)
    latest = {(row.phase, row.step): row.values for row in run.metrics}  # of a step taken again after a resume
    found = list[PhaseEffort]()
    for phase in [*phases_of(run.metrics), ""]:
        mine = {at: values for at, values in latest.items() if phase in (at[0], "")}
        took = [seconds[at] for at in mine if at in seconds]
        hours = sum(took) / 3600
        sampled = _total(_product(values, "episodes", "episode/tokens") for values in mine.values())
        trained = _total(_trained(values) for values in mine.values())
        spent = (None if cpus is None else hours * cpus, None if gpus is None else hours * gpus)
        found.append(PhaseEffort(phase, len(took), sum(took), sampled, trained, *spent))
    between = [_product(values, "held_out/episodes", "held_out/tokens") for values in latest.values()]
    evaluated = _total([*(one.result.tokens * one.result.episodes for one in run.evaluations), *between]) or 0.0
    return Effort(cpus, gpus, tuple(found if len(found) > 2 else found[:-1]), evaluated)


def step_seconds(run: RecordedRun) -> dict[tuple[str, int], float]:
    """(phase, step) -> what the step took, of those that say so: the times of their rows tell of evaluations and of the pause before a
    resume, too."""
    steps = {(row.phase, row.step): row.values.get("step_seconds", row.values.get("seconds", -1.0)) for row in run.metrics}
    return {at: seconds for at, seconds in steps.items() if 0 <= seconds <= LONGEST_S}


def given(run: RecordedRun, name: str) -> float | None:
    """How many of "cpus" or "gpus" the run had, by `versions.json`; None where it says nothing that makes sense."""
    said = run.versions.get("given")
    count = said.get(name) if isinstance(said, dict) else None
    return float(count) if isinstance(count, int | float) and not isinstance(count, bool) and 0 <= count <= MOST else None


def _product(values: dict[str, float], *names: str) -> float | None:
    return math.prod(values[name] for name in names) if all(name in values for name in names) else None


def _trained(values: dict[str, float]) -> float | None:
    """The tokens that a step trained on, replayed ones too."""
    own = values.get("tokens", values.get("learner/tokens"))
    return None if own is None else own + values.get("learner/replay_tokens", 0.0)


def _total(counts: Iterable[float | None]) -> float | None:
    """The sum of what was counted; None where nothing was, or what no steps can be."""
    counted = [count for count in counts if count is not None and 0 <= count <= LONGEST_S]
    return math.fsum(counted) if counted else None
