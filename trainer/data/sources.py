"""Examples for continued pre-training and supervised fine-tuning, from a file or from a generator, checked row by row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from ...envs.named import load_function
from ...envs.types import Message, message_from_dict
from ..phases.config import SupervisedConfig

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Conversation:
    """One supervised example: its messages, and the JSON schemas of the tools that the prompt offers.

    Example: `Conversation((Message("user", "2 + 2?"), Message("assistant", "4")))`.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def text(self) -> str:
        """All messages, one below the other, without a template."""
        return "\n".join(message.text for message in self.messages)


def documents(table: SupervisedConfig, seed: int, limit: int | None = None) -> list[str]:
    """The texts of a `[cpt]` table, at most `limit`. Raises ValueError naming file and line, or the generator."""
    if table.data is not None:
        rows: Iterable[Any] = read_documents(Path(table.data))
    else:
        rows = _generated(table, seed, limit, "cpt.generate")
    texts: list[str] = []
    for text in islice(rows, limit):
        if not isinstance(text, str):
            raise ValueError(f"cpt.generate: {table.generate} must give strings, not {type(text).__name__}")
        texts.append(text)
    return _some(texts, "cpt", table)


def conversations(table: SupervisedConfig, seed: int, limit: int | None = None) -> list[Conversation]:
    """The conversations of an `[sft]` table, at most `limit`. Raises ValueError naming file and line, or the generator."""
    if table.data is not None:
        return _some(list(islice(read_conversations(Path(table.data)), limit)), "sft", table)
    made = enumerate(islice(_generated(table, seed, limit, "sft.generate"), limit))
    return _some([_as_conversation(example, f"sft.generate: {table.generate}, example {i}") for i, example in made], "sft", table)


def read_documents(file: Path) -> Iterator[str]:
    """Texts of a file: `{"text": …}` rows of a `.jsonl`, or the paragraphs (separated by an empty line) of any other text file."""
    if file.suffix == ".jsonl":
        for where, row in _json_rows(file):
            if not isinstance(row.get("text"), str):
                raise ValueError(f'{where}: a row for continued pre-training needs "text", a string')
            yield row["text"]
    else:
        yield from (text.strip("\n") for text in _read(file).split("\n\n") if text.strip())


def read_conversations(file: Path) -> Iterator[Conversation]:
    """Rows `{"messages": […], "tools": […]}` of a `.jsonl` file, messages as OpenAI has them; other keys are left alone."""
    if file.suffix != ".jsonl":
        raise ValueError(f'{file}: conversations come from a .jsonl file with one {{"messages": […]}} per line')
    for where, row in _json_rows(file):
        yield _as_conversation(row, where)


def _as_conversation(example: Any, where: str) -> Conversation:
    row: Mapping[str, Any] = example if isinstance(example, Mapping) else {"messages": example}
    messages, tools = row.get("messages"), row.get("tools") or ()
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError(f'{where}: needs "messages", a list that is not empty')
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f'{where}: "tools" must be a list of JSON schemas')
    read = tuple(_as_message(message, f"{where}: messages[{i}]") for i, message in enumerate(messages))
    if not any(message.role == "assistant" for message in read):
        raise ValueError(f"{where}: has no assistant message to learn from")
    return Conversation(read, tuple(tools))


def _as_message(message: Any, where: str) -> Message:
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
    return made


def _some(examples: list[T], phase: str, table: SupervisedConfig) -> list[T]:
    if not examples:
        raise ValueError(f"{phase}: {table.data or table.generate} gives no example")
    return examples


def _json_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_read(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a row must be a JSON object, not {type(row).__name__}")
        yield where, row


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text: byte {error.start} cannot be read; save it as UTF-8") from error
    except FileNotFoundError as error:
        raise ValueError(f"{file} does not exist") from error
