"""Options of plug-ins: what their annotations make of what a recipe says, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import Enum, IntEnum
from pathlib import Path
from typing import Annotated, Any

import pydantic.dataclasses
import pytest
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    ValidationInfo,
    WrapValidator,
    computed_field,
    field_validator,
    model_validator,
)

from burnish.rewards.options import _check_option, check_options, describe_options, takes_option
from burnish.rewards.types import RewardInput

pytestmark = pytest.mark.unit


class Level(Enum):
    LOW = "low"


class Band(BaseModel):
    low: float
    open: bool = False

    @computed_field
    def doubled(self) -> float:
        return 2 * self.low


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


def as_it_is(value: Any) -> Any:
    return value


class Guarded(BaseModel):
    least: int = 0
    names: tuple[str, ...] = ()
    marks: frozenset[int] = frozenset()
    day: date | None = None
    within: tuple[Guarded, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _named(cls, said: Any) -> Any:
        return {"names": [said]} if isinstance(said, str) else said

    @field_validator("marks")
    @classmethod
    def _not_less(cls, marks: frozenset[int], info: ValidationInfo) -> frozenset[int]:
        if min(marks) < info.data["least"]:
            raise ValueError("is too little")
        return marks

    @field_validator("marks", mode="before")
    @classmethod
    def _several(cls, said: Any) -> Any:
        return [said] if isinstance(said, int) else said


def guarded(
    _: RewardInput,
    *,
    one: Guarded | None = None,
    names: Annotated[tuple[str, ...], BeforeValidator(as_it_is), BeforeValidator(as_it_is)] = (),
    marks: Annotated[set[int] | None, WrapValidator(lambda value, read: read(value))] = None,
    day: Annotated[date, BeforeValidator(as_it_is)] = date(2024, 1, 1),
    own: Annotated[Any, BeforeValidator(lambda said: tuple(said))] = (),
    band: Annotated[Band | None, BeforeValidator(lambda said: Band(low=said))] = None,
    either: int | Annotated[tuple[int, ...], BeforeValidator(as_it_is)] = 0,
) -> float:
    return 1.0


def by_guarded(_: RewardInput, *, options: Guarded) -> float:
    return 1.0


def test_what_an_authors_own_validator_gives_back_is_read_as_what_a_recipe_says() -> None:
    own = {"least": 1, "names": ["a"], "marks": [1, 2], "day": "2024-02-29", "within": ["b", {"names": ["c"], "within": ["d"]}]}
    read = Guarded(
        least=1,
        names=("a",),
        marks=frozenset({1, 2}),
        day=date(2024, 2, 29),
        within=(Guarded(names=("b",)), Guarded(names=("c",), within=(Guarded(names=("d",)),))),
    )
    assert check_options("it", by_guarded, "episode: RewardInput", own) == {"options": read}
    assert check_options("it", by_guarded, "episode: RewardInput", {"marks": 3}) == {"options": Guarded(marks=frozenset({3}))}
    given = {"one": own, "names": ["a"], "marks": [1], "day": "2024-02-29", "own": [1], "band": 2, "either": [1, 2]}
    assert check_options("it", guarded, "episode: RewardInput", given) == {
        "one": read, "names": ("a",), "marks": {1}, "day": date(2024, 2, 29), "own": (1,), "band": Band(low=2), "either": (1, 2),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"names": ["a", 1]}, r"option 'names': must be a string, not 1$"),
        ({"names": "a"}, r"option 'names': must be a list, not 'a'$"),
        ({"marks": ["1"]}, r"option 'marks': must be an integer, not '1'$"),
        ({"day": 20000}, r"option 'day': must be a valid date, not 20000$"),
        ({"one": {"least": 3, "marks": [2]}}, r"option 'one\.marks': is too little, not \[2\]$"),
        ({"one": {"within": [{"naems": []}]}}, r"^it has no option 'one\.within\.0\.naems'$"),
        ({"one": {"within": [{"names": ["a", 2]}]}}, r"option 'one\.within\.0\.names': must be a string, not 2$"),
    ],
)
def test_and_as_exactly(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_options("it", guarded, "episode: RewardInput", given)
    with pytest.raises(ValueError, match=r"^it has no option 'naems'; did you mean 'names'"):
        check_options("it", by_guarded, "episode: RewardInput", {"naems": ["a"]})


@pydantic.dataclasses.dataclass
class Week:
    first: date
    shares: tuple[float, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _begun(cls, said: Any) -> Any:
        return said | {"first": date.fromisoformat(said["first"])}


class Planned(BaseModel):
    """Its validator makes what is Python's of some values and leaves the others, and what lies in them, as a recipe has them."""

    day: date
    level: Level = Level.LOW
    words: tuple[str, ...] = ()
    days: tuple[date, ...] = ()
    marks: frozenset[int] = frozenset()
    by_mark: Mapping[int, date] | None = None
    pairs: list[tuple[int, date]] = []
    step: Step | None = None
    week: Week | None = None
    file: Path | None = None
    own: Any = None
    band: Band | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_python(cls, said: Any) -> Any:
        day = date.fromisoformat(said["day"])
        made = {"day": day, "level": Level(said.get("level", "low")), "own": (said.get("own"), day), "band": Band(low=1.0)}
        made |= {"days": [day, *said.get("days", [])], "pairs": tuple(said.get("pairs", [])), "by_mark": {2: day} | said.get("by_mark", {})}
        return said | made


