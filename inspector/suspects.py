"""Hacking suspects of a drift: tasks whose reward rose while what else is known of them speaks against it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..rewards.types import UNREADABLE
from ..trainer.watch.answers import Answers, near_words, phrase_shares, spread_phrase
from ..trainer.watch.guards import RARE, GuardsConfig
from .drift import TASKS, Drift, Move, RunMoment, first_difference
from .library import LARGEST_REWARD, READ_AT_ONCE, TOLD, Library
from .runs import read_object
from .text import number

MOST = 20
"""Tasks that are named."""
ERRORS = 2.0
"""Standard errors that a change must be larger than, as the attempts at a task differ by chance. One attempt has none."""
LEAST_TOKENS = 8.0
"""Tokens by which an answer's length must have changed, beside the factor of the guard called drift."""
LEAST_TASKS = 5
"""Tasks over which a phrase must be looked for: any phrase is in all answers to one."""
SEARCHED_TASKS, SEARCHED = 100, 400
"""Tasks whose answers are searched for a phrase, those that rose most, and answers at most."""

GIVEN = (*TASKS, "rewards")
"""Fields of a config that say which parts a reward may have."""

Mean = tuple[float, float]
"""A mean, with the square of its standard error."""


@dataclass(frozen=True, slots=True)
class Means:
    """Of a task at a moment. found: the mean of each part of its reward, and under None of its tokens. known: parts that an attempt may
    have: one that lacks such a part has 0 of it, as in the metrics. environment: of the task, "" for the recipe's own."""

    found: Mapping[str | None, Mean] = field(default_factory=dict)
    known: Set[str] = frozenset()
    environment: str = ""

    def of(self, name: str | None) -> Mean | None:
        return self.found.get(name, (0.0, 0.0) if name in self.known else None)


@dataclass(frozen=True, slots=True)
class Suspect:
    """A task whose reward rose, and what speaks against it, in words."""

    move: Move
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Suspects:
    """Those of a drift, the most suspect first, `MOST` at most. note: what was not looked at, "" when nothing."""

    found: tuple[Suspect, ...] = ()
    note: str = ""


def suspects_of(drift: Drift, runs: Mapping[str, Path], stores: Mapping[str, Library]) -> Suspects:
    """The tasks of a drift whose reward rose while success or another part of it fell, or, where success did not rise, while answers became
    much longer or shorter, or nearly all of them came to say the same phrase. runs, stores: the folder and the episodes of each run, by
    name.

    Raises ValueError when a file cannot be read.
    """
    config = read_object(runs[drift.after.run], "config.json")
    success, weights = str(config.get("success", "env")), _weights(config)
    tasks = [move.task for move in drift.better]
    old, new = _means(drift, runs, stores, tasks)
    faults = _faults(stores[drift.before.run], drift.before)
    unsolved, against, fell = list[str](), dict[str, list[str]](), set[str]()
    for task in tasks:
        before, after = old.get(task, Means()), new.get(task, Means())
        solved = _change(before, after, success)
        speaks = partial(_speaks, success=success, weights=weights, faults=faults.get(before.environment, frozenset()))
        against[task] = list(_fallen(before, after, success, speaks))
        if solved is not None and solved < 0:
            fell.add(task)
        if solved is None or solved <= 0:
            unsolved.append(task)
            against[task] += _length(before, after, known=solved is not None)
    said, note = _phrase(drift, stores, unsolved)
    for task, words in said.items():
        against[task].append(words)
    found = [Suspect(move, tuple(against[move.task])) for move in drift.better if against[move.task]]
    found.sort(key=lambda one: (one.move.task not in fell, -len(one.why), -one.move.change, one.move.task))
    return Suspects(tuple(found[:MOST]), note)


