"""What data files hold, before anything is trained on them: the form of every row, what is unfit and where, sizes, tokens."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from ...envs.row_files import files_at, suffix_of
from ...envs.rows import PROSE_SUFFIXES, Problems, stem
from ...envs.types import Message
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
from .task_files import TaskRow, task_row

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
    """Every row of the places in order, read for its use. Raises ValueError when a place is not there or of an unknown suffix."""
    return chain.from_iterable(found_rows(file, _reader(use), _takes_prose(file, use)) for place in places for file in files_at(place))


def _takes_prose(file: str, use: Use) -> bool:
    return use == "cpt" or (use == "any" and suffix_of(file) in PROSE_SUFFIXES)


def _reader(use: Use) -> Callable[[Mapping[str, Any], str], Checked]:
    def read(row: Mapping[str, Any], where: str) -> Checked:
        form = form_of(row)
        if use == "cpt" or (use == "any" and form == "document"):
            found = read_document(row, where)
            return Checked("document" if isinstance(found, Document) else form or "document", found, where, row)
        if use == "sft":
            return Checked(form or "conversation", read_conversation(row, where), where, row)
        if use == "tasks" or form in ("task", "verl task"):
            file, _, number = where.rpartition(":")
            return Checked(form or "task", task_row(as_task_row(row), stem(file), int(number)), where, row)
        if form == "preference":
            return Checked(form, read_preference(row), where, row)
        if form is None:
            raise ValueError(f"the row is of no form that is known: it has the keys {', '.join(map(repr, list(row)[:8]))}")
        return Checked(form, read_conversation(row, where), where, row)

    return read


@dataclass
class Report:
    """What a check found: rows by form, and what is unfit. rejects: the first of them in full, the others counted."""

    rows: Counter[str] = field(default_factory=Counter)
    rejected: int = 0
    problems: Problems = field(default_factory=Problems)


def check(places: Sequence[str], use: Use = "any", rejects: Path | None = None) -> Report:
    """Read every row. rejects: a new file for those that are unfit, a line `{"file", "line", "field", "reason"}` each."""
    report, out = Report(), rejects.open("x", encoding="utf-8") if rejects is not None else None
    try:
        for found in checked_rows(places, use):
            if isinstance(found, Reject):
                report.rejected += 1
                report.problems.add(str(found))
                if out is not None:
                    out.write(json.dumps(found.to_row(), ensure_ascii=False) + "\n")
            else:
                report.rows[found.form] += 1
    finally:
        if out is not None:
            out.close()
    return report


@dataclass
class Stats:
    """Sizes of the rows of one place. tokens: of each row in the model's tokenizer, without a chat template's own."""

    rows: int = 0
    rejected: int = 0
    characters: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


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
        if tokenizer is not None:
            found.tokens.append(len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return found
