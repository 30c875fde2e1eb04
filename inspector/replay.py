"""Replaying a stored episode: the recorded actions go through a fresh environment, and the first answer that differs is named.

Compared are, step by step, the messages, the reward, and whether the episode ended there; at the end the parts of the reward, what the
environment measured, and the hidden truth. Numbers must be equal to the bit: the environment was given the same seed and the same words.
Step 0 is the reset, step N the answer to the policy's turn N.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from ..envs.contract import ConversationEnv, StepInfo, make_env, reset_env, step_env
from ..envs.failures import EpisodeFailure, Failure, FailureKind, boundary
from ..envs.types import Message, Truncation
from ..rollout.store.episodes import plain, text
from .stored import StoredEpisode, is_own_metric
from .turns import spoken_in

T = TypeVar("T")

Field = Literal["messages", "reward", "ended", "parts", "metrics", "data", "failure"]


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first thing in which the environment is another than it was: at which step, in what, as it was recorded and as it is now.

    Example: `Divergence(2, "reward", 0.0, 1.0)`.
    """

    step: int
    field: Field
    recorded: Any
    now: Any


@dataclass(frozen=True, slots=True)
class Player:
    """What plays recorded episodes: an environment by its id and what it is made with, the threads that its calls run in, and the seconds
    that one call may take. Example: `Player("burnish/Arithmetic-v0", {}, Daemons("replay"), 60.0)`."""

    env_id: str
    env_args: Mapping[str, Any]
    threads: Executor
    step_timeout_s: float

    def call(self, call: Callable[[], T], what: str) -> T:
        """Run environment code under its deadline. Raises EpisodeFailure when it passes."""
        try:
            return self.threads.submit(call).result(self.step_timeout_s)
        except TimeoutError as error:
            late = Failure(FailureKind.ENV_TIMEOUT, f"{self.env_id} {what}", f"no answer within {self.step_timeout_s:g} s")
            raise EpisodeFailure(late) from error


def why_not(episode: StoredEpisode) -> str | None:
    """Why an episode cannot be replayed, None when it can."""
    if episode.failure is not None:
        return f"it failed ({episode.failure}), so its record may end anywhere"
    if len(spoken_at(episode)) != episode.turns or len(episode.env_rewards) != episode.turns:
        return "its messages and its turns do not fit together"
    return None


def play_again(episode: StoredEpisode, player: Player) -> Divergence | None:
    """Step through one episode; what differs first, None when nothing does. Raises ValueError where `why_not` has a reason."""
    reason = why_not(episode)
    if reason is not None:
        raise ValueError(f"{episode.where} cannot be replayed: {reason}")
    at = _At()
    try:
        env = player.call(lambda: _made(player), "make")
        try:
            return next(_differences(episode, env, player, at), None)
        finally:
            with contextlib.suppress(EpisodeFailure):  # the episode is over, whether or not its remains go
                player.call(lambda: _closed(env, player), "close")
    except EpisodeFailure as error:
        return Divergence(at.step, "failure", None, str(error.failure))


@dataclass
class _At:
    """How far a replay has come."""

    step: int = 0
    info: StepInfo = field(default_factory=StepInfo)


def _made(player: Player) -> ConversationEnv:
    with boundary(FailureKind.ENV_ERROR, player.env_id):
        return make_env(player.env_id, **player.env_args)


def _closed(env: ConversationEnv, player: Player) -> None:
    with boundary(FailureKind.ENV_ERROR, player.env_id):
        env.close()


def _differences(episode: StoredEpisode, env: ConversationEnv, player: Player, at: _At) -> Iterator[Divergence]:
    """What differs, in the order of the episode; nothing after the first is worth reading."""
    spoken, said = spoken_at(episode), episode.messages
    opening = said[len(episode.task.prompt) : spoken[0] if spoken else len(said)]
    parser = episode.env_data.get("tool_parser")
    messages, at.info = player.call(
        lambda: reset_env(env, player.env_id, episode.task, episode.id, parser if isinstance(parser, str) else None), "reset"
    )
    yield from _other_messages(0, opening, messages)
    total = 0.0
    for turn, start in enumerate(spoken):
        at.step, is_last = turn + 1, turn + 1 == len(spoken)
        recorded = said[start + 1 : len(said) if is_last else spoken[turn + 1]]
        step = player.call(lambda text=said[start].text: step_env(env, player.env_id, text), "step")  # type: ignore[misc]
        at.info, total = at.info.then(step.info), total + step.reward
        ended = is_last and not recorded and episode.truncation != "env"  # what an episode ended with is not stored
        was, now = _ending(ended, is_last and episode.truncation == "env"), _ending(step.terminated, step.truncated)
        if was != now:
            yield Divergence(at.step, "ended", was, now)
        if not ended:
            yield from _other_messages(at.step, recorded, step.messages)
        if episode.env_rewards[turn] != step.reward:
            yield Divergence(at.step, "reward", episode.env_rewards[turn], step.reward)
    yield from _other_sums(episode, at, total)


def _other_sums(episode: StoredEpisode, at: _At, total: float) -> Iterator[Divergence]:
    """What is only known of the episode as a whole."""
    if episode.env_reward != total:
        yield Divergence(at.step, "reward", episode.env_reward, total)
    pairs: list[tuple[Field, Mapping[str, Any], Mapping[str, Any]]] = [
        ("parts", episode.env_parts, at.info.reward_parts),
        ("metrics", episode.metrics, at.info.metrics),
        ("data", episode.env_data, at.info.data),
    ]
    for name, recorded, again in pairs:
        was, now = _by_key(recorded), _by_key(again)
        other = sorted(key for key in {**was, **now} if was.get(key) != now.get(key))
        if other:
            yield Divergence(at.step, name, {key: recorded.get(key) for key in other}, {key: again.get(key) for key in other})


def _by_key(values: Mapping[str, Any]) -> dict[str, str]:
    """Each value as JSON, so that what was stored and what was not compare; what the rollout measures itself is left out."""
    return {text(key): json.dumps(plain(value), sort_keys=True) for key, value in values.items() if not is_own_metric(key)}


def spoken_at(episode: StoredEpisode) -> list[int]:
    """Where in an episode's messages the policy's turns are."""
    return spoken_in(episode.messages, episode.turns)


def _other_messages(step: int, was: tuple[Message, ...], now: tuple[Message, ...]) -> Iterator[Divergence]:
    recorded, again = [message.to_dict() for message in was], [plain(message.to_dict()) for message in now]
    if recorded != again:
        first = next((i for i, pair in enumerate(zip(recorded, again, strict=False)) if pair[0] != pair[1]), min(len(recorded), len(again)))
        yield Divergence(step, "messages", recorded[first : first + 1], again[first : first + 1])


def _ending(terminated: bool, truncated: bool) -> Truncation | Literal["done", "goes on"]:
    return "done" if terminated else "env" if truncated else "goes on"
