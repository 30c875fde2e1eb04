"""Tasks out of JSONL files: single-turn rows as reinforcement fine-tuning services take them, each line checked.

    {"id": "s1", "messages": [{"role": "user", "content": "2 + 2?"}], "reference_answer": "4", "topic": "sums"}

becomes a task whose prompt is `messages` and whose data, hidden from the policy, is everything else but the id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...envs.types import Message, Task, message_from_dict
from ...rpc.payload import PayloadError, plain_json
from ..phases.config import TasksConfig

MAX_PROBLEMS = 20
MAX_ID_CHARS = 200


@dataclass(frozen=True)
class Row:
    """One line of a file. given: whether the id is the file's own, or made from its name and the line."""

    id: str
    given: bool
    line: int
    messages: tuple[Message, ...]
    data: Mapping[str, Any]

    @property
    def asks(self) -> tuple[tuple[str, str], ...]:
        """What the row asks, white space aside: two rows are one task when it is equal."""
        return tuple((message.role, " ".join(message.text.split())) for message in self.messages)


@dataclass(frozen=True)
class TaskFiles:
    """The rows of a `[tasks]` table, read and checked. digest: of both files, to notice a change between a run and its resumption."""

    train: tuple[Row, ...]
    held_out: tuple[Row, ...]
    digest: str

    def held_out_tasks(self, count: int) -> list[Task]:
        """The first `count` held-out rows, all of them when there are fewer: the same ones in every evaluation."""
        return [Task(f"heldout-{row.id}", i, row.messages, row.data) for i, row in enumerate(self.held_out[:count])]


def read_task_files(table: TasksConfig) -> TaskFiles:
    """Both files. Raises ValueError, a line per problem as `file:line: field: what`, also when a held-out row is trained on."""
    train, held_out = Path(table.train), Path(table.held_out)
    rows, problems = list[tuple[Row, ...]](), list[str]()
    for file in (train, held_out):
        found, wrong = read_rows(file)
        rows.append(found)
        problems += wrong
    problems += _shared(train, rows[0], held_out, rows[1])
    if problems:
        more = [f"… and {len(problems) - MAX_PROBLEMS} more problems"] if len(problems) > MAX_PROBLEMS else []
        raise ValueError("\n".join(problems[:MAX_PROBLEMS] + more))
    digest = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in (train, held_out)))
    return TaskFiles(rows[0], rows[1], digest.hexdigest())


def read_rows(file: Path) -> tuple[tuple[Row, ...], list[str]]:
    """The good rows of a file, and a line for everything wrong with the others."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return (), [f"{file}: there is no such file"]
    except (OSError, UnicodeDecodeError) as error:
        return (), [f"{file}: cannot be read as UTF-8 text: {error}"]
    rows, problems, lines = list[Row](), list[str](), dict[str, int]()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = read_row(line, file.stem, number)
        except ValueError as error:
            problems.append(f"{file}:{number}: {error}")
            continue
        if row.id in lines:
            problems.append(f"{file}:{number}: id: {row.id!r} is the id of line {lines[row.id]} too")
        lines.setdefault(row.id, number)
        rows.append(row)
    if not rows and not problems:
        problems.append(f"{file}: holds no row")
    return tuple(rows), problems


def read_row(line: str, stem: str, number: int) -> Row:
    """One line. Raises ValueError, `field: what is wrong with it`. stem: names a row that has no id, as `stem-number`."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object, not {type(value).__name__}")
    try:
        row = plain_json(value)
    except PayloadError as error:
        raise ValueError(str(error)) from None
    data = {key: item for key, item in row.items() if key not in ("id", "messages")}
    if "id" in row:
        _check_id(row["id"])
    if "tools" in row:
        _check_tools(row["tools"])
    if "reference_answer" in row and row["reference_answer"] in ("", {}, [], None):
        raise ValueError("reference_answer: is empty; leave it out")
    messages = tuple(_messages(row.get("messages")))
    return Row(row.get("id", f"{stem}-{number}"), "id" in row, number, messages, data)


def _messages(value: Any) -> Iterator[Message]:
    if not isinstance(value, list) or not value:
        raise ValueError("messages: must be a list of messages, at least one")
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


def _check_id(value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"id: must be a text that is not empty, not {value!r:.60}")
    if len(value) > MAX_ID_CHARS or not value.isprintable():
        raise ValueError(f"id: must be printable and at most {MAX_ID_CHARS} characters long")


def _check_tools(value: Any) -> None:
    if not isinstance(value, list) or not value:
        raise ValueError("tools: must be a list of functions, at least one; leave it out when there is none")
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


def _shared(train: Path, trained: Iterable[Row], held_out: Path, measured: Iterable[Row]) -> Iterator[str]:
    """Held-out rows that are trained on too: equal ids that the files give, or equal messages."""
    ids = {row.id: row.line for row in trained if row.given}
    asked = {row.asks: row.line for row in trained}
    for row in measured:
        if row.given and row.id in ids:
            yield f"{held_out}:{row.line}: id: {row.id!r} is trained on ({train}:{ids[row.id]}); held-out tasks must never be"
        elif row.asks in asked:
            yield f"{held_out}:{row.line}: messages: are trained on ({train}:{asked[row.asks]}); held-out tasks must never be"
