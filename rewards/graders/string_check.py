"""`string_check`: two texts compared."""

from __future__ import annotations

from ..types import Score
from .types import StringCheck


def check_string(grader: StringCheck, text: str, reference: str) -> Score:
    """1 when the filled-in `input` and `reference` compare as the grader says, else 0.

    Example: with operation "ilike", `check_string(grader, "The Answer is 4", "answer")` is worth 1.
    """
    if grader.operation == "eq":
        holds = text == reference
    elif grader.operation == "ne":
        holds = text != reference
    elif grader.operation == "like":
        holds = reference in text
    else:
        holds = reference.casefold() in text.casefold()
    return Score(float(holds))