def by_planned(_: RewardInput, *, options: Planned) -> float:
    return 1.0


def test_what_a_validator_leaves_beside_what_it_makes_is_read_as_what_a_recipe_says() -> None:
    day, later = date(2024, 2, 29), date(2024, 3, 1)
    given = {
        **{"day": "2024-02-29", "level": "low", "words": ["a"], "days": ["2024-03-01"], "marks": [1, 2], "by_mark": {"3": "2024-03-01"}},
        **{
            "pairs": [[1, "2024-03-01"]],
            "step": {"worth": 1},
            "week": {"first": "2024-02-29", "shares": [1, 2]},
            "file": "a/b",
            "own": ["b"],
        },
    }
    (read,) = check_options("it", by_planned, "episode: RewardInput", given).values()
    assert (read.day, read.level, read.words, read.days, read.marks) == (day, Level.LOW, ("a",), (day, later), {1, 2})
    assert (read.by_mark, read.pairs, read.step, read.file) == ({2: day, 3: later}, [(1, later)], Step(1.0), Path("a/b"))
    assert (read.week.first, read.week.shares, read.own, read.band) == (day, (1.0, 2.0), (["b"], day), Band(low=1.0))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"words": ["a", 1]}, r"option 'words': must be a string, not 1$"),
        ({"words": "a"}, r"option 'words': must be a list, not 'a'$"),
        ({"days": [20000]}, r"option 'days': must be a valid date, not 20000$"),
        ({"marks": [True]}, r"option 'marks': must be an integer, not True$"),
        ({"by_mark": {"two": "2024-03-01"}}, r"option 'by_mark\.two': must be an integer, not 'two'$"),
        ({"pairs": [["1", "2024-03-01"]]}, r"option 'pairs': must be an integer, not '1'$"),
        ({"step": {"worth": "1"}}, r"option 'step\.worth': must be a number, not '1'$"),
        ({"step": {"worth": 1, "lsat": True}}, r"^it has no option 'step\.lsat'$"),
        ({"wrods": []}, r"^it has no option 'wrods'; did you mean 'words'"),
    ],
)
def test_and_is_refused_as_exactly(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_options("it", by_planned, "episode: RewardInput", {"day": "2024-02-29", **given})


class Count(IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    ("hint", "said", "is_"),
    [
        (date | str, "2024-02-29", date(2024, 2, 29)),
        (dict[Count, int], {"1": 2}, {Count.ONE: 2}),
        (dict[Level | int, Level], {"low": "low", "3": "low"}, {Level.LOW: Level.LOW, 3: Level.LOW}),
        (Sequence[Sequence[date]], [["2024-02-29"]], [[date(2024, 2, 29)]]),
        (complex, 1.5, 1.5 + 0j),
        (list[str] | tuple[int, ...], [1], (1,)),
    ],
)
def test_a_validator_changes_nothing_of_how_what_it_gives_back_is_read(hint: Any, said: Any, is_: Any) -> None:
    for one in (hint, Annotated[hint, BeforeValidator(as_it_is)]):
        read = _check_option("it", "one", one, said)
        assert read == is_ and type(read) is type(is_)


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    band: Band | None = None


class Renamed(BaseModel):
    model_config = ConfigDict(extra="ignore")
    limit: float = Field(1.0, alias="max")
    weight: float = Field(1.0, validation_alias="share")
    first: float = Field(1.0, validation_alias=AliasChoices("one", AliasPath("all", 0)))
    band: Band | None = None
    steps: list[Step] = []
    open: Open | None = None


class ByName(BaseModel):
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=False)
    limit: float = Field(1.0, alias="max")


