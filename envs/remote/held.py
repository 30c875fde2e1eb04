"""The bytes that open sessions hold: what they began with, calls at work, waited for or not, and the answers that are kept."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Final

from ...rpc.errors import Status
from ...v1 import common_pb2

VALUE_BYTES: Final = 64
"""Of a value of JSON once it is read, and of a message: two bytes on the wire make either."""
MOST_COUNTED: Final = 1000
"""Messages of a task, and what is in them, that are gone through to say what they hold."""


class SessionRoom:
    """What the sessions of a server hold together, against what they may. most: bytes. what: is open."""

    def __init__(self, what: str, most: int) -> None:
        self.what, self.most, self.held = what, most, 0

    @property
    def full(self) -> Status:
        """What is said where there is no room."""
        held = f"the {self.what} that are open hold as many bytes as this server keeps"
        return Status("RESOURCE_EXHAUSTED", f"{held} ({self.most >> 20} MiB); close some of them")


class SessionShare:
    """What one session holds of the room of all, until `release`.

    Example: `share.hold("answer", 100)`, then `share.hold("answer", 0)`.
    """

    def __init__(self, room: SessionRoom) -> None:
        self.room = room
        self._sizes: dict[Hashable, int] = {}
        self._over = False

    def keep(self, what: Hashable, size: int) -> bool:
        """`hold` for an answer, which may take half of the room: with the other half, sessions go on."""
        return self.hold(what, size, self.room.most // 2)

    def hold(self, what: Hashable, size: int, most: int | None = None) -> bool:
        """Hold so many bytes for something, in place of those that are held for it; False, and none are, where there is no room. most: of
        the bytes of all."""
        self.room.held -= self._sizes.pop(what, 0)
        if self._over or (size and self.room.held + size > (self.room.most if most is None else most)):
            return False
        if size:
            self._sizes[what] = size
            self.room.held += size
        return True

    def release(self) -> None:
        """The session is over."""
        self.room.held -= sum(self._sizes.values())
        self._sizes.clear()
        self._over = True


def read_bytes(size: int, texts: Iterable[str]) -> int:
    """What a message of so many bytes holds once its texts of JSON are read, about. Example: `read_bytes(9, ["[1,[],2]"]) == 265`."""
    return size + VALUE_BYTES * sum(text.count(mark) for text in texts for mark in ",[{")


def read_bytes_of_task(size: int, task: common_pb2.Task, *texts: str) -> int:
    """The same of a message with a task in it, and other texts of JSON. One with many messages weighs as if it held nothing else."""
    entries = len(task.prompt)
    if entries <= MOST_COUNTED:
        entries += sum(len(message.parts.parts) + len(message.tool_calls) for message in task.prompt)
    if entries > MOST_COUNTED:
        return VALUE_BYTES // 2 * size
    calls = [call.arguments_json for message in task.prompt for call in message.tool_calls]
    return read_bytes(size + VALUE_BYTES * entries, [*texts, task.data_json, *calls])
