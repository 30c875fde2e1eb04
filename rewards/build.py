"""From a recipe's rewards to the rubric that scores episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

from ..envs.callables import is_async
from .calling.scorers import PluginGroupScorer, scorer_for
from .config import RewardConfig
from .declaration import RewardPlugin
from .plugin import check_params, find_plugin
from .rubric import Rubric
from .types import GroupScorer, Scorer

VERIFIER_DEADLINE_S = 10.0
PATIENT_S = 86_400.0
"""What a call may take while somebody looks at it: a day."""


def make_rubric(rewards: Sequence[RewardConfig], env_weight: float, retries: int, *, patient: bool = False) -> Rubric:
    """The rubric of these rewards; addresses of services must be resolved already. Raises ValueError on an unknown plug-in or option.

    patient: for a debugger. Functions run on the thread of the event loop, so that breakpoints fire there, and a call may take a day.
    """
    return Rubric([(make_reward(config, patient=patient), config.term) for config in rewards], env_weight, retries=retries)


def make_reward(config: RewardConfig, *, patient: bool = False) -> Scorer | GroupScorer:
    """One scorer: a plug-in of this process, or a verifier behind gRPC."""
    if config.use is not None:
        plugin = find_plugin(config.use)
        options = check_params(plugin, config.args)
        make = PluginGroupScorer if plugin.level == "group" else scorer_for
        return make(_patient(plugin) if patient else plugin, config.name, options)
    from .remote.client import RemoteVerifier

    assert config.verifier is not None
    deadline_s = PATIENT_S if patient else config.deadline_s or VERIFIER_DEADLINE_S
    return RemoteVerifier(config.name, config.verifier, deadline_s, config.verifier_id or "")


def _patient(plugin: RewardPlugin) -> RewardPlugin:
    function = plugin.function

    @wraps(function)
    async def on_the_loop(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    called: Callable[..., Any] = function if is_async(function) else on_the_loop
    return replace(plugin, function=called, timeout_s=PATIENT_S, isolation="thread")
