"""Grading one answer with any grader: the single ones side by side, and the formula over them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from ...rpc.extras import require
from ..types import UNREADABLE, Score
from .formula import Formula
from .judge import Judge
from .string_check import check_string
from .templates import Sample, Template, UnreadableOutput
from .text_similarity import PACKAGES, compare_texts
from .types import AnyGrader, LabelModel, Multi, ScoreModel, StringCheck, TextSimilarity


async def grade(grader: AnyGrader, sample: Sample, item: Mapping[str, Any], judge: Judge | None) -> Score:
    """The grader's value and parts.

    Raises MissingReference when the item lacks what a template needs, FormulaError when a formula has no value, EpisodeFailure when a
    judge does not judge. An answer that is not the JSON a template reads is worth the least the grader
    gives, with the part `unreadable`; in several graders, the least of their formula.
    """
    if not isinstance(grader, Multi):
        return await _single(grader, sample, item, judge)
    formula = Formula(grader.calculate_output, grader.graders)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = {key: group.create_task(_single(one, sample, item, judge)) for key, one in grader.graders.items()}
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the first to fail cancelled the rest
    scores = {key: task.result() for key, task in tasks.items()}
    parts = {key: score.value for key, score in scores.items()}
    parts |= {f"{key}.{name}": value for key, score in scores.items() for name, value in score.parts.items()}
    said = "\n".join(f"{key}: {score.explanation}" for key, score in scores.items() if score.explanation)
    if any(UNREADABLE in score.parts for score in scores.values()):
        return Score(grader.least, parts, explanation=said)
    return Score(formula({key: score.value for key, score in scores.items()}), parts, explanation=said)


async def _single(grader: Any, sample: Sample, item: Mapping[str, Any], judge: Judge | None) -> Score:
    try:
        if isinstance(grader, ScoreModel | LabelModel):
            assert judge is not None, "a grader with a judge is given one"
            return await (judge.score(grader, sample, item) if isinstance(grader, ScoreModel) else judge.label(grader, sample, item))
        text, reference = (Template(template).fill(sample, item) for template in (grader.input, grader.reference))
    except UnreadableOutput:
        least = grader.range[0] if isinstance(grader, ScoreModel) else 0.0
        return Score(least, {UNREADABLE: 1.0})
    if isinstance(grader, StringCheck):
        return check_string(grader, text, reference)
    assert isinstance(grader, TextSimilarity)
    return await asyncio.to_thread(compare_texts, grader, text, reference)


def asks_a_judge(grader: AnyGrader) -> bool:
    """Whether grading needs a judge model."""
    return any(isinstance(member, ScoreModel | LabelModel) for member in _members(grader))


def require_packages(grader: AnyGrader) -> None:
    """Raise ValueError saying what to install when this grader needs a package that is not here."""
    if asks_a_judge(grader):
        require("a grader that asks a model", ["openai"], "graders")
    for member in _members(grader):
        if isinstance(member, TextSimilarity) and member.evaluation_metric in PACKAGES:
            require("a text_similarity grader", [PACKAGES[member.evaluation_metric]], "graders")


def _members(grader: AnyGrader) -> Iterable[object]:
    return grader.graders.values() if isinstance(grader, Multi) else (grader,)
