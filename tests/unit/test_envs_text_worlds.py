"""Gymnasium's small worlds in text: a script that only reads the words plays each, and earns what the native environment gives."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from burnish.envs.contract import make_env
from burnish.envs.text.adapter import GymnasiumText

pytestmark = pytest.mark.unit

MOVES = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}
COMPASS = {"south": (1, 0), "north": (-1, 0), "east": (0, 1), "west": (0, -1)}


def shortest(start: tuple[int, int], goal: tuple[int, int], moves: dict[str, tuple[int, int]], free: Callable[..., bool]) -> list[str]:
    """The names of the moves on a shortest way; free(from, to) says whether a move is allowed."""
    ways: dict[tuple[int, int], list[str]] = {start: []}
    queue = deque([start])
    while goal not in ways:
        here = queue.popleft()
        for name, (down, right) in moves.items():
            there = (here[0] + down, here[1] + right)
            if there not in ways and free(here, there):
                ways[there] = [*ways[here], name]
                queue.append(there)
    return ways[goal]


def cross(text: str) -> str:
    lake = text.split("\n\n")[-1].split("\n")
    squares = {(r, c): square for r, row in enumerate(lake) for c, square in enumerate(row)}
    where = {square: place for place, square in squares.items()}
    return shortest(where["P"], where["G"], MOVES, lambda _, there: squares.get(there, "H") != "H")[0]


def drive(text: str) -> str:
    at, *others = [(int(row), int(column)) for row, column in re.findall(r"row (\d), column (\d)", text)]
    aboard = "is in the taxi" in text
    goal = others[-1] if aboard else others[0]
    walls = {(row, column) for row, columns in {0: [1], 1: [1], 3: [0, 2], 4: [0, 2]}.items() for column in columns}  # east of it

    def free(here: tuple[int, int], there: tuple[int, int]) -> bool:
        inside = all(0 <= part < 5 for part in there)
        return inside and (here[0] != there[0] or (here[0], min(here[1], there[1])) not in walls)

    way = shortest(at, goal, COMPASS, free)
    return way[0] if way else "drop off" if aboard else "pick up"


def draw(text: str) -> str:
    match = re.search(r"together (\d+)", text)
    assert match
    return "I hit." if int(match[1]) < 17 else "I stick."


def balance(text: str) -> str:
    numbers = dict(re.findall(r"^(.+) \(.*\): (\S+)$", text, re.MULTILINE))
    lean = float(numbers["pole angle"]) + 0.5 * float(numbers["pole angular velocity"])
    return "left" if lean < 0 else "right"


def play(env: Any, seed: int, policy: Callable[[str], str]) -> tuple[float, bool, list[str], float]:
    """Return, whether the episode terminated, the replies, and the success that the environment reported."""
    (message,), info = env.reset(seed=seed)
    total, success, replies, text = 0.0, info["reward_parts"]["success"], [], message.text
    while True:
        replies.append(policy(text))
        messages, reward, terminated, truncated, info = env.step(replies[-1])
        total, success = total + float(reward), success + info["reward_parts"]["success"]
        if terminated or truncated:
            assert info["metrics"] == {"env_steps": float(len(replies)), "unreadable_actions": 0.0}
            return total, terminated, replies, success
        text = messages[0].text


@pytest.mark.parametrize(
    ("id", "policy", "least_success"),
    [
        ("burnish/FrozenLake-v0", cross, 1.0),
        ("burnish/Taxi-v0", drive, 1.0),
        ("burnish/Blackjack-v0", draw, 0.2),
        ("burnish/CartPole-v0", balance, 1.0),
    ],
)
def test_a_script_that_reads_only_the_text_plays_it(id: str, policy: Callable[[str], str], least_success: float) -> None:
    env = make_env(id)
    assert isinstance(env, GymnasiumText)
    native, successes = env.native_env(), []
    for seed in range(30):
        total, terminated, replies, success = play(env, seed, policy)
        successes.append(success)
        assert success == float(bool(env.succeeded(total, terminated)))
        native.reset(seed=seed)
        steps = [native.step(env._read_action(reply, env._env)) for reply in replies]
        assert sum(float(step[1]) for step in steps) == total
        assert [step[2] or step[3] for step in steps] == [False] * (len(replies) - 1) + [True]
    assert np.mean(successes) >= least_success


def test_the_texts() -> None:
    texts = {name: make_env(f"burnish/{name}-v0").reset(seed=3)[0][0].text.split("\n\n")[-1] for name in ("Taxi", "Blackjack", "CartPole")}
    stand = r"(Red|Green|Yellow|Blue) \(row [04], column [034]\)"
    assert re.fullmatch(rf"The taxi is at row \d, column \d\. The passenger waits at {stand}\. The destination is {stand}\.", texts["Taxi"])
    card = r"(ace|[2-9]|10)"
    hand = rf"Your cards: {card}, {card} \(together \d+(, an ace counted as 11)?\)\. The dealer shows: {card}\."
    assert re.fullmatch(hand, texts["Blackjack"])
    assert re.fullmatch(
        r"cart position \(m\): -?0\.\d{4}\ncart velocity \(m/s\): -?0\.\d{4}\n"
        r"pole angle \(rad\): -?0\.\d{4}\npole angular velocity \(rad/s\): -?0\.\d{4}",
        texts["CartPole"],
    )


def test_the_native_lake_shows_what_the_text_shows() -> None:
    env = make_env("burnish/FrozenLake-v0")
    assert isinstance(env, GymnasiumText)
    (message,), _ = env.reset(seed=5)
    native = env.native_env()
    observation, _ = native.reset(seed=5)
    assert observation.shape == (4, 4, 4) and observation in native.observation_space
    drawn = ["".join("FHGP"[int(np.argmax(observation[:, r, c]))] for c in range(4)) for r in range(4)]
    assert "\n".join(drawn) == message.text.split("\n\n")[1]
