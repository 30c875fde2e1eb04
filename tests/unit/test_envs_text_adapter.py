"""Ordinary Gymnasium environments played in text."""

from __future__ import annotations

from typing import Any

import gymnasium
import gymnasium.utils.env_checker
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from burnish.envs.builtin.worlds import frozen_lake
from burnish.envs.contract import make_env
from burnish.envs.text.adapter import GymnasiumText
from burnish.envs.text.spaces import Unreadable, describe_space, read_choice, read_numbers, read_parts

pytestmark = pytest.mark.unit

MOVES = ["left", "down", "right", "up"]


class Probe(gymnasium.Env[Any, Any]):
    """Has the spaces it is given, and remembers its actions."""

    def __init__(self, observation_space: Any = None, action_space: Any = None) -> None:
        self.observation_space = observation_space or spaces.Discrete(3)
        self.action_space = action_space or spaces.Discrete(2)
        self.actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.actions.append(action)
        return self.observation_space.sample(), 0.5, False, False, {}


gymnasium.register("test/Probe-v0", entry_point=lambda **kwargs: Probe(**kwargs))


def probe(observation_space: Any = None, action_space: Any = None, **kwargs: Any) -> GymnasiumText:
    return GymnasiumText("test/Probe-v0", {"observation_space": observation_space, "action_space": action_space}, **kwargs)


def test_frozen_lake_is_walked_to_its_goal() -> None:
    env = GymnasiumText("FrozenLake-v1", {"is_slippery": False}, action_names=MOVES)
    (prompt,), _ = env.reset(seed=0)
    assert prompt.text == "This is FrozenLake-v1. Answer with exactly one of: left, down, right, up.\n\n0"
    seen = []
    for move in ["down", "I go DOWN.", "right", "right", "down"]:
        (message,), reward, terminated, truncated, _ = env.step(move)
        seen.append(message.text)
        assert (reward, terminated, truncated) == (0.0, False, False)
    assert seen == ["4", "8", "9", "10", "14"]
    messages, reward, terminated, truncated, info = env.step("right")
    assert (messages, reward, terminated, truncated) == ((), 1.0, True, False)
    assert info["metrics"] == {"env_steps": 6.0, "unreadable_actions": 0.0}
    with pytest.raises(ResetNeeded):
        env.step("right")


def test_an_unreadable_reply_says_what_was_expected_and_does_not_step() -> None:
    env = probe()
    env.reset(seed=0)
    for count, reply in enumerate(["", "0 or 1", "2", "zero"], start=1):
        (message,), reward, terminated, truncated, info = env.step(reply)
        assert (message.text, reward, terminated, truncated) == ("Answer with exactly one of: 0, 1.", 0.0, False, False)
        assert info["metrics"] == {"env_steps": 0.0, "unreadable_actions": float(count)}
    assert env._env.unwrapped.actions == []  # type: ignore[attr-defined]


def test_the_turn_limit_truncates_and_counts_unreadable_replies() -> None:
    env = probe(max_turns=3)
    env.reset(seed=0)
    assert [env.step(reply)[2:4] for reply in ("1", "?", "1")] == [(False, False), (False, False), (False, True)]


def test_the_inner_environments_own_limit_truncates() -> None:
    env = GymnasiumText("FrozenLake-v1", {"is_slippery": False, "max_episode_steps": 2}, action_names=MOVES)
    env.reset(seed=0)
    assert [env.step("left")[2:4] for _ in range(2)] == [(False, False), (False, True)]


def test_frozen_lake_maps_follow_the_seed() -> None:
    env = make_env("burnish/FrozenLake-v0")
    prompts = [env.reset(seed=seed)[0][0].text for seed in (1, 2, 1)]
    assert prompts[0] == prompts[2] != prompts[1]
    lake = prompts[0].split("\n\n")[1].split("\n")
    assert [len(row) for row in lake] == [4, 4, 4, 4]
    assert (lake[0][0], lake[3][3]) == ("P", "G")
    (message,), *_ = env.step("left")  # against the edge: nothing moves
    assert message.text.split("\n") == lake
    with pytest.raises(ValueError, match="size must be at least 2"):
        frozen_lake(size=1)


