"""Constraints that a program can check in an answer: so many items, in capitals, a number, a JSON object.

The idea is that of IFEval (Zhou et al. 2023, arXiv 2311.07911). Curated rows and evaluation suites hold them as `checks`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..plugin import reward
from ..types import RewardInput

Checks = Mapping[str, Any]

_NUMBER = re.compile(r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?")
_CHOICE = re.compile(r"^\W*([A-H])(?![A-Za-z])|\b([A-H])\W*$")
_REFUSES = re.compile(
    r"\bI(?:['’]m| am| must)?\s+(?:can(?:no|['’])t|won['’]t|will not|unable|not able|sorry,? but|refuse|decline)\b", re.IGNORECASE
)


@reward("burnish/constraints-v1")
def constraints(episode: RewardInput) -> float:
    """1 when the answer keeps every constraint of the task's `checks` (`follows`), else 0. Of an answer that was cut short nothing is known
    but whether it `refuses`; it keeps no other. A blank one keeps none.

    Raises ValueError when the task has no `checks`, in its data or in the `metadata` there.
    """
    metadata = episode.data.get("metadata")
    checks = episode.data.get("checks") or (metadata.get("checks") if isinstance(metadata, Mapping) else None)
    if not isinstance(checks, Mapping):
        raise ValueError("the task has no `checks`, the constraints that its answer must keep")
    if episode.answer is None or (episode.truncation is not None and set(checks) != {"refuses"}):
        return 0.0
    return float(follows(episode.answer.strip(), checks))


def follows(answer: str, checks: Checks) -> bool:
    """Whether an answer is not blank and keeps every constraint: `equals`, `items` (how many, between commas), `lines`, `starts`, `ends`,
    `upper`, `lower`, `words` (how many), `json` (the object that it is), `bullets` (lines that begin with "- "),
    `without` (a word that it must not have), `number` (the last one in it), `choice` (the letter that it begins or ends with), `refuses`
    (whether it says that it will not).

    Raises ValueError for a constraint that is none. Example: `follows("a, b", {"items": 2, "lower": True})`.
    """
    unknown = sorted(set(checks) - set(_RULES))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no constraint; known are {', '.join(_RULES)}")
    return bool(answer.strip()) and all(_RULES[name](answer, value) for name, value in checks.items())


def _is_json(answer: str, value: Any) -> bool:
    try:
        return bool(json.loads(answer) == value)
    except (ValueError, RecursionError):
        return False


def _is_number(answer: str, value: Any) -> bool:
    numbers = _NUMBER.findall(answer)
    return bool(numbers) and float(numbers[-1].replace(",", "")) == float(value)


def _is_choice(answer: str, letter: Any) -> bool:
    found = _CHOICE.search(answer)
    return found is not None and (found[1] or found[2]) == letter


_RULES: Mapping[str, Callable[[str, Any], bool]] = {
    "equals": lambda answer, text: answer == text,
    "items": lambda answer, n: len(answer.split(", ")) == n,
    "lines": lambda answer, n: len(answer.splitlines()) == n,
    "starts": lambda answer, text: answer.startswith(text),
    "ends": lambda answer, text: answer.endswith(text),
    "upper": lambda answer, wanted: answer.isupper() == wanted,
    "lower": lambda answer, wanted: answer.islower() == wanted,
    "words": lambda answer, n: len(answer.split()) == n,
    "json": _is_json,
    "bullets": lambda answer, n: len(answer.splitlines()) == n and all(line.startswith("- ") for line in answer.splitlines()),
    "without": lambda answer, word: not re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE),
    "number": _is_number,
    "choice": _is_choice,
    "refuses": lambda answer, wanted: bool(_REFUSES.search(answer)) == wanted,
}
