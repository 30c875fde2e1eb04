"""The functions that questions are made about: what a model reads of each, how it is asked for, and the values that are right.

None of them is a tool of the curated catalog, whose rows are of a shop and of inspections, so that a suite of these is held out from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CITIES = ("Oslo", "Lagos", "Lima", "Osaka", "Cairo", "Quito", "Dublin", "Hanoi", "Turin", "Perth")
NAMES = ("Ada", "Bela", "Chidi", "Dana", "Emil", "Farah", "Goran", "Hana", "Ines", "Jomo")
ROOMS = ("kitchen", "bedroom", "hall", "cellar", "office")
LANGUAGES = ("French", "Polish", "Swahili", "Turkish", "Korean")
WORDS = ("bridge", "lantern", "harbour", "thunder", "pepper", "saddle", "window", "orchard")
UNITS = ("metres", "feet", "miles", "yards", "inches")
NOTES = ("dinner is at seven", "the parcel is here", "the car is washed", "we meet at the station", "the match is off")
DAYS = ("today", "tomorrow")

Draw = Callable[[np.random.Generator], tuple[str, Mapping[str, Sequence[Any]]]]
"""A sentence that asks for a call, and each parameter's right values."""


@dataclass(frozen=True)
class Function:
    """What can be called. parameters: JSON schemas of each; all but `optional` are required."""

    name: str
    about: str
    parameters: Mapping[str, Mapping[str, Any]]
    draw: Draw
    optional: tuple[str, ...] = ()

    @property
    def tool(self) -> dict[str, Any]:
        """As OpenAI describes a function."""
        required = [name for name in self.parameters if name not in self.optional]
        schema = {"type": "object", "properties": {name: dict(one) for name, one in self.parameters.items()}, "required": required}
        return {"type": "function", "function": {"name": self.name, "description": self.about, "parameters": schema}}


def _pick(rng: np.random.Generator, of: Sequence[str]) -> str:
    return of[int(rng.integers(len(of)))]


def _forecast(rng: np.random.Generator) -> tuple[str, Mapping[str, Sequence[Any]]]:
    city, day = _pick(rng, CITIES), _pick(rng, DAYS)
    return f"What will the weather be in {city} {day}?", {"city": [city], "day": [day]}


def _timer(rng: np.random.Generator) -> tuple[str, Mapping[str, Sequence[Any]]]:
    minutes = int(rng.integers(2, 91))
    return f"Set a timer for {minutes} minutes.", {"minutes": [minutes], "label": [""]}


def _convert(rng: np.random.Generator) -> tuple[str, Mapping[str, Sequence[Any]]]:
    length, first = int(rng.integers(2, 500)), int(rng.integers(len(UNITS)))
    source, target = UNITS[first], UNITS[(first + int(rng.integers(1, len(UNITS)))) % len(UNITS)]
    return f"How many {target} are {length} {source}?", {"length": [length], "source": [source], "target": [target]}


def _message(rng: np.random.Generator) -> tuple[str, Mapping[str, Sequence[Any]]]:
    name, note = _pick(rng, NAMES), _pick(rng, NOTES)
    return f'Send {name} the message "{note}".', {"to": [name], "text": [note]}


def _light(rng: np.random.Generator) -> tuple[str, Mapping[str, Sequence[Any]]]:
    room, on = _pick(rng, ROOMS), bool(rng.integers(2))
    return f"Turn the light in the {room} {'on' if on else 'off'}.", {"room": [room], "on": [on]}


def _translate(rng: np.random.Generator) -> tuple[str, Mapping[str, Sequence[Any]]]:
    word, language = _pick(rng, WORDS), _pick(rng, LANGUAGES)
    return f'What is "{word}" in {language}?', {"text": [word], "language": [language]}


def _table(rng: np.random.Generator) -> tuple[str, Mapping[str, Sequence[Any]]]:
    people, hour = int(rng.integers(2, 13)), int(rng.integers(17, 23))
    return f"Book a table for {people} people at {hour} o'clock.", {"people": [people], "hour": [hour]}


def _average(rng: np.random.Generator) -> tuple[str, Mapping[str, Sequence[Any]]]:
    numbers = [int(n) for n in rng.integers(1, 100, size=int(rng.integers(3, 6)))]
    return f"What is the average of {', '.join(map(str, numbers))}?", {"numbers": [numbers]}


_TEXT, _WHOLE = {"type": "string"}, {"type": "integer"}

FUNCTIONS: tuple[Function, ...] = (
    Function("forecast", "The weather of a city.", {"city": _TEXT, "day": {"type": "string", "enum": list(DAYS)}}, _forecast),
    Function("set_timer", "Start a timer, with a label if one is given.", {"minutes": _WHOLE, "label": _TEXT}, _timer, ("label",)),
    Function(
        "convert_length",
        "A length in another unit.",
        {
            "length": {"type": "number"},
            "source": {"type": "string", "enum": list(UNITS)},
            "target": {"type": "string", "enum": list(UNITS)},
        },
        _convert,
    ),
    Function("send_message", "Send somebody a short message.", {"to": _TEXT, "text": _TEXT}, _message),
    Function("switch_light", "Turn the light of a room on or off.", {"room": _TEXT, "on": {"type": "boolean"}}, _light),
    Function("translate", "A word in another language.", {"text": _TEXT, "language": _TEXT}, _translate),
    Function("book_table", "Book a table, at a full hour.", {"people": _WHOLE, "hour": _WHOLE}, _table),
    Function("average", "The mean of numbers.", {"numbers": {"type": "array", "items": _WHOLE}}, _average),
)
