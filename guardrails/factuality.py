"""Whether an answer follows from its context, and whether a policy knows what it does not know.

All of it is computed from texts and numbers here; nothing is asked of a model. Lexical support finds an invented name or number, not a
sentence that turns the context's words round.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .unknown import claimed_beside, is_filler, says_unknown

SUPPORT = 0.6
"""The share of a claim's words that the context must have."""
MAX_WORDS = 200_000

_SENTENCE = re.compile(r"[^.!?\n。！？]+(?:[.](?=\d)[^.!?\n。！？]+)*[.!?。！？]*")
_WORD = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+")
_FUNCTION = frozenset(
    re.findall(
        r"\w+",
        """a about an and are as at be because been but by can could did do does for from had has have he her his how i if in is it its may
        me my no not of on or our she should so such than that the their them there these they this those to was we were what when which who
        will with would you your der die das den dem des ein eine einer eines einem einen und oder ist sind war im in am an auf aus bei mit
        nach von vor zu zum zur sich es er sie wir ihr nicht auch für als wie dass""",
    )
)
Answered = Literal["right", "abstained", "wrong"]


@dataclass(frozen=True, slots=True)
class Claim:
    """One sentence of an answer. score: the share of its words that the context has, 0 when it has a number that the context has not."""

    start: int
    end: int
    score: float

    @property
    def supported(self) -> bool:
        return self.score >= SUPPORT


@dataclass(frozen=True, slots=True)
class Groundedness:
    """How far an answer follows from a context. score: the share of its claims that are supported, 1 for an answer without any."""

    score: float
    claims: tuple[Claim, ...]


def grounding(answer: str, context: str) -> Groundedness:
    """Hold every sentence of an answer against a context: its words, and each of its numbers.

    Example: of "The bore is 12 mm. It is made of steel." the context "bore: 12 mm" supports the first sentence alone, so the score is 0.5.
    """
    known = (known_words(context),)
    claims = tuple(Claim(start, end, support(words, known)) for start, end, words in statements(answer))
    return Groundedness(sum(claim.supported for claim in claims) / len(claims) if claims else 1.0, claims)


def statements(answer: str) -> Iterator[tuple[int, int, list[str]]]:
    """The sentences of an answer that claim something: where each begins and ends, and the words of it that count.

    One that says that it does not know claims what it says beside, and every number. Example: "I cannot say more: the dose is 500 mg."
    """
    for sentence in _SENTENCE.finditer(answer):
        claimed, numbers = _claimed(sentence[0])
        if claimed or numbers:
            yield sentence.start(), sentence.end(), claimed + numbers


def _claimed(sentence: str) -> tuple[list[str], list[str]]:
    """The words by which a sentence claims something, and the numbers of what it says that it does not know."""
    if not says_unknown(sentence):
        return _content(sentence), []
    beside, unknown = claimed_beside(sentence)
    return [word for word in _content(beside) if not is_filler(word)], [word for word in _content(unknown) if word[0].isdigit()]


def _content(text: str) -> list[str]:
    return [word for word in _words(text) if word not in _FUNCTION]


def known_words(context: str) -> frozenset[str]:
    """What a context has for `support`."""
    return frozenset(_words(context))


def support(words: Sequence[str], known: Sequence[frozenset[str]]) -> float:
    """The share of a claim's words that one of the contexts has; 0 when it has a number that none of them has."""
    if any(word[0].isdigit() and not any(word in one for one in known) for word in words):
        return 0.0
    return sum(any(_known(word, one) for one in known) for word in words) / len(words)


def _words(text: str) -> list[str]:
    return [word[0].casefold().replace(",", ".") for word, _ in zip(_WORD.finditer(text), range(MAX_WORDS), strict=False)]


def _known(word: str, known: frozenset[str]) -> bool:
    """Whether the context has the word, or it with a plural's or a verb's ending more or less."""
    if word in known or word[0].isdigit():
        return word in known
    stems = {word[: -len(end)] for end in ("s", "es", "ed", "ing", "n", "en") if word.endswith(end) and len(word) - len(end) >= 3}
    return any(stem in known for stem in stems) or any(word + end in known for end in ("s", "es", "ed", "ing", "n", "en"))


def abstains(text: str) -> bool:
    """Whether an answer says that it does not know, in English, German or Japanese, and claims nothing beside.

    Example: "I don't know." does, and "30. I'm not sure." does not.
    """
    return says_unknown(text) and not any(_claimed(sentence[0])[0] for sentence in _SENTENCE.finditer(text))


def abstention_reward(answered: Answered, threshold: float | None = None) -> float:
    """+1 for a right answer, 0 for none, and for a wrong one -1, or -t / (1 - t) with a threshold t.

    With a threshold the best policy answers exactly when it is right with a probability above t: there the expected reward
    p - (1 - p) t / (1 - t) is positive (Kalai et al., "Why language models hallucinate", 2025). -1 is t = 1/2.

    Raises ValueError when the threshold does not lie in (0, 1). Example: `abstention_reward("wrong", 0.75)` is -3.
    """
    if threshold is not None and not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1, not {threshold!r}")
    wrong = -1.0 if threshold is None else -threshold / (1 - threshold)
    return {"right": 1.0, "abstained": 0.0, "wrong": wrong}[answered]


def expected_calibration_error(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """The mean distance between how sure answers were and how often they were right, over equal bins of confidence (Guo et al., 2017).

    Bins are ((i - 1) / bins, i / bins], the first with its 0. Raises ValueError on unequal lengths, no answers, or a confidence outside
    [0, 1]. Example: two answers with confidence 0.9, one of them right: 0.4.
    """
    sure, good = _checked(confidence, right)
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    gaps = [abs(float(sure[place == i].mean() - good[place == i].mean())) * float((place == i).sum()) for i in np.unique(place)]
    return sum(gaps) / len(sure)


def risk_coverage(confidence: Sequence[float], right: Sequence[bool]) -> list[tuple[float, float]]:
    """(coverage, risk) for every confidence at which one could stop answering, the surest first (El-Yaniv and Wiener, 2010).

    Answers that are equally sure are taken together. Raises ValueError as `expected_calibration_error` does.
    Example: confidences 0.9, 0.8, 0.7 with right, wrong, right give (1/3, 0), (2/3, 1/2), (1, 1/3).
    """
    sure, good = _checked(confidence, right)
    order = np.argsort(-sure, kind="stable")
    wrong = np.cumsum(1 - good[order])
    last = [i for i in range(len(sure)) if i + 1 == len(sure) or sure[order[i]] != sure[order[i + 1]]]
    return [((i + 1) / len(sure), float(wrong[i]) / (i + 1)) for i in last]


def _checked(confidence: Sequence[float], right: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    if len(confidence) != len(right) or not len(right):
        raise ValueError(f"needs as many confidences as verdicts, and one at least; got {len(confidence)} and {len(right)}")
    sure, good = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    if not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError("a confidence lies between 0 and 1")
    return sure, good
