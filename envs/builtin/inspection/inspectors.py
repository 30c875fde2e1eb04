"""Scripted inspectors: the expert, and the historical inspector whose imperfect logs are what a factory has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...types import Message
from . import wording
from .parts import VERDICTS, Feature, Level, Part, Reason, Verdict, level_of, make_part, measured_deviation, reason_for


@dataclass(frozen=True, slots=True)
class Habits:
    """How an inspector works, as probabilities.

    error: the verdict written down is wrong. repeat: a feature just measured is measured again. thorough: measuring goes on after a
    scrap feature has been found. The expert has none of these habits. notes: whether the inspector first writes down what the last
    reading means, on a line of its own before the next call or the verdict (rightly: what errs is the judgement).
    """

    error: float = 0.0
    repeat: float = 0.0
    thorough: float = 0.0
    notes: bool = False


EXPERT = Habits()


def inspect(seed: int, level: int, habits: Habits = EXPERT, instructions: bool = True) -> tuple[Message, ...]:
    """The conversation of one inspection of the part of `seed`: prompt, tool calls, tool answers, verdict."""
    part, settings = make_part(seed, level), level_of(level)
    rng = np.random.default_rng([seed, level, 0x1257])
    messages = list(opening(part, instructions))
    seen: dict[str, list[int]] = {}
    for feature in _order(part, rng):
        messages += _examine(part, feature, settings, habits, rng, seen)
        if _read(part, feature.name, seen).verdict == "scrap" and rng.random() >= habits.thorough:
            break
    note = _note(part, seen) if habits.notes else ""
    messages.append(Message("assistant", note + wording.verdict_text(*_conclude(part, habits, rng, seen))))
    return tuple(messages)


def opening(part: Part, instructions: bool) -> tuple[Message, ...]:
    """The messages an inspection starts with."""
    system = (Message("system", wording.INSTRUCTIONS),) if instructions else ()
    return (*system, Message("user", wording.request(part)))


def _order(part: Part, rng: np.random.Generator) -> list[Feature]:
    return [part.features[i] for i in rng.permutation(len(part.features))]


def _examine(
    part: Part, feature: Feature, level: Level, habits: Habits, rng: np.random.Generator, seen: dict[str, list[int]]
) -> Iterator[Message]:
    note = _note(part, seen) if habits.notes else ""
    if level.combine:
        yield Message("assistant", note + wording.spec_call(feature.name))
        note = ""
        yield Message("tool", wording.specification(feature), name="spec")
    readings = seen.setdefault(feature.name, [])
    needed = 3 if level.noise else 1
    while len(readings) < needed or rng.random() < habits.repeat:
        readings.append(measured_deviation(part, feature, len(readings), level.noise))
        yield Message("assistant", note + wording.measure_call(part, feature.name))
        yield Message("tool", wording.reading(feature, readings[-1], level), name="measure")
        note = _note(part, seen) if habits.notes else ""


def _note(part: Part, seen: dict[str, list[int]]) -> str:
    """A line on the feature that was measured last, nothing before the first."""
    return "".join(f"{wording.note(name, _read(part, name, seen).reason)}\n" for name in list(seen)[-1:])


def _read(part: Part, name: str, seen: dict[str, list[int]]) -> Feature:
    """The feature as its readings have it."""
    feature = part.feature(name)
    assert feature is not None
    return Feature(name, feature.nominal_um, feature.limit_um, round(float(np.mean(seen[name]))))


def _conclude(part: Part, habits: Habits, rng: np.random.Generator, seen: dict[str, list[int]]) -> tuple[Verdict, Reason]:
    judged: dict[str, Verdict] = {f.name: _read(part, f.name, seen).verdict for f in part.features if f.name in seen}
    verdict: Verdict = "scrap" if "scrap" in judged.values() else "rework" if "rework" in judged.values() else "pass"
    if rng.random() < habits.error:
        verdict = [v for v in VERDICTS if v != verdict][int(rng.integers(2))]
        return verdict, reason_for(str(rng.choice(sorted(judged))), verdict)
    return verdict, reason_for(next(name for name, v in judged.items() if v == verdict), verdict)