@pytest.mark.parametrize(
    ("space", "value", "text"),
    [
        (spaces.Discrete(5), np.int64(3), "3"),
        (spaces.Box(-1, 1, (2,)), np.array([0.5, -0.25], np.float32), "[0.5, -0.25]"),
        (spaces.Box(0, 9, (2, 2), np.int64), np.array([[1, 2], [3, 4]]), "[[1, 2],\n [3, 4]]"),
        (spaces.Box(0, 1, ()), np.float32(1 / 3), "0.3333"),
        (spaces.MultiDiscrete([3, 4]), np.array([1, 2]), "[1, 2]"),
        (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), "[1, 0, 1]"),
        (spaces.Text(9), "abc", "abc"),
        (spaces.Tuple((spaces.Discrete(3), spaces.Discrete(3))), (1, 2), "0: 1\n1: 2"),
        (
            spaces.Dict(angle=spaces.Box(0, 1, (1,)), gear=spaces.Discrete(3)),
            {"angle": np.array([0.5]), "gear": 2},
            "angle: [0.5]\ngear: 2",
        ),
    ],
)
def test_observations_in_words(space: spaces.Space[Any], value: Any, text: str) -> None:
    assert describe_space(space, value) == text


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("left", 0),
        ("LEFT.", 0),
        ("**right**", 2),
        ("action: up left", 4),
        ("I pass down", 1),
        ("left left", 0),
        ("left or right", None),
        ("leftover", None),
        ("", None),
    ],
)
def test_reading_one_of_several_names(text: str, action: int | None) -> None:
    read = read_choice([*MOVES, "up left"])
    expected = Unreadable("Answer with exactly one of: left, down, right, up, up left.")
    assert read(text) == (expected if action is None else action)


def test_numbered_actions_start_where_the_space_does() -> None:
    read = read_choice(["-1", "0", "1"], start=-1)
    assert [read(text) for text in ("-1", "0", "1", "I choose 1.")] == [-1, 0, 1, 1]
    assert all(isinstance(read(text), Unreadable) for text in ("10", "1.5", "0.1", "2", "--1"))


@pytest.mark.parametrize(
    ("space", "text", "action"),
    [
        (spaces.Box(-2, 2, (1,)), "torque -1.5", [-1.5]),
        (spaces.Box(-1, 1, (2,)), "[0.5, -1e-1]", [0.5, -0.1]),
        (spaces.Box(-1, 1, (2, 2)), "1 0 0 1", [[1, 0], [0, 1]]),
        (spaces.MultiDiscrete([3, 4], start=[0, 1]), "2 and 4", [2, 4]),
        (spaces.MultiBinary(3), "1,0,1", [1, 0, 1]),
    ],
)
def test_reading_numbers(space: spaces.Space[Any], text: str, action: list[Any]) -> None:
    read = read_numbers(space)(text)
    assert read in space
    assert np.allclose(read, action)


@pytest.mark.parametrize("text", ["", "0.5", "1 2 3", "0.5 1.5", "nan inf", "1e999 0", "9" * 5000 + " 1"])
def test_numbers_outside_the_space_are_unreadable(text: str) -> None:
    assert read_numbers(spaces.Box(-1, 1, (2,)))(text) == Unreadable("Answer with 2 numbers between [-1, -1] and [1, 1].")


def test_whole_numbers_are_asked_for_and_kept_whole() -> None:
    read = read_numbers(spaces.MultiDiscrete([3, 4], start=[0, 1]))
    assert read("1.5 2") == read("99999999999999999999 1") == Unreadable("Answer with 2 whole numbers, each from [0, 1] to [2, 4].")


def test_text_actions_pass_when_they_lie_in_the_space() -> None:
    env = probe(action_space=spaces.Text(3))
    env.reset(seed=0)
    env.step("abc")
    assert env._env.unwrapped.actions == ["abc"]  # type: ignore[attr-defined]
    assert env.step("abcd")[4]["metrics"] == {"env_steps": 1.0, "unreadable_actions": 1.0}


