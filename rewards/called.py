"""The tool calls of an episode's turns. The policy writes them as text; `envs.tool_env` records what it read and where it stood."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..envs.types import Message, ToolCall
from .types import RewardInput, TurnInput, turns_of

Lines = dict[int, tuple[int, int]]
"""Place of a message -> the characters of its text from which on, and up to which, its calls are written."""

_ID = re.compile(r"call_([0-9]{1,9})")


def with_calls(episode: RewardInput, strict: bool = False) -> tuple[tuple[Message, ...], Lines]:
    """The messages of an episode, the policy's with the calls that tools answered, refused ones too, and where these are written.

    A turn that has its calls already stays as it is. strict: raise ValueError where a tool answered a call that is not recorded in
    `info["data"]["tool_calls"]`, as `ToolEnv` has it; otherwise such a turn stays as it is, too.
    """
    messages, lines = list(episode.messages), Lines()
    for turn in turns_of(episode):
        ids = [seen.tool_call_id for seen in turn.observation if seen.role == "tool" and seen.tool_call_id is not None]
        calls = [_recorded(episode.data.get("tool_calls"), id) for id in ids]
        if turn.message.tool_calls or not ids:
            continue
        if None in calls:
            if strict:
                raise ValueError(_unrecorded(turn, ids[calls.index(None)]))
            continue
        at = len(turn.messages) - 1
        messages[at] = replace(turn.message, tool_calls=tuple(call for call in calls if call is not None))
        written = _written(episode.data.get("call_lines"), ids[0], len(turn.message.text))
        if written is not None:
            lines[at] = written
    return tuple(messages), lines


def _recorded(calls: Any, id: str) -> ToolCall | None:
    """What the environment says of the call with this id."""
    number = _ID.fullmatch(id)
    place = int(number[1]) if number else -1
    row = calls[place] if isinstance(calls, list | tuple) and 0 <= place < len(calls) else None
    match row:
        case {"name": str(name), "arguments": Mapping() as arguments}:
            return ToolCall(id, name, arguments)
    return None


def _written(lines: Any, id: str, length: int) -> tuple[int, int] | None:
    """Where the calls stand in a text of this length, the first of which has this id."""
    match lines.get(id) if isinstance(lines, Mapping) else None:
        case [int(begin), int(end)] if 0 <= begin <= end <= length:
            return begin, end
    return None


def _unrecorded(turn: TurnInput, id: str) -> str:
    where = f"a tool answered call {id[:80]!r} of turn {turn.index}"
    return f'{where}, and the environment does not say what it called: record it in info["data"]["tool_calls"], as ToolEnv does'
