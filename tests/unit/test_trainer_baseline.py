"""The baseline's pure parts: numbers for PPO, measuring, and demonstrations in the adapter's own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from burnish.cli.baseline import BaselinePlan, run_baseline
from burnish.envs.contract import make_env, register_env
from burnish.envs.text.adapter import GymnasiumText
from burnish.trainer.data.sources import read_conversations
from burnish.trainer.evaluation.baseline import (
    AgentEnv,
    AgentEpisode,
    conversation,
    expert,
    measure,
    plain_actions,
    play,
    random_agent,
    report_lines,
    write_demonstrations,
)

pytestmark = pytest.mark.unit

RANGE = (0, 1000)


class Guess(gymnasium.Env[Any, Any]):
    """Shows a number from 1 to 3 and pays 1 for saying it, three times. With `unseeded`, pays as the process's dice fall."""

    observation_space = spaces.Dict(number=spaces.Discrete(3, start=1), level=spaces.Box(0, 1, (2,), np.float64))
    action_space = spaces.Discrete(3, start=1)

    def __init__(self, unseeded: bool = False) -> None:
        self.unseeded = unseeded

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.turn = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.turn += 1
        reward = np.random.default_rng().random() if self.unseeded else float(action == self.number)
        return self._observe(), reward, self.turn == 3, False, {}

    def _observe(self) -> Any:
        self.number = int(self.np_random.integers(1, 4))
        return {"number": self.number, "level": np.array([0.5, 1.0])}


gymnasium.register("test/Guess-v0", entry_point=lambda **kwargs: Guess(**kwargs))


def guess(**kwargs: Any) -> GymnasiumText:
    return GymnasiumText("test/Guess-v0", kwargs, success=3.0)


def wise(observation: Any) -> int:
    """Names the number that the observation shows, counted from 0; Dict keys keep their order, so the one-hot number comes first."""
    return int(np.argmax(observation[:3]))


def test_observations_are_one_flat_vector_and_actions_count_from_zero() -> None:
    env = AgentEnv(guess().native_env(), RANGE)
    observation = env.start(7)
    assert observation.dtype == np.float32 and observation in env.observation_space
    assert sorted(observation[:3]) == [0, 0, 1] and observation[3:].tolist() == [0.5, 1.0]
    assert env.action_space == spaces.Discrete(3)
    assert env.native_action(0) == 1


def test_an_agent_trains_on_tasks_of_its_range_only() -> None:
    text = guess()
    first = {seed: AgentEnv(text.native_env(), RANGE).start(seed).tolist() for seed in (4, 5)}
    env = AgentEnv(text.native_env(), (4, 5))
    assert all(env.reset()[0].tolist() == first[4] for _ in range(5))
    one, two = (AgentEnv(text.native_env(), RANGE, order) for order in (0, 1))
    drawn = [[env.reset(seed=seed)[0].tolist() for seed in (3, None, None, None, None, None)] for env in (one, two)]
    assert drawn[0] == drawn[1], "a seed fixes what is drawn"
    assert [one.reset()[0].tolist() for _ in range(9)] != [AgentEnv(text.native_env(), RANGE, 5).reset()[0].tolist() for _ in range(9)]


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([2, 3], start=[1, 5]),
        spaces.MultiBinary(3),
        spaces.Box(-2, 2, (2,)),
        spaces.Tuple((spaces.Discrete(2, start=4), spaces.Dict(a=spaces.MultiBinary(2)))),
    ],
    ids=str,
)
def test_plain_actions_lead_back_into_the_space(space: spaces.Space[Any]) -> None:
    plain, back = plain_actions(space)
    plain.seed(0)
    assert all(back(plain.sample()) in space for _ in range(50))


def test_what_ppo_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be sampled by PPO"):
        plain_actions(spaces.Text(3))

    class Talks(Guess):
        observation_space: Any = spaces.Sequence(spaces.Discrete(3))

    with pytest.raises(ValueError, match="no fixed number of numbers"):
        AgentEnv(Talks(), RANGE)


