"""Two evaluations of one suite, item by item: what is right in both, lost, gained, and in neither; and how much of a skill is left.

Counted per item as in Harmon et al. 2025 (arXiv 2510.17776): a mean that stays where it was may hide as much forgotten as learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....rollout.store.records import Comparison
from ..comparison import paired_bootstrap, paired_test
from ..statistics import resampled_means
from .scores import RESAMPLES, Scores
from .suite import SuiteKind

CERTAIN = 1e-9


@dataclass(frozen=True, slots=True)
class Transitions:
    """Items that were right before and after (kept), before only (lost), after only (gained), and never.

    Example: `Transitions(50, 14, 10, 26).lost_share` is 0.14.
    """

    kept: int
    lost: int
    gained: int
    never: int

    @property
    def items(self) -> int:
        return self.kept + self.lost + self.gained + self.never

    @property
    def lost_share(self) -> float:
        return self.lost / self.items

    @property
    def gained_share(self) -> float:
        return self.gained / self.items

    def adjusted(self, before: float, after: float) -> tuple[float, float]:
        """The shares of items whose answer was forgotten, and learned, without those that were guessed.

        before, after: how likely an item that is not known counts as right in each evaluation (`scores.guessed_right`).

        An item known before and not after shows as lost unless it is guessed, and one that is known in neither shows as lost when the first
        guess hits and the second misses. With u the share known in neither, of which (1 - before) (1 - after) shows as never:

            lost_share = forgotten (1 - after) + u before (1 - after)

        solved for `forgotten`, and alike for `learned`; neither is below 0. Guesses are taken to be independent of each other.

        Example: `Transitions(50, 14, 10, 26).adjusted(0.25, 0.25)` is (0.0711, 0.0178).
        """
        unknown = self.never / self.items / ((1 - before) * (1 - after))
        return max(0.0, self.lost_share / (1 - after) - before * unknown), max(0.0, self.gained_share / (1 - before) - after * unknown)


@dataclass(frozen=True, slots=True)
class SuiteChange:
    """What became of a suite between two evaluations, over the items that both scored.

    before, after: mean score; of texts, perplexity. retention: what is left of the skill. Of answers, of the way from chance that was made
    before, the share that is made after, (after - chance) / (before - chance); None where there was no skill to lose. Of texts, perplexity
    before over perplexity after. low, high: its 95 % bootstrap interval over items, None with it. test: of the scores, item by item; of
    texts, of the log-probability per token. unpaired: items that only one of the two scored.
    """

    suite: str
    kind: SuiteKind
    items: int
    before: float
    after: float
    retention: float | None
    low: float | None
    high: float | None
    test: Comparison
    transitions: Transitions | None = None
    forgotten: float | None = None
    learned: float | None = None

    @property
    def line(self) -> str:
        """On one line, with n and interval."""
        if self.retention is None or self.low is None or self.high is None:
            kept = "no skill above chance to keep"
        else:
            kept = f"retention {self.retention:.3f} [{self.low:.3f}, {self.high:.3f}]"
        if self.transitions is None:
            return f"{self.suite}: perplexity {self.before:.2f} -> {self.after:.2f}, {kept}, n = {self.items} ({self.test.significance})"
        moved = f"{self.transitions.lost} lost, {self.transitions.gained} gained"
        if (self.forgotten, self.learned) != (self.transitions.lost_share, self.transitions.gained_share):
            moved += f" (without guesses {self.forgotten:.1%} and {self.learned:.1%})"
        return f"{self.suite}: {self.before:.1%} -> {self.after:.1%}, {kept}, {moved}, n = {self.items} ({self.test.significance})"

    def to_row(self) -> dict[str, Any]:
        return asdict(self)


def change(before: Scores, after: Scores, seed: int = 0) -> SuiteChange:
    """What became of a suite from one evaluation to another. Raises ValueError when they cannot be paired: two suites, other rules of
    scoring, another temperature, or fewer than two items that both scored."""
    for what in ("suite", "kind", "right", "chance", "temperature"):
        old, new = getattr(before, what), getattr(after, what)
        if old != new:
            raise ValueError(f"evaluations of a different {what} cannot be compared: {old!r} and {new!r}")
    if before.kind == "texts":
        return _of_texts(before, after, seed)
    old_scores, new_scores = before.item_scores, after.item_scores
    shared = _shared(before.suite, old_scores, new_scores)
    old, new = (np.array([scores[item] for item in shared]) for scores in (old_scores, new_scores))
    test = paired_test(old, new, seed)
    kept = retention(float(old.mean()), float(new.mean()), before.chance)
    low, high = _interval(old, new, before.chance, seed) if kept is not None else (None, None)
    moved = transitions(before, after, shared)
    guessed = before.guessed(shared), after.guessed(shared)
    if max(guessed) > 1 - CERTAIN:
        raise ValueError(f"suite {before.suite}: guessing alone gets every item right (chance {before.chance:g}), so nothing can be told")
    forgotten, learned = moved.adjusted(*guessed)
    return SuiteChange(
        before.suite, before.kind, len(shared), float(old.mean()), float(new.mean()), kept, low, high, test, moved, forgotten, learned
    )


def retention(before: float, after: float, chance: float) -> float | None:
    """Of the way from chance to where the score was, the share that is left; None where it was no better than chance.

    Example: `retention(0.65, 0.61, 0.25)` is 0.9.
    """
    return (after - chance) / (before - chance) if before > chance else None


def transitions(before: Scores, after: Scores, items: Sequence[str]) -> Transitions:
    """How each of the items went over, right or not."""
    old, new = before.item_right, after.item_right
    pairs = [(old[item], new[item]) for item in items]
    return Transitions(*(pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))))


def _shared(suite: str, old: dict[str, float], new: dict[str, float]) -> list[str]:
    shared = [item for item in old if item in new]
    if len(shared) < 2:
        raise ValueError(f"suite {suite}: a comparison needs at least two items that both evaluations scored, and there are {len(shared)}")
    return shared


def _interval(old: NDArray[np.float64], new: NDArray[np.float64], chance: float, seed: int) -> tuple[float | None, float | None]:
    """Of retention, over items drawn with replacement; a draw without skill before says nothing of what is left of it."""
    had, has = (means - chance for means in resampled_means(seed, RESAMPLES, old, new))
    low, high = np.quantile(has[had > 0] / had[had > 0], (0.025, 0.975))
    return float(low), float(high)


def _of_texts(before: Scores, after: Scores, seed: int) -> SuiteChange:
    shared = _shared(before.suite, before.item_scores, after.item_scores)
    old, new = (np.array([scores.by_item[item][0].score for item in shared], np.float64) for scores in (before, after))
    tokens, others = (np.array([scores.by_item[item][0].tokens for item in shared], np.float64) for scores in (before, after))
    if (tokens != others).any():
        raise ValueError(f"suite {before.suite}: the two models cut its texts into other tokens, so their perplexities are not comparable")
    gained, of_tokens = resampled_means(seed, RESAMPLES, new - old, tokens)
    ratios = np.exp(gained / of_tokens)
    low, high = (float(edge) for edge in np.quantile(ratios, (0.025, 0.975)))
    was, now = (math.exp(-float(nats.sum() / tokens.sum())) for nats in (old, new))
    test = paired_bootstrap(old / tokens, new / tokens, seed)
    return SuiteChange(before.suite, before.kind, len(shared), was, now, was / now, low, high, test)