def test_functions_of_ones_own() -> None:
    env = probe(
        spaces.Graph(spaces.Discrete(3), None),
        spaces.Tuple((spaces.Discrete(2),)),
        describe=lambda observation, inner: f"{len(observation.nodes)} nodes of {type(inner.unwrapped).__name__}",
        read_action=lambda text, inner: (1,) if text == "go" else Unreadable("Say go."),
        instructions="Play.",
    )
    (prompt,), _ = env.reset(seed=0)
    assert prompt.text.startswith("Play.\n\n") and prompt.text.endswith("nodes of Probe")
    assert env.step("stay")[0][0].text == "Say go."
    env.step("go")
    assert env._env.unwrapped.actions == [(1,)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: GymnasiumText("Nowhere-v1"), "gymnasium cannot make 'Nowhere-v1'"),
        (lambda: GymnasiumText("FrozenLake-v1", {"is_slipery": True}), "is_slipery"),
        (lambda: GymnasiumText("FrozenLake-v1", action_names=["a", "b"]), "action_names needs 4 different names"),
        (lambda: probe(action_space=spaces.Box(0, 1), action_names=["a"]), "suits Discrete actions only"),
        (lambda: probe(action_space=spaces.Tuple((spaces.Graph(spaces.Discrete(3), None),))), "have no reader; pass read_action"),
        (lambda: probe(say_action=lambda action, env: "a"), "say_action is the reverse of a read_action"),
        (lambda: probe(success="won"), 'success must be a return, such as 1.0, or "terminated"'),
        (lambda: probe(describe="nowhere:words"), "describe: module nowhere cannot be imported"),
        (lambda: probe(describe="words"), "describe: 'words' must read module:function or file.py:function"),
        (lambda: probe(spaces.Box(0, 255, (64, 64, 3), np.uint8)), "an observation of 12288 numbers cannot be put in words; pass describe"),
        (lambda: probe(spaces.Dict(a=spaces.Graph(spaces.Discrete(3), None))), "an observation of Dict cannot be put in words"),
        (lambda: probe(read_action=lambda text, env: 0, action_names=["a", "b"]), "action_names has no effect beside read_action"),
        (lambda: probe(max_turns=0), "max_turns must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_played_in_text_is_refused_when_made(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


ARM = spaces.Dict(
    gear=spaces.Discrete(3),
    arm=spaces.Dict(angle=spaces.Box(-1, 1, (2,)), hold=spaces.MultiBinary(2)),
    pair=spaces.Tuple((spaces.Discrete(2, start=5), spaces.Text(4))),
)


def test_actions_with_parts_are_a_line_for_each() -> None:
    read = read_parts(ARM)
    action = read("I turn.\ngear: 2\n- arm.angle: 0.5, -1\narm.hold = [1, 0]\nPAIR.0: 6\n**pair.1**: ab\nnote: none")
    assert action in ARM
    assert (action["gear"], action["pair"]) == (2, (6, "ab"))
    assert action["arm"]["angle"].tolist() == [0.5, -1.0] and action["arm"]["hold"].tolist() == [1, 0]


def test_many_parts_behind_blank_lines_and_marks_are_read() -> None:
    space = spaces.Dict({f"p{i}": spaces.Discrete(2) for i in range(100)})
    lines = "\n".join(f"{' *-`'[i % 4]} \u00a0p{i}*: 1" for i in range(100))
    assert read_parts(space)("\n" * (4096 - len(lines)) + lines) == {f"p{i}": 1 for i in range(100)}


def test_parts_whose_names_differ_only_in_case_are_read_as_they_are_written() -> None:
    space = spaces.Dict({"x": spaces.Discrete(3), "X": spaces.Discrete(3)})
    assert read_parts(space)("x: 1\nX: 2") == {"x": 1, "X": 2}
    assert isinstance(read_parts(space)("x: 1"), Unreadable)
    assert read_parts(spaces.Dict({"Gear": spaces.Discrete(3)}))("GEAR = 2") == {"Gear": 2}, "any case where it cannot be mistaken"
    with pytest.raises(ValueError, match="have no reader"):
        read_parts(spaces.Dict({"a.b": spaces.Discrete(2), "a": spaces.Dict({"b": spaces.Discrete(2)})}))


@pytest.mark.parametrize(
    ("value", "words"),
    [(100001.0, "100001"), (-12345.6, "-12346"), (9999.97, "10000"), (999.97, "1000"), (0.00012345, "0.0001234"), (3.4e38, "3.4e+38")],
)
def test_large_numbers_are_said_in_full(value: float, words: str) -> None:
    assert describe_space(spaces.Box(-np.inf, np.inf, (), np.float64), np.array(value)) == words


def test_a_missing_doubled_or_misread_part_makes_the_reply_unreadable() -> None:
    space = spaces.Dict(gear=spaces.Discrete(3), angle=spaces.Box(0, 1, (1,)))
    read = read_parts(space)
    expected = Unreadable("Answer with a line for each of:\ngear: exactly one of: 0, 1, 2\nangle: 1 number between [0] and [1]")
    for text in (
        "",
        "gear: 1",
        "gear: 1\nangle: 2",
        "gear: 1\ngear: 2\nangle: 0.5",
        "gear: 1 or 2\nangle: 0.5",
        '{"gear": 1, "angle": [0.5]}',
    ):
        assert read(text) == expected, text
    assert read("gear: 1\nangle: 0.5") in space
    with pytest.raises(ValueError, match="have no reader"):
        read_parts(spaces.Tuple((spaces.Graph(spaces.Discrete(3), None),)))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(5, start=-2),
        spaces.Box(-1, 1, (2, 2)),
        spaces.Box(-np.inf, np.inf, (3,), np.float64),
        spaces.Box(0, 255, (2,), np.uint8),
        spaces.MultiDiscrete([3, 4], start=[0, 1]),
        spaces.MultiBinary(3),
        spaces.Text(5),
        ARM,
    ],
    ids=str,
)
def test_what_is_said_reads_back_as_the_same_action(space: spaces.Space[Any]) -> None:
    env = probe(action_space=space)
    env.reset(seed=0)
    space.seed(0)
    for _ in range(20):
        action = space.sample()
        env.step(env.say(action))
        assert gymnasium.utils.env_checker.data_equivalence(_plain(env._env.unwrapped.actions[-1]), _plain(action))  # type: ignore[attr-defined]


