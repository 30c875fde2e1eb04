"""The bytes that a server holds of what is at work and of what waits to be read: each of a hundred items may be as large as a message."""

from __future__ import annotations

from typing import Final

SMALL_BYTES: Final = 64 << 10
"""Larger requests and results leave an eighth of all for those up to so many bytes: thousands of these still find room."""
RESERVE: Final = 8


class HeldBytes:
    """What a server holds, against what it may. most: bytes. held: by all shares together."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self.full = f"requests at work and results that wait to be read hold as much as this client may have of {most >> 20} MiB"
        self.unread = f"the result has no room until others are read: {self.full}"


class HeldShare:
    """What one stream holds, or all unary calls together: never more than it leaves for everybody else.

    So one that holds all it can has half, and each after it half of what the others left; some is always left.

    Example: `HeldShare(HeldBytes(10)).take(6) is False`.
    """

    def __init__(self, whole: HeldBytes) -> None:
        self._whole, self._held = whole, 0

    def take(self, size: int) -> bool:
        """Hold so many bytes more; whether there was room for them."""
        whole = self._whole
        most = whole.most if size <= SMALL_BYTES else whole.most - whole.most // RESERVE
        if self._held + size > most - whole.held - size:
            return False
        self._held += size
        whole.held += size
        return True

    def give_back(self, size: int) -> None:
        self._held -= size
        self._whole.held -= size

    def crowded(self, size: int) -> bool:
        """Whether so many bytes are more than half of what this one may hold, as much as the others have."""
        return 4 * size > self._whole.most - (self._whole.held - self._held)
