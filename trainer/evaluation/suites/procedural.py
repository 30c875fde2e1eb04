"""Items made by rule: short reasoning, of which the curated catalog has others of the same kinds, and questions with four answers.

Item i is the same for ever: it follows from i alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ....envs.types import Message, Task
from ...data.curated.instructions import THINGS
from ...data.curated.reasoning import one_of, suite_item

CHOICE_TAG = 0x4C1
LETTERS = "ABCD"

CLEAR: Mapping[str, Sequence[str]] = {
    topic: [word for word in words if not any(word in others for name, others in THINGS.items() if name != topic)]
    for topic, words in THINGS.items()
}
"""Words that name one kind of thing: an orange is a fruit and a colour."""

Item = tuple[str, Mapping[str, Any]]
"""What is asked, and the constraints that the answer keeps."""


def reasoning_tasks(count: int) -> Sequence[Task]:
    """`count` items, the kinds in turn."""
    return [_task(i, asked, checks) for i, (asked, _, checks) in enumerate(map(suite_item, range(count)))]


def choice_tasks(count: int) -> Sequence[Task]:
    """`count` questions with four answers, one of them right; each letter is right equally often to within one."""
    return [_task(i, *_choice(np.random.default_rng([i, CHOICE_TAG]), i % len(LETTERS))) for i in range(count)]


def _task(i: int, asked: str, checks: Mapping[str, Any]) -> Task:
    return Task(str(i), i, (Message("user", asked),), {"checks": dict(checks)})


def _choice(rng: np.random.Generator, place: int) -> Item:
    wanted, *others = (list(THINGS)[int(k)] for k in rng.permutation(len(THINGS)))
    words = [one_of(rng, CLEAR[topic]) for topic in others[: len(LETTERS) - 1]]
    words.insert(place, one_of(rng, CLEAR[wanted]))
    options = "\n".join(f"{letter}) {word}" for letter, word in zip(LETTERS, words, strict=True))
    one = {"fruits": "a fruit", "animals": "an animal", "colours": "a colour", "tools": "a tool", "cities": "a city"}[wanted]
    return f"Which of these is {one}? Answer with the letter only.\n{options}", {"choice": LETTERS[place]}
