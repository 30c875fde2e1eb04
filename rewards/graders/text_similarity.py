"""`text_similarity`: how alike two texts are, from 0 to 1. No metric needs more than the texts.

fuzzy_match is rapidfuzz's ratio: twice the longest common subsequence of characters, over the sum of the lengths. bleu is sacrebleu's
sentence score (Post, 2018; tokens as mteval-v13a has them, n-grams up to 4 or the length of shorter texts, exponential smoothing). gleu (Wu
et al., 2016) is the lesser of precision and recall over all n-grams up to 4, over words and punctuation marks as written. rouge_1 to
rouge_5 and rouge_l are F1 scores over lower-case letters and digits, as in ROUGE-1.5.5 without stemming.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from ..types import Score
from .types import TextSimilarity

MAX_CHARS = 200_000
"""Only so much of a text is compared: more would take seconds, and no answer that a context holds is as long."""

MAX_ORDER = 4
"""The longest n-grams of gleu."""

PACKAGES = {"bleu": "sacrebleu", "fuzzy_match": "rapidfuzz", "rouge_l": "rapidfuzz"}
"""What a metric is computed with, where it is not the arithmetic here."""

_WORDS = re.compile(r"\w+|[^\w\s]")
_ROUGE_WORDS = re.compile(r"[a-z0-9]+")


def compare_texts(grader: TextSimilarity, text: str, reference: str) -> Score:
    """The similarity, and with a pass_threshold the part `passed`.

    Example: with rouge_1, "the cat sat" and "the cat" share 2 words of 3 and of 2, so F1 is 2 * 2 / (3 + 2) = 0.8.
    """
    value = similarity(grader.evaluation_metric, text[:MAX_CHARS], reference[:MAX_CHARS])
    return Score(value, with_threshold(value, grader.pass_threshold))


def with_threshold(value: float, threshold: float | None) -> dict[str, float]:
    """The part `passed`, when a threshold says what that means."""
    return {} if threshold is None else {"passed": float(value >= threshold)}


def similarity(metric: str, text: str, reference: str) -> float:
    """One metric of `burnish.rewards.graders.types.METRICS`, 0 to 1."""
    if metric == "fuzzy_match":
        from rapidfuzz import fuzz

        return float(fuzz.ratio(text, reference)) / 100
    if metric == "bleu":
        return min(1.0, float(_sentence_bleu().sentence_score(text, [reference]).score) / 100)  # it rounds to just above 100
    if metric == "gleu":
        return _gleu(_WORDS.findall(text), _WORDS.findall(reference))
    words, wanted = _ROUGE_WORDS.findall(text.lower()), _ROUGE_WORDS.findall(reference.lower())
    return _rouge_l(words, wanted) if metric == "rouge_l" else _rouge_n(words, wanted, int(metric.removeprefix("rouge_")))


@cache
def _sentence_bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)


def _gleu(words: Sequence[str], wanted: Sequence[str]) -> float:
    found, needed = (sum((_ngrams(text, n) for n in range(1, MAX_ORDER + 1)), Counter()) for text in (words, wanted))
    longer = max(found.total(), needed.total())
    return (found & needed).total() / longer if longer else 0.0


def _rouge_n(words: Sequence[str], wanted: Sequence[str], n: int) -> float:
    found, needed = _ngrams(words, n), _ngrams(wanted, n)
    return _f1((found & needed).total(), found.total(), needed.total())


def _rouge_l(words: Sequence[str], wanted: Sequence[str]) -> float:
    from rapidfuzz.distance import LCSseq

    return _f1(LCSseq.similarity(words, wanted), len(words), len(wanted))


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def _f1(shared: float, found: float, needed: float) -> float:
    """The harmonic mean of shared/found and shared/needed."""
    return 2 * shared / (found + needed) if shared else 0.0