def by_model(_: RewardInput, *, options: Renamed) -> float:
    return options.limit


def by_name(_: RewardInput, *, options: ByName) -> float:
    return options.limit


def by_open_model(_: RewardInput, *, options: Open) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"limit": 7.0}, "^it has no option 'limit'; known are max, share, one, band, steps, open$"),
        ({"weight": 7.0}, "^it has no option 'weight'; "),
        ({"sahre": 7.0}, "^it has no option 'sahre'; did you mean 'share'"),
        ({"band": {"low": 1, "opne": True}}, r"^it has no option 'band\.opne'$"),
        ({"steps": [{"worth": 1, "lsat": True}]}, r"^it has no option 'steps\.0\.lsat'$"),
        ({"open": {"any": 1, "band": {"low": 1, "high": 2}}}, r"^it has no option 'open\.band\.high'$"),
    ],
)
def test_a_name_that_nothing_reads_is_refused_at_any_depth(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_options("it", by_model, "episode: RewardInput", given)


def test_so_is_one_in_an_option_of_its_own_and_before_what_is_missing_beside_it() -> None:
    with pytest.raises(ValueError, match=r"^it has no option 'band\.lwo'$"):
        check_options("it", by_kinds, "episode: RewardInput", {"band": {"lwo": 1}})
    with pytest.raises(ValueError, match=r"^it has no option 'max'; known are limit$"):
        check_options("it", by_name, "episode: RewardInput", {"max": 7.0})


def test_options_are_read_and_told_by_the_names_that_pydantic_reads() -> None:
    def read(**given: Any) -> Renamed:
        (options,) = check_options("it", by_model, "episode: RewardInput", given).values()
        return options

    assert (read(max=7.0).limit, read(share=7.0).weight, read(one=7.0).first, read(all=[7.0]).first) == (7.0, 7.0, 7.0, 7.0)
    names = [row.name for row in describe_options("it", by_model, "episode: RewardInput")]
    assert names == ["max", "share", "one", "band", "steps", "open"]
    assert [row.name for row in describe_options("it", by_name, "episode: RewardInput")] == ["limit"]
    assert check_options("it", by_name, "episode: RewardInput", {"limit": 7.0})["options"].limit == 7.0


def test_what_an_author_allows_stays_allowed() -> None:
    (options,) = check_options("it", by_open_model, "episode: RewardInput", {"any": 1, "band": {"low": 1}}).values()
    assert options.model_extra == {"any": 1} and options.band == Band(low=1.0)
    (options,) = check_options("it", by_model, "episode: RewardInput", {"open": {"any": 1}}).values()
    assert options.open.model_extra == {"any": 1}


class Ordered(BaseModel):
    """Its validator reads two options, so that it can be given neither alone."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)
    low: float
    high: float = Field(alias="top")

    @model_validator(mode="before")
    @classmethod
    def _in_order(cls, said: Any) -> Any:
        if said["low"] > said["top"]:
            raise ValueError("is above its top")
        return said


class Shares(RootModel[dict[str, float]]):
    """Any names at all."""


@pytest.mark.parametrize(
    ("model", "taken"),
    [(Ordered, "low high top"), (Renamed, "max share one all band steps open"), (ByName, "limit"), (Open, None), (Shares, None)],
)
def test_an_option_is_known_by_the_fields_of_the_model_whatever_its_author_checks(model: type[BaseModel], taken: str | None) -> None:
    def judged(_: RewardInput, *, options: Any) -> float:
        return 1.0

    judged.__annotations__["options"] = model
    names = ["low", "high", "top", "max", "share", "one", "all", "band", "steps", "open", "limit", "weight", "other"]
    known = [name for name in names if takes_option("it", judged, "episode: RewardInput", name)]
    assert known == [name for name in names if taken is None or name in taken.split()]


class Doubled(BaseModel):
    low: float = 1.0
    marks: list[int] = Field(default_factory=list)
    high: float = Field(default_factory=lambda read: 2 * read["low"])
    top: float


def test_a_default_that_is_made_of_other_options_is_told_as_one() -> None:
    def judged(_: RewardInput, *, options: Doubled) -> float:
        return 1.0

    rows = [(row.name, row.default) for row in describe_options("it", judged, "episode: RewardInput")]
    assert rows == [("low", "1.0"), ("marks", "[]"), ("high", "by other options"), ("top", None)]
