"""Gymnasium's own small worlds, told so that a person can play them: a frozen lake, a taxi, blackjack, a pole on a cart."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ..text.adapter import GymnasiumText, NativeEnv

LAKE_SQUARES = "FHGP"
STANDS = ("Red", "Green", "Yellow", "Blue")
CARDS = {1: "ace"} | {number: str(number) for number in range(2, 11)}


def frozen_lake(size: int = 4, frozen_share: float = 0.8, is_slippery: bool = False, max_turns: int = 50) -> GymnasiumText:
    """`burnish/FrozenLake-v0`: cross a frozen lake, drawn anew from each seed, by answering left, down, right or up.

    size: rows and columns. frozen_share: chance that a square is ice and no hole; there is always a way. is_slippery: whether a move
    may slide sideways. The reward is gymnasium's: 1 at the goal, else 0; reaching the goal is the success. `native_env()` observes the
    whole lake, as the text does, and not only the number of the square.
    """
    if size < 2 or not 0 < frozen_share <= 1:
        raise ValueError(f"burnish/FrozenLake-v0: size must be at least 2 and frozen_share in (0, 1], not {size} and {frozen_share}")

    def draw(seed: int) -> dict[str, Any]:
        from gymnasium.envs.toy_text.frozen_lake import generate_random_map  # only this environment needs it

        lake = generate_random_map(size, frozen_share, seed)
        return {"desc": lake, "is_slippery": is_slippery, "max_episode_steps": max_turns}

    return GymnasiumText(
        "FrozenLake-v1",
        draw,
        action_names=["left", "down", "right", "up"],
        instructions="Cross the lake from S to G. P is you, F is ice, H is a hole. Answer with one move: left, down, right or up.",
        max_turns=max_turns,
        describe=lambda observation, env: "\n".join("".join(row) for row in _lake(observation, env)),
        success=1.0,
        native=WholeLake,
    )


class WholeLake(gymnasium.ObservationWrapper[Any, Any, Any]):
    """FrozenLake as its text shows it: float32 `[4, rows, columns]`, which squares are ice, hole, goal, and where you are."""

    def __init__(self, env: NativeEnv) -> None:
        super().__init__(env)
        rows = env.get_wrapper_attr("desc")
        self.observation_space = spaces.Box(0, 1, (len(LAKE_SQUARES), len(rows), len(rows[0])), np.float32)

    def observation(self, observation: Any) -> Any:
        lake = np.array(_lake(observation, self.env))
        return np.stack([lake == square for square in LAKE_SQUARES]).astype(np.float32)


def _lake(observation: Any, env: NativeEnv) -> list[list[str]]:
    lake = [[square.decode() for square in row] for row in env.get_wrapper_attr("desc")]
    row, column = divmod(int(observation), len(lake[0]))
    lake[row][column] = "P"
    return lake


def taxi(max_turns: int = 50) -> GymnasiumText:
    """`burnish/Taxi-v0`: fetch a passenger and drive to the destination, a step per turn.

    The reward is gymnasium's: -1 a step, -10 for a wrong pick-up or drop-off, +20 for a delivery; a delivery is the success.
    """
    return GymnasiumText(
        "Taxi-v3",
        {"max_episode_steps": max_turns},
        action_names=["south", "north", "east", "west", "pick up", "drop off"],
        instructions=(
            "You drive a taxi on a grid of rows 0 to 4 (north to south) and columns 0 to 4 (west to east). Walls stand between columns 1 "
            "and 2 in rows 0 and 1, and between columns 0 and 1 and between columns 2 and 3 in rows 3 and 4. Fetch the passenger, drive "
            "to the destination and let them out there. Each step costs 1, a pick-up or drop-off in the wrong place 10, a delivery earns "
            "20. Answer with exactly one of: south, north, east, west, pick up, drop off."
        ),
        max_turns=max_turns,
        describe=_describe_taxi,
        success="terminated",
    )


def _describe_taxi(observation: Any, env: NativeEnv) -> str:
    native = env.unwrapped
    row, column, passenger, destination = native.decode(int(observation))  # type: ignore[attr-defined]

    def stand(index: int) -> str:
        place = native.locs[index]  # type: ignore[attr-defined]
        return f"{STANDS[index]} (row {place[0]}, column {place[1]})"

    where = "is in the taxi" if passenger == len(STANDS) else f"waits at {stand(passenger)}"
    return f"The taxi is at row {row}, column {column}. The passenger {where}. The destination is {stand(destination)}."


def blackjack() -> GymnasiumText:
    """`burnish/Blackjack-v0`: get closer to 21 than the dealer by answering hit or stick; cards are drawn with replacement.

    The reward is 1 for a win (the success), 0 for a draw, -1 for a loss.
    """
    return GymnasiumText(
        "Blackjack-v1",
        action_names=["stick", "hit"],
        instructions=(
            "This is blackjack. Get closer to 21 than the dealer without going over. Jack, queen and king count as 10, an ace as 11, or as "
            "1 where 11 would go over. The dealer draws up to 17. Answer with hit (one more card) or stick (no more)."
        ),
        max_turns=21,
        describe=_describe_hand,
        success=1.0,
    )


def _describe_hand(observation: Any, env: NativeEnv) -> str:
    total, shown, usable_ace = (int(part) for part in observation)
    cards = ", ".join(CARDS[int(card)] for card in env.unwrapped.player)  # type: ignore[attr-defined]
    ace = ", an ace counted as 11" if usable_ace else ""
    return f"Your cards: {cards} (together {total}{ace}). The dealer shows: {CARDS[shown]}."


def cart_pole(max_turns: int = 100) -> GymnasiumText:
    """`burnish/CartPole-v0`: keep a pole upright by pushing its cart left or right, a push per turn.

    The reward is 1 per push; balancing for `max_turns` pushes is the success. Numbers have four decimals, a tenth of a millimetre.
    """
    return GymnasiumText(
        "CartPole-v1",
        {"max_episode_steps": max_turns},
        action_names=["left", "right"],
        instructions=(
            "A pole stands on a cart. Keep it upright: the game is lost when the pole leans more than 0.2095 rad or the cart is more than "
            "2.4 m from the middle. Positive numbers are to the right. Answer with a push: left or right."
        ),
        max_turns=max_turns,
        describe=_describe_cart,
        success=float(max_turns),
    )


def _describe_cart(observation: Any, env: NativeEnv) -> str:
    names = ("cart position (m)", "cart velocity (m/s)", "pole angle (rad)", "pole angular velocity (rad/s)")
    return "\n".join(f"{name}: {float(number):.4f}" for name, number in zip(names, observation, strict=True))
