"""One group: the attempts at a task at one moment, side by side, with what each earned and what training made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from math import fsum
from typing import Any

from ...envs.types import Message, message_from_dict
from ..alarms import LETTERS
from ..library import LARGEST_REWARD, MOST_ATTEMPTS, Library
from ..terminal import call_text
from ..text import cut, short
from .runs import RunLine

BESIDE = 12
"""Attempts on one page."""
MOST_SAID, MOST_MESSAGES = 20_000, 200
"""Characters and messages that are shown of each conversation."""
MOST_PARTS = 50
"""Parts of a reward that are shown."""


@dataclass(frozen=True, slots=True)
class ShownAttempt:
    """An attempt beside others. row: as `Library.group` gives it, with what a page bears of its texts and of the parts of its reward, and
    `others`, how many parts are left out. chat: what was said after that which all were given, as far as it is
    shown; None where it is not read here, as conversations are too large together. cut: whether there is more of it."""

    row: Mapping[str, Any]
    chat: tuple[Message, ...] | None
    cut: bool = False


def group_view(line: RunLine, library: Library, group: Sequence[Mapping[str, Any]], page: int = 1) -> dict[str, Any]:
    """So many attempts of a group as stand on one page, counted from 1; none beyond the last. group: all of them, one at least."""
    first = BESIDE * (page - 1)
    rows = group[first : first + BESIDE]
    chats = [None if said is None else [message_from_dict(one) for one in said] for said in library.conversations(rows)]
    same = _alike([chat for chat in chats if chat is not None])
    given, cut = _shown(next((chat[:same] for chat in chats if chat is not None), []))
    near = [number for number in (page - 1, page + 1) if 1 <= number <= -(-len(group) // BESIDE)]
    return {
        "line": line,
        "at": group[0],
        "attempts": [_attempt(row, chat, same) for row, chat in zip(rows, chats, strict=True)],
        "given": given,
        "given_cut": cut,
        "first": first,
        "count": len(group),
        "first_only": len(group) >= MOST_ATTEMPTS,
        "page": page,
        "near": near,
        "earned": _earned(group),
        "failed": sum(row["failure"] is not None for row in group),
        "most_said": MOST_SAID,
        "most_messages": MOST_MESSAGES,
    }


def _alike(chats: Sequence[Sequence[Message]]) -> int:
    """How many of the first messages all of some conversations begin with, none of them the policy's."""
    given = takewhile(lambda side: side[0].role != "assistant" and all(one == side[0] for one in side), zip(*chats, strict=False))
    return sum(1 for _ in given)


def _attempt(row: Mapping[str, Any], chat: Sequence[Message] | None, same: int) -> ShownAttempt:
    shown = _bounded(row)
    return ShownAttempt(shown, None) if chat is None else ShownAttempt(shown, *_shown(chat[same:]))


def _bounded(row: Mapping[str, Any]) -> dict[str, Any]:
    parts, labels = row["parts"] or {}, row["labels"] or {}
    return {
        **row,
        **{name: None if row[name] is None else short(row[name]) for name in ("failure", "culprit", "truncation")},
        "detail": cut(row["detail"] or "", LETTERS),
        "labels": {name: short(labels[name]) for name in ("expected", "predicted") if name in labels},
        "parts": {short(name): value for name, value in islice(parts.items(), MOST_PARTS)},
        "others": max(0, len(parts) - MOST_PARTS),
    }


def _shown(chat: Sequence[Message]) -> tuple[tuple[Message, ...], bool]:
    """The beginning of a conversation, and whether that is not all of it."""
    shown, room = list[Message](), MOST_SAID
    for message in chat[:MOST_MESSAGES]:
        length = len(message.text) + sum(len(call_text(call)) for call in message.tool_calls)
        if length > room:
            shown.append(replace(message, content=message.text[:room], tool_calls=()))
            return tuple(shown), True
        shown.append(message)
        room -= length
    return tuple(shown), len(chat) > MOST_MESSAGES


def _earned(group: Sequence[Mapping[str, Any]]) -> tuple[float, float, float] | None:
    """The mean, the least and the most of the rewards that means are made of, None where there is none."""
    told = [row["reward"] for row in group if row["reward"] is not None and abs(row["reward"]) <= LARGEST_REWARD]
    return (fsum(told) / len(told), min(told), max(told)) if told else None
