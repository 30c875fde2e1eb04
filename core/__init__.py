"""burnish: bring an environment, a reward and your tools; improve a model at them, prove it, and serve it.

The public API. Names load on first use, so importing `burnish` costs nothing and brings in neither torch nor Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish.envs.contract import ENVS, make_env
    from burnish.envs.drawing import DrawnEpisode, draws
    from burnish.envs.failures import EpisodeFailure, Failure, FailureKind
    from burnish.envs.tools import ToolContext, ToolRejected, ToolSet, tool
    from burnish.envs.types import Episode, EpisodeGroup, Message, Reward, Task, ToolCall, Trajectory, Turn
    from burnish.recipe.config import RunConfig
    from burnish.recipe.load import load_config
    from burnish.recipe.resolve import ResolvedRun, resolve
    from burnish.recipe.tracking import TrackedRun, tracker
    from burnish.rewards.plugin import REWARDS, reward
    from burnish.rewards.remote.service import verifier
    from burnish.rewards.rubric import Rubric
    from burnish.rewards.types import RewardInput, Score, TurnInput

_HOME = {
    "DrawnEpisode": "envs.drawing",
    "ENVS": "envs.contract",
    "REWARDS": "rewards.plugin",
    "Episode": "envs.types",
    "EpisodeFailure": "envs.failures",
    "EpisodeGroup": "envs.types",
    "Failure": "envs.failures",
    "FailureKind": "envs.failures",
    "Message": "envs.types",
    "Reward": "envs.types",
    "RewardInput": "rewards.types",
    "Rubric": "rewards.rubric",
    "ResolvedRun": "recipe.resolve",
    "RunConfig": "recipe.config",
    "Score": "rewards.types",
    "Task": "envs.types",
    "ToolCall": "envs.types",
    "ToolContext": "envs.tools",
    "ToolRejected": "envs.tools",
    "ToolSet": "envs.tools",
    "TrackedRun": "recipe.tracking",
    "Trajectory": "envs.types",
    "Turn": "envs.types",
    "TurnInput": "rewards.types",
    "draws": "envs.drawing",
    "load_config": "recipe.load",
    "make_env": "envs.contract",
    "resolve": "recipe.resolve",
    "reward": "rewards.plugin",
    "tool": "envs.tools",
    "tracker": "recipe.tracking",
    "verifier": "rewards.remote.service",
}

__all__ = [
    "ENVS",
    "REWARDS",
    "DrawnEpisode",
    "Episode",
    "EpisodeFailure",
    "EpisodeGroup",
    "Failure",
    "FailureKind",
    "Message",
    "ResolvedRun",
    "Reward",
    "RewardInput",
    "Rubric",
    "RunConfig",
    "Score",
    "Task",
    "ToolCall",
    "ToolContext",
    "ToolRejected",
    "ToolSet",
    "TrackedRun",
    "Trajectory",
    "Turn",
    "TurnInput",
    "draws",
    "load_config",
    "make_env",
    "resolve",
    "reward",
    "tool",
    "tracker",
    "verifier",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'burnish' has no attribute {name!r}")
    value = getattr(import_module(f"burnish.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
