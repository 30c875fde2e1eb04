"""What a step's episodes said: whether the policy has become a constant, and which phrases have come to stand in nearly every answer."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...envs.types import Episode

LONGEST = 4
"""Words of a phrase at most."""
WORDS = 400
"""Words of an episode that are looked at: what comes to stand in every answer stands near its beginning or end."""
LETTERS = 50
"""Of a word that are looked at: a text without spaces is one word."""
SEEN_IN, KEPT = 0.1, 2000
"""Share of the episodes that a phrase of a step must be in to be kept, and how many are, the most frequent first."""
STEPS = 3
"""Steps in a row that a policy must have been a constant in."""
ALIKE = 0.98
"""Share of the episodes that must have the same answer: two in a hundred may differ by chance, at temperature 1."""
TASKS = 8
"""Tasks that ask for another answer, or with other prompts where no label says what they ask for: with fewer, a right policy may look like
a constant."""
SOLVED = 0.95
"""Success from which the same words are simply right, where no label says what was asked for."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the rewarded episodes of one step said in the recipe's own environment.

    said: answer -> episodes: the label that was read ("" for none), or, without labels, a digest of all that the policy said. asked: the
    label that was expected -> its tasks, or the tasks by a digest of their prompt. success: the mean. phrases: share of episodes that have
    a phrase of 1 to `LONGEST` words, of the most frequent. repeated: mean share of phrases of `LONGEST` words that an episode had said
    before.

    Example: `answers_of(episodes, "verdict").said` is `{"pass": 60, "scrap": 4}`.
    """

    labelled: bool = False
    said: Mapping[str, int] = field(default_factory=dict)
    asked: Mapping[str, Sequence[str]] = field(default_factory=dict)
    success: float = 0.0
    phrases: Mapping[str, float] = field(default_factory=dict)
    repeated: float = 0.0

    def row(self) -> dict[str, Any]:
        """As JSON, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Answers:
        return cls(**row)


def answers_of(episodes: Sequence[Episode], success: str) -> Answers:
    """See `Answers`. success: the reward part that is called so."""
    rewarded = [episode for episode in episodes if episode.reward is not None and not episode.task.environment]
    if not rewarded:
        return Answers()
    judged = [episode for episode in rewarded if "expected" in episode.labels]
    labelled, judged = bool(judged), judged or rewarded
    said = Counter(episode.labels.get("predicted", "") if labelled else _digest(_spoken(episode)) for episode in judged)
    asked: dict[str, set[str]] = {}
    for episode in judged:
        key = episode.labels["expected"] if labelled else _digest(_prompt(episode))
        asked.setdefault(key, set()).add(episode.task.id)
    texts = [_spoken(episode) for episode in rewarded]
    return Answers(
        labelled=labelled,
        said=dict(said),
        asked={key: sorted(tasks) for key, tasks in asked.items()},
        success=sum(episode.reward.parts.get(success, 0.0) for episode in rewarded if episode.reward is not None) / len(rewarded),
        phrases=phrase_shares(texts),
        repeated=sum(_repeated(text.split()) for text in texts) / len(texts),
    )


def constant(steps: Sequence[Answers]) -> str | None:
    """What the policy always says, in words, when it has become a constant over the last `STEPS` steps; None when it has not, or when too
    few tasks ask for anything else.

    With labels: nearly all episodes have the same one, though at least `TASKS` tasks asked for another. Without: nearly all are the same
    words throughout, though the tasks differ and are not solved by them.
    """
    last = steps[-STEPS:]
    if len(last) < STEPS or len({one.labelled for one in last}) > 1 or not all(one.said for one in last):
        return None
    said: Counter[str] = Counter()
    for one in last:
        said.update(one.said)
    answer, count = said.most_common(1)[0]
    if count < ALIKE * said.total():
        return None
    if last[0].labelled:
        others = {task for one in last for key, tasks in one.asked.items() if key != answer for task in tasks}
        if len(others) < TASKS:
            return None
        what = f"says {answer!r}" if answer else "gives no answer that can be read"
        return f"{what} in {count} of {said.total()} episodes, though {len(others)} tasks asked for something else"
    prompts = {key for one in last for key in one.asked}
    if len(prompts) < TASKS or max(one.success for one in last) >= SOLVED:
        return None
    return f"says the same words in {count} of {said.total()} episodes, over {len(prompts)} different tasks"


def phrase_shares(texts: Sequence[str]) -> dict[str, float]:
    """phrase -> the share of the texts that it is in; of the most frequent. No text has none.

    Example: `phrase_shares(["a b", "a"]) == {"a": 1.0, "b": 0.5, "a b": 0.5}`.
    """
    found = Counter(phrase for text in texts for phrase in set(_phrases(near_words(text))))
    return {phrase: count / len(texts) for phrase, count in found.most_common(KEPT) if count >= SEEN_IN * len(texts)}


def spread_phrase(first: Sequence[Answers], last: Answers, rare: float, common: float) -> str | None:
    """A phrase that is in at least a share `common` of the last step's episodes, and was in at most `rare` of each first step's; of several
    the longest, None when there is none. What a template writes was there from the start."""
    found = [
        phrase
        for phrase, share in last.phrases.items()
        if share >= common and all(one.phrases.get(phrase, 0.0) <= rare for one in first if one.said)
    ]
    return max(found, key=lambda phrase: (phrase.count(" "), last.phrases[phrase], phrase), default=None)


def _spoken(episode: Episode) -> str:
    """All that the policy said, a line per message."""
    return "\n".join(message.text for message in episode.said)


def _prompt(episode: Episode) -> str:
    """What the policy saw before it spoke."""
    texts = []
    for message in episode.messages:
        if message.role == "assistant":
            break
        texts.append(message.text)
    return "\n".join(texts)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def near_words(text: str) -> list[str]:
    """The words near the beginning and the end of a text, whose phrases are looked at: `WORDS` at most, each cut to `LETTERS`."""
    half = WORDS // 2
    first = text.split(None, half)
    rest = first.pop() if len(first) > half else ""
    last = rest.rsplit(None, half)[-half:]
    return [word[:LETTERS] for word in (*first, *last)]


def _phrases(words: Sequence[str]) -> Iterator[str]:
    for length in range(1, LONGEST + 1):
        for start in range(len(words) - length + 1):
            yield " ".join(words[start : start + length])


def _repeated(words: Sequence[str]) -> float:
    """The share of phrases of `LONGEST` words that stood in the text before. Example: "a b c d a b c d" has 1 of 5."""
    phrases = [tuple(words[start : start + LONGEST]) for start in range(len(words) - LONGEST + 1)]
    return 1 - len(set(phrases)) / len(phrases) if phrases else 0.0
