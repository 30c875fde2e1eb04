"""From a recipe's rewards to the rubric that scores episodes."""

from __future__ import annotations

from collections.abc import Sequence

from .config import RewardConfig
from .plugin import find_plugin, make_group_scorer, make_scorer
from .rubric import Rubric
from .types import GroupScorer, Scorer

VERIFIER_DEADLINE_S = 10.0


def make_rubric(rewards: Sequence[RewardConfig], env_weight: float, retries: int) -> Rubric:
    """The rubric of these rewards; addresses of services must be resolved already. Raises ValueError on an unknown plug-in or option."""
    return Rubric([(make_reward(config), config.term) for config in rewards], env_weight, retries=retries)


def make_reward(config: RewardConfig) -> Scorer | GroupScorer:
    """One scorer: a plug-in of this process, or a verifier behind gRPC."""
    if config.use is not None:
        make = make_group_scorer if find_plugin(config.use).level == "group" else make_scorer
        return make(config.use, config.name, config.args)
    from .remote.client import RemoteVerifier

    assert config.verifier is not None
    return RemoteVerifier(config.name, config.verifier, config.deadline_s or VERIFIER_DEADLINE_S, config.verifier_id or "")
