"""RLlib's own PPO on the environment below the text: the agent that `baseline` measures. On one process and CPU."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import ray
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.spaces.space_utils import get_base_struct_from_space, unbatch, unsquash_action
from ray.tune.registry import register_env

from ...rpc.local_ray import start_local_ray

ENV_NAME = "burnish-baseline"


@dataclass(frozen=True, slots=True)
class PPOSettings:
    """What of PPO may be changed. steps: environment steps per iteration, played in `envs` environments. hidden: units of the two layers.

    Example: `PPOSettings(steps=2000)`.
    """

    steps: int = 4000
    envs: int = 16
    epochs: int = 10
    minibatch: int = 256
    lr: float = 5e-4
    gamma: float = 0.99
    entropy: float = 0.005
    hidden: int = 128


@dataclass(frozen=True, slots=True)
class Iteration:
    """What one iteration of training saw. mean_return is None when no episode ended in it. Example: `Iteration(3, 12000, 0.4, 7.5)`."""

    number: int
    steps: int
    mean_return: float | None
    mean_length: float | None


class PPOBaseline:
    """A PPO agent: `train()` an iteration at a time, `act(observation)`, `stop()`. Starts Ray when it does not run.

    make: a function of a number (which of the parallel environments it is) that makes a fresh environment.
    """

    def __init__(self, make: Callable[[int], gymnasium.Env[Any, Any]], seed: int = 0, settings: PPOSettings | None = None) -> None:
        self.settings = settings or PPOSettings()
        self._started_ray = not ray.is_initialized()
        logging.getLogger("ray.rllib").setLevel(logging.ERROR)
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        if self._started_ray:
            start_local_ray(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        register_env(ENV_NAME, lambda context: make(context.vector_index))
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)  # networks this small gain nothing from two, and lose much where the cores are busy
        self._algo = _config(self.settings, seed).build_algo()
        self._steps = self._number = 0
        self._action_space = make(0).action_space

    def train(self) -> Iteration:
        """One iteration: play `settings.steps` steps, then learn from them."""
        result = self._algo.train()
        runners = result["env_runners"]
        self._number += 1
        self._steps = int(runners["num_env_steps_sampled_lifetime"])
        return Iteration(self._number, self._steps, _number(runners, "episode_return_mean"), _number(runners, "episode_len_mean"))

    def act(self, observation: Any) -> Any:
        """The agent's most likely action."""
        module = self._algo.get_module()
        with torch.no_grad():
            out = module.forward_inference({Columns.OBS: torch.as_tensor(observation).unsqueeze(0)})
            distribution = module.get_inference_action_dist_cls().from_logits(out[Columns.ACTION_DIST_INPUTS])
            sampled = distribution.to_deterministic().sample()
        (action,) = unbatch(convert_to_numpy(sampled))
        return unsquash_action(action, get_base_struct_from_space(self._action_space))

    def stop(self) -> None:
        """End the agent, and Ray when this object started it."""
        self._algo.stop()
        torch.set_num_threads(self._threads)
        if self._started_ray:
            ray.shutdown()


def _config(settings: PPOSettings, seed: int) -> PPOConfig:
    config = PPOConfig().environment(ENV_NAME).framework("torch").debugging(seed=seed, log_level="ERROR")
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=settings.envs)
    config.learners(num_learners=0, num_gpus_per_learner=0)
    config.rl_module(
        model_config=DefaultModelConfig(fcnet_hiddens=[settings.hidden, settings.hidden], fcnet_activation="tanh", vf_share_layers=False)
    )
    config.training(
        train_batch_size_per_learner=settings.steps,
        minibatch_size=settings.minibatch,
        num_epochs=settings.epochs,
        lr=settings.lr,
        gamma=settings.gamma,
        lambda_=0.95,
        entropy_coeff=settings.entropy,
        vf_clip_param=float("inf"),
        clip_param=0.2,
        use_kl_loss=False,
        grad_clip=0.5,
    )
    return config


def _number(runners: dict[str, Any], key: str) -> float | None:
    value = runners.get(key)
    return None if value is None or math.isnan(value) else float(value)  # RLlib says NaN where nothing ended
