"""Documents for continued pre-training and conversations for supervised fine-tuning, from files or from a generator, checked row by row.

Files are read by `envs.rows`; what is here says what a row must hold. `gathered` decides what becomes of bad rows: they are all named,
and none is left out in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from ...envs.named import load_function
from ...envs.rows import BadRow, Problems, Row, read_rows
from ...envs.types import Message, message_from_dict, refuse_unread
from ..phases.supervised import SupervisedConfig

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Conversation:
    """One supervised example: its messages, the JSON schemas of the tools that the prompt offers, and where it comes from.

    Example: `Conversation((Message("user", "2 + 2?"), Message("assistant", "4")), where="train.jsonl:3")`.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    where: str = field(default="", compare=False)


def documents(table: SupervisedConfig, seed: int, limit: int | None = None) -> list[str]:
    """The texts of a `[cpt]` table. limit: of those that are generated; a file is always read whole.

    Raises ValueError naming file and line of every row that is unfit, or the generator.
    """
    if table.data is not None:
        return _some(list(read_documents(Path(table.data))), "cpt", table)
    texts: list[str] = []
    for text in _generated(table, seed, limit, "cpt.generate"):
        if not isinstance(text, str):
            raise ValueError(f"cpt.generate: {table.generate} must give strings, not {type(text).__name__}")
        texts.append(text)
    return _some(texts, "cpt", table)


def conversations(table: SupervisedConfig, seed: int, limit: int | None = None) -> list[Conversation]:
    """The conversations of an `[sft]` table. limit: of those that are generated; a file is always read whole.

    Raises ValueError naming file and line of every row that is unfit, or the example of the generator.
    """
    if table.data is not None:
        return _some(list(read_conversations(Path(table.data))), "sft", table)
    made = []
    for i, example in enumerate(_generated(table, seed, limit, "sft.generate")):
        where = f"sft.generate: {table.generate}, example {i}"
        try:
            made.append(replace(_conversation(example), where=where))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return _some(made, "sft", table)


ROW_KEYS = ("messages", "tools", "id", "metadata")
"""Of a conversation; the last two are notes of one's own, which nothing is made of."""


def read_documents(file: Path) -> Iterator[str]:
    """The texts of a file: rows `{"text": …}`, or the paragraphs of plain text. Raises ValueError at the end, as `gathered` does."""
    return gathered(read_rows(file, prose=True), _text)


def read_conversations(file: Path) -> Iterator[Conversation]:
    """Rows `{"messages": […], "tools": […]}`, messages as OpenAI has them. Raises ValueError at the end, as `gathered` does."""
    return gathered(read_rows(file), _conversation_of)


def gathered(rows: Iterable[Row | BadRow], read: Callable[[Row], T]) -> Iterator[T]:
    """What `read` makes of every good row. read: raises ValueError, `field: what is wrong`, for a row that is unfit.

    Raises ValueError at the end, naming file, line and field of the rows that are unfit.
    """
    problems = Problems()
    for row in rows:
        if isinstance(row, BadRow):
            problems.add(f"{row.where}: {row.problem}")
            continue
        try:
            value = read(row)
        except ValueError as error:
            problems.add(f"{row.where}: {error}")
            continue
        yield value
    problems.check()


def _text(row: Row) -> str:
    text = row.value.get("text")
    if not isinstance(text, str) or not text:
        raise ValueError('text: a row for continued pre-training needs "text", a string that is not empty')
    return text


def _conversation_of(row: Row) -> Conversation:
    return replace(_conversation(row.value), where=row.where)


def _conversation(example: Any) -> Conversation:
    row: Mapping[str, Any] = example if isinstance(example, Mapping) else {"messages": example}
    messages, tools = row.get("messages"), row.get("tools") or ()
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError("messages: must be a list of messages, at least one")
    refuse_unread(row, ROW_KEYS)
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError("tools: must be a list of JSON schemas")
    read = tuple(_message(message, f"messages[{i}]") for i, message in enumerate(messages))
    if not any(message.role == "assistant" for message in read):
        raise ValueError("messages: none is the assistant's, so there is nothing to learn from")
    return Conversation(read, tuple(tools))


def _message(message: Any, where: str) -> Message:
    if isinstance(message, Message):
        return message
    if not isinstance(message, Mapping):
        raise ValueError(f"{where}: must be a message, not {type(message).__name__}")
    return message_from_dict(message, where)


def _generated(table: SupervisedConfig, seed: int, limit: int | None, field: str) -> Iterable[Any]:
    assert table.generate is not None
    count = table.examples if limit is None else min(limit, table.examples)
    made = load_function(table.generate, field)(seed, count, **table.args)
    if not isinstance(made, Iterable):
        raise ValueError(f"{field}: {table.generate} must give an iterable of examples, not {type(made).__name__}")
    return islice(made, limit)


def _some(examples: list[T], phase: str, table: SupervisedConfig) -> list[T]:
    if not examples:
        raise ValueError(f"{phase}: {table.data or table.generate} gives no example")
    return examples
