"""Examples on disk, read one at a time: what lets a phase train on any amount of data in constant memory, and from the same rows when it
resumes.

A store is a folder of two files. `tokens.bin` holds the tokens of all examples end to end, int32, a token that is not trained as its
complement (`~id`, negative). `index.bin` holds four int64 of each example: where its tokens end, how many of them are trained, the number
of the row that it was made from, and which of the source's files that is in. Both are read where they are asked for, and never kept.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from ...rollout.store.own_files import own_file
from .supervised import SupervisedExample

TOKENS, INDEX = "tokens.bin", "index.bin"
ENTRY: Final = 4
BUFFER: Final = 1 << 20
SCANNED: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of an example: the first of its tokens and the last but one, how many are trained, and its row's number and file."""

    start: int
    end: int
    trained: int
    row: int
    file: int


class StoreWriter:
    """Appends examples to a new store. Example: `with StoreWriter(folder) as store: store.add(examples, row=3, file="talks.jsonl")`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._tokens, self._index = (folder / TOKENS).open("xb", BUFFER), (folder / INDEX).open("xb", BUFFER)
        self._hash = hashlib.sha256()
        self._files: dict[str, int] = {}
        self.examples = self.tokens = self.trained = self.rows = 0

    def add(self, examples: Sequence[SupervisedExample], row: int, file: str) -> None:
        """The examples that were made of one row."""
        number = self._files.setdefault(file, len(self._files))
        self.rows += 1
        for example in examples:
            packed = np.where(example.trainable, example.token_ids, ~example.token_ids).astype("<i4").tobytes()
            trained = int(example.trainable.sum())
            self._tokens.write(packed)
            self._hash.update(len(example.token_ids).to_bytes(8, "little") + packed)
            self.examples += 1
            self.tokens += len(example.token_ids)
            self.trained += trained
            self._index.write(np.array([self.tokens, trained, row, number], "<i8").tobytes())

    @property
    def files(self) -> tuple[str, ...]:
        """The files that rows came from, in the order of their numbers."""
        return tuple(self._files)

    @property
    def digest(self) -> str:
        """SHA-256 of every token and mask: equal rows under an equal tokenizer and template have an equal one."""
        return self._hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tokens.close()
        self._index.close()


class ExampleStore:
    """The examples of a store by their numbers. Close it when done.

    Example: `ExampleStore(folder).example(0).token_ids`.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ValueError when a file of the store is missing, or is a link that leads out of the folder of its phase, or no file."""
        files = [own_file(folder.parent, f"{folder.name}/{name}") for name in (TOKENS, INDEX)]
        if None in files:
            raise ValueError(f"{folder} holds no examples ({TOKENS}, {INDEX})")
        self._folder = folder
        self._tokens, self._index = (os.open(file, os.O_RDONLY | os.O_CLOEXEC) for file in files if file is not None)
        self._size = os.fstat(self._index).st_size // (8 * ENTRY)

    def __len__(self) -> int:
        return self._size

    def entry(self, number: int) -> Entry:
        """What is known of an example."""
        assert 0 <= number < self._size, f"a store of {self._size} examples has no number {number}"
        first = max(0, number - 1)
        read = np.frombuffer(os.pread(self._index, 8 * ENTRY * (number - first + 1), 8 * ENTRY * first), "<i8").reshape(-1, ENTRY)
        end, trained, row, file = (int(value) for value in read[-1])
        return Entry(int(read[0, 0]) if number else 0, end, trained, row, file)

    def example(self, number: int) -> SupervisedExample:
        """An example as the learner takes it. Raises ValueError when the index leads past the tokens."""
        at = self.entry(number)
        if not 0 <= at.start <= at.end <= os.fstat(self._tokens).st_size // 4:
            raise ValueError(f"{self._folder}: example {number} is tokens {at.start} to {at.end}, which are not there")
        packed = np.frombuffer(os.pread(self._tokens, 4 * (at.end - at.start), 4 * at.start), "<i4")
        return SupervisedExample(np.where(packed < 0, ~packed, packed).astype(np.int32), packed >= 0)

    def close(self) -> None:
        os.close(self._tokens)
        os.close(self._index)
