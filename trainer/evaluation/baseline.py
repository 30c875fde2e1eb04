"""What an ordinary agent reaches on an environment that a language model plays in text: the ceiling to compare the policy with.

The agent sees the environment below the text (`GymnasiumText.native_env`): the same tasks for the same seeds, in numbers. Everything
here is free of Ray and torch; `ppo_baseline` trains the agent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, TransformObservation

from ...envs.text.adapter import GymnasiumText
from ...envs.types import Message
from ...rollout.store.intervals import mean_interval, wilson_interval

Act = Callable[[Any], Any]
"""An observation of `agent_env` to an action of it."""


@dataclass(frozen=True, slots=True)
class AgentEpisode:
    """One episode of an agent: its actions as the native environment takes them, the return, and how it ended.

    Example: `AgentEpisode(17, (2, 2, 1), 1.0, True, True)`.
    """

    seed: int
    actions: tuple[Any, ...]
    episode_return: float
    terminated: bool
    success: bool | None


@dataclass(frozen=True, slots=True)
class AgentResult:
    """What an agent reached on held-out seeds, with 95 % intervals. success is None where the environment does not say what success is.

    Example: `AgentResult("PPO", 200, 0.98, (0.96, 1.0), 0.98, (0.95, 0.99), 6.2)`.
    """

    agent: str
    episodes: int
    mean_return: float
    return_interval: tuple[float, float]
    success: float | None
    success_interval: tuple[float, float] | None
    mean_steps: float


class AgentEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """The native environment as PPO takes it: observations one flat float32 vector (Discrete parts one-hot), actions counted from 0.

    seeds: the half-open range that episodes come from when `reset` is given no seed of a task; which ones follows from `order`.
    Raises ValueError when observations or actions cannot be turned into numbers.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], seeds: tuple[int, int], order: int = 0) -> None:
        if not env.observation_space.is_np_flattenable:
            raise ValueError(f"observations of {env.observation_space} are no fixed number of numbers, so PPO cannot take them")
        flat: gymnasium.Env[Any, Any] = FlattenObservation(env)
        assert isinstance(flat.observation_space, spaces.Box)
        low, high = (bound.astype(np.float32) for bound in (flat.observation_space.low, flat.observation_space.high))
        super().__init__(TransformObservation(flat, lambda numbers: numbers.astype(np.float32), spaces.Box(low, high, dtype=np.float32)))
        self.action_space, self._native = plain_actions(env.action_space)
        self._seeds, self._order = seeds, np.random.default_rng(order)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a task drawn from `seeds`; a seed seeds the drawing, as an agent's trainer expects."""
        if seed is not None:
            self._order = np.random.default_rng([seed, 1])
        return self.env.reset(seed=int(self._order.integers(*self._seeds)))

    def start(self, seed: int) -> Any:
        """The first observation of the task with this seed."""
        return self.env.reset(seed=seed)[0]

    def native_action(self, action: Any) -> Any:
        return self._native(action)

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(self._native(action))
        return observation, float(reward), terminated, truncated, info


def plain_actions(space: spaces.Space[Any]) -> tuple[spaces.Space[Any], Callable[[Any], Any]]:
    """The space as PPO's distributions know it (counted from 0, MultiBinary as MultiDiscrete), and the way back from its actions.

    Raises ValueError for a kind of space that PPO cannot sample.
    """
    match space:
        case spaces.Discrete():
            first = int(space.start)
            return spaces.Discrete(int(space.n)), lambda action: int(action) + first
        case spaces.MultiDiscrete():
            start, dtype = space.start, space.dtype
            return spaces.MultiDiscrete(space.nvec), lambda action: (np.asarray(action) + start).astype(dtype)
        case spaces.MultiBinary():
            return spaces.MultiDiscrete(np.full(space.shape, 2)), lambda action: np.asarray(action, dtype=np.int8)
        case spaces.Box():
            low, high, kind = space.low, space.high, space.dtype
            return space, lambda action: np.clip(np.asarray(action, dtype=kind), low, high)
        case spaces.Dict():
            parts = {key: plain_actions(part) for key, part in space.spaces.items()}
            plain = spaces.Dict({key: part for key, (part, _) in parts.items()})
            return plain, lambda action: {key: back(action[key]) for key, (_, back) in parts.items()}
        case spaces.Tuple():
            items = [plain_actions(part) for part in space.spaces]
            return spaces.Tuple([part for part, _ in items]), lambda action: tuple(back(action[i]) for i, (_, back) in enumerate(items))
    raise ValueError(f"actions of {space} cannot be sampled by PPO")


