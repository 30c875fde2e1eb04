"""The rows of a reward Lambda, and which handler a name means."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from burnish.envs.types import Message, Task
from burnish.rewards.aws import reward_lambda as module
from burnish.rewards.aws import rows as row_module
from burnish.rewards.aws.handlers import HandlerSettings
from burnish.rewards.aws.reward_lambda import chunks, distinct
from burnish.rewards.aws.rows import MOST_KEYS, BadAnswer, event_row, parse_answer, read_answer
from burnish.rewards.plugin import make_scorer
from burnish.rewards.types import RewardInput, Score

pytestmark = pytest.mark.unit

ID = "burnish/reward-lambda-v1"
ROW = {"id": "123", "aggregate_reward_score": 0.85}


def row(**changes: Any) -> dict[str, Any]:
    return {**ROW, **changes}


def test_the_contracts_own_example_is_read() -> None:
    answer = row(
        metrics_list=[{"name": "accuracy", "value": 0.9, "type": "Reward"}, {"name": "policy", "value": 0.8, "type": "Metric"}],
    )
    assert read_answer([answer], ["123"]) == {"123": Score(0.85, {"accuracy": 0.9, "policy": 0.8})}


def test_the_reference_answer_is_in_both_places_and_tools_in_none() -> None:
    data = {"reference_answer": {"x": 1}, "k": "v", "tools": [{}]}
    messages = (Message("system", "s"), Message("user", "u"), Message("assistant", "a"))
    assert event_row(RewardInput("t/0", Task("t", 0), messages, 0.0, data=data)) == {
        "id": "t/0",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}],
        "reference_answer": {"x": 1},
        "metadata": {"reference_answer": {"x": 1}, "k": "v"},
    }
    assert "reference_answer" not in event_row(RewardInput("t/0", Task("t", 0), messages, 0.0))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"id": "123"}, "the row '123' has no aggregate_reward_score"),
        ({"id": "123", "aggregate_reward": 1}, "did you mean 'aggregate_reward'"),
        (row(aggregate_reward_score="0.5"), "aggregate_reward_score must be a number, not '0.5'"),
        (row(aggregate_reward_score=True), "must be a number, not True"),
        (row(aggregate_reward_score=None), "must be a number, not None"),
        (row(aggregate_reward_score=float("nan")), "must be a finite number, not nan"),
        (row(aggregate_reward_score=10**400), "must be a finite number, not 1000"),
        (row(metrics_list={}), "metrics_list must be a list, not dict"),
        (row(metrics_list=[1]), r"metrics_list\[0\] must be an object, not int"),
        (row(metrics_list=[{"name": " ", "value": 1}]), r"metrics_list\[0\].name must be a text"),
        (row(metrics_list=[{"name": "a", "value": 1, "type": "Other"}]), r"metrics_list\[0\].type must be Reward or Metric, not 'Other'"),
        (row(metrics_list=[{"name": "a"}]), r"metrics_list\[0\].value must be a number, not None"),
        (row(metrics_list=[{"name": "a", "value": 1}] * 2), "two entries called 'a'"),
    ],
)
def test_a_bad_row_fails_its_episode_only(bad: dict[str, Any], message: str) -> None:
    found = read_answer([bad, {"id": "124", "aggregate_reward_score": 1}], ["123", "124"])
    assert found["124"] == Score(1.0)
    assert isinstance(found["123"], BadAnswer)
    with pytest.raises(BadAnswer, match=message):
        raise found["123"]


def test_missing_and_double_rows() -> None:
    found = read_answer([row(), row()], ["123", "124"])
    assert str(found["123"]) == "answers 2 rows with the id '123'"
    assert str(found["124"]) == "answers no row with the id '124'"


@pytest.mark.parametrize(
    ("stranger", "shown"),
    [
        ({"id": "9", "aggregate_reward_score": 1}, "one with the id '9', which was not asked for"),
        ({"Id": "124", "aggregate_reward_score": 1}, "one without id"),
        ({"id": 124, "aggregate_reward_score": 1}, "one with the id 124, which was not asked for"),
        ("124", "a str"),
    ],
)
def test_a_row_for_nobody_stands_for_the_one_that_is_missing(stranger: Any, shown: str) -> None:
    found = read_answer([row(), stranger], ["123", "124"])
    assert found["123"] == Score(0.85)
    assert shown in str(found["124"])
    with pytest.raises(BadAnswer, match="answers 2 rows for 1 episodes"):
        read_answer([row(), stranger], ["123"])


@pytest.mark.parametrize(
    "answer", [None, {}, {"123": 0.5}, "[]", 0.5, [[]], {"body": None}, {"body": "{"}, {"statusCode": "200", "body": "[]"}]
)
def test_what_is_no_answer(answer: Any) -> None:
    try:
        found = read_answer(answer, ["123"])
    except BadAnswer:
        return
    assert isinstance(found["123"], BadAnswer)


def test_an_api_gateway_envelope_is_opened() -> None:
    text = json.dumps([ROW])
    for answer in (
        {"statusCode": 200, "body": text},
        {"body": [ROW]},
        {"body": base64.b64encode(text.encode()).decode(), "isBase64Encoded": True},
    ):
        assert read_answer(answer, ["123"]) == {"123": Score(0.85)}
    with pytest.raises(BadAnswer, match="statusCode 502: 'bad gateway'"):
        read_answer({"statusCode": 502, "body": "bad gateway"}, ["123"])
    with pytest.raises(BadAnswer, match="not base64"):
        read_answer({"body": "%", "isBase64Encoded": True}, ["123"])


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("my_team.rewards:handler", "python"),
        ("rewards/my-handler.py:handler", "python"),
        ("https://rewards.example/score", "http"),
        ("http://127.0.0.1:8080", "http"),
        ("my-reward-function", "aws"),
        ("lambda:my-reward:PROD", "aws"),
        ("arn:aws:lambda:us-east-1:123456789012:function:my-reward:PROD", "aws"),
    ],
)
def test_which_handler_a_name_means(target: str, kind: str) -> None:
    assert HandlerSettings(target).kind == kind


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs the option 'handler'"),
        ({"handler": "two words"}, "'two words' is no handler; give module:handler"),
        ({"handler": "no_such_module:handler"}, "module no_such_module cannot be imported"),
        ({"handler": "missing.py:handler"}, "plug-in missing.py is not a file"),
        ({"handler": "json:dmups"}, r"json has no function 'dmups'; did you mean 'dumps'\?"),
        ({"handler": "tests/integration/lambda_target.py:one_argument"}, r"must take two arguments, handler\(event, context\)"),
        ({"handler": "json:dumps", "timeout_s": 901}, "'timeout_s': must be less than or equal to 900"),
        ({"handler": "json:dumps", "concurrency": 101}, "'concurrency': must be less than or equal to 100"),
        ({"handler": "json:dumps", "chunk": 0}, "'chunk'"),
        ({"handler": "json:dumps", "region": "x"}, "region: no effect, json:dumps is not an AWS Lambda; remove it"),
        ({"handler": "my-reward", "token_env": "X"}, "token_env: no effect, my-reward is not a URL"),
        ({"handler": "https://x", "token_env": "BURNISH_NO_SUCH_TOKEN"}, "BURNISH_NO_SUCH_TOKEN is not set"),
        ({"handler": "json:dumps", "chunks": 1}, r"has no option 'chunks'; did you mean 'chunk'\?"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_scorer(ID, params=options)


def test_events_are_bounded_in_rows_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {str(i): {"id": str(i), "messages": "x" * 80} for i in range(7)}
    assert [len(chunk) for chunk in chunks(rows, 3)] == [3, 3, 1]
    monkeypatch.setattr(module, "MAX_EVENT_BYTES", 250)
    assert [len(chunk) for chunk in chunks(rows, 3)] == [2, 2, 2, 1]
    assert [row["id"] for chunk in chunks(rows, 3) for row in chunk] == list(rows)


def test_ids_are_distinct_within_a_batch() -> None:
    assert distinct(["a", "a", "a#1", "b", "a"]) == ["a", "a#1", "a#1#1", "b", "a#2"]


def test_of_rows_that_name_nobody_three_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of 6 MB held the rewards' event loop for 11 s."""
    compared = list[list[str]]()

    def compare(_: str, keys: list[str]) -> str:
        compared.append(keys)
        return ""

    monkeypatch.setattr(row_module, "did_you_mean", compare)
    with pytest.raises(BadAnswer, match=r"answers 40000 rows for 1 episodes, one without id; one without id; one without id$"):
        read_answer([dict.fromkeys(map(str, range(99)))] * 40_000, ["123"])
    assert [len(keys) for keys in compared] == [MOST_KEYS] * 3
    with pytest.raises(BadAnswer, match="answers more than 100000 JSON values"):
        parse_answer(b"[" + b"[]," * 100_000 + b"0]")
    assert parse_answer(b'\xef\xbb\xbf[{"id": "a"}]') == parse_answer('[{"id": "a"}]') == [{"id": "a"}]