def _plain(action: Any) -> Any:
    if isinstance(action, dict):
        return {key: _plain(part) for key, part in action.items()}
    if isinstance(action, tuple):
        return tuple(_plain(part) for part in action)
    return action if isinstance(action, str) else np.asarray(action).tolist()


def test_functions_can_be_named_as_a_recipe_does(tmp_path: Any) -> None:
    file = tmp_path / "words.py"
    file.write_text("def words(observation, env):\n    return f'square {observation}'\ndef read(text, env):\n    return len(text) % 4\n")
    args = {"env_id": "FrozenLake-v1", "env_kwargs": {"is_slippery": False}, "describe": f"{file}:words", "read_action": f"{file}:read"}
    env = make_env("burnish/Gymnasium-v0", **args)
    assert env.reset(seed=0)[0][0].text == "This is FrozenLake-v1.\n\nsquare 0"
    assert env.step("a")[0][0].text == "square 4"
    with pytest.raises(ValueError, match=r"read_action: .*words.py has no function 'reed'; did you mean 'read'\?"):
        make_env("burnish/Gymnasium-v0", **{**args, "read_action": f"{file}:reed"})
    with pytest.raises(ValueError, match="pass say_action"):
        env.say(1)  # type: ignore[attr-defined]
    told = make_env("burnish/Gymnasium-v0", **args, say_action=lambda action, env: "x" * action)
    assert told.say(3) == "xxx"  # type: ignore[attr-defined]


def test_success_is_a_part_of_the_reward_from_the_first_moment() -> None:
    env = GymnasiumText("FrozenLake-v1", {"is_slippery": False}, action_names=MOVES, success=1.0)
    assert env.reset(seed=0)[1]["reward_parts"] == {"success": 0.0}
    parts = [env.step(move)[4]["reward_parts"]["success"] for move in ["down", "down", "right", "right", "down", "right"]]
    assert parts == [0, 0, 0, 0, 0, 1]
    assert probe(max_turns=1, success="terminated").succeeded(9.0, terminated=False) is False
    assert probe().succeeded(9.0, terminated=True) is None


def test_the_native_environment_has_the_same_tasks_and_the_same_limit() -> None:
    text, native = probe(spaces.Discrete(1000), max_turns=3), probe(spaces.Discrete(1000), max_turns=3).native_env()
    for seed in range(5):
        assert text.reset(seed=seed)[0][0].text.endswith(f"\n\n{native.reset(seed=seed)[0]}")
        for turn in range(3):
            (observation, *_, truncated, _), spoken = native.step(1), text.step("1")
            assert truncated == spoken[3] == (turn == 2)
            assert turn == 2 or spoken[0][0].text == str(observation)
