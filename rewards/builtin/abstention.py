"""`burnish/abstention-v1`: saying that one does not know is worth more than saying what is wrong."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ...guardrails.factuality import abstains, abstention_reward
from ..plugin import reward
from ..types import RewardInput, Score


@reward("burnish/abstention-v1")
def abstention(
    episode: RewardInput, *, key: str = "reference_answer", threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
) -> Score:
    """+1 for the right answer, 0 for "I do not know", and -1 for a wrong one, or -t / (1 - t) with a threshold t.

    key: where the task's data has the answer; without one there (or null), the question cannot be answered and every answer is wrong. An
    answer is right when it is the reference, case and a last full stop aside. An episode cut short before it answered is worth 0.
    """
    reference = episode.data.get(key)
    answer = episode.answer
    if answer is None or abstains(answer):
        said = "abstained"
        return Score(abstention_reward("abstained"), labels={"predicted": said})
    right = reference is not None and _plain(answer) == _plain(str(reference))
    return Score(abstention_reward("right" if right else "wrong", threshold), labels={"predicted": "right" if right else "wrong"})


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")
