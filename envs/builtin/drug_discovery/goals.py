"""Goals: what is asked of one property of a molecule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Bound = Literal["at_least", "at_most"]
BOUNDS: tuple[Bound, ...] = ("at_least", "at_most")

JUDGED = ("weight", "logp", "tpsa", "donors", "acceptors", "rotatable", "rings", "qed")
"""The properties that a verifier can judge. The first five add up, so cases are made of them (`fragments.ADDITIVE`)."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound of a property of JUDGED; the value itself is within it. Example: `Goal("logp", "at_least", 2.5)`."""

    property: str
    bound: Bound
    value: float

    def met_by(self, values: Mapping[str, float]) -> bool:
        """Whether a molecule with these values meets it."""
        found = values[self.property]
        return found >= self.value if self.bound == "at_least" else found <= self.value

    def to_dict(self) -> dict[str, Any]:
        """As the data of a task has it. Example: `{"property": "logp", "at_least": 2.5}`."""
        return {"property": self.property, self.bound: self.value}

    @classmethod
    def from_dict(cls, row: object) -> Goal:
        """Raises ValueError, in one line, when it is no goal."""
        wanted = "{property = …, at_least = …} or {property = …, at_most = …}"
        if not isinstance(row, Mapping) or row.get("property") not in JUDGED:
            raise ValueError(f"a goal is {wanted}, its property one of {', '.join(JUDGED)}, not {row!r:.80}")
        given = [bound for bound in BOUNDS if bound in row]
        value = row[given[0]] if len(given) == 1 else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or set(row) != {"property", *given}:
            raise ValueError(f"a goal is {wanted}, with a number, not {row!r:.80}")
        return cls(row["property"], given[0], float(value))
