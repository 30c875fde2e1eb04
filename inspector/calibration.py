"""Whether a policy knows what it does not know: how sure its stored answers were, against how often they were right.

Those that say that they do not know are counted, and are no answers here.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..guardrails.factuality import abstains, expected_calibration_error, risk_coverage
from ..rollout.store.moments import Moment, moments
from ..rollout.store.reading import episode_columns, rows_while_there, stored_value
from .regrade import reward_input
from .runs import check_run, phases_of, read_object, read_run
from .stored import COLUMNS, StoredEpisode, Which, chosen, episode_of

Confidence = Literal["answer", "token", "agreement"]
COVERAGES = (0.25, 0.5, 0.75, 1.0)
"""Shares of the answers, the surest first, whose risk is shown."""
ROUNDING = 0.01
"""How far above 0 rounding may leave a log-probability."""


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An answer as it lies in the store. logprobs: of the tokens of the policy's last turn, its end among them. of: the value of the field
    of the task's data that answers are told apart by, "" where they are not. text: None when the episode was cut short before it answered.
    """

    moment: Moment
    task: str
    of: str
    text: str | None
    right: bool
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Calibration:
    """The answers of one evaluation, or of one step.

    answered: how many had an answer; abstained: said that they do not know; none: were cut short before they answered. right: share of the
    answered. sure: their mean confidence. error: expected calibration error. curve: (coverage, risk), the surest first. The last four are
    None, and the curve empty, where none was answered.
    """

    moment: Moment
    of: str
    answered: int
    abstained: int
    none: int
    right: float | None = None
    sure: float | None = None
    error: float | None = None
    curve: tuple[tuple[float, float], ...] = ()

    def risk(self, coverage: float) -> float | None:
        """How many of the surest answers are wrong when at least this share of them is given."""
        return next((risk for covered, risk in self.curve if covered >= coverage - 1e-9), None)

    def to_row(self) -> dict[str, Any]:
        """As plain JSON."""
        at = self.moment
        where = {"phase": at.phase, "step": at.step, "split": at.split, "mode": at.mode, "of": self.of}
        counts = {"answered": self.answered, "abstained": self.abstained, "none": self.none}
        curve = [{"coverage": coverage, "risk": risk} for coverage, risk in self.curve]
        return {**where, **counts, "right": self.right, "sure": self.sure, "calibration_error": self.error, "risk_coverage": curve}


def calibrations(
    run: Path, which: Which, confidence: Confidence = "answer", part: str | None = None, by: str | None = None, bins: int = 10
) -> list[Calibration]:
    """Of each evaluation or step of a run that fits, how sure its answers were against how often they were right. Failed episodes count
    nowhere.

    confidence: "answer", the probability of the whole last turn; "token", the mean probability of its tokens; "agreement", the share of a
    task's attempts that say the same as most of them, a task being one answer then. part: of the reward, 1 where an answer is right; None
    takes the run's success. by: a field of the task's data; answers of each of its values are told apart.

    Raises ValueError when the run has no such episodes, part or field, and for agreement when no task was attempted more than once.
    """
    part = part or str(read_object(run, "config.json").get("success", "env"))
    found: defaultdict[tuple[Moment, str], list[StoredAnswer]] = defaultdict(list)
    for answer in _answers(run, which, part, by):
        found[answer.moment, answer.of].append(answer)
    if not found:
        next(chosen(run, which))  # says what there is
        raise ValueError(f"{run}: each of these episodes failed")
    if confidence == "agreement" and not any(_attempted_twice(answers) for answers in found.values()):
        again = "take --split train, whose tasks are, or another --confidence"
        raise ValueError(f"{run}: none of these tasks was attempted more than once, so nothing agrees; {again}")
    recorded = read_run(run)
    phases = phases_of([*recorded.evaluations, *recorded.metrics])
    place = {phase: i for i, phase in enumerate(phases)}
    order = sorted(found, key=lambda one: (place.get(one[0].phase, len(place)), one[0].step, one[0].split, one[0].mode, one[1]))
    return [_measured(*key, found[key], confidence, bins) for key in order]


