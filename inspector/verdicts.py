"""What the scorers of a stored episode said: the value of each, how long it took, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..rewards.rubric import EXPLANATION, SECONDS
from ..rewards.types import MAX_EXPLANATION


@dataclass(frozen=True, slots=True)
class ScorerVerdict:
    """What one scorer said. value: None where the store has none. seconds: from when it was asked until it had judged, None where that
    was not measured. explanation: "" where it gave none.

    Example: `ScorerVerdict("verdict", 0.5, 0.012, "the bore is too wide")`.
    """

    scorer: str
    value: float | None
    seconds: float | None
    explanation: str


def verdicts(parts: Mapping[str, float], metrics: Mapping[str, float], labels: Mapping[str, str]) -> list[ScorerVerdict]:
    """The verdicts of an episode, in the order of its parts: of every scorer that was timed, or explained itself."""
    why = {name.removesuffix(f".{EXPLANATION}"): said for name, said in labels.items() if name.endswith(f".{EXPLANATION}")}
    took = {name.removesuffix(SECONDS): seconds for name, seconds in metrics.items() if name.endswith(SECONDS)}
    names = [*(name for name in parts if name in why or name in took), *took, *why]
    return [ScorerVerdict(name, parts.get(name), took.get(name), _short(why.get(name, ""))) for name in dict.fromkeys(names)]


def _short(said: str) -> str:
    """A store may come from anywhere."""
    return said if len(said) <= MAX_EXPLANATION else said[: MAX_EXPLANATION - 1] + "…"
