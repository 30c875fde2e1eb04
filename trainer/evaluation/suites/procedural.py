"""Items of reasoning made by rule, in the manner of reasoning-gym (Stojanovski et al. 2025, arXiv 2505.24760): every answer is computed.

Item i is the same for ever: it follows from i alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ....envs.types import Message, Task
from ...data.curated.instructions import NAMES, THINGS

TAG, CHOICE_TAG = 0x2EA, 0x4C1
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
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
    return [_task(i, KINDS[i % len(KINDS)](np.random.default_rng([i, TAG]))) for i in range(count)]


def choice_tasks(count: int) -> Sequence[Task]:
    """`count` questions with four answers, one of them right; each letter is right equally often to within one."""
    return [_task(i, _choice(np.random.default_rng([i, CHOICE_TAG]), i % len(LETTERS))) for i in range(count)]


def _task(i: int, item: Item) -> Task:
    asked, checks = item
    return Task(str(i), i, (Message("user", asked),), {"checks": dict(checks)})


def _choice(rng: np.random.Generator, place: int) -> Item:
    wanted, *others = (list(THINGS)[int(k)] for k in rng.permutation(len(THINGS)))
    words = [_one_of(rng, CLEAR[topic]) for topic in others[: len(LETTERS) - 1]]
    words.insert(place, _one_of(rng, CLEAR[wanted]))
    options = "\n".join(f"{letter}) {word}" for letter, word in zip(LETTERS, words, strict=True))
    one = {"fruits": "a fruit", "animals": "an animal", "colours": "a colour", "tools": "a tool", "cities": "a city"}[wanted]
    return f"Which of these is {one}? Answer with the letter only.\n{options}", {"choice": LETTERS[place]}


def _one_of(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _chain(rng: np.random.Generator) -> Item:
    numbers = rng.integers(1, 20, size=int(rng.integers(3, 5)))
    signs = rng.choice([1, -1], size=len(numbers))
    signs[0] = 1
    written = "".join(f" {'+' if s > 0 else '-'} {n}" for s, n in zip(signs, numbers, strict=True)).removeprefix(" + ")
    return f"What is {written}? End with the number.", {"number": int((signs * numbers).sum())}


def _series(rng: np.random.Generator) -> Item:
    first, step = int(rng.integers(1, 30)), int(rng.integers(2, 10))
    shown = ", ".join(str(first + k * step) for k in range(4))
    return f"Which number comes next: {shown}? End with the number.", {"number": first + 4 * step}


def _count(rng: np.random.Generator) -> Item:
    topic = list(THINGS)[int(rng.integers(len(THINGS)))]
    words = [_one_of(rng, THINGS[topic]) for _ in range(int(rng.integers(4, 8)))]
    asked = words[0]
    return f'How often does "{asked}" stand in this list: {", ".join(words)}? End with the number.', {"number": words.count(asked)}


def _largest(rng: np.random.Generator) -> Item:
    numbers = [int(n) for n in rng.choice(100, int(rng.integers(3, 7)), replace=False)]
    return f"Which is the largest of these numbers: {', '.join(map(str, numbers))}? End with the number.", {"number": max(numbers)}


def _day(rng: np.random.Generator) -> Item:
    today, later = int(rng.integers(7)), int(rng.integers(1, 7))
    asked = f"Today is {DAYS[today]}. Which day is it in {later} day{'s' if later > 1 else ''}? Answer with the day only."
    return asked, {"starts": DAYS[(today + later) % 7], "words": 1}


def _age(rng: np.random.Generator) -> Item:
    older, younger = (NAMES[int(k)] for k in rng.choice(len(NAMES), 2, replace=False))
    age, apart = int(rng.integers(5, 60)), int(rng.integers(2, 15))
    return f"{younger} is {age} years old. {older} is {apart} years older. How old is {older}? End with the number.", {
        "number": age + apart
    }


KINDS: tuple[Callable[[np.random.Generator], Item], ...] = (_chain, _series, _count, _largest, _day, _age)
