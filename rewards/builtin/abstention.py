"""`burnish/abstention-v1`: saying that one does not know is worth more than saying what is wrong."""

from __future__ import annotations

from hashlib import sha256
from typing import Annotated

from pydantic import Field

from ...guardrails.factuality import Answered, abstains, abstention_reward
from ..plugin import reward
from ..types import RewardInput, Score

PARTS = ("right", "abstained", "wrong", "wanted")
LONGEST = 100
"""Characters of an answer that stands in a label as it is."""


@reward("burnish/abstention-v1")
def abstention(
    episode: RewardInput, *, key: str = "reference_answer", threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
) -> Score:
    """+1 for the right answer, 0 for "I do not know" with no claim beside it, and -1 for a wrong one, or -t / (1 - t) with a threshold t.

    key: where the task's data has the answer; without one there (or null), the question cannot be answered and every answer is wrong. An
    answer is right when it is the reference, case and a last full stop aside. An episode cut short before it answered is worth 0.

    Parts: `right`, `abstained` and `wrong`, one of which is 1; `wanted`, 1 for the right answer, and for "I do not know" where there is
    none. The labels say which of the three was wanted and which it was: recall of "right" is how many of the questions that can be answered
    were answered rightly, and recall of "abstained" to how many of the others it said that it does not know. The label "constant" is the
    answer itself, for no policy is right by always saying the same: the best of those says "I do not know", or the most frequent answer.
    """
    reference = episode.data.get(key)
    wanted: Answered = "abstained" if reference is None else "right"
    labels = {"expected": wanted, "constant": "I do not know" if reference is None else _label(_plain(str(reference)))}
    answer = episode.answer
    if answer is None:
        return Score(0.0, dict.fromkeys(PARTS, 0.0), {**labels, "predicted": "no answer"})
    right = reference is not None and _plain(answer) == _plain(str(reference))
    said: Answered = "abstained" if abstains(answer) else "right" if right else "wrong"
    parts = dict.fromkeys(PARTS, 0.0) | {said: 1.0, "wanted": float(said == wanted)}
    return Score(abstention_reward(said, threshold), parts, {**labels, "predicted": said})


def _label(answer: str) -> str:
    """The answer, short enough for a label; two that differ have two."""
    return answer if len(answer) <= LONGEST else f"{answer[: LONGEST - 9]} {sha256(answer.encode(errors='replace')).hexdigest()[:8]}"


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")
