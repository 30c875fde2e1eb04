"""Instruction following with constraints that a program can check, and answers that keep them, made by rule.

Each row asks for something simple in a form that is laid down: so many items, in this order, in capitals, as JSON. The idea is that of
IFEval (Zhou et al. 2023, arXiv 2311.07911); prompts and answers are burnish's own. `metadata.checks` holds the constraints of a row, which
the reward `burnish/constraints-v1` reads, so that the same rows can judge a policy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ....rewards.builtin.constraints import Checks, follows

TAG = 0x1F0
THINGS: Mapping[str, Sequence[str]] = {
    "fruits": ("apple", "banana", "cherry", "fig", "grape", "lemon", "mango", "orange", "peach", "pear", "plum"),
    "animals": ("ant", "bear", "cat", "dog", "fox", "goat", "horse", "lion", "owl", "rabbit", "wolf"),
    "colours": ("black", "blue", "brown", "green", "grey", "orange", "pink", "purple", "red", "white", "yellow"),
    "tools": ("axe", "chisel", "drill", "file", "hammer", "ladder", "pliers", "ruler", "saw", "wrench"),
    "cities": ("Berlin", "Cairo", "Lagos", "Lima", "London", "Madrid", "Oslo", "Paris", "Rome", "Tokyo"),
}
OPPOSITES = (("hot", "cold"), ("big", "small"), ("fast", "slow"), ("early", "late"), ("light", "dark"), ("full", "empty"), ("wet", "dry"))
NAMES = ("Ana", "Ben", "Chloe", "Dev", "Emma", "Femi", "Grace", "Hugo", "Ines", "Jun")

Made = tuple[str, str, Checks]
"""The prompt, an answer that keeps to it, and what it has to keep to."""


def rows(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """`count` conversations of one question and one answer, `metadata.checks` beside them."""
    for i in range(count):
        rng = np.random.default_rng([seed, i, TAG])
        prompt, answer, checks = KINDS[int(rng.integers(len(KINDS)))](rng)
        assert follows(answer, checks), f"the answer {answer!r} does not keep {checks}"
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        yield {"messages": messages, "metadata": {"checks": dict(checks)}}


def _some(rng: np.random.Generator, least: int = 2, most: int = 5) -> tuple[str, list[str]]:
    topic = list(THINGS)[int(rng.integers(len(THINGS)))]
    chosen = rng.choice(len(THINGS[topic]), int(rng.integers(least, most + 1)), replace=False)
    return topic, [THINGS[topic][int(i)] for i in chosen]


def _list(rng: np.random.Generator) -> Made:
    topic, items = _some(rng)
    return f"Name exactly {len(items)} {topic}, separated by commas.", ", ".join(items), {"items": len(items)}


def _bullets(rng: np.random.Generator) -> Made:
    topic, items = _some(rng)
    answer = "\n".join(f"- {item}" for item in items)
    return f'Give {len(items)} {topic} as a list. Begin each line with "- ".', answer, {"bullets": len(items)}


def _sorted(rng: np.random.Generator) -> Made:
    _, items = _some(rng, 3)
    answer = ", ".join(sorted(items, key=str.lower))
    return f"Put these words in alphabetical order, separated by commas: {', '.join(items)}.", answer, {"equals": answer}


def _reversed(rng: np.random.Generator) -> Made:
    _, items = _some(rng, 3)
    answer = " ".join(reversed(items))
    return f"Write these words in reverse order: {' '.join(items)}", answer, {"equals": answer, "words": len(items)}


def _capitals(rng: np.random.Generator) -> Made:
    one, other = OPPOSITES[int(rng.integers(len(OPPOSITES)))]
    if rng.random() < 0.5:
        one, other = other, one
    return f"In capital letters only: what is the opposite of {one}?", other.upper(), {"equals": other.upper(), "upper": True}


def _small(rng: np.random.Generator) -> Made:
    _, items = _some(rng, 2, 3)
    answer = " ".join(items).lower()
    return f"Write this in small letters: {' '.join(items).upper()}", answer, {"equals": answer, "lower": True}


def _repeated(rng: np.random.Generator) -> Made:
    _, items = _some(rng, 1, 1)
    n = int(rng.integers(2, 6))
    answer = ", ".join(items * n)
    return f'Write the word "{items[0]}" {n} times, separated by commas, and nothing else.', answer, {"equals": answer, "items": n}


def _object(rng: np.random.Generator) -> Made:
    name, age = NAMES[int(rng.integers(len(NAMES)))], int(rng.integers(18, 80))
    city = THINGS["cities"][int(rng.integers(len(THINGS["cities"])))]
    value = {"name": name, "age": age, "city": city}
    prompt = f"{name} is {age} years old and lives in {city}. Answer with a JSON object with the keys name, age and city."
    return prompt, json.dumps(value), {"json": value, "lines": 1}


def _only(rng: np.random.Generator) -> Made:
    a, b = (int(n) for n in rng.choice(100, 2, replace=False))
    answer = "yes" if a > b else "no"
    return f"Answer with yes or no only: is {a} greater than {b}?", answer, {"equals": answer, "words": 1}


def _numbers(rng: np.random.Generator) -> Made:
    first, n = int(rng.integers(1, 90)), int(rng.integers(3, 7))
    answer = "\n".join(str(first + i) for i in range(n))
    return f"Write the numbers from {first} to {first + n - 1}, one on each line.", answer, {"equals": answer, "lines": n}


def _ending(rng: np.random.Generator) -> Made:
    topic, items = _some(rng, 1, 1)
    ending = ("Is there anything else?", "That is all.", "Done.")[int(rng.integers(3))]
    return f'Name one of the {topic}. End your answer with "{ending}"', f"{items[0]}. {ending}", {"ends": ending, "starts": items[0]}


def _without(rng: np.random.Generator) -> Made:
    topic, items = _some(rng, 3, 4)
    left, kept = items[0], items[1:]
    prompt = f"Name {len(kept)} {topic}, separated by commas. Do not use the word {left}."
    return prompt, ", ".join(kept), {"items": len(kept), "without": left}


KINDS: tuple[Callable[[np.random.Generator], Made], ...] = (
    _list, _bullets, _sorted, _reversed, _capitals, _small, _repeated, _object, _only, _numbers, _ending, _without,
)  # fmt: skip
