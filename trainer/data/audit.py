"""What data files hold, before anything is trained on them: the form of every row, what is unfit and where, sizes, tokens."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TextIO

from ...envs.row_files import files_at, is_there, new_file, suffix_of
from ...envs.rows import PROSE_SUFFIXES, Problems, stem
from ...envs.types import Message
from ...guardrails.guard import Guard
from ...guardrails.scripts import languages_of
from ...guardrails.verdict import Verdict, context_of, judge
from .forms import (
    Conversation,
    Document,
    Form,
    Preference,
    as_task_row,
    form_of,
    read_conversation,
    read_document,
    read_preference,
)
from .sources import Reject, found_rows
from .task_files import GivenIds, TaskRow, task_row

Use = Literal["any", "cpt", "sft", "tasks"]
"""What rows are meant for; "any" takes each row for what its keys say that it is."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A row that can be read: its form, what it holds, where it is, and the row as it stands there."""

    form: Form
    value: Document | Conversation | Preference | TaskRow
    where: str
    row: Mapping[str, Any]

    @property
    def text(self) -> str:
        """What a model would see of the row, a line for each message."""
        value = self.value
        if isinstance(value, Document):
            return value.text
        messages: Sequence[Message] = value.messages if isinstance(value, Conversation | TaskRow) else value.prompt + value.chosen
        return "\n".join(message.text for message in messages)

    @property
    def asked(self) -> str:
        """What of it is a question: all that stands before the last answer, or the whole of a text."""
        value = self.value
        if isinstance(value, Document):
            return value.text
        if isinstance(value, Preference):
            return "\n".join(message.text for message in value.prompt)
        return "\n".join(message.text for message in value.messages if message.role == "user")


def checked_rows(places: Sequence[str], use: Use = "any") -> Iterator[Checked | Reject]:
    """Every row of the places in order, read for its use. Which files those are is settled by the call, so that what is written meanwhile
    is none of them. Raises ValueError when a place is not there, and as it is read for one of an unknown suffix."""
    gone = next((place for place in places if not is_there(place)), None)
    if gone is not None:
        raise ValueError(f"{gone}: there is no such file")
    read = [(_reader(use), files_at(place)) for place in places]
    return chain.from_iterable(found_rows(file, reader, _takes_prose(file, use)) for reader, files in read for file in files)


def _takes_prose(file: str, use: Use) -> bool:
    return use == "cpt" or (use == "any" and suffix_of(file) in PROSE_SUFFIXES)


def _reader(use: Use) -> Callable[[Mapping[str, Any], str], Checked]:
    """What reads the rows of one place."""
    ids = GivenIds()

    def read(row: Mapping[str, Any], where: str) -> Checked:
        form = form_of(row)
        if use == "cpt" or (use == "any" and form == "document"):
            found = read_document(row, where)
            return Checked("document" if isinstance(found, Document) else form or "document", found, where, row)
        if use == "sft":
            return Checked(form or "conversation", read_conversation(row, where), where, row)
        if use == "tasks" or form in ("task", "verl task"):
            file, _, number = where.rpartition(":")
            task = task_row(as_task_row(row), stem(file), int(number), where)
            if use == "tasks":
                ids.add(task)
            return Checked(form or "task", task, where, row)
        if form == "preference":
            return Checked(form, read_preference(row), where, row)
        if form is None:
            raise ValueError(f"the row is of no form that is known: it has the keys {', '.join(map(repr, list(row)[:8]))}")
        return Checked(form, read_conversation(row, where), where, row)

    return read


@dataclass
class AuditReport:
    """What a check found: rows by form, and what is unfit. rejects: the first of them in full, the others counted.

    broken: rows that break the guardrail policy, by category; they are rejected too. must_refuse: rows whose question may not be answered
    and is not, which teach to refuse. grounded: rows with something that answers must follow from, by the policy's `[grounding]`. written:
    rows that went to the file of those that are kept.
    """

    rows: Counter[str] = field(default_factory=Counter)
    rejected: int = 0
    problems: Problems = field(default_factory=Problems)
    broken: Counter[str] = field(default_factory=Counter)
    must_refuse: int = 0
    grounded: int = 0
    written: int = 0


@dataclass(frozen=True, slots=True)
class KeptRows:
    """Where rows go, as they are read: a new file of JSON lines. labelled: all that the policy could be asked about, each with what it says
    under `metadata.guardrail`, rather than those that are fit, as they are.

    Example: `KeptRows(Path("kept.jsonl"))`.
    """

    file: Path
    labelled: bool = False


