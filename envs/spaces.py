"""Gymnasium spaces for conversations: what an environment says, and what a policy may write.

`gymnasium.spaces.Text` scans a character set (alphanumeric unless told), wants at least one character, and samples up to its
longest length; a policy may write nothing at all, and any Unicode.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Space

from .types import ROLES, Message, Role

# Kinds of text a sample mixes: ranges of code points, inclusive. Surrogates are left out, they are not text.
_RANGES = (
    (0x20, 0x7E),
    (0x00, 0x1F),
    (0xA0, 0x24F),
    (0x400, 0x4FF),
    (0x5D0, 0x5EA),
    (0x4E00, 0x9FFF),
    (0x1F300, 0x1F64F),
    (0x200B, 0x200F),
)
_LONGEST_SAMPLE = 64


def is_text(value: object) -> bool:
    """Whether `value` is a string that UTF-8 can carry (a lone surrogate cannot be sent to a service or stored as JSON)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class UnicodeText(Space[str]):
    """Any Unicode text of `min_length` to `max_length` characters; `max_length=None` means no limit.

    Samples are at most 64 characters beyond `min_length`, and mix alphabets, emoji, control and zero-width characters.

    Example: `UnicodeText().contains("")` is True; so is `UnicodeText().contains("7 \\u00d7 8 = 56")`.
    """

    def __init__(self, max_length: int | None = None, min_length: int = 0, seed: int | np.random.Generator | None = None) -> None:
        if min_length < 0 or (max_length is not None and max_length < min_length):
            raise ValueError(f"UnicodeText needs 0 <= min_length <= max_length, not {min_length} and {max_length}")
        self.min_length = min_length
        self.max_length = max_length
        super().__init__(dtype=str, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def sample(self, mask: None = None, probability: None = None) -> str:
        """A seeded random text. Raises ValueError when a mask or probability is given: there is no finite character set."""
        if mask is not None or probability is not None:
            raise ValueError("UnicodeText samples take neither mask nor probability; it has no finite character set")
        longest = self.min_length + _LONGEST_SAMPLE if self.max_length is None else min(self.max_length, self.min_length + _LONGEST_SAMPLE)
        length = int(self.np_random.integers(self.min_length, longest + 1))
        kinds = self.np_random.integers(0, len(_RANGES), size=length)
        return "".join(chr(int(self.np_random.integers(_RANGES[kind][0], _RANGES[kind][1] + 1))) for kind in kinds)

    def contains(self, x: Any) -> bool:
        return is_text(x) and len(x) >= self.min_length and (self.max_length is None or len(x) <= self.max_length)

    def __repr__(self) -> str:
        return f"UnicodeText(max_length={self.max_length}, min_length={self.min_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText) and (self.min_length, self.max_length) == (other.min_length, other.max_length)

    __hash__ = None  # type: ignore[assignment]  # spaces hold a random state and are compared by value


class MessagesSpace(Space[tuple[Message, ...]]):
    """What an environment says in one turn: a tuple of messages, empty when there is nothing left to say.

    Example: `MessagesSpace().contains((Message("user", "What is 3 + 4?"),))` is True.
    """

    def __init__(self, roles: tuple[Role, ...] = ROLES, seed: int | np.random.Generator | None = None) -> None:
        self.roles = roles
        self._text = UnicodeText()
        super().__init__(seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def seed(self, seed: int | None = None) -> int | list[int] | dict[str, int]:
        used = super().seed(seed)
        self._text.seed(int(self.np_random.integers(2**31)))
        return used

    def sample(self, mask: None = None, probability: None = None) -> tuple[Message, ...]:
        """One to three seeded random messages. Raises ValueError when a mask or probability is given."""
        if mask is not None or probability is not None:
            raise ValueError("MessagesSpace samples take neither mask nor probability")
        count = int(self.np_random.integers(1, 4))
        roles = [self.roles[int(i)] for i in self.np_random.integers(0, len(self.roles), size=count)]
        return tuple(Message(role, self._text.sample()) for role in roles)

    def contains(self, x: Any) -> bool:
        return isinstance(x, tuple) and all(isinstance(m, Message) and m.role in self.roles and is_text(m.text) for m in x)

    def __repr__(self) -> str:
        return f"MessagesSpace(roles={self.roles})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MessagesSpace) and self.roles == other.roles

    __hash__ = None  # type: ignore[assignment]  # as UnicodeText
