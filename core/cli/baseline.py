"""What `burnish env baseline` does: train PPO below the text, compare it with chance, and write what it does well as conversations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.envs.contract import make_env
from burnish.envs.text.adapter import GymnasiumText
from burnish.trainer.data.config import HELD_OUT_SEEDS, TRAIN_SEEDS
from burnish.trainer.evaluation.baseline import (
    Act,
    AgentEnv,
    AgentEpisode,
    AgentResult,
    expert,
    measure,
    play,
    random_agent,
    report_lines,
    write_demonstrations,
)

TRIES = 10
"""Episodes played per demonstration asked for, before giving up on an agent that does not reach the threshold."""


@dataclass(frozen=True, slots=True)
class BaselinePlan:
    """What to do. tasks: held-out episodes to measure on. out, demonstrations, threshold: where to write conversations, how many, and the
    return from which an episode is shown (None: those that succeed). seed: of the agent.

    Example: `BaselinePlan(iterations=80, out=Path("demos.jsonl"))`.
    """

    iterations: int = 80
    tasks: int = 200
    out: Path | None = None
    demonstrations: int = 500
    threshold: float | None = None
    seed: int = 0


def run_baseline(id: str, args: Mapping[str, Any], plan: BaselinePlan, say: Callable[[str], None]) -> list[AgentResult]:
    """Train, report and write, saying a line per iteration; returns what the random agent and PPO reached on held-out seeds.

    Raises ValueError before anything is trained when the environment is no `GymnasiumText`, its numbers do not suit PPO, or
    demonstrations cannot be told apart or written.
    """
    text = _text_environment(id, args)
    env = AgentEnv(text.native_env(), TRAIN_SEEDS)
    _check(id, plan, text, env)
    seeds = range(HELD_OUT_SEEDS[0], HELD_OUT_SEEDS[0] + plan.tasks)
    chance = measure("random", list(play(env, text, random_agent(env.action_space, plan.seed), seeds)))

    from burnish.trainer.evaluation.ppo_baseline import PPOBaseline  # imports Ray and torch

    agent = PPOBaseline(lambda index: AgentEnv(text.native_env(), TRAIN_SEEDS, index), plan.seed)
    try:
        for _ in range(plan.iterations):
            done = agent.train()
            seen = "no episode ended" if done.mean_return is None else f"mean return {done.mean_return:.3g} in {done.mean_length:.1f} steps"
            say(f"iteration {done.number}/{plan.iterations}  {done.steps} steps  {seen} (exploring)")
        rows = [chance, measure("PPO", list(play(env, text, agent.act, seeds)))]
        say(f"{id} on {plan.tasks} held-out seeds:")
        say("\n".join(f"  {line}" for line in report_lines(rows)))
        if plan.out is not None:
            say(_demonstrate(plan, plan.out, text, env, agent.act))
    finally:
        agent.stop()
    return rows


def _text_environment(id: str, args: Mapping[str, Any]) -> GymnasiumText:
    env = make_env(id, **args)
    if not isinstance(env, GymnasiumText):
        raise ValueError(
            f"environment {id!r} is a {type(env).__name__}, not an ordinary Gymnasium environment played in text (GymnasiumText), so there "
            "are no numbers that PPO could learn from"
        )
    return env


def _check(id: str, plan: BaselinePlan, text: GymnasiumText, env: AgentEnv) -> None:
    if plan.out is None:
        return
    if plan.out.suffix != ".jsonl":
        raise ValueError(f"--out {plan.out}: conversations go into a .jsonl file")
    if plan.out.exists():
        raise FileExistsError(17, "demonstrations are never overwritten; choose another file", str(plan.out))
    if plan.threshold is None and text.succeeded(0.0, terminated=True) is None:
        raise ValueError(f"environment {id!r} does not say what success is; give --threshold R, the return from which an episode is shown")
    text.reset(seed=TRAIN_SEEDS[0])
    text.say(env.native_action(env.action_space.sample()))  # raises now rather than after the training


def _demonstrate(plan: BaselinePlan, out: Path, text: GymnasiumText, env: AgentEnv, act: Act) -> str:
    shown: list[AgentEpisode] = []
    tried = 0
    for episode in play(env, text, act, _training_seeds(plan.demonstrations * TRIES)):
        tried += 1
        if expert(episode, plan.threshold):
            shown.append(episode)
        if len(shown) == plan.demonstrations:
            break
    bar = "that succeed" if plan.threshold is None else f"with a return of {plan.threshold:g} or more"
    if not shown:
        raise ValueError(f"{out} is not written: none of {tried} episodes of PPO is one {bar}; train longer, or lower --threshold")
    write_demonstrations(text, shown, out)
    return f"{out}: {len(shown)} demonstrations {bar}, of {tried} episodes on training seeds"


def _training_seeds(most: int) -> Sequence[int]:
    first, end = TRAIN_SEEDS
    return range(first, min(end, first + most))
