"""The services of the fault matrix: an environment with tools, and a verifier. Each suffers what the file of its place says."""

from __future__ import annotations

import time
from typing import Any

import gymnasium
from tests.integration.faults import PACE_S, SEEN, told

from burnish.envs.contract import ConversationEnv, Observation, register_env
from burnish.envs.remote.tools import RemoteToolSet
from burnish.envs.spaces import MessagesSpace, UnicodeText
from burnish.envs.tool_env import ToolEnv
from burnish.envs.tools import tool
from burnish.envs.types import Message
from burnish.rewards.remote.service import verifier
from burnish.rewards.types import RewardInput


def suffer(place: str) -> None:
    """Take the time of a call, and raise where that is asked for."""
    fault = told(place)
    if fault == "raises":
        raise RuntimeError(f"the {place} was told to raise")
    time.sleep(PACE_S * (10 if fault == "slow" else 1))


@verifier("faults/verdict-v1")
def verdict(episode: RewardInput) -> float:
    """The last digit of the answer, as a share of nine."""
    suffer("verifier")
    digits = [int(character) for character in episode.answer or "" if character in "0123456789"]
    return (digits[-1] if digits else 0) / 9


@tool
def look(at: int) -> str:
    """Look at something.

    Args:
        at: What to look at.
    """
    suffer("tool")
    return f"{at} {SEEN}"


class World(gymnasium.Env[Observation, str]):
    """Asks for a look and a digit, and ends with the answer."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  # as gymnasium declares it
    observation_space, action_space = MessagesSpace(), UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        suffer("environment")
        return (Message("user", "look at 1, then say a digit"),), {}

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        suffer("environment")
        return (), 0.0, True, False, {}


@register_env("faults/World-v0")
def world(tools: str) -> ConversationEnv:
    """tools: the address of their service."""
    return ToolEnv(World(), RemoteToolSet(tools, deadline_s=5.0), parser="pythonic")
