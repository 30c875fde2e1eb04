"""Reward Lambdas where they run: in this process, behind HTTP, and behind AWS's invoke API, the last two over real sockets."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.integration.http_stub import Reply, Request, Script, serve

from burnish.envs.failures import EpisodeFailure, Failure, FailureKind
from burnish.envs.types import Message, Task
from burnish.rewards.aws.reward_lambda import LambdaOptions, reward_lambda
from burnish.rewards.plugin import make_scorer
from burnish.rewards.rubric import Rubric
from burnish.rewards.types import RewardInput, Score

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent
PYTHON = f"{HERE}/lambda_target.py"
AWS_PATH = "/2015-03-31/functions/my-reward/invocations"


def episode(number: int, answer: str = "4") -> RewardInput:
    messages = (Message("user", "2 + 2?"), Message("assistant", answer))
    data = {"reference_answer": "4", "topic": "sums", "tools": []}
    return RewardInput(f"train-{number}/0", Task(f"train-{number}", number), messages, 0.0, data=data)


def right(request: Request, number: int = 0) -> Reply:
    return Reply([{"id": row["id"], "aggregate_reward_score": float(row["messages"][-1]["content"] == "4")} for row in request.body])


async def called(handler: str, episodes: Sequence[RewardInput] = (episode(1), episode(2, "5")), **options: Any) -> list[Score | Failure]:
    return await reward_lambda(episodes, options=LambdaOptions(handler=handler, **options))


async def over_http(
    script: Script, episodes: Sequence[RewardInput] = (episode(1), episode(2, "5")), **options: Any
) -> list[Score | Failure]:
    with serve(script) as stub:
        return await called(f"{stub.url}/reward", episodes, **options)


async def over_aws(script: Script, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[Score | Failure]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with serve(script) as stub:
        return await called("my-reward", endpoint_url=stub.url, region="us-east-1", **options)


def values(results: Sequence[Score | Failure]) -> list[float]:
    return [result.value for result in results if isinstance(result, Score)]


def only_failure(results: Sequence[Score | Failure]) -> Failure:
    """What all episodes failed of; each failure names its own task."""
    found = [result for result in results if isinstance(result, Failure)]
    assert len(found) == len(results), results
    assert [failure.detail.partition(":")[0] for failure in found] == ["task train-1", "task train-2"]
    return found[0]


@pytest.mark.parametrize(("name", "options"), [("lambda_handler", {}), ("behind_a_gateway", {"envelope": "body"}), ("awaited", {})])
async def test_a_python_handler_scores(name: str, options: dict[str, Any]) -> None:
    first, second = await called(f"{PYTHON}:{name}", **options)
    assert first == Score(1.0, {"accuracy": 1.0})
    assert second == Score(0.0, {"accuracy": 0.0})


async def test_a_module_is_found_by_name() -> None:
    assert values(await called("tests.integration.lambda_target:lambda_handler")) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("raises", FailureKind.REWARD_ERROR, "KeyError: 'reference'"),
        ("hangs", FailureKind.REWARD_TIMEOUT, "no answer within 0.3 s"),
        ("forgets_to_return", FailureKind.REWARD_INVALID, "must answer a list with one row per episode, not NoneType"),
        ("not_json", FailureKind.REWARD_INVALID, "answers what is no JSON"),
    ],
)
async def test_a_python_handler_that_fails(name: str, kind: FailureKind, text: str) -> None:
    failure = only_failure(await called(f"{PYTHON}:{name}", timeout_s=0.3))
    assert (failure.kind, failure.culprit) == (kind, f"{PYTHON}:{name}")
    assert text in failure.detail


async def test_a_url_gets_the_rows_and_scores() -> None:
    seen: list[Request] = []

    def script(request: Request, number: int) -> Reply:
        seen.append(request)
        return right(request)

    assert values(await over_http(script)) == [1.0, 0.0]
    assert seen[0].path == "/reward"
    assert seen[0].body[0] == {
        "id": "train-1/0",
        "messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}],
        "reference_answer": "4",
        "metadata": {"reference_answer": "4", "topic": "sums"},
    }


async def test_a_url_gets_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_TOKEN", "secret")
    seen: list[str] = []

    def script(request: Request, number: int) -> Reply:
        seen.append(request.headers["authorization"])
        return right(request)

    await over_http(script, token_env="REWARD_TOKEN")
    assert seen == ["Bearer secret"]


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply({"message": "no"}, 400), FailureKind.VERIFIER_ERROR),
        (Reply({"message": "no"}, 500), FailureKind.VERIFIER_ERROR),
        (Reply({"message": "slow down"}, 429), FailureKind.VERIFIER_UNAVAILABLE),
        (Reply({"message": "starting"}, 503), FailureKind.VERIFIER_UNAVAILABLE),
        (Reply(status=0), FailureKind.VERIFIER_UNAVAILABLE),
        (Reply(b"<html>"), FailureKind.VERIFIER_INVALID),
        (Reply(b""), FailureKind.VERIFIER_INVALID),
        (Reply(b"\xff\xfe"), FailureKind.VERIFIER_INVALID),
        (Reply(b"[" * 100_000), FailureKind.VERIFIER_INVALID),
        (Reply(b"9" * 7_000_000), FailureKind.VERIFIER_INVALID),
        (Reply({"statusCode": 500, "body": "broken"}), FailureKind.VERIFIER_INVALID),
        (Reply({"errorMessage": "broken"}), FailureKind.VERIFIER_INVALID),
    ],
)
async def test_a_url_that_fails(reply: Reply, kind: FailureKind) -> None:
    failure = only_failure(await over_http(lambda r, n: reply))
    assert failure.kind is kind
    assert failure.culprit.startswith("http://127.0.0.1:")


async def test_a_slow_url_and_one_that_is_not_there() -> None:
    def slow(request: Request, number: int) -> Reply:
        time.sleep(1.0)
        return right(request)

    assert only_failure(await over_http(slow, timeout_s=0.2)).kind is FailureKind.VERIFIER_TIMEOUT
    with serve(right) as stub:
        pass
    assert only_failure(await called(stub.url)).kind is FailureKind.VERIFIER_UNAVAILABLE


async def test_one_bad_row_fails_its_episode_only() -> None:
    def script(request: Request, number: int) -> Reply:
        first, second = right(request).body
        return Reply([{**first, "aggregate_reward_score": "high"}, second])

    first, second = await over_http(script)
    assert isinstance(first, Failure)
    assert first.detail == "task train-1: row 'train-1/0': aggregate_reward_score must be a number, not 'high'"
    assert second == Score(0.0)


async def test_an_episode_that_the_handler_cannot_stand_fails_alone() -> None:
    sizes: list[int] = []

    def script(request: Request, number: int) -> Reply:
        sizes.append(len(request.body))
        return Reply({"message": "boom"}, 500) if any(row["id"] == "train-2/0" for row in request.body) else right(request)

    results = await over_http(script, [episode(n) for n in range(6)], chunk=3)
    assert [isinstance(result, Failure) for result in results] == [False, False, True, False, False, False]
    assert sorted(sizes) == [1, 1, 1, 3, 3], "three rows again, each alone, and once"


@pytest.mark.parametrize("reply", [Reply({"message": "boom"}, 500), Reply({"message": "who?"}, 401), Reply([])])
async def test_an_endpoint_that_never_answers_is_asked_once_per_event_and_attempt(reply: Reply) -> None:
    with serve(lambda request, number: reply) as stub:
        rubric = Rubric([(make_scorer("burnish/reward-lambda-v1", params={"handler": stub.url}), 1.0)], 0.0, retries=2, backoff_s=0.01)
        results = await asyncio.gather(*(rubric.score(episode(n)) for n in range(16)), return_exceptions=True)
    assert [type(result) for result in results] == [EpisodeFailure] * 16
    assert [len(request.body) for request in stub.requests] == [16, 16, 16]


async def test_an_endpoint_that_breaks_after_it_answered_is_tried_with_a_few_rows() -> None:
    def script(request: Request, number: int) -> Reply:
        return right(request) if number == 0 else Reply({"message": "boom"}, 500)

    results = []
    with serve(script) as stub:
        for batch in ([episode(n) for n in range(16)], [episode(n) for n in range(16, 32)]):
            results += await called(stub.url, batch)
    assert len(values(results)) == 16
    assert [len(request.body) for request in stub.requests] == [16, 16, 1, 1, 1, 1]


async def test_scores_that_are_there_do_not_wait_for_an_event_that_is_late() -> None:
    released = threading.Event()

    def script(request: Request, number: int) -> Reply:
        if request.body[0]["id"] == "train-2/0":
            released.wait(30)
        return right(request)

    try:
        results = await over_http(script, [episode(n) for n in range(6)], chunk=2, timeout_s=30, deadline_s=3.0)
    finally:
        released.set()
    assert [isinstance(result, Failure) for result in results] == [False, False, True, True, False, False]
    assert isinstance(results[2], Failure)
    assert (results[2].kind, results[2].detail) == (FailureKind.VERIFIER_TIMEOUT, "task train-2: no answer within the batch's 3 s")


@pytest.mark.parametrize("where", ["url", "aws"])
async def test_waiting_for_a_turn_counts_towards_the_deadline_and_not_towards_one_call(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def script(request: Request, number: int) -> Reply:
        if number == 1:
            released.wait(30)
        return right(request)

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with serve(script) as stub:
        how: dict[str, Any] = {"endpoint_url": stub.url, "region": "us-east-1"} if where == "aws" else {}
        limits = {"chunk": 1, "concurrency": 1, "timeout_s": 30, "deadline_s": 3.0}
        try:
            results = await called("my-reward" if how else stub.url, [episode(n) for n in range(4)], **limits, **how)
        finally:
            released.set()
        assert len(stub.requests) == 2
    late = [result for result in results if isinstance(result, Failure)]
    assert [(one.kind, one.detail) for one in late] == [
        (FailureKind.VERIFIER_TIMEOUT, f"task train-{n}: no answer within the batch's 3 s") for n in (1, 2, 3)
    ]


async def test_a_handler_that_is_away_is_asked_once_per_event() -> None:
    sizes: list[int] = []

    def script(request: Request, number: int) -> Reply:
        sizes.append(len(request.body))
        return Reply(None, 503)

    results = await over_http(script, [episode(n) for n in range(6)], chunk=3)
    assert (values(results), sizes) == ([], [3, 3])


async def test_calls_at_once_are_limited() -> None:
    def slowly(request: Request, number: int) -> Reply:
        time.sleep(0.05)
        return right(request)

    with serve(slowly) as stub:
        results = await called(stub.url, [episode(n) for n in range(12)], chunk=1, concurrency=3)
        assert (len(values(results)), len(stub.requests), stub.most) == (12, 12, 3)


async def test_an_episode_that_is_no_json_fails_alone() -> None:
    odd = episode(1)
    odd = RewardInput(odd.episode_id, odd.task, odd.messages, 0.0, data={"reference_answer": float("nan")})
    first, second = await over_http(right, [odd, episode(2)])
    assert isinstance(first, Failure) and "reference_answer is nan" in first.detail
    assert second == Score(1.0)


async def test_an_aws_lambda_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Request] = []

    def script(request: Request, number: int) -> Reply:
        seen.append(request)
        return right(request)

    assert values(await over_aws(script, monkeypatch)) == [1.0, 0.0]
    assert (seen[0].path, [row["id"] for row in seen[0].body]) == (AWS_PATH, ["train-1/0", "train-2/0"])
    assert "us-east-1/lambda/aws4_request" in seen[0].headers["authorization"]


@pytest.mark.parametrize(
    ("reply", "kind", "text"),
    [
        (
            Reply({"errorMessage": "no key 'a'", "errorType": "KeyError"}, headers={"X-Amz-Function-Error": "Unhandled"}),
            FailureKind.VERIFIER_ERROR,
            "FunctionError Unhandled: KeyError: no key 'a'",
        ),
        (Reply({"Message": "gone"}, 404, {"x-amzn-ErrorType": "ResourceNotFoundException"}), FailureKind.VERIFIER_ERROR, "NotFound"),
        (Reply({"Message": "wait"}, 429, {"x-amzn-ErrorType": "TooManyRequestsException"}), FailureKind.VERIFIER_UNAVAILABLE, "TooMany"),
        (Reply({"Message": "broken"}, 500, {"x-amzn-ErrorType": "ServiceException"}), FailureKind.VERIFIER_UNAVAILABLE, "Service"),
        (Reply(status=0), FailureKind.VERIFIER_UNAVAILABLE, "Connection"),
        (Reply(b"garbage"), FailureKind.VERIFIER_INVALID, "answers no JSON"),
        (Reply([]), FailureKind.VERIFIER_INVALID, "answers no row with the id 'train-1/0'"),
    ],
)
async def test_an_aws_lambda_that_fails(reply: Reply, kind: FailureKind, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = only_failure(await over_aws(lambda r, n: reply, monkeypatch))
    assert (failure.kind, failure.culprit) == (kind, "my-reward")
    assert text in failure.detail


async def test_a_slow_aws_lambda_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(request: Request, number: int) -> Reply:
        time.sleep(1.0)
        return right(request)

    assert only_failure(await over_aws(slow, monkeypatch, timeout_s=0.2)).kind is FailureKind.VERIFIER_TIMEOUT


def test_without_boto3_the_recipe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(
        ValueError, match=r"another-reward is an AWS Lambda, which needs boto3, .*: in burnish's checkout, pip install .* '\.\[aws\]'"
    ):
        make_scorer("burnish/reward-lambda-v1", params={"handler": "another-reward"})


async def test_as_a_plug_in_episodes_travel_together() -> None:
    with serve(right) as stub:
        scorer = make_scorer("burnish/reward-lambda-v1", params={"handler": stub.url, "chunk": 8})
        scores = await asyncio.gather(*(scorer.score(episode(n)) for n in range(16)))
        assert [score.value for score in scores] == [1.0] * 16
        assert sorted(len(request.body) for request in stub.requests) == [8, 8]


async def test_a_token_neither_travels_in_the_clear_nor_comes_back_in_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_TOKEN", "s3cret-token")

    def tells(request: Request, number: int) -> Reply:
        return Reply(f"{'x' * 195} {request.headers['authorization']}".encode(), 500)

    failure = only_failure(await over_http(tells, token_env="REWARD_TOKEN"))
    assert "answered 500" in failure.detail and "s3c" not in failure.detail
    for handler in ("http://reward.example/score", "https://me:s3cret@reward.example/", "https://reward.example/?code=s3cret"):
        with pytest.raises(ValueError, match=r"in the clear|the URL holds") as caught:
            await called(handler, token_env="REWARD_TOKEN")
        assert "s3cret" not in str(caught.value)
    with pytest.raises(ValueError, match="its session token would travel in the clear"):
        await called("lambda:score", region="eu-west-1", endpoint_url="http://aws.example")


async def test_a_url_cannot_send_an_episode_elsewhere() -> None:
    with serve(right_anyhow) as elsewhere:
        moved = Reply(b"", 307, {"Location": elsewhere.url})
        assert only_failure(await over_http(lambda request, number: moved)).kind is FailureKind.VERIFIER_ERROR
        assert elsewhere.requests == []


def right_anyhow(request: Request, number: int) -> Reply:
    return right(request)