def play(env: AgentEnv, text: GymnasiumText, act: Act, seeds: Sequence[int]) -> Iterator[AgentEpisode]:
    """An episode of the agent for each seed; `text` says what success is."""
    for seed in seeds:
        observation, actions, total = env.start(seed), list[Any](), 0.0
        terminated = truncated = False
        while not (terminated or truncated):
            action = act(observation)
            actions.append(env.native_action(action))
            observation, reward, terminated, truncated, _ = env.step(action)
            total += reward
        yield AgentEpisode(seed, tuple(actions), total, terminated, text.succeeded(total, terminated))


def random_agent(space: spaces.Space[Any], seed: int = 0) -> Act:
    """An agent that samples its actions from the space."""
    space.seed(seed)
    return lambda observation: space.sample()


def measure(agent: str, episodes: Sequence[AgentEpisode]) -> AgentResult:
    """Means over at least two episodes. The interval of the return is Student's, that of success Wilson's.

    Raises ValueError on fewer than two episodes.
    """
    if len(episodes) < 2:
        raise ValueError(f"an interval needs at least two episodes, got {len(episodes)}")
    returns = np.array([episode.episode_return for episode in episodes])
    mean = float(returns.mean())
    spread = mean_interval(mean, float(returns.std(ddof=1)), len(returns))
    known = [float(episode.success) for episode in episodes if episode.success is not None]
    success = sum(known) / len(known) if known else None
    interval = wilson_interval(success, len(known)) if success is not None else None
    steps = float(np.mean([len(episode.actions) for episode in episodes]))
    return AgentResult(agent, len(episodes), mean, spread, success, interval, steps)


def report_lines(rows: Sequence[AgentResult]) -> list[str]:
    """A table for a terminal, one agent a line."""
    cells = [("", "mean return", "95 % interval", "success", "95 % interval", "steps")]
    for row in rows:
        share = "" if row.success is None else f"{row.success:.1%}"
        between = "" if row.success_interval is None else f"{row.success_interval[0]:.1%} to {row.success_interval[1]:.1%}"
        low, high = row.return_interval
        cells.append((row.agent, _figure(row.mean_return), f"{_figure(low)} to {_figure(high)}", share, between, f"{row.mean_steps:.1f}"))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _figure(value: float) -> str:
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.3g}"


def expert(episode: AgentEpisode, threshold: float | None) -> bool:
    """Whether an episode is fit to be shown: its return is at or above the threshold, or without one, it succeeded."""
    return bool(episode.success) if threshold is None else episode.episode_return >= threshold


def conversation(text: GymnasiumText, episode: AgentEpisode) -> list[Message]:
    """The episode as the language policy would have had it: prompt, replies in the adapter's words, answers.

    Raises ValueError when the text environment does not give the same return for the same actions.
    """
    messages, _ = text.reset(seed=episode.seed)
    talk, total, over = list(messages), 0.0, False
    for action in episode.actions:
        if over:
            break
        reply = text.say(action)
        answer, reward, terminated, truncated, _ = text.step(reply)
        talk += [Message("assistant", reply), *answer]
        total, over = total + float(reward), terminated or truncated
    if not over or not math.isclose(total, episode.episode_return, rel_tol=1e-6, abs_tol=1e-6):
        raise ValueError(
            f"seed {episode.seed}: in text, {len(episode.actions)} expert actions return {total:g} instead of {episode.episode_return:g}; "
            "the environment is not deterministic under its seed, or say_action is not the reverse of read_action"
        )
    return talk


def write_demonstrations(text: GymnasiumText, episodes: Sequence[AgentEpisode], out: Path) -> None:
    """Write a `{"messages": […]}` line per episode, as `[sft] data = …` reads it. Raises ValueError as `conversation` does."""
    lines = [json.dumps({"messages": [message.to_dict() for message in conversation(text, episode)]}) for episode in episodes]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(line + "\n" for line in lines))
