"""The bytes that a server holds of what is at work and of what waits to be read: each of a hundred items may be as large as a message."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import Message

COUNTED_BYTES: Final = 64 << 10
"""Requests and results up to so many bytes are always taken: so many of them as may be in flight are never too many."""


class HeldBytes:
    """Counts bytes against a limit. whole: what this is a share of, which counts them too.

    Example: `HeldBytes(10).take(11) is False`.
    """

    def __init__(self, most: int, whole: HeldBytes | None = None) -> None:
        self._most, self._whole, self._held = most, whole, 0
        self.full = f"requests at work and results that wait to be read hold {most >> 20} MiB, as much as is taken at a time"

    def take(self, size: int) -> bool:
        """Hold so many more; whether there was room for them."""
        if size and (self._held + size > self._most or (self._whole is not None and not self._whole.take(size))):
            return False
        self._held += size
        return True

    def give_back(self, size: int) -> None:
        self._held -= size
        if self._whole is not None:
            self._whole.give_back(size)


def counted(message: Message) -> int:
    """The bytes of a message where they count against what may be held, else 0."""
    size = message.ByteSize()
    return size if size > COUNTED_BYTES else 0
