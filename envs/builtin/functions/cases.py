"""The case of a seed: which functions are offered, what is asked, and the calls that it wants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from .functions import FUNCTIONS
from .matching import Wanted

TAG = 0xF0C
OFFERED: Final = 3
KINDS: Final = ("one", "twice", "two", "none")
"""Of calls that are wanted: one; two of one function; one of each of two; none, as nothing that is offered fits. By seed, in turn."""


@dataclass(frozen=True)
class Case:
    """kind: one of `KINDS`. tools: OpenAI function schemas, in the order they are offered."""

    kind: str
    question: str
    tools: tuple[dict[str, Any], ...]
    calls: tuple[Wanted, ...]


def make_case(seed: int) -> Case:
    """The case of a seed, the same for ever. Example: `make_case(0).calls` is one call."""
    rng = np.random.default_rng([seed, TAG])
    first, second, *others = (FUNCTIONS[int(i)] for i in rng.permutation(len(FUNCTIONS)))
    kind = KINDS[seed % len(KINDS)]
    asked = {"one": (first,), "twice": (first, first), "two": (first, second), "none": (first,)}[kind]
    fit = {"one": 1, "twice": 1, "two": 2, "none": 0}[kind]
    offered = [*(first, second)[:fit], *others][:OFFERED]
    drawn = [(one.name, *one.draw(rng)) for one in asked]
    while len(drawn) == 2 and drawn[0] == drawn[1]:
        drawn[1] = (asked[1].name, *asked[1].draw(rng))
    calls = () if kind == "none" else tuple({name: values} for name, _, values in drawn)
    tools = tuple(offered[int(i)].tool for i in rng.permutation(len(offered)))
    return Case(kind, " ".join(question for _, question, _ in drawn), tools, calls)
