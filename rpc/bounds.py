"""What a message of protobuf may hold, told before it is taken apart: two bytes on the wire make an object of a hundred."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from .methods import BATCH_BYTES

SMALL_BYTES: Final = 2 * BATCH_BYTES
"""Messages up to so many bytes are taken apart as they come: batches are, and whatever they hold is not much."""
MAX_PARTS: Final = 200_000
"""Fields in a larger one, and in all that is in it: of what is large, most are long texts."""
MOST_DESCRIBED: Final = 16_384
"""Fields of what a service says that it is, however small: a tool has three."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


UNREADABLE: Final = "its answer is no message of this contract, or one of more fields than such an answer may have, or with a group"


class TooManyParts(DecodeError):
    """Said to the client as the reason why its message could not be read."""


def bounded(handler: Any) -> Any:
    """A gRPC handler whose requests are looked over before protobuf makes anything of them. One that reads plain bytes is left as it is."""
    read = handler.request_deserializer
    kind = getattr(getattr(read, "__self__", None), "DESCRIPTOR", None)
    return handler if kind is None else handler._replace(request_deserializer=_checked(read, kind))


class Bounds(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stub alone
    """Holds every request to `MAX_PARTS`."""

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        return None if handler is None else bounded(handler)


def answers_of(kind: type[Any], most: int = MAX_PARTS, small: int = SMALL_BYTES) -> Callable[[bytes], Any]:
    """Reads answers of this kind, those of more than `small` bytes held to `most` fields as requests are. gRPC's client logs an answer that
    cannot be read, and gives None."""
    return _checked(kind.FromString, kind.DESCRIPTOR, most, small)


def _checked(read: Callable[[bytes], Any], kind: Descriptor, most: int = MAX_PARTS, small: int = SMALL_BYTES) -> Callable[[bytes], Any]:
    def checked(raw: bytes) -> Any:
        if len(raw) > small and more_parts(raw, kind, most):
            raise TooManyParts(f"a message of {len(raw)} bytes holds more than {most} fields, or a group")
        return read(raw)

    return checked


def more_parts(raw: bytes, kind: Descriptor, most: int) -> bool:
    """Whether a message of a kind holds more than `most` fields, its own and those of what is in it, and numbers of lists.

    One with a group, which this contract has none of, does, whatever comes after it. What breaks off holds what it has up to there:
    protobuf, which makes that much of it, then says what is wrong.
    """
    found, todo = 0, [(0, len(raw), kind)]
    while todo and found <= most:
        try:
            found += _count(raw, todo, most - found)
        except TooManyParts:
            return True
    return found > most


def _count(raw: bytes, todo: list[tuple[int, int, Descriptor]], most: int) -> int:
    """How many fields the last of `todo` has, or some number above `most`; the messages in it are then to do. Raises TooManyParts for a
    group."""
    at, end, kind = todo.pop()
    found = 0
    try:
        while at < end and found <= most:
            tag, at = _varint(raw, at)
            field = kind.fields_by_number.get(tag >> 3)
            found += 1
            match tag & 7:
                case 0:
                    _, at = _varint(raw, at)
                case 1:
                    at += 8
                case 5:
                    at += 4
                case 2:
                    size, at = _varint(raw, at)
                    if field is not None and field.message_type is not None:
                        todo.append((at, min(at + size, end), field.message_type))
                    elif field is not None and field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
                        found += size  # numbers of a list, packed
                    at += size
                case 3 | 4:
                    raise TooManyParts
                case _:
                    break  # no such wire type: protobuf goes no further either
    except IndexError:  # it breaks off here, and what was found in it before is there all the same
        pass
    return found


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise IndexError("no number has so many bytes")
