"""Environments: message types, failures, the Gymnasium contract, tools, and what burnish brings along.

Importing this package makes every installed environment known to gymnasium (`gym.make("burnish.envs:burnish/Arithmetic-v0")`) without
importing any of them.
"""

from .contract import ENVS, ConversationEnv, Observation, StepInfo, make_env, register_env, register_installed
from .types import Message, Task

register_installed()

__all__ = ["ENVS", "ConversationEnv", "Message", "Observation", "StepInfo", "Task", "make_env", "register_env"]
