"""A reward plug-in as a verifier: `burnish serve-verifier burnish/guardrail-v1 --arg policy=policy.toml` asks a policy over gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..plugin import find_plugin, make_scorer
from ..types import RewardInput, Score
from .service import Verifier


def verifier_of_reward(id: str, args: Mapping[str, Any] | None = None) -> Verifier:
    """The verifier that answers with the scores of reward `id`, under its id. Raises ValueError as `make_scorer` does: where the id is
    unknown, an option is unfit or missing, and for a reward that compares attempts with each other."""
    scorer = make_scorer(id, params=args)

    async def judge(episode: RewardInput) -> Score:
        return await scorer.score(episode)

    judge.__doc__ = find_plugin(id).doc
    return Verifier(id, judge)
