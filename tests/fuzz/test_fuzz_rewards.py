"""Whatever a reward returns and whatever a file holds: a score or a typed error, never a crash, a hang or a silent zero."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.envs.failures import EpisodeFailure, Failure, FailureKind
from burnish.envs.types import Message, Reward, Task
from burnish.rewards.checks.trial import read_episodes
from burnish.rewards.declaration import LEVELS
from burnish.rewards.plugin import REWARDS, make_group_scorer, make_scorer, reward
from burnish.rewards.rubric import Judged, Rubric
from burnish.rewards.terms import Term
from burnish.rewards.types import InvalidScore, RewardInput, Score, as_score

pytestmark = pytest.mark.fuzz

EPISODE = RewardInput("t/0", Task("t", 0), (Message("user", "?"), Message("assistant", "7")), 0.0)

numbers = st.one_of(
    st.floats(),
    st.integers(),
    st.integers(min_value=10**300, max_value=10**320),
    st.booleans(),
    st.fractions(),
    st.just(Fraction(10**400)),
    st.decimals(),
    st.complex_numbers(),
    st.floats(width=32).map(np.float32),
    st.integers(-5, 5).map(np.int64),
    st.booleans().map(np.bool_),
)
leaves = st.one_of(numbers, st.none(), st.text(max_size=5), st.binary(max_size=5), st.just(np.zeros(2)), st.just(object()))
results = st.one_of(
    leaves,
    st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), leaves, max_size=4),
    st.lists(leaves, max_size=3),
    st.lists(st.floats(), max_size=3).map(np.array),
    st.builds(ValueError, st.text(max_size=5)),
)


@given(results)
def test_any_result_is_a_finite_score_or_invalid(result: Any) -> None:
    try:
        score = as_score(result)
    except InvalidScore:
        return
    assert math.isfinite(score.value) and all(math.isfinite(part) for part in score.parts.values())
    if not isinstance(result, dict):
        assert score.value == float(result)


@pytest.fixture(scope="module")
def scripted() -> Iterator[dict[str, Any]]:
    """A plug-in of each level that returns what `script["result"]` holds."""
    script: dict[str, Any] = {}
    for level in LEVELS:

        async def give(_: Any) -> Any:
            return script["result"]

        reward(f"fuzz/{level}-v1", level=level, max_wait_s=0.0 if level == "batch" else None)(give)
    yield script
    for level in LEVELS:
        REWARDS._loaded.pop(f"fuzz/{level}-v1")
        REWARDS._sources.pop(f"fuzz/{level}-v1")


async def judge(level: str) -> list[Any]:
    try:
        if level == "group":
            return list(await make_group_scorer("fuzz/group-v1").score_group([EPISODE, EPISODE]))
        return [await make_scorer(f"fuzz/{level}-v1").score(EPISODE)]
    except EpisodeFailure as error:
        return [error.failure]


@given(result=results, level=st.sampled_from(LEVELS))
def test_any_result_at_any_level_is_a_score_or_a_typed_failure(scripted: dict[str, Any], result: Any, level: str) -> None:
    scripted["result"] = result
    for found in asyncio.run(judge(level)):
        assert isinstance(found, Score | Failure)
        if isinstance(found, Failure):
            assert found.kind in (FailureKind.REWARD_INVALID, FailureKind.REWARD_ERROR)
            assert (found.culprit, found.detail[:8]) == (f"fuzz/{level}-v1", "task t: ")


finite = st.floats(allow_nan=False, allow_infinity=False)
terms = st.one_of(
    finite.map(Term),
    st.builds(Term, finite.filter(bool), normalize=st.just("group")),
    st.builds(Term, finite.filter(bool), clip=st.just((-1.0, 1.0)), normalize=st.just("minmax"), range=st.just((0.0, 1.0))),
    st.builds(Term, finite, gate=finite, cap=finite),
)


class Named:
    def __init__(self, name: str) -> None:
        self.name = name

    async def score(self, episode: RewardInput) -> Score:
        raise AssertionError("judged already")


@given(shapes=st.lists(terms, min_size=1, max_size=3), data=st.data())
def test_any_composition_is_finite_or_a_failure(shapes: list[Term], data: st.DataObject) -> None:
    names = [f"r{i}" for i in range(len(shapes))]
    rubric = Rubric([(Named(name), term) for name, term in zip(names, shapes, strict=True)], 1.0)
    members = [Judged(EPISODE, {name: Score(data.draw(finite)) for name in names}) for _ in range(data.draw(st.integers(1, 3)))]
    for member, result in zip(members, asyncio.run(rubric.score_group(members)), strict=True):
        if isinstance(result, Failure):
            assert (result.kind, result.culprit) == (FailureKind.REWARD_INVALID, "rubric")
        else:
            assert isinstance(result[0], Reward) and math.isfinite(result[0].total)
            assert {name: result[0].parts[name] for name in names} == {name: member.scores[name].value for name in names}


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)
messages = st.lists(
    st.one_of(
        json_values,
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "tool", "robot"]), "content": json_values},
            optional={"tool_calls": json_values, "tool_call_id": json_values, "name": json_values},
        ),
    ),
    max_size=3,
)
rows = st.one_of(
    json_values,
    st.fixed_dictionaries(
        {"messages": messages},
        optional={
            "id": json_values,
            "task": json_values,
            "data": json_values,
            "metadata": json_values,
            "metrics": json_values,
            "env_reward": json_values,
            "reference_answer": json_values,
        },
    ),
)
lines = st.one_of(rows.map(lambda row: json.dumps(row).encode()), st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"")))


@given(content=st.lists(lines, min_size=1, max_size=3), compared=st.booleans())
def test_any_file_is_read_row_by_row(tmp_path_factory: pytest.TempPathFactory, content: list[bytes], compared: bool) -> None:
    file = Path(tmp_path_factory.getbasetemp()) / "fuzz.jsonl"
    file.write_bytes(b"\n".join(content))
    try:
        found = read_episodes(file, compared)
    except ValueError as error:
        assert str(file) in str(error)  # no rows, or no text at all
        return
    for where, row in found:
        assert where.startswith(f"{file}:")
        assert isinstance(row, RewardInput) or (isinstance(row, str) and row)
