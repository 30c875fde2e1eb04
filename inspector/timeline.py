"""Where an episode's time went: its calls one after another, as the spans of one bar."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .verdicts import verdicts

ENGINE, ENVIRONMENT, REST, SCORING = "engine", "environment and tools", "reset and waiting", "scoring"
KINDS = (ENGINE, ENVIRONMENT, REST, SCORING)


@dataclass(frozen=True, slots=True)
class TimeSpan:
    """Seconds of one kind. start: from the beginning of the bar. label: what it was. Example: `TimeSpan(ENGINE, "turn 1", 0.0, 0.25)`."""

    kind: str
    label: str
    start: float
    seconds: float


def timeline(found: Mapping[str, Any]) -> list[TimeSpan]:
    """The spans of a stored episode, in their order, those of no length left out.

    What no turn accounts for, the environment's making and reset and waits between the turns, is one span at the beginning; scoring, the
    wait for a scorer's turn included, stands at the end.
    """
    turns = found["turns"] or ()
    pieces = [
        (kind, f"turn {i}", _seconds(turn[column]))
        for i, turn in enumerate(turns, start=1)
        for kind, column in ((ENGINE, "generate_s"), (ENVIRONMENT, "env_s"))
    ]
    metrics = found["metrics"] or {}
    pieces.append((SCORING, "by rewards and verifiers", _seconds(metrics.get("judge_seconds"))))
    rest = _seconds(metrics.get("seconds")) - math.fsum(seconds for _, _, seconds in pieces)
    pieces.insert(0, (REST, "before and between the turns", max(rest, 0.0)))
    spans, start = list[TimeSpan](), 0.0
    for kind, label, seconds in pieces:
        if seconds > 0:
            spans.append(TimeSpan(kind, label, start, seconds))
            start += seconds
    return spans


def scorer_spans(found: Mapping[str, Any], spans: Sequence[TimeSpan]) -> list[TimeSpan]:
    """Each scorer of a stored episode that was timed, from where scoring stands in its spans: they are asked together, those that compare
    attempts once the whole group is there. Not among the spans, as they overlap."""
    end = spans[-1].start + spans[-1].seconds if spans else 0.0
    start = next((span.start for span in spans if span.kind == SCORING), end)
    said = verdicts(found["parts"] or {}, found["metrics"] or {}, found["labels"] or {})
    took = [(verdict.scorer, _seconds(verdict.seconds)) for verdict in said]
    return [TimeSpan(SCORING, scorer, start, seconds) for scorer, seconds in took if seconds > 0]


def totals(spans: list[TimeSpan]) -> dict[str, float]:
    """Seconds of each kind that there is, in the order of `KINDS`."""
    sums = {kind: math.fsum(span.seconds for span in spans if span.kind == kind) for kind in KINDS}
    return {kind: seconds for kind, seconds in sums.items() if seconds > 0}


def _seconds(value: Any) -> float:
    """What was stored, 0 for what is none: a store may come from anywhere."""
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e9 else 0.0
