"""Rewards that compare the attempts at one task: given when the group is complete, over the members that were judged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium
import pytest

from burnish.envs.contract import ENVS, register_env
from burnish.envs.failures import EpisodeFailure, Failure, FailureKind
from burnish.envs.spaces import MessagesSpace, UnicodeText
from burnish.envs.types import Episode, EpisodeGroup, Message, Reward, Task
from burnish.rewards.rubric import Rubric
from burnish.rewards.terms import Term
from burnish.rewards.types import RewardInput, Score, turns_of
from burnish.rollout.collect import collect
from burnish.rollout.config import RolloutConfig
from burnish.rollout.conversation import EpisodeParts
from burnish.rollout.engine.fake import Reply, ScriptedEngine
from burnish.rollout.episode import run_episode
from burnish.rollout.renderers import TemplateRenderer
from burnish.rollout.store.transcripts import transcript_of
from burnish.trainer.models.tokenizer import train_tokenizer

pytestmark = pytest.mark.unit

ENV_ID = "tests/Numbered-v0"


class Numbered(gymnasium.Env[Any, str]):
    """Two turns; the reward is the number of the attempt, read from its episode id; attempts in `broken` raise."""

    broken: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.observation_space, self.action_space = MessagesSpace(), UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.sample = int((options or {})["episode_id"].partition("/")[2].partition("~")[0])
        self.turns = 0
        return (Message("user", "say done"), Message("assistant", "Shall I?"), Message("user", "yes")), {}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.sample in Numbered.broken:
            raise RuntimeError("the gauge is broken")
        self.turns += 1
        done = self.turns == 2
        return () if done else (Message("user", "again"),), float(self.sample) if done else 0.0, done, False, {}


class Rank:
    """How many members have a lower reward of the environment. Fails as often as told."""

    name = "rank"

    def __init__(self, min_members: int = 2, failures: int = 0) -> None:
        self.min_members, self.failures = min_members, failures
        self.seen: list[list[str]] = []

    async def score_group(self, episodes: Sequence[RewardInput]) -> Sequence[Score | Failure]:
        self.seen.append([one.episode_id for one in episodes])
        if len(self.seen) <= self.failures:
            raise EpisodeFailure(Failure(FailureKind.REWARD_ERROR, "tests/rank-v1", "no quota"))
        return [Score(float(sum(other.env_reward < one.env_reward for other in episodes))) for one in episodes]


class PerTurn:
    name = "brief"

    async def score(self, episode: RewardInput) -> Score:
        values = tuple(-0.1 * (turn.index + 1) for turn in turns_of(episode))
        return Score(sum(values), turns=values)


@pytest.fixture(scope="module")
def parts() -> Iterator[Any]:
    if ENV_ID not in ENVS._loaded:
        register_env(ENV_ID, Numbered)
    tokenizer = train_tokenizer(["say done", "again", "Shall I? yes"] * 20, vocab_size=400, max_length=512)
    reply = Reply([*tokenizer.encode("done", add_special_tokens=False), tokenizer.eos_token_id])
    with ThreadPoolExecutor(8) as threads:

        def make(rubric: Rubric, broken: tuple[int, ...] = ()) -> EpisodeParts:
            Numbered.broken = broken
            limits = RolloutConfig(max_turns=4, max_tokens_per_turn=16, retries=0)
            return EpisodeParts(ENV_ID, {}, ScriptedEngine([reply]), TemplateRenderer(tokenizer), rubric, limits, threads, seed=3)

        yield make


def run(parts: EpisodeParts, group_size: int, seen: list[Episode] | None = None) -> EpisodeGroup:
    async def one() -> EpisodeGroup:
        note = seen.append if seen is not None else None
        (group,) = [group async for group in collect(parts, [Task("train-0", 7)], group_size, 1.0, note)]
        return group

    return asyncio.run(one())


def totals(group: EpisodeGroup) -> list[float | str]:
    return [e.outcome.total if isinstance(e.outcome, Reward) else e.outcome.kind.value for e in group.episodes]


def test_the_group_is_ranked_when_it_is_complete(parts: Any) -> None:
    rank, seen = Rank(), list[Episode]()
    group = run(parts(Rubric([(rank, 2.0)], 1.0)), 3, seen)
    assert totals(group) == [0.0, 1.0 + 2.0, 2.0 + 4.0]
    assert group.episodes[1].reward == Reward(3.0, {"env": 1.0, "rank": 1.0})
    assert rank.seen == [["train-0/0", "train-0/1", "train-0/2"]]
    assert group.comparable
    assert seen == list(group.episodes), "progress is told once the rewards are known"


def test_failed_members_are_left_out_and_stay_failures(parts: Any) -> None:
    rank = Rank()
    group = run(parts(Rubric([(rank, 1.0)], 0.0), broken=(1,)), 3)
    assert totals(group) == [0.0, "env_error", 1.0]
    assert rank.seen == [["train-0/0", "train-0/2"]]
    assert group.comparable


def test_too_few_judged_members_make_a_group_that_must_not_train(parts: Any) -> None:
    rank = Rank(min_members=3)
    group = run(parts(Rubric([(rank, 1.0)], 1.0), broken=(1,)), 3)
    assert not group.comparable
    assert rank.seen == []
    assert group.episodes[2].reward == Reward(2.0, {"env": 2.0})
    assert run(parts(Rubric([(Rank(), 1.0)], 1.0)), 1).episodes[0].reward == Reward(0.0, {"env": 0.0}), "an evaluation has one per task"


def test_a_group_reward_that_stays_down_masks_its_members(parts: Any) -> None:
    recovers = Rank(failures=1)
    assert totals(run(parts(Rubric([(recovers, 1.0)], 0.0, retries=1, backoff_s=0.0)), 2)) == [0.0, 1.0]
    down = Rank(failures=100)
    group = run(parts(Rubric([(down, 1.0)], 1.0, retries=1, backoff_s=0.0), broken=(0,)), 3)
    assert totals(group) == ["env_error", "reward_error", "reward_error"]
    assert "no quota (2 attempts)" in group.episodes[1].outcome.detail  # type: ignore[union-attr]


def test_standardised_rewards_compare_too(parts: Any) -> None:
    rubric = Rubric([(EnvAgain(), Term(1.0, normalize="group"))], 0.0)
    found = totals(run(parts(rubric), 3))
    assert found == [pytest.approx(-(1.5**0.5), abs=1e-4), 0.0, pytest.approx(1.5**0.5, abs=1e-4)]


class EnvAgain:
    name = "again"

    async def score(self, episode: RewardInput) -> Score:
        return Score(episode.env_reward)


def test_values_per_turn_reach_the_transcript(parts: Any) -> None:
    episode = asyncio.run(run_episode(parts(Rubric([(PerTurn(), 1.0)], 0.0)), Task("train-0", 7), 1, 1.0))
    assert episode.reward is not None
    assert episode.reward.turns == {"brief": (-0.1, -0.2)}, "one value per turn; the assistant message of the environment is none"
    assert len(episode.turns) == 2
    stored = transcript_of(episode, run="r", phase="rft", step=1).reward
    assert stored is not None and stored.turns == {"brief": (-0.1, -0.2)}
