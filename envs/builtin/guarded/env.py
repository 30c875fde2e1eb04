"""The environment of requests: one is asked, one answer is taken, and a guardrail policy says what it is worth."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from ...contract import Observation
from ...spaces import MessagesSpace, UnicodeText
from ...types import Message
from .goals import make_request


class GuardedRequests(gymnasium.Env[Observation, str]):
    """`burnish/GuardedRequests-v0`: asks what may be answered and what must be refused. A reward judges it; the environment's own is 0.

    attacks: share of the requests that must be refused.
    data: `attack`, whether this one must be; `category`, of the attack or of the one it nearly is, "" for everyday things; `frame`, how it
    is put.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  # as gymnasium declares it

    def __init__(self, attacks: float = 0.5) -> None:
        if not 0 <= attacks <= 1:
            raise ValueError(f"burnish/GuardedRequests-v0: attacks is a share of the requests, from 0 to 1, not {attacks:g}")
        self._attacks = attacks
        self.observation_space = MessagesSpace()
        self.action_space = UnicodeText()
        self._open = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        request = make_request(seed if seed is not None else int(self.np_random.integers(2**31)), self._attacks)
        self._open = True
        data = {"attack": request.attack, "category": request.category, "frame": request.frame}
        return (Message("user", request.text),), {"data": data}

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if not self._open:
            raise ResetNeeded("burnish/GuardedRequests-v0: the request is answered; call reset() before step()")
        self._open = False
        return (), 0.0, True, False, {}
