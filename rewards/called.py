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
    """The messages of an episode, the policy's with the calls that tools answered, refused ones too, and where these are written. Calls
    that were recorded and that no tool answered stand in the last turn. A turn that has calls of its own keeps
    them.

    strict: raise ValueError where a tool answered a call that is not recorded in `info["data"]["tool_calls"]`, as `ToolEnv` has it, or
    what is recorded there cannot be read; otherwise that is left out.
    """
    messages, lines, turns = list(episode.messages), Lines(), turns_of(episode)
    rows = episode.data.get("tool_calls")
    seen = {at for turn in turns for at in _structured(rows, turn.message)}
    for turn in turns:
        if turn.message.tool_calls:
            continue
        ids = [one.tool_call_id for one in turn.observation if one.role == "tool" and (one.tool_call_id is not None or rows is None)]
        calls = {id: call for id in ids if id is not None and (call := _recorded(rows, id)) is not None}
        missing = [id for id in ids if id not in calls]
        if missing and strict:
            raise ValueError(_unrecorded(turn, missing[0]))
        if calls and not missing:
            seen |= {int(id.removeprefix("call_")) for id in calls}
            _attach(messages, lines, episode, turn, tuple(calls.values()))
    rest = _rest(rows, seen, strict)
    if rest and turns:
        _attach(messages, lines, episode, turns[-1], rest, alone=len(turns) == 1)
    elif rest and strict:
        raise ValueError('calls are recorded in info["data"]["tool_calls"] of an episode in which the policy says nothing')
    return tuple(messages), lines


def _structured(rows: Any, message: Message) -> list[int]:
    """The places of the recorded calls that a message has itself."""
    own = [(call.name, dict(call.arguments)) for call in message.tool_calls]
    found = [_recorded(rows, f"call_{at}") for at in range(len(rows))] if own and isinstance(rows, list | tuple) else []
    return [at for at, call in enumerate(found) if call is not None and (call.name, dict(call.arguments)) in own]


def _rest(rows: Any, seen: set[int], strict: bool) -> tuple[ToolCall, ...]:
    """The recorded calls that no turn has. strict: raise ValueError for what is no call."""
    listed = isinstance(rows, list | tuple)
    found = {at: _recorded(rows, f"call_{at}") for at in range(len(rows)) if at not in seen} if listed else {}
    unread = next((f"[{at}]" for at, call in found.items() if call is None), "" if listed or rows is None else " as a whole")
    if strict and unread:
        raise ValueError(f'info["data"]["tool_calls"]{unread} cannot be read: it has to be a list of {{"name": …, "arguments": {{…}}}}')
    return tuple(call for call in found.values() if call is not None)


def _attach(
    messages: list[Message], lines: Lines, episode: RewardInput, turn: TurnInput, calls: tuple[ToolCall, ...], alone: bool = True
) -> None:
    """Put calls behind those of a turn. alone: whether they can be of no other turn, so that the lines they stand in are this one's."""
    at = len(turn.messages) - 1
    messages[at] = replace(messages[at], tool_calls=(*messages[at].tool_calls, *calls))
    written = _written(episode.data.get("call_lines"), calls[0].id, len(turn.message.text)) if alone else None
    if written is not None:
        lines.setdefault(at, written)


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


def _unrecorded(turn: TurnInput, id: str | None) -> str:
    where = (
        f"a tool answered call {id[:80]!r} of turn {turn.index}" if id is not None else f"a tool answered turn {turn.index} without an id"
    )
    what = 'record it in info["data"]["tool_calls"], as ToolEnv does, where the first is "call_0", the next "call_1", and so on'
    return f"{where}, and the environment does not say what it called: {what}"