def test_measuring_by_hand() -> None:
    episodes = [AgentEpisode(i, (1,) * 3, value, True, value >= 3) for i, value in enumerate((3.0, 1.0, 3.0, 1.0))]
    row = measure("PPO", episodes)
    assert (row.mean_return, row.success, row.mean_steps, row.episodes) == (2.0, 0.5, 3.0, 4)
    half = 3.18244631 * np.sqrt(4 / 3) / 2  # Student's t of 3 degrees; standard deviation with n - 1, over the root of n
    assert row.return_interval == pytest.approx((2 - half, 2 + half))
    assert row.success_interval == pytest.approx((0.1500, 0.8500), abs=1e-4)  # Wilson, n = 4
    assert report_lines([row]) == [
        "     mean return  95 % interval  success  95 % interval   steps",
        "PPO  2            0.163 to 3.84  50.0%    15.0% to 85.0%  3.0",
    ]
    silent = measure("x", [AgentEpisode(0, (), 1.0, True, None), AgentEpisode(1, (), 1.0, True, None)])
    assert (silent.success, silent.success_interval, silent.return_interval) == (None, None, (1.0, 1.0))
    with pytest.raises(ValueError, match="at least two episodes, got 1"):
        measure("x", episodes[:1])


def test_an_agent_that_knows_beats_chance() -> None:
    text = guess()
    env = AgentEnv(text.native_env(), RANGE)
    known, chance = (measure("a", list(play(env, text, act, range(300)))) for act in (wise, random_agent(env.action_space)))
    assert (known.mean_return, known.success) == (3.0, 1.0)
    assert chance.mean_return == pytest.approx(1.0, abs=0.2)  # 3 turns, 1 in 3 each


def test_demonstrations_speak_the_adapters_words(tmp_path: Path) -> None:
    text = guess()
    env = AgentEnv(text.native_env(), RANGE)
    episodes = list(play(env, text, wise, range(5)))
    write_demonstrations(text, episodes, tmp_path / "new" / "demos.jsonl")
    read = list(read_conversations(tmp_path / "new" / "demos.jsonl"))
    assert len(read) == 5
    for episode, talk in zip(episodes, read, strict=True):
        assert [message.role for message in talk.messages] == ["user", "assistant"] * 3
        assert [talk.messages[i].text for i in (1, 3, 5)] == [str(action) for action in episode.actions]
        assert [f"number: {talk.messages[i + 1].text}\n" in talk.messages[i].text for i in (0, 2, 4)] == [True] * 3
    row = json.loads((tmp_path / "new" / "demos.jsonl").read_text().splitlines()[0])
    assert set(row) == {"messages"} and set(row["messages"][0]) == {"role", "content"}


def test_only_good_episodes_are_experts() -> None:
    good, bad = AgentEpisode(0, (), 2.0, True, True), AgentEpisode(0, (), 1.0, True, False)
    assert [expert(e, None) for e in (good, bad)] == [True, False]
    assert [expert(e, 1.0) for e in (good, bad)] == [True, True]
    assert [expert(e, 1.5) for e in (good, bad)] == [True, False]


def test_an_environment_that_does_not_repeat_itself_gives_no_demonstrations() -> None:
    text = guess(unseeded=True)
    (episode,) = play(AgentEnv(text.native_env(), RANGE), text, wise, [3])
    with pytest.raises(ValueError, match="not deterministic under its seed"):
        conversation(text, episode)


@pytest.mark.parametrize(
    ("id", "plan", "sentence"),
    [
        ("burnish/Arithmetic-v0", BaselinePlan(), "is a Arithmetic, not an ordinary Gymnasium environment played in text"),
        ("burnish/FrozenLake-v0", BaselinePlan(out=Path("demos.txt")), "conversations go into a .jsonl file"),
        ("burnish/Gymnasium-v0", BaselinePlan(out=Path("demos.jsonl")), "give --threshold R"),
        ("test/Mute-v0", BaselinePlan(out=Path("demos.jsonl"), threshold=1.0), "pass say_action"),
    ],
)
def test_what_cannot_end_well_is_refused_before_training(id: str, plan: BaselinePlan, sentence: str) -> None:
    register_env("test/Mute-v0", mute)
    with pytest.raises(ValueError, match=sentence):
        run_baseline(id, {}, plan, print)


def mute() -> GymnasiumText:
    return GymnasiumText("test/Guess-v0", read_action=lambda text, env: 1)


def test_demonstrations_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "demos.jsonl").write_text("precious")
    with pytest.raises(FileExistsError, match="never overwritten"):
        run_baseline("burnish/FrozenLake-v0", {}, BaselinePlan(out=tmp_path / "demos.jsonl"), print)


def test_the_lake_is_learnable_from_what_the_agent_sees() -> None:
    env = make_env("burnish/FrozenLake-v0")
    assert isinstance(env, GymnasiumText)
    assert AgentEnv(env.native_env(), RANGE).observation_space.shape == (64,)
