"""Moderation policies: rules drawn from a grammar, and what they ask for.

A rule names a topic and a decision, and may have a condition under which another decision holds: stricter for authors with a record,
posts with many reports and newcomers, milder for staff. Where several rules apply to a post, the policy's precedence says which one
counts; where none does, its last rule, which is for anything else.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

Decision = Literal["allow", "label", "escalate", "remove"]
DECISIONS: tuple[Decision, ...] = ("allow", "label", "escalate", "remove")
"""From mild to strict. To escalate is to leave it to a person."""

TOPICS = ("adverts", "insults", "rumours", "spoilers", "gambling", "cures", "politics", "addresses")
Kind = Literal["removals", "reports", "newcomers", "staff"]
THRESHOLDS: Mapping[Kind, tuple[int, ...]] = {"removals": (1, 2, 3), "reports": (2, 3, 4), "newcomers": (0,), "staff": (0,)}
"""The kinds of condition, each with the counts from which on it may hold; those on who the author is count nothing."""

Precedence = Literal["first", "strictest"]
PRECEDENCES: tuple[Precedence, ...] = ("first", "strictest")

HELD_OUT_SHARE = 8
"""One in so many rules (not counting the numbers in them) is in no policy of training."""

_KINDS, _MILD_AND_STRICT = tuple(THRESHOLDS), tuple(combinations(DECISIONS, 2))


@dataclass(frozen=True, slots=True)
class Level:
    """What makes a difficulty level. rules: how many name a topic. topics: how many a post may touch at once."""

    rules: int
    topics: int


LEVELS: Mapping[int, Level] = {0: Level(rules=3, topics=1), 1: Level(rules=4, topics=2)}


@dataclass(frozen=True, slots=True)
class Facts:
    """What a policy goes by. topics: what a post is about, of TOPICS or none. kind of author: "newcomer", "member" or "staff"; removals:
    posts of this author that were removed before; reports: how many people reported this one.

    Example: `Facts(("adverts",), "newcomer", removals=3, reports=0)`.
    """

    topics: tuple[str, ...]
    author: str
    removals: int
    reports: int


@dataclass(frozen=True, slots=True)
class Condition:
    """When a rule asks for something else. at_least: the count from which on it holds, 0 for the kinds that count nothing."""

    kind: Kind
    at_least: int = 0

    def holds(self, facts: Facts) -> bool:
        """Example: `Condition("removals", 2)` holds for an author with two removals, and for one with three."""
        if self.kind == "removals":
            return facts.removals >= self.at_least
        if self.kind == "reports":
            return facts.reports >= self.at_least
        return facts.author == ("newcomer" if self.kind == "newcomers" else "staff")


@dataclass(frozen=True, slots=True)
class ModerationRule:
    """One rule. topic: None in the last one, which is for anything else. instead: what it asks for where the condition holds.

    Example: `ModerationRule("adverts", "label", Condition("removals", 2), "remove")`: label adverts, remove those of authors with two
    removals.
    """

    topic: str | None
    decision: Decision
    condition: Condition | None = None
    instead: Decision | None = None

    def decide(self, facts: Facts) -> Decision:
        """What it asks for."""
        if self.condition is not None and self.condition.holds(facts):
            assert self.instead is not None
            return self.instead
        return self.decision

    @property
    def held_out(self) -> bool:
        """Whether no policy of training has a rule like it, whatever the numbers in it."""
        kind = self.condition.kind if self.condition else "always"
        return self.topic is not None and zlib.crc32(f"{self.topic}/{self.decision}/{kind}/{self.instead}".encode()) % HELD_OUT_SHARE == 0


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a policy asks for. rules: the numbers of the rules that say so, counted from 1; several where rules of equal strictness apply.

    Example: `Ruling("remove", (2,))`.
    """

    decision: Decision
    rules: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModerationPolicy:
    """Rules in their order, the last for anything else, and which one counts where several apply. precedence: None where the policy says
    nothing of it; then it is the first."""

    rules: tuple[ModerationRule, ...]
    precedence: Precedence | None = None

    @property
    def held_out(self) -> bool:
        """Whether it is for evaluation alone: it has a rule that no policy of training has."""
        return any(rule.held_out for rule in self.rules)

    def ruling(self, facts: Facts) -> Ruling:
        """What becomes of a post."""
        found = [(number, rule.decide(facts)) for number, rule in enumerate(self.rules, 1) if rule.topic in facts.topics]
        if not found:
            return Ruling(self.rules[-1].decide(facts), (len(self.rules),))
        if self.precedence != "strictest":
            return Ruling(found[0][1], (found[0][0],))
        strictest = max((decision for _, decision in found), key=DECISIONS.index)
        return Ruling(strictest, tuple(number for number, decision in found if decision == strictest))


def level_of(level: int) -> Level:
    """The level's settings. Raises ValueError for a level that does not exist."""
    if level not in LEVELS:
        raise ValueError(f"content moderation has levels {', '.join(map(str, LEVELS))}; level {level!r} does not exist")
    return LEVELS[level]


def draw_policy(rng: np.random.Generator, level: Level) -> ModerationPolicy:
    """A policy of the grammar, of either side. Anything else is allowed half of the time."""
    topics = [TOPICS[i] for i in rng.permutation(len(TOPICS))[: level.rules]]
    last = ModerationRule(None, "allow" if rng.random() < 0.5 else DECISIONS[int(rng.integers(1, len(DECISIONS)))])
    precedence = PRECEDENCES[int(rng.integers(len(PRECEDENCES)))] if level.topics > 1 else None
    return ModerationPolicy((*(_draw_rule(rng, topic) for topic in topics), last), precedence)


def _draw_rule(rng: np.random.Generator, topic: str) -> ModerationRule:
    """Every third rule has no condition."""
    if rng.random() < 1 / 3:
        return ModerationRule(topic, DECISIONS[int(rng.integers(len(DECISIONS)))])
    mild, strict = _MILD_AND_STRICT[int(rng.integers(len(_MILD_AND_STRICT)))]
    kind = _KINDS[int(rng.integers(len(_KINDS)))]
    condition = Condition(kind, THRESHOLDS[kind][int(rng.integers(len(THRESHOLDS[kind])))])
    return ModerationRule(topic, strict, condition, mild) if kind == "staff" else ModerationRule(topic, mild, condition, strict)