def _means(drift: Drift, runs: Mapping[str, Path], stores: Mapping[str, Library], tasks: Sequence[str]) -> list[dict[str, Means]]:
    """What is known of these tasks at both moments, by task."""
    places = (drift.before, drift.after)
    known = [_parts(stores[place.run], place) for place in places]
    if first_difference([read_object(runs[place.run], "config.json") for place in places], GIVEN) is None:
        known = [known[0] | known[1]] * 2  # what no attempt earned then could be earned then, too
    return [_means_at(stores[place.run], place, tasks, parts) for place, parts in zip(places, known, strict=True)]


def _parts(store: Library, place: RunMoment) -> set[tuple[str, str]]:
    """The parts that the rewards of a moment have, each with the environment of its task."""
    each = f"SELECT environment, unnest(map_keys(parts)) AS part FROM {{stored}} WHERE {TOLD}"
    return {(row["environment"], row["part"]) for row in store.asked(place.moment, f"SELECT DISTINCT environment, part FROM ({each})")}


def _means_at(store: Library, place: RunMoment, tasks: Sequence[str], known: Set[tuple[str, str]]) -> dict[str, Means]:
    each = (
        "SELECT task, environment, attempts, NULL AS part, sampled_tokens::DOUBLE AS value FROM chosen UNION ALL SELECT task, environment, "
        "attempts, entry.key, entry.value FROM (SELECT task, environment, attempts, unnest(map_entries(parts)) AS entry FROM chosen)"
    )
    question = (
        "WITH chosen AS (SELECT task, environment, sampled_tokens, parts, count(*) OVER (PARTITION BY task) AS attempts "
        f"FROM {{stored}} WHERE task IN (SELECT unnest(?)) AND {TOLD}) "
        "SELECT task, part, min(environment) AS environment, max(attempts) - count(*) AS without, count(value) FILTER (told) AS n, "
        "avg(value) FILTER (told) AS mean, coalesce(var_samp(value) FILTER (told), 0) AS variance "
        f"FROM (SELECT *, abs(value) <= {LARGEST_REWARD} AS told FROM ({each})) GROUP BY task, part HAVING n > 0"
    )
    found: dict[str, dict[str | None, Mean]] = {}
    environments = dict[str, str]()
    for row in store.asked(place.moment, question, list(tasks)):
        found.setdefault(row["task"], {})[row["part"]] = _with_zeros(row["mean"], row["variance"], row["n"], max(0, row["without"]))
        environments[row["task"]] = row["environment"]
    parts = _by_environment(known)
    return {task: Means(means, parts.get(environments[task], frozenset()), environments[task]) for task, means in found.items()}


def _by_environment(parts: Iterable[tuple[str, str]]) -> dict[str, Set[str]]:
    found = dict[str, set[str]]()
    for environment, part in parts:
        found.setdefault(environment, set()).add(part)
    return {**found}


def _with_zeros(mean: float, variance: float, n: int, zeros: int) -> Mean:
    """The mean of `n` values and so many zeros."""
    count = n + zeros
    whole = mean * n / count
    squares = variance * (n - 1) + n * (mean - whole) ** 2 + zeros * whole**2
    return whole, squares / max(1, count - 1) / count


def _faults(store: Library, place: RunMoment) -> dict[str, Set[str]]:
    """By environment, the parts that attempts with a lower reward had more of, beyond chance: that such a part falls is what the reward
    asks for."""
    question = (
        "WITH chosen AS (SELECT environment, parts, reward - avg(reward) OVER same AS above, stddev_pop(reward) OVER same AS spread, "
        f"count(*) OVER same AS n FROM {{stored}} WHERE {TOLD} WINDOW same AS (PARTITION BY environment)) "
        "SELECT environment, part, min(n) AS n, min(spread) AS spread, sum(value * above) / min(n) AS covariance, "
        "sum(value * value) / min(n) - (sum(value) / min(n)) ** 2 AS variance "
        "FROM (SELECT environment, above, spread, n, entry.key AS part, entry.value AS value "
        "FROM (SELECT *, unnest(map_entries(parts)) AS entry FROM chosen)) "
        f"WHERE abs(value) <= {LARGEST_REWARD} GROUP BY environment, part HAVING covariance < 0 AND variance > 0"
    )
    rows = store.asked(place.moment, question)
    return _by_environment(
        (row["environment"], row["part"])
        for row in rows
        if -row["covariance"] > ERRORS * row["spread"] * math.sqrt(row["variance"] / row["n"])
    )


