"""Options of plug-ins: what their annotations make of what a recipe says, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, BeforeValidator

from burnish.rewards.options import check_options
from burnish.rewards.types import RewardInput

pytestmark = pytest.mark.unit


class Level(Enum):
    LOW = "low"


class Band(BaseModel):
    low: float
    open: bool = False


@dataclass(frozen=True)
class Step:
    worth: float
    last: bool = False


def by_kinds(
    _: RewardInput,
    *,
    band: Band | None = None,
    steps: tuple[Step, ...] = (),
    marks: frozenset[int] = frozenset(),
    by_count: Mapping[int, float] | None = None,
    share: Annotated[float, BeforeValidator(lambda said: float(said[:-1]) / 100 if isinstance(said, str) else said)] = 0.0,
    level: Level | None = None,
    file: Path | None = None,
    day: date | None = None,
    either: int | list[int] = 0,
    pair: tuple[int, int] = (0, 0),
) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"band": {"low": "7"}}, r"option 'band\.low': must be a number, not '7'"),
        ({"band": {"low": True}}, r"option 'band\.low': must be a number, not True"),
        ({"band": {"low": 1, "open": "no"}}, r"option 'band\.open': must be true or false, not 'no'"),
        ({"band": {}}, r"needs the option 'band\.low'"),
        ({"band": 3}, "option 'band': must be a table, not 3"),
        ({"steps": [{"worth": 1}, {"worth": True}]}, r"option 'steps\.1\.worth': must be a number, not True"),
        ({"marks": [True]}, "option 'marks': must be an integer, not True"),
        ({"by_count": {"1": True}}, r"option 'by_count\.1': must be a number, not True"),
        ({"by_count": {"one": 1.0}}, r"option 'by_count\.one': must be an integer, not 'one'"),
        ({"share": True}, "option 'share': must be a number, not True"),
        ({"either": "3"}, "option 'either': must be an integer, not '3'"),
        ({"pair": [1]}, r"needs the option 'pair\.1'"),
        ({"day": object()}, "option 'day': has no form in JSON: .*object"),
    ],
)
def test_what_lies_deep_in_an_option_is_read_as_exactly(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        check_options("it", by_kinds, "episode: RewardInput", given)
    assert "\n" not in str(caught.value)


def test_options_are_what_their_annotations_make_of_json() -> None:
    given = {
        "band": {"low": 1, "open": True},
        "steps": [{"worth": 2}],
        "marks": [1, 2],
        "by_count": {"1": 0.5},
        "share": "5%",
        "level": "low",
        "file": "a/b",
        "day": "2024-02-29",
        "either": [1],
    }
    assert check_options("it", by_kinds, "episode: RewardInput", given) == {
        "band": Band(low=1.0, open=True),
        "steps": (Step(2.0),),
        "marks": frozenset({1, 2}),
        "by_count": {1: 0.5},
        "share": 0.05,
        "level": Level.LOW,
        "file": Path("a/b"),
        "day": date(2024, 2, 29),
        "either": [1],
    }
    python = {"band": Band(low=1.0), "marks": {3}, "level": Level.LOW, "file": Path("c"), "day": date(2024, 2, 29)}
    assert check_options("it", by_kinds, "episode: RewardInput", python) == {**python, "marks": frozenset({3})}
