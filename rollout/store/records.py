"""Rows that a run leaves behind, in lines of JSON (`json_lines`): evaluations, and what is written of a phase beside its steps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ...envs.pydantic_words import first_error
from .json_lines import object_in, raw_lines, read_json_lines

_SHARE = re.compile(r"[0-9]{1,30}(/0*[1-9][0-9]{0,29})?")
Row = TypeVar("Row", bound=BaseModel)
Mode = Literal["sampled", "greedy"]
Test = Literal["sign test", "sign-flip test", "bootstrap"]


def read_share(text: object) -> Fraction:
    """A share as `str` writes it. Raises ValueError on any other text: some that `Fraction` takes have more digits than a memory.

    Example: `read_share("7/10")`.
    """
    if not isinstance(text, str) or not _SHARE.fullmatch(text):
        raise ValueError(f"{text!r:.60} is no share; it reads N or N/M")
    return Fraction(text)


MOST_COUNTED = 1 << 53
"""Up to which a float tells whole numbers apart."""


@dataclass(frozen=True, slots=True)
class BestConstant:
    """What a policy scores at best that always says the same: the yardstick a real policy has to beat.

    label: what most episodes want to be said, their "constant" label where they have one, or else their expected one. success: its share of
    the episodes. macro_recall: the mean of its shares among those of each expected label, 1 / number of labels where it is one itself.
    """

    label: str
    success: float
    macro_recall: float


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """One evaluation of one policy over held-out tasks. Shares are in [0, 1]; means are over the episodes that got a reward.

    mode: how it sampled. success_part: the reward part that counts as success. episodes, rewarded: attempted, and without failure.
    success: mean over tasks of the task's mean success, with its 95 % Wilson interval [success_low, success_high].
    task_success: task id -> mean success of its samples, what two evaluations are paired by.
    reward: mean total; parts: mean of each part, unweighted, 0 where an episode lacks it; metrics: mean of each metric over the episodes
    that report it.
    confusion: expected label -> predicted label -> episodes; "" is a missing prediction. Empty when the task has no labels.
    recall, macro_recall: from the confusion; best_constant: from the labels; None without them.
    turns, tokens: mean number of turns and of sampled tokens. failures: kind -> episodes. truncations: limit -> episodes.
    """

    mode: Mode
    success_part: str
    episodes: int
    rewarded: int
    success: float
    success_low: float
    success_high: float
    reward: float
    turns: float
    tokens: float
    task_success: Mapping[str, float]
    parts: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    confusion: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    recall: Mapping[str, float] = field(default_factory=dict)
    macro_recall: float | None = None
    best_constant: BestConstant | None = None
    failures: Mapping[str, int] = field(default_factory=dict)
    truncations: Mapping[str, int] = field(default_factory=dict)

    @property
    def tool_calls(self) -> float | None:
        """Mean tool calls per episode, None when the environment does not report them."""
        return self.metrics.get("tool_calls")

    @property
    def cost(self) -> float | None:
        """Mean cost per episode in the environment's units, None when it does not report one."""
        return self.metrics.get("cost")

    @property
    def expected_labels(self) -> dict[str, int]:
        """How often each label was the truth."""
        return {label: sum(row.values()) for label, row in self.confusion.items()}

    @property
    def predicted_labels(self) -> dict[str, int]:
        """How often the policy said each label; "" where it said none."""
        names = sorted({name for row in self.confusion.values() for name in row})
        return {name: sum(row.get(name, 0) for row in self.confusion.values()) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them; `from_dict` reads them back equal."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> EvaluationResult:
        """Raises ValueError naming the first field that is missing, unknown, of the wrong type, or does not fit the others."""
        unknown = sorted(set(row) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"{unknown[0]}: an evaluation has no such field")
        try:
            made = _RESULT.validate_python(dict(row))
        except ValidationError as error:
            raise ValueError(first_error(error)) from error
        for label, counts in made.confusion.items():
            if label not in made.recall:
                raise ValueError(f"recall: label {label!r:.80} has none, but a confusion")
            if min(counts.values(), default=0) < 0 or not 0 < sum(counts.values()) <= MOST_COUNTED:
                raise ValueError(f"confusion: label {label!r:.80} is not of one episode or more")
        return made


_RESULT = TypeAdapter(EvaluationResult)


@dataclass(frozen=True, slots=True)
class Comparison:
    """After minus before over n paired tasks.

    difference: of the means; [low, high]: its 95 % interval. p_value: one-sided, for "after is not better"; p_worse: one-sided, for "after
    is not worse". unpaired: tasks that only one side has a reward for, left out. test: what gave the p-values.
    """

    difference: float
    low: float
    high: float
    p_value: float
    n: int
    unpaired: int = 0
    p_worse: float | None = None
    test: Test = "bootstrap"

    @property
    def significance(self) -> str:
        """In words: of a gain, how likely one as large is by chance; of a fall, how likely such a fall is.

        Example: "one-sided p = 0.0312, sign test", "a fall, one-sided p = 0.0059, sign test".
        """
        if self.difference == 0:
            return "no difference"
        fell = self.difference < 0
        p = self.p_worse if fell else self.p_value
        said = "" if p is None else f"one-sided p {'< 0.0001' if p < 0.0001 else f'= {p:.4f}'}, {self.test}"
        return ", ".join(part for part in ("a fall" if fell else "", said) if part)


class EvaluationRecord(BaseModel):
    """One line of evaluations.jsonl: which point of the run was evaluated, and the result.

    phase: the phase after which (or within which) it ran: "base", "cpt", "sft", "rft". step: steps done in that phase.
    against: success compared with that of earlier phases, by their names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    phase: str = Field(min_length=1)
    step: int = Field(ge=0)
    against: dict[str, Comparison] = {}
    result: EvaluationResult

    def to_row(self) -> dict[str, Any]:
        against = {phase: asdict(comparison) for phase, comparison in self.against.items()}
        return {"schema": 1, "phase": self.phase, "step": self.step, "against": against, **self.result.to_dict()}


def read_evaluations(path: Path) -> list[EvaluationRecord]:
    """All evaluations of a run in the order they were made. Raises ValueError with file and line."""
    records = []
    for where, row in read_json_lines(path):
        _check_schema(where, row)
        place = {name: row.pop(name) for name in ("phase", "step", "against") if name in row}
        try:
            records.append(EvaluationRecord(result=EvaluationResult.from_dict(row), **place))
        except ValidationError as error:
            raise ValueError(f"{where}: {first_error(error)}") from error
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return records


class LedgerRow(BaseModel):
    """One line of ledger.jsonl: where every (task, sample) issued since the phase began has ended, as counted after a step.

    masked, dropped: kind -> samples, "zero_variance" among the dropped. carried: still on their way.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    phase: str
    step: int = Field(ge=0)
    issued: int = Field(ge=0)
    trained: int = Field(ge=0)
    masked: dict[str, int] = {}
    dropped: dict[str, int] = {}
    carried: int = Field(default=0, ge=0)

    @property
    def missing(self) -> int:
        """Samples that ended nowhere (negative: counted twice); 0 when the ledger balances."""
        return self.issued - self.trained - sum(self.masked.values()) - sum(self.dropped.values()) - self.carried

    def to_row(self) -> dict[str, Any]:
        return {"schema": 1, **self.model_dump()}


class AlarmRow(BaseModel):
    """One line of alarms.jsonl: a guard that found something in a step, in words, and what was done: "warn", "stop" or "roll_back"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    phase: str
    step: int = Field(ge=0)
    guard: str
    action: str
    text: str

    def to_row(self) -> dict[str, Any]:
        return {"schema": 1, **self.model_dump()}


class RollBackRow(BaseModel):
    """One line of roll_backs.jsonl: after a step, guards sent the run back to its last checkpoint. guards: those whose alarms asked for it.
    position: the place in the stream of tasks that the run goes on from, whatever a checkpoint says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    phase: str
    step: int = Field(ge=0)
    guards: tuple[str, ...]
    position: int = Field(ge=0)

    def to_row(self) -> dict[str, Any]:
        return {"schema": 1, **self.model_dump(mode="json")}


class RetentionRow(BaseModel):
    """One line of retention.jsonl: what became of a skill from the base to the end of a phase, over the items of a suite.

    before, after, retention, low, high, lost, gained, forgotten, learned: as `evaluation.suites.transitions.SuiteChange` has them; the
    last four are None for texts. significance: of the change, in words. floor_retention, floor_forgotten: the same between two evaluations
    of the base, where nothing was trained. kl: of the policy after the phase to the base, on the recipe's own held-out tasks, in nats per
    token, the same in every row of a phase; None where the base was not sampled at temperature 1. min_retention, max_lost: the limits that
    the phase was held to, None where they were not recorded. not_promoted: why the phase's checkpoint was refused for this suite, "" when
    it was not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    phase: str
    step: int = Field(ge=0)
    suite: str
    kind: Literal["answers", "texts"]
    items: int = Field(ge=1)
    before: float
    after: float
    retention: float | None = None
    low: float | None = None
    high: float | None = None
    lost: int | None = None
    gained: int | None = None
    forgotten: float | None = None
    learned: float | None = None
    significance: str = ""
    floor_retention: float | None = None
    floor_forgotten: float | None = None
    kl: float | None = None
    min_retention: float | None = None
    max_lost: float | None = None
    not_promoted: str = ""

    @property
    def scores(self) -> str:
        """Before and after. Example: "64.0% -> 60.0%", of texts "perplexity 12.31 -> 12.50"."""
        if self.kind == "texts":
            return f"perplexity {self.before:.2f} -> {self.after:.2f}"
        return f"{self.before:.1%} -> {self.after:.1%}"

    @property
    def left(self) -> str:
        """How much of the skill is left. Example: "retention 0.897 [0.692, 1.128]"."""
        if self.retention is None or self.low is None or self.high is None:
            return "no skill above chance to keep"
        return f"retention {self.retention:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def moved(self) -> str:
        """How many items were lost and gained, and the share forgotten beside what changes without training; "" for texts."""
        if self.lost is None or self.forgotten is None:
            return ""
        floor = f", {self.floor_forgotten:.1%} without training" if self.floor_forgotten else ""
        return f"{self.lost} lost, {self.gained} gained, {self.forgotten:.1%} forgotten{floor}"

    @property
    def limits(self) -> str:
        """What it was held to. Example: "min_retention = 0.9, max_lost = 0.1"; "" where that was not recorded."""
        held = {"min_retention": self.min_retention, "max_lost": self.max_lost}
        return ", ".join(f"{key} = {limit:g}" for key, limit in held.items() if limit is not None)

    @property
    def line(self) -> str:
        """On one line, with n. Example: "after rft, burnish/choices-v1: 64.0% -> 60.0%, retention 0.897 […], …, n = 100 (…)"."""
        said = ", ".join(filter(None, (self.scores, self.left, self.moved, f"n = {self.items}")))
        return f"after {self.phase}, {self.suite}: {said} ({self.significance})"

    def to_row(self) -> dict[str, Any]:
        return {"schema": 1, **self.model_dump()}


def read_retention(path: Path) -> list[RetentionRow]:
    """What became of each skill after each phase. Raises ValueError with file and line."""
    return _read_rows(path, RetentionRow)


def read_alarms(path: Path) -> list[AlarmRow]:
    """Every alarm of a run in the order they were raised. Raises ValueError with file and line."""
    return _read_rows(path, AlarmRow)


def read_roll_backs(path: Path) -> list[RollBackRow]:
    """Every time that guards sent a run back, none where the file is not there. Raises ValueError with file and line."""
    return _read_rows(path, RollBackRow) if path.is_file() else []


def read_ledger(path: Path) -> list[LedgerRow]:
    """The ledger after every step. Raises ValueError with file and line."""
    return _read_rows(path, LedgerRow)


def _read_rows(path: Path, kind: type[Row]) -> list[Row]:
    return [_row_of(where, row, kind) for where, row in read_json_lines(path)]


MOST_UNREAD, MOST_SAID = 3, 600
"""Lines of a file that cannot be read of which is kept why, and characters of that."""


def readable_rows(path: Path, kind: type[Row]) -> tuple[list[Row], list[str], int]:
    """The rows of a kind that can be read, of the first lines that cannot, where they stand and why, and how many more cannot; none behind
    one that is too long."""
    rows, unread, others, lines = list[Row](), list[str](), 0, raw_lines(path)
    while True:
        try:
            where, line = next(lines)
            rows.append(_row_of(where, object_in(where, line), kind))
        except StopIteration:
            return rows, unread, others
        except ValueError as error:  # behind a line that is too long, there is no next
            if len(unread) < MOST_UNREAD:
                unread.append(f"{error!s:.{len(str(path)) + MOST_SAID}}")
            else:
                others += 1


def _row_of(where: str, row: dict[str, Any], kind: type[Row]) -> Row:
    _check_schema(where, row)
    try:
        return kind.model_validate(row)
    except ValidationError as error:
        raise ValueError(f"{where}: {first_error(error)}") from error


def _check_schema(where: str, row: dict[str, Any]) -> None:
    schema = row.pop("schema", None)
    if schema != 1:
        raise ValueError(f"{where}: schema {schema!r} is not the version 1 that this burnish reads")