def _weights(config: Mapping[str, Any]) -> dict[str, float]:
    """What each scorer's value counts in the reward, by its name."""
    rewards = config.get("rewards")
    scorers = [one for one in rewards if isinstance(one, Mapping)] if isinstance(rewards, list) else []
    weights = [(one.get("name"), one.get("weight")) for one in scorers] + [("env", config.get("environment_weight"))]
    return {str(name): weight for name, weight in weights if isinstance(weight, int | float)}


def _speaks(name: str, success: str, weights: Mapping[str, float], faults: Set[str]) -> bool:
    """Whether it speaks against a reward that rose that this part of it fell. What a scorer's value counts is known; what it reports
    beside that may be a merit or a fault."""
    weight = weights.get(name.partition(".")[0], 0)
    if weight < 0:
        return False
    if name == success or (weight > 0 and "." not in name):
        return True
    return name.rpartition(".")[2] != UNREADABLE and name not in faults


def _change(before: Means, after: Means, name: str | None) -> float | None:
    """What a mean changed by, 0 where chance may have done it; None where it is not known."""
    then, now = before.of(name), after.of(name)
    if then is None or now is None:
        return None
    (old, old_noise), (new, new_noise) = then, now
    least = max(ERRORS * math.sqrt(old_noise + new_noise), 1e-9 * max(abs(old), abs(new)))
    return new - old if abs(new - old) > least else 0.0


def _fallen(before: Means, after: Means, success: str, speaks: Callable[[str], bool]) -> Iterator[str]:
    names = [name for name in {**before.found, **after.found} if name is not None and speaks(name)]
    for name in sorted(names, key=lambda name: (name != success, name)):
        change, then, now = _change(before, after, name), before.of(name), after.of(name)
        if then is not None and now is not None and change is not None and change < 0:
            what = f"success ({name:.60})" if name == success else f"{name:.60}"
            yield f"{what} fell from {number(then[0])} to {number(now[0])}"


def _length(before: Means, after: Means, known: bool) -> Iterator[str]:
    then, now = before.of(None), after.of(None)
    if then is None or now is None or not _change(before, after, None):
        return
    old, new = then[0], now[0]
    if abs(new - old) >= LEAST_TOKENS and max(old, new) >= GuardsConfig().drift_factor * min(old, new):
        yield f"answers went from {number(old)} to {number(new)} tokens, and success {'did not rise' if known else 'is not known'}"


def _phrase(drift: Drift, stores: Mapping[str, Library], tasks: Sequence[str]) -> tuple[dict[str, str], str]:
    """Of each task whose answers have come to say what nearly all of these tasks' answers say, that in words; and what was not looked
    at."""
    if len(tasks) < LEAST_TASKS:
        return {}, ""
    old, new = (stores[place.run].said(place.moment, tasks[:SEARCHED_TASKS], SEARCHED) for place in (drift.before, drift.after))
    if old is None or new is None:
        return {}, f"Answers were not searched for a phrase that spread: they take more than {READ_AT_ONCE >> 20} MB."
    said_before, said_after = ([text for _, text in said] for said in (old, new))
    before, after = Answers(said={"": len(old)}, phrases=phrase_shares(said_before)), Answers(phrases=phrase_shares(said_after))
    phrase = spread_phrase([before], after, RARE, GuardsConfig().phrase_share) if old else None
    if phrase is None:
        return {}, ""
    says = {task for task, text in new if f" {phrase} " in f" {' '.join(near_words(text))} "}
    words = f"answers say {phrase[:80]!r}, as {after.phrases[phrase]:.0%} of such answers do and at most {RARE:.0%} did"
    return (dict.fromkeys(sorted(says), words), "") if len(says) >= LEAST_TASKS else ({}, "")
