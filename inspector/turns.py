"""What each turn of a stored episode was given: by the environment, by those who judge turns, and of the total."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..envs.types import Message


@dataclass(frozen=True, slots=True)
class TurnReward:
    """Of one turn, counted from 1: what the environment gave in its answer to it, what it earned of the total, and its parts of the reward
    that are judged turn by turn. None where nothing is stored.

    Example: `TurnReward(2, 0.5, None, {"polite": 1.0})`.
    """

    turn: int
    environment: float | None = None
    credit: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


def rewards_by_turn(found: Mapping[str, Any], chat: Sequence[Message]) -> dict[int, TurnReward]:
    """Of a whole episode, by the place of the turn's message in the conversation."""
    spoken = spoken_in(chat, len(found["turns"] or ()))
    given, credit, judged = found["env_rewards"] or (), found["credit"] or (), found["turn_parts"] or {}
    return {
        place: TurnReward(i + 1, _value(given, i), _value(credit, i), {name: of[i] for name, of in judged.items() if i < len(of)})
        for i, place in enumerate(spoken)
    }


def spoken_in(chat: Sequence[Message], turns: int) -> list[int]:
    """Where in a conversation the policy's turns are: an environment may open with assistant messages of its own."""
    found = [i for i, message in enumerate(chat) if message.role == "assistant"]
    return found[max(0, len(found) - turns) :]


def _value(values: Sequence[float | None], number: int) -> float | None:
    return values[number] if number < len(values) else None