def check(
    places: Sequence[str], use: Use = "any", rejects: Path | None = None, guard: Guard | None = None, kept: KeptRows | None = None
) -> AuditReport:
    """Read every row, and hold it to a guardrail policy. A row that is too long for that, or has too many matches, is unfit.

    rejects: a new file for those that are unfit, a line `{"file", "line", "field", "reason"}` each, with "guardrail" where the policy is
    the reason. Raises ValueError for a row that is to be labelled and has metadata that is no object.
    """
    assert guard is not None or kept is None or not kept.labelled, "labels are a policy's"
    labelled_by = guard.policy.id if guard is not None and kept is not None and kept.labelled else ""
    report, rows = AuditReport(), checked_rows(places, use)
    with new_file(rejects) as out, new_file(kept.file if kept is not None else None) as target:
        for found in rows:
            verdict, reject = _held(found, guard) if isinstance(found, Checked) else (None, found)
            if guard is not None and isinstance(found, Checked):
                report.grounded += context_of(guard.policy, _said(found)) is not None
            if isinstance(found, Checked):
                row = _to_keep(found, verdict, reject, labelled_by)
                report.written += row is not None and _write(target, row)
            if reject is None:
                assert isinstance(found, Checked)
                report.rows[found.form] += 1
                report.must_refuse += verdict is not None and verdict.must_refuse
                continue
            report.rejected += 1
            report.problems.add(str(reject))
            if verdict is not None:
                report.broken.update(_categories(verdict))
            _write(out, reject.to_row() | ({"guardrail": verdict.to_row()} if verdict is not None else {}))
    return report


def _write(file: TextIO | None, row: Mapping[str, Any]) -> bool:
    """Write a row as a line of JSON where there is a file; whether there is."""
    if file is not None:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return file is not None


def _to_keep(row: Checked, verdict: Verdict | None, reject: Reject | None, labelled_by: str) -> Mapping[str, Any] | None:
    """The row as it is kept, None when it is not. labelled_by: the policy whose word it gets; "" for none."""
    if not labelled_by:
        return row.row if reject is None else None
    if verdict is None:
        return None
    noted = row.row.get("metadata") or {}
    if not isinstance(noted, Mapping):
        raise ValueError(f"{row.where}: metadata: must be an object, for what the policy says goes into it; not {type(noted).__name__}")
    told = {"policy": labelled_by, "passes": reject is None, "reason": verdict.reason if reject is not None else ""}
    return {**row.row, "metadata": {**noted, "guardrail": told | verdict.told}}


def _said(row: Checked) -> Sequence[Message]:
    """A row as a conversation: a document is what a model learns to say; of a preference, the chosen answer. The rejected one is what it
    learns not to say, so a pair whose rejected answer breaks the policy teaches to keep it."""
    value = row.value
    if isinstance(value, Document):
        return (Message("assistant", value.text),)
    return value.messages if isinstance(value, Conversation | TaskRow) else value.prompt + value.chosen


def _held(row: Checked, guard: Guard | None) -> tuple[Verdict | None, Reject | None]:
    """What a policy says of a row, and the row as a reject when it breaks the policy, or cannot be looked at. A question that nobody
    answered breaks nothing."""
    if guard is None:
        return None, None
    file, _, number = row.where.rpartition(":")
    try:
        verdict = judge(guard, _said(row))
    except ValueError as error:
        return None, Reject(file, int(number), "", f"cannot be held to the guardrail policy: {error}")
    if verdict.kept or (verdict.answered is None and not verdict.calls):
        return verdict, None
    return verdict, Reject(file, int(number), "", f"breaks the guardrail policy: {verdict.reason}")


def _categories(verdict: Verdict) -> set[str]:
    """What the row breaks."""
    decisions = [verdict.answered] + ([verdict.asked] if verdict.must_refuse and not verdict.refused else [])
    return {category for one in decisions if one is not None and one.action not in ("allow", "warn") for category in one.categories}


@dataclass
class Stats:
    """Sizes of the rows of one place. tokens: of each row in the model's tokenizer, without a chat template's own. languages: how many rows
    are in each, those that share a script together (`guardrails.scripts.languages_of`).
    """

    rows: int = 0
    rejected: int = 0
    characters: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    languages: Counter[tuple[str, ...]] = field(default_factory=Counter)


def stats(place: str, tokenizer: Any = None) -> Stats:
    """Sizes of every row, tokens with a tokenizer. Rows that are unfit are counted."""
    found = Stats()
    for row in checked_rows([place]):
        if isinstance(row, Reject):
            found.rejected += 1
            continue
        text = row.text
        found.rows += 1
        found.characters.append(len(text))
        found.languages[languages_of(text)] += 1
        if tokenizer is not None:
            found.tokens.append(len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return found
