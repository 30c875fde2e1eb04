"""`burnish/ReasoningGym-v0`: the made-up questions of reasoning-gym (Stojanovski et al. 2025), where that package is installed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import gymnasium
from gymnasium.error import ResetNeeded

from ..contract import Observation
from ..spaces import MessagesSpace, UnicodeText
from ..types import Message

ID: Final = "burnish/ReasoningGym-v0"
PACKAGE, VERSION = "reasoning-gym", "0.1.25"
"""The release whose scorers were read (`REFUSED`); another may also ask other questions for the same seeds."""
_RUNS = "would run what the policy writes as a program"
_GROWS = "takes hours, or more memory than there is, for a few letters"
_NAN = "takes nan for a right answer"
REFUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            "binary_matrix", "composite", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication", "puzzle24",
            "simple_integration", "spiral_matrix", "string_insertion",
        ),
        _RUNS,
    ),
    **dict.fromkeys(("coin_flip", "propositional_logic", "rubiks_cube", "rush_hour"), _GROWS),
    **dict.fromkeys(("complex_arithmetic", "number_sorting"), _NAN),
    "game_of_life_halting": "takes any answer for a right one",
}  # fmt: skip
"""Sets that are not offered, by what their scorers do. Some run the answer (`eval`, or sympy's `parse_expr`), and `composite` is made of
others. `coin_flip` writes 1e999999999 out, `rubiks_cube` and `rush_hour` make a move as often as the answer says, and
`propositional_logic` lists every assignment of as many variables as the answer names."""
LONGEST: Final = 2000
"""Characters of an answer that is scored, unless the right one is longer than half of that: twice its length then."""
SEEDS: Final = 2**32
SYSTEM = "Think as long as you need, and end with the answer alone between <answer> and </answer>."
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class ReasoningGym(gymnasium.Env[Observation, str]):
    """Asks one question of a set and takes one answer; the reward is what the set's own scorer gives, from 0 to 1.

    dataset: the name of a set, `chain_sum`. config: its own options, `{"max_terms": 3}`; seed and size are the task's.

    The answer is what stands between the last `<answer>` and `</answer>`, or all that was said where they are missing. The part
    `unreadable` is 1 for one that the scorer cannot read, or that is longer than `LONGEST`, which is worth 0.

    Raises ValueError when the package is not installed or is another release, a set or an option is unknown, or a set is in `REFUSED`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  # gymnasium declares it on the instance
    observation_space = MessagesSpace()
    action_space = UnicodeText()
    reward_parts = ("score", "unreadable")

    def __init__(self, dataset: str, config: Mapping[str, Any] | None = None) -> None:
        self.check_args(dataset, config)
        self._name, self._config = dataset, dict(config or {})
        self._dataset: Any = None

    @staticmethod
    def check_args(dataset: str, config: Mapping[str, Any] | None = None) -> None:
        """Raise ValueError as the environment does, for a recipe that is only read."""
        _check_package()
        if not isinstance(dataset, str):
            raise ValueError(f"{ID}: dataset must be the name of a set, not {type(dataset).__name__}")
        if dataset in REFUSED:
            raise ValueError(f"{ID}: {dataset} is not offered: its scorer {REFUSED[dataset]}")
        fixed = sorted({"seed", "size"} & set(config or {}))
        if fixed:
            raise ValueError(f"{ID}: config.{fixed[0]} is the task's; remove it")
        _made(dataset, 0, config or {})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        drawn = seed if seed is not None else int(self.np_random.integers(2**31))
        self._dataset = _made(self._name, drawn % SEEDS, self._config)
        self._entry = self._dataset[0]
        messages = Message("system", SYSTEM), Message("user", str(self._entry["question"]))
        return messages, {"data": {"reference_answer": str(self._entry["answer"]), "dataset": self._name}}

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if self._dataset is None:
            raise ResetNeeded(f"{ID}: the episode is over; call reset() before step()")
        dataset, self._dataset = self._dataset, None
        answer = answer_in(action)
        score, unreadable = 0.0, float(len(answer) > max(LONGEST, 2 * len(str(self._entry["answer"]))))
        if not unreadable:
            try:
                score = float(dataset.score_answer(answer, self._entry))
            except (
                Exception
            ):  # of int() on words, of a key that a list does not have, of nesting: the policy's doing, as the set is checked
                unreadable = 1.0
        if not math.isfinite(score):
            score = 0.0
        return (), score, True, False, {"reward_parts": {"score": score, "unreadable": unreadable}}


def _made(name: str, seed: int, config: Mapping[str, Any]) -> Any:
    """The set of one question that a seed gives."""
    from reasoning_gym import create_dataset

    try:
        return create_dataset(name, seed=seed, size=1, **config)
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"{ID}: dataset {name!r} cannot be made: {error}") from None


def answer_in(said: str) -> str:
    """What is between the last tags, or all of it. Example: `answer_in("2 + 2 is <answer>4</answer>.")` is "4"."""
    found = _ANSWER.findall(said)
    return str(found[-1] if found else said).strip()


def _check_package() -> None:
    install = f"pip install {PACKAGE}=={VERSION}"
    try:
        here = version(PACKAGE)
    except PackageNotFoundError:
        raise ValueError(f"{ID}: {PACKAGE} is not installed here: {install}") from None
    if here != VERSION:
        raise ValueError(f"{ID}: needs {PACKAGE} {VERSION}, whose scorers are known, and {here} is installed: {install}")
