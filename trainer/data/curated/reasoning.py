"""Short reasoning made by rule, in the manner of reasoning-gym (Stojanovski et al. 2025, arXiv 2505.24760): every answer is computed, and
says how it was come by.

The kinds are those of the suites `burnish/procedural-v1` and `burnish/arithmetic-v1`, whose items are held out: of the one, `rows` makes
none of its first `HELD_OUT`, and the numbers of sums are larger than the other's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from ....rewards.builtin.constraints import follows
from .instructions import NAMES, THINGS, Made

TAG: Final = 0x2EA
HELD_OUT: Final = 100
"""Items of the suite `burnish/procedural-v1` that no row asks: as many as it asks unless it is told otherwise."""
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
LEAST: Final = 21
"""Of the operands of sums: those of `burnish/arithmetic-v1` are smaller."""


def rows(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """`count` conversations of one question and one answer, the kinds in turn, `metadata.checks` beside them."""
    held_out = {suite_item(i)[0] for i in range(HELD_OUT)}
    kinds = (*KINDS, _sum)
    for i in range(count):
        rng = np.random.default_rng([seed, i, TAG])
        prompt, answer, checks = _other(rng, kinds[i % len(kinds)], held_out)
        assert follows(answer, checks), f"the answer {answer!r} does not keep {checks}"
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        yield {"messages": messages, "metadata": {"checks": dict(checks)}}


def suite_item(i: int) -> Made:
    """Item i of `burnish/procedural-v1`, the same for ever: it follows from i alone."""
    return KINDS[i % len(KINDS)](np.random.default_rng([i, TAG]))


def one_of(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _other(rng: np.random.Generator, kind: Callable[[np.random.Generator], Made], held_out: set[str]) -> Made:
    """The next one of a kind that is not held out."""
    while True:
        made = kind(rng)
        if made[0] not in held_out:
            return made


def _chain(rng: np.random.Generator) -> Made:
    numbers = rng.integers(1, 20, size=int(rng.integers(3, 5)))
    signs = rng.choice([1, -1], size=len(numbers))
    signs[0] = 1
    terms = [(int(s), int(n)) for s, n in zip(signs, numbers, strict=True)]
    written = "".join(f" {'+' if s > 0 else '-'} {n}" for s, n in terms).removeprefix(" + ")
    total, steps = terms[0][1], list[str]()
    for sign, n in terms[1:]:
        steps.append(f"{total} {'+' if sign > 0 else '-'} {n} = {total + sign * n}.")
        total += sign * n
    return f"What is {written}? End with the number.", f"{' '.join(steps)} The answer is {total}.", {"number": total}


def _series(rng: np.random.Generator) -> Made:
    first, step = int(rng.integers(1, 30)), int(rng.integers(2, 10))
    shown = ", ".join(str(first + k * step) for k in range(4))
    answer = f"Each is {step} more than the one before: {first + 3 * step} + {step} = {first + 4 * step}."
    return f"Which number comes next: {shown}? End with the number.", answer, {"number": first + 4 * step}


def _count(rng: np.random.Generator) -> Made:
    topic = list(THINGS)[int(rng.integers(len(THINGS)))]
    words = [one_of(rng, THINGS[topic]) for _ in range(int(rng.integers(4, 8)))]
    asked, often = words[0], words.count(words[0])
    prompt = f'How often does "{asked}" stand in this list: {", ".join(words)}? End with the number.'
    return prompt, f'Of the {len(words)} words, so many are "{asked}": {often}.', {"number": often}


def _largest(rng: np.random.Generator) -> Made:
    numbers = [int(n) for n in rng.choice(100, int(rng.integers(3, 7)), replace=False)]
    prompt = f"Which is the largest of these numbers: {', '.join(map(str, numbers))}? End with the number."
    return prompt, f"None of the others is larger than {max(numbers)}.", {"number": max(numbers)}


def _day(rng: np.random.Generator) -> Made:
    today, later = int(rng.integers(7)), int(rng.integers(1, 7))
    asked = f"Today is {DAYS[today]}. Which day is it in {later} day{'s' if later > 1 else ''}? Answer with the day only."
    day = DAYS[(today + later) % 7]
    return asked, day, {"starts": day, "words": 1}


def _age(rng: np.random.Generator) -> Made:
    older, younger = (NAMES[int(k)] for k in rng.choice(len(NAMES), 2, replace=False))
    age, apart = int(rng.integers(5, 60)), int(rng.integers(2, 15))
    prompt = f"{younger} is {age} years old. {older} is {apart} years older. How old is {older}? End with the number."
    return prompt, f"{age} + {apart} = {age + apart}, so {older} is {age + apart}.", {"number": age + apart}


def _sum(rng: np.random.Generator) -> Made:
    a, b = (int(n) for n in rng.integers(LEAST, 100, size=2))
    sign, total = ("+", a + b) if rng.integers(2) else ("-", a - b)
    return f"What is {a} {sign} {b}?", f"{a} {sign} {b} = {total}.", {"number": total}


KINDS: tuple[Callable[[np.random.Generator], Made], ...] = (_chain, _series, _count, _largest, _day, _age)
"""The kinds of `burnish/procedural-v1`, in the order in which it asks them."""
