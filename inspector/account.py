"""Where the time of a run's steps went, and how near what was sampled came to the weights that learned of it: out of its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ..rollout.busy import PARTS, advice, shares
from .blends import recorded_phases
from .runs import RecordedRun, phases_of, series_rows
from .text import number

STEPS = 20
"""The latest, which are looked at."""
MOST_S = 1e9
"""Seconds that a step may say it took; a file may say anything."""
TITLES = {"engine": "Engines", "environment": "Environments and tools", "rewards": "Rewards and verifiers", "learner": "Learner"}
SAMPLES = (
    ("learner/staleness_mean", "updates since a token was sampled"),
    ("learner/staleness_max", "updates since the oldest was"),
    ("learner/stale_fraction", "share sampled by older weights"),
    ("learner/drift_kl", "KL of those older policies to the trained one"),
    ("learner/mismatch_kl", "mismatch: KL of engines to learner, equal weights"),
    ("learner/parity_max", "largest difference of a log-probability there"),
    ("sync_megabytes", "MB of weights sent"),
    ("engines", "engines that they were sent to"),
)
"""What is measured of the tokens that are trained on, in words."""


@dataclass(frozen=True, slots=True)
class PartTime:
    """A part of a run. busy: the share of its time. busy_s, idle_s: seconds of a step, on average; those of several engines add up."""

    title: str
    busy: float
    busy_s: float
    idle_s: float


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """The last steps of a phase that were accounted for. parts: in the order of `PARTS`. advice: what more of would make steps shorter.
    sync_s: seconds of a step that sent weights, step_s: of all of it, on average, None where no step says so."""

    phase: str
    steps: int
    parts: tuple[PartTime, ...]
    advice: str
    sync_s: float | None
    step_s: float | None


def times_of(run: RecordedRun) -> dict[str, PhaseTime]:
    """By phase, where the time of its last steps went; phases in which nothing was accounted for are left out."""
    rollouts = {name: str(table.get("rollouts", "sync")) for name, _, table in recorded_phases(run.config)}
    found = {phase: _time_of(phase, _latest(run, phase), rollouts.get(phase, "sync")) for phase in phases_of(run.metrics)}
    return {phase: one for phase, one in found.items() if one is not None}


def samples_of(run: RecordedRun) -> dict[str, list[tuple[str, str]]]:
    """By phase, how old and how far off what the learner trained on was in the last steps: (what, mean over those steps); phases that
    sampled nothing are left out."""
    found = dict[str, list[tuple[str, str]]]()
    for phase in phases_of(run.metrics):
        rows = _latest(run, phase)
        means = [(said, _mean(rows, name)) for name, said in SAMPLES]
        found[phase] = [(said, number(mean)) for said, mean in means if mean is not None]
    return {phase: facts for phase, facts in found.items() if facts}


def _latest(run: RecordedRun, phase: str) -> list[dict[str, float]]:
    return series_rows(run.metrics, phase, 2**53)[-STEPS:]


def _time_of(phase: str, latest: Sequence[Mapping[str, float]], rollouts: str) -> PhaseTime | None:
    names = [f"{state}/{part}_seconds" for state in ("busy", "idle") for part in PARTS]
    rows = [row for row in latest if all(0 <= row.get(name, -1) <= MOST_S for name in names)]
    if not rows:
        return None
    mean = {name: fmean(row[name] for row in rows) for name in names}
    busy = shares(mean)
    if busy.keys() != set(PARTS):
        return None
    parts = tuple(PartTime(TITLES[part], busy[part], mean[f"busy/{part}_seconds"], mean[f"idle/{part}_seconds"]) for part in PARTS)
    return PhaseTime(phase, len(rows), parts, advice(busy, rollouts), _mean(rows, "sync_seconds"), _mean(rows, "step_seconds"))


def _mean(rows: Sequence[Mapping[str, float]], name: str) -> float | None:
    """None where no row has it; what no step can be is left out."""
    values = [row[name] for row in rows if name in row and 0 <= row[name] <= MOST_S]
    return fmean(values) if values else None