def _attempted_twice(answers: Sequence[StoredAnswer]) -> bool:
    return max(Counter(one.task for one in answers).values()) > 1


def _answers(run: Path, which: Which, part: str, by: str | None) -> Iterator[StoredAnswer]:
    names = set[str]()  # of parts: an episode that lacks one that others have has 0 of it
    columns = episode_columns(*COLUMNS, "mask", "sampler_logprobs")
    for file, moment in moments(check_run(run) / "episodes"):
        if not which.fits(moment):
            continue
        for row in rows_while_there(file, columns):
            try:
                if row["failure"] is None:
                    episode = episode_of(row, moment, stored_value(row["messages"]))
                    names |= episode.parts.keys()
                    yield _answer(row, episode, part, by)
            except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
                raise ValueError(f"{file}: episode {row['episode']!r}: {error}") from error
    if names and part not in names:
        raise ValueError(f"{run}: none of these episodes has a part {part!r} of the reward; there are {', '.join(sorted(names))}")


def _answer(row: Mapping[str, Any], episode: StoredEpisode, part: str, by: str | None) -> StoredAnswer:
    asked = reward_input(episode)
    if by is not None and by not in asked.data:
        raise ValueError(f"the task's data has no field {by!r}; there are {', '.join(sorted(asked.data)) or 'none at all'}")
    mask, logprobs = row["mask"], row["sampler_logprobs"]
    if len(mask) != len(logprobs):
        raise ValueError("mask and sampler_logprobs are not of one length")
    sampled = [float(value) for value, by_policy in zip(logprobs, mask, strict=True) if by_policy]
    wrong = next((value for value in sampled if not (math.isfinite(value) and value <= ROUNDING)), None)
    if wrong is not None:
        raise ValueError(f"sampler_logprobs has {wrong}, which is no log-probability")
    last = int(row["turns"][-1]["tokens"]) if row["turns"] else 0
    of = "" if by is None else str(asked.data[by])
    right = episode.parts.get(part, 0.0) >= 1
    return StoredAnswer(episode.moment, episode.task.id, of, asked.answer, right, tuple(sampled[len(sampled) - last :]))


def _measured(moment: Moment, of: str, answers: Sequence[StoredAnswer], confidence: Confidence, bins: int) -> Calibration:
    pairs = _agreed(answers) if confidence == "agreement" else [(one, _sure(one, confidence)) for one in answers]
    none = sum(one.text is None for one, _ in pairs)
    said = [(one.right, sure) for one, sure in pairs if one.text is not None and not abstains(one.text)]
    counts = (len(said), len(pairs) - none - len(said), none)
    if not said:
        return Calibration(moment, of, *counts)
    right, sure = [good for good, _ in said], [value for _, value in said]
    error, curve = expected_calibration_error(sure, right, bins), tuple(risk_coverage(sure, right))
    return Calibration(moment, of, *counts, sum(right) / len(said), sum(sure) / len(said), error, curve)


def _sure(answer: StoredAnswer, confidence: Confidence) -> float:
    """A probability; rounding may leave the log of one a little above 0."""
    if not answer.logprobs:
        return 0.0  # said nothing
    if confidence == "answer":
        return min(1.0, math.exp(sum(answer.logprobs)))
    return min(1.0, float(np.mean(np.exp(answer.logprobs))))


def _agreed(answers: Sequence[StoredAnswer]) -> list[tuple[StoredAnswer, float]]:
    """Of each task the answer that most of its attempts give, the first of those that are as frequent, and their share."""
    by_task: defaultdict[str, list[StoredAnswer]] = defaultdict(list)
    for answer in answers:
        by_task[answer.task].append(answer)
    pairs = []
    for attempts in by_task.values():
        said = [_plain(one.text) for one in attempts]
        ((most, times),) = Counter(said).most_common(1)
        pairs.append((attempts[said.index(most)], times / len(attempts)))
    return pairs


def _plain(text: str | None) -> str | None:
    """A text as far as it counts for agreement: case, blanks and a last full stop aside; all that abstain say the same."""
    if text is None:
        return None
    return "I do not know" if abstains(text) else " ".join(text.casefold().split()).rstrip(".")
