"""Cases: a policy, and a post with its author's record. A case follows from its seed and level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .policies import DECISIONS, TOPICS, Decision, Facts, Level, ModerationPolicy, Ruling, draw_policy, level_of

TRAIN_SEEDS = 1_000_000_000
"""Cases of seeds below this are for training; those from here on are held out, and so are their policies (`ModerationPolicy.held_out`)."""

AUTHORS = ("newcomer", "member", "staff")
MOST_REMOVALS, MOST_LABELS, MOST_REPORTS = 4, 4, 6
SMALL_TALK = "small talk"
"""What a post is about when it is about nothing that a policy ever names."""

UNNAMED_SHARE = 0.15
"""Of the posts, those that are about nothing that their policy names."""


@dataclass(frozen=True, slots=True)
class Case:
    """A policy and a post. labels: posts of this author that were labelled before, which no rule asks for. sayings: which sentence of each
    topic the post has, as `wording` counts them.
    """

    seed: int
    policy: ModerationPolicy
    facts: Facts
    labels: int
    sayings: tuple[int, ...]

    @property
    def ruling(self) -> Ruling:
        """What the policy asks for: the ground truth."""
        return self.policy.ruling(self.facts)


def make_case(seed: int, level: int) -> Case:
    """The case of this seed at this level. The four decisions are equally likely."""
    settings, rng = level_of(level), np.random.default_rng([seed, level, 0x90D])
    target: Decision = DECISIONS[int(rng.integers(len(DECISIONS)))]
    while True:
        policy = draw_policy(rng, settings)
        if policy.held_out != (seed >= TRAIN_SEEDS):
            continue
        case = _draw_case(rng, seed, policy, settings)
        if case.ruling.decision == target:
            return case


def _draw_case(rng: np.random.Generator, seed: int, policy: ModerationPolicy, level: Level) -> Case:
    named = [rule.topic for rule in policy.rules if rule.topic is not None]
    if rng.random() < UNNAMED_SHARE:
        named = [SMALL_TALK, *(topic for topic in TOPICS if topic not in named)]
        count = 1
    else:
        count = int(rng.integers(1, level.topics + 1))
    topics = tuple(named[i] for i in rng.permutation(len(named))[:count])
    removals, labels, reports = (int(n) for n in rng.integers(0, (MOST_REMOVALS + 1, MOST_LABELS + 1, MOST_REPORTS + 1)))
    facts = Facts(topics, AUTHORS[int(rng.integers(len(AUTHORS)))], removals, reports)
    return Case(seed, policy, facts, labels, tuple(int(n) for n in rng.integers(0, 2**16, size=count)))
