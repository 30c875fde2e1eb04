"""Tasks out of files: single-turn rows as reinforcement fine-tuning services take them, each checked.

    {"id": "s1", "messages": [{"role": "user", "content": "2 + 2?"}], "reference_answer": "4", "topic": "sums"}

becomes a task whose prompt is `messages` and whose data, hidden from the policy, is everything else but the id.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...envs.row_files import digest_of, files_at
from ...envs.rows import MAX_VALUES, BadRow, Problems, read_rows, stem
from ...envs.types import Message, Task, check_arguments, message_from_dict, refuse_unread
from .config import MORE_REJECTS, TasksConfig
from .forms import as_task_row, no_messages

MAX_ID_CHARS = 200
OLD_KEYS = ("functions", "function_call")
"""Of a row in OpenAI's earlier form. Data like any other would hide them from the policy."""


@dataclass(frozen=True)
class TaskRow:
    """One row of a file. given: whether the id is the file's own, or made from its name and the line. where: `file:line`, if known."""

    id: str
    given: bool
    line: int
    messages: tuple[Message, ...]
    data: Mapping[str, Any]
    where: str = field(default="", compare=False)

    @property
    def asks(self) -> tuple[tuple[str, str], ...]:
        """What the row asks, white space aside: two rows are one task when it is equal."""
        return tuple((message.role, " ".join(message.text.split())) for message in self.messages)


@dataclass(frozen=True, slots=True)
class UnfitRow:
    """A row that is no task: `file:line`, and `field: what is wrong`.

    Example: `UnfitRow("tasks.jsonl:3", "messages: none is the user's")`.
    """

    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


@dataclass(frozen=True)
class TaskFiles:
    """The rows of a `[tasks]` table, read and checked. digest: of both files, to notice a change between a run and its resumption. rejects:
    the rows that were left out."""

    train: tuple[TaskRow, ...]
    held_out: tuple[TaskRow, ...]
    digest: str
    rejects: tuple[UnfitRow, ...] = ()

    def held_out_tasks(self, count: int) -> list[Task]:
        """The first `count` held-out rows, all of them when there are fewer: the same ones in every evaluation."""
        return [Task(f"heldout-{row.id}", i, row.messages, row.data) for i, row in enumerate(self.held_out[:count])]


def read_task_files(table: TasksConfig) -> TaskFiles:
    """Both files. Raises ValueError, a line per problem as `file:line: field: what`: when more rows than `max_rejects` are unfit, a file
    cannot be read or holds no fit row, or a held-out row is trained on."""
    train, held_out = table.train, table.held_out
    problems, unfit = Problems(), list[UnfitRow]()
    rows = [tuple(_apart(list(_read(file, problems, unfit, table.max_rejects)))) for file in (train, held_out)]
    if len(unfit) > table.max_rejects:
        for one in unfit:
            problems.add(str(one))
        if table.max_rejects:
            problems.add(f"tasks.max_rejects: {table.max_rejects} rows may be left out, and {len(unfit)} are unfit")
    else:
        for file, found in zip((train, held_out), rows, strict=True):
            if not found and not problems:
                problems.add(f"{file}: holds no row that is fit")
    for problem in _shared(*rows):
        problems.add(problem)
    problems.check()
    return TaskFiles(rows[0], rows[1], hashlib.sha256(_digest(train) + _digest(held_out)).hexdigest(), tuple(unfit))


def read_task_rows(place: str) -> tuple[TaskRow, ...]:
    """The rows of a place, read and checked. Raises ValueError, a line per problem as `file:line: field: what`."""
    problems, unfit = Problems(), list[UnfitRow]()
    rows = tuple(_apart(list(_read(place, problems, unfit, 0))))
    for one in unfit:
        problems.add(str(one))
    problems.check()
    return rows


def _digest(place: str) -> bytes:
    """Of what the files of a place hold, unpacked."""
    whole = hashlib.sha256()
    for file in files_at(place):
        whole.update(digest_of(file))
    return whole.digest()


def _read(file: str, problems: Problems, unfit: list[UnfitRow], most: int) -> Iterator[TaskRow]:
    """The good rows of a file; the others go to `unfit`, and what is wrong with the file to `problems`. most: unfit rows that are few
    enough."""
    ids, empty = GivenIds(), True
    try:
        names = _names(file)
        for found in read_rows(file):
            empty = False
            if len(unfit) > most + MORE_REJECTS:
                return
            if isinstance(found, BadRow):
                unfit.append(UnfitRow(found.where, found.problem))
                continue
            try:
                row = task_row(as_task_row(found.value), names[found.where.rpartition(":")[0]], found.number, found.where)
                ids.add(row)
            except ValueError as error:
                unfit.append(UnfitRow(found.where, str(error)))
                continue
            yield row
    except ValueError as error:
        problems.add(str(error))
    else:
        if empty:
            problems.add(f"{file}: holds no row")


