"""Measuring checkpoints by a guardrail policy: prompts are asked as a suite is, and what is answered is judged by the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from burnish.guardrails.guard import Guard
from burnish.guardrails.policy import load_policy
from burnish.run.suites import evaluate_suites
from burnish.trainer.evaluation.guard_record import RECORD, GuardRecord, MeasuredModel, differences
from burnish.trainer.evaluation.guarded import JudgedPrompt, Prompt, judge_rows, rates, read_prompts
from burnish.trainer.evaluation.suites.by_policy import policy_suite, prompt_tasks
from burnish.trainer.evaluation.suites.measure import Asking
from burnish.trainer.evaluation.suites.scores import Scores
from burnish.trainer.evaluation.suites.suite import Suite
from burnish.trainer.models.finding import find_model
from burnish.trainer.models.folder import manifest_of
from burnish.trainer.models.manifest import json_sha256

SUITE = "burnish/guard-evaluate-v1"
MAX_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Answering:
    """How models answer prompts: greedily, with so many tokens at most. out: a new folder for the record and each sample; None for none.
    stall_s: as `evaluate_suites` has it.

    Example: `Answering(max_tokens=64)`.
    """

    max_tokens: int = MAX_TOKENS
    out: Path | None = None
    plugins: Sequence[Path] = ()
    threads: int = 1
    stall_s: float | None = None


def evaluate_guarded(policy: str, prompts: str, model: str, base: str | None, how: Answering, console: Console) -> GuardRecord:
    """Ask a checkpoint the prompts, and the base before it where there is one; both are asked the same. The record is of the
    models that the names stand for when it begins: a run folder that goes on stands for another one later.

    Raises ValueError for what the user can put right, EvaluationFailed when too many prompts failed.
    """
    if how.out is not None and how.out.exists():
        raise ValueError(f"{how.out} is there already, and results are never overwritten; give another --out")
    models = {what: (name, find_model(name)) for what, name in (("base", base), ("model", model)) if name is not None}
    guard, rows = Guard(load_policy(policy)), read_prompts(prompts)
    tasks = prompt_tasks(rows, guard.policy)
    suite = policy_suite(SUITE, "Prompts by a guardrail policy.", policy, lambda count: tasks[:count], len(rows), max_tokens=how.max_tokens)
    judged, measured = dict[str, list[JudgedPrompt]](), dict[str, MeasuredModel]()
    for what, (name, folder) in models.items():
        weights = manifest_of(folder).weights_sha256
        found = judged[what] = judge_rows(guard, _answered(what, folder, suite, rows, how, console))
        measured[what] = MeasuredModel.of(name, weights, sum(row.prompt.answer is None for row in found), rates(found))
    record = GuardRecord(
        policy=guard.policy.id,
        policy_sha256=guard.policy.digest,
        prompts_sha256=prompts_digest(rows),
        max_tokens=how.max_tokens,
        model=measured["model"],
        base=measured.get("base"),
        differences=differences(judged["base"], judged["model"]) if base is not None else {},
    )
    if how.out is not None:
        (how.out / RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return record


def prompts_digest(rows: Sequence[Prompt]) -> str:
    """SHA-256 of what the prompts say, in their order."""
    return json_sha256([[row.prompt, row.attack, row.category, row.family, row.context] for row in rows])


def _answered(what: str, model: Path, suite: Suite, rows: Sequence[Prompt], how: Answering, console: Console) -> list[Prompt]:
    """The prompts with what a model answers, None to what failed."""
    out = how.out / what if how.out is not None else None
    (scores,) = evaluate_suites(str(model), [suite], Asking(), out, console, how.plugins, how.threads, how.stall_s)
    return with_answers(rows, scores)


def with_answers(rows: Sequence[Prompt], scores: Scores) -> list[Prompt]:
    """The prompts with the answers that a suite of them has, in its order; None where something around the model failed."""
    answers = {one.item: None if one.failure else one.answer for one in scores.samples}
    return [replace(row, answer=answers[str(i)]) for i, row in enumerate(rows)]
