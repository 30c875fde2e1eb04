"""The head of a GGUF file, looked through before anything believes it: every length that it declares is held to the bytes that are there.

`gguf` makes its lists as long as a file says, so one of a hundred bytes could keep it busy for ever. The form is that of
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, little-endian, versions 2 and 3.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Final

from ...rollout.tokenizer_files import LONGEST_TOKEN

SCALARS: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by its kind."""
UINT32, STRING, ARRAY = 4, 8, 9
MOST_VALUES: Final = 20_000_000
"""Of all arrays together; a vocabulary of a million tokens has four of a million."""
MOST_TENSORS, MOST_DIMENSIONS, DEEPEST = 100_000, 4, 2


def check_gguf(file: Path) -> None:
    """Raise ValueError naming the file when its head claims what is not there.

    Example: `check_gguf(Path("model.gguf"))`.
    """
    with file.open("rb") as stream:
        head = _Head(file, stream, os.fstat(stream.fileno()).st_size)
        head.skip(4)  # GGUF
        version = head.number("<I")
        if version not in (2, 3):
            raise ValueError(f"{file}: is no little-endian GGUF of version 2 or 3; convert it with llama.cpp")
        tensors, pairs = head.number("<Q"), head.number("<Q")
        head.check(tensors, 24, MOST_TENSORS)
        head.check(pairs, 13, MOST_VALUES)
        for _ in range(pairs):
            head.text()
            head.value(head.number("<I"))
        for _ in range(tensors):
            head.text()
            dimensions = head.number("<I")
            head.check(dimensions, 8, MOST_DIMENSIONS)
            head.skip(8 * dimensions + 4 + 8)


@dataclass
class _Head:
    """Where in the file one is, and how many values its arrays had so far."""

    file: Path
    stream: BufferedReader
    size: int
    values: int = 0

    def number(self, form: str) -> int:
        read = self.stream.read(struct.calcsize(form))
        if len(read) < struct.calcsize(form):
            raise ValueError(f"{self.file}: the GGUF is damaged or cut short; copy or download it again")
        return int(struct.unpack(form, read)[0])

    def skip(self, count: int) -> None:
        self.check(count, 1, self.size)
        self.stream.seek(count, os.SEEK_CUR)

    def check(self, count: int, each: int, most: int) -> None:
        """Raise ValueError unless so many things, of so many bytes each at least, can follow."""
        if count > min(most, (self.size - self.stream.tell()) // each):
            raise ValueError(f"{self.file}: the GGUF claims more than it holds ({count:,} values); copy or download it again")

    def text(self, listed: bool = False) -> None:
        length = self.number("<Q")
        if listed and length > LONGEST_TOKEN:  # of what libraries would make of it, see there
            raise ValueError(f"{self.file}: the GGUF lists a text of {length:,} bytes, longer than any model's token")
        self.skip(length)

    def value(self, kind: int, depth: int = 0) -> None:
        if kind == STRING:
            self.text(listed=depth > 0)
        elif kind in SCALARS:
            self.skip(SCALARS[kind])
        elif kind == ARRAY and depth < DEEPEST:
            inner, count = self.number("<I"), self.number("<Q")
            self.check(count, SCALARS.get(inner, 8), MOST_VALUES - self.values)
            self.values += count
            if inner in SCALARS:
                self.skip(count * SCALARS[inner])
            else:
                for _ in range(count):
                    self.value(inner, depth + 1)
        else:
            raise ValueError(f"{self.file}: the GGUF holds a value of kind {kind}, which is none; copy or download it again")