class GivenIds:
    """The ids that the rows of a place give. Example: `GivenIds().add(task_row(row, "tasks", 3, "tasks.jsonl:3"))`."""

    def __init__(self) -> None:
        self._where: dict[str, str] = {}

    def add(self, row: TaskRow) -> None:
        """Raises ValueError, `id: what is wrong`, when an earlier row gave the same id."""
        if row.given and row.id in self._where:
            raise ValueError(f"id: {row.id!r} is the id of {self._where[row.id]} too")
        if row.given:
            self._where[row.id] = row.where


def _names(place: str) -> dict[str, str]:
    """What the rows of each file of a place are named after: the file, with the folders that it lies in, and with its suffix where another
    has that name too."""
    files = files_at(place)
    if files == [place]:
        return {place: stem(place)}
    paths = {file: Path(file).relative_to(place) for file in files}
    short = {file: str(path.with_name(stem(file))) for file, path in paths.items()}
    times = Counter(short.values())
    return {file: name if times[name] == 1 else str(paths[file]) for file, name in short.items()}


def _apart(rows: Sequence[TaskRow]) -> Iterator[TaskRow]:
    """The rows, the ids of those that give none made others where they are given elsewhere."""
    taken = {row.id for row in rows if row.given}
    for row in rows:
        id, times = row.id, 1
        while not row.given and id in taken:
            times += 1
            id = f"{row.id}~{times}"
        taken.add(id)
        yield row if id == row.id else replace(row, id=id)


def task_row(row: Mapping[str, Any], stem: str, number: int, where: str = "") -> TaskRow:
    """The task that one row describes. Raises ValueError, `field: what is wrong with it`.

    stem: names a row that has no id, as `stem-number`. An id or tools that are null, and an empty list of tools, are as good as left out.
    """
    refuse_unread(row, [key for key in row if key not in OLD_KEYS])
    data = {key: item for key, item in row.items() if key not in ("id", "messages")}
    if data.get("tools") in (None, []):
        data.pop("tools", None)
    else:
        _check_tools(data["tools"])
    if "reference_answer" in row and row["reference_answer"] in ("", {}, [], None):
        raise ValueError("reference_answer: is empty; leave it out")
    id = _read_id(row.get("id"))
    if "messages" not in row:
        raise ValueError(no_messages(row))
    messages = tuple(_messages(row["messages"]))
    return TaskRow(id or f"{stem}-{number}", id is not None, number, messages, data, where)


def _messages(value: Any) -> Iterator[Message]:
    if not isinstance(value, list) or not value:
        raise ValueError("messages: must be a list of messages, at least one")
    check_arguments(value, MAX_VALUES, "messages")
    roles = []
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            raise ValueError(f"messages[{i}]: must be an object, not {type(item).__name__}")
        message = message_from_dict(item, f"messages[{i}]")
        if message.role == "system" and i > 0:
            raise ValueError(f"messages[{i}].role: the system message must be the first")
        if not message.text.strip() and not message.tool_calls:
            raise ValueError(f"messages[{i}].content: is empty")
        roles.append(message.role)
        yield message
    if "user" not in roles:
        raise ValueError("messages: none is the user's")
    if roles[-1] == "assistant":
        raise ValueError("messages: the last one is the assistant's; the prompt must end with what the policy is to answer")


def _read_id(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f"id: must be a whole number or a text that is not empty, not {value!r:.60}")
    if len(str(value)) > MAX_ID_CHARS or not str(value).isprintable():
        raise ValueError(f"id: must be printable and at most {MAX_ID_CHARS} characters long")
    return str(value)


def _check_tools(value: Any) -> None:
    if not isinstance(value, list):
        raise ValueError(f"tools: must be a list of functions, not {type(value).__name__}")
    names: set[str] = set()
    for i, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(function, dict):
            raise ValueError(f'tools[{i}]: must read {{"type": "function", "function": {{"name": …, "parameters": …}}}}')
        name = function.get("name")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"tools[{i}].function.name: must be a text that is not empty, not {name!r:.60}")
        if not isinstance(function.get("parameters", {}), dict):
            raise ValueError(f"tools[{i}].function.parameters: must be a JSON schema, an object")
        if name in names:
            raise ValueError(f"tools[{i}].function.name: {name!r} is the name of two tools")
        names.add(name)


def _shared(trained: Iterable[TaskRow], measured: Iterable[TaskRow]) -> Iterator[str]:
    """Held-out rows that are trained on too: equal ids that the files give, or equal messages."""
    ids = {row.id: row.where for row in trained if row.given}
    asked = {row.asks: row.where for row in trained}
    for row in measured:
        if row.given and row.id in ids:
            yield f"{row.where}: id: {row.id!r} is trained on ({ids[row.id]}); held-out tasks must never be"
        elif row.asks in asked:
            yield f"{row.where}: messages: are trained on ({asked[row.asks]}); held-out tasks must never be"
