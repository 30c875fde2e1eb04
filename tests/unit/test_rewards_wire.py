"""Episodes and scores cross the wire unchanged; what is no score or no episode is refused."""

from __future__ import annotations

import asyncio
import math
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from burnish.cluster import check_services
from burnish.envs.types import Message, Task, TextPart, ToolCall
from burnish.rewards.build import make_rubric
from burnish.rewards.config import RewardConfig
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.remote.service import VERIFIERS, Verifier, VerifierService, verifier
from burnish.rewards.remote.wire import check_turns, from_request, from_response, to_request, to_response
from burnish.rewards.types import InvalidScore, RewardInput, Score
from burnish.rpc.payload import PayloadError
from burnish.rpc.transport.mock import MockTransport
from burnish.v1 import common_pb2, verifier_pb2

pytestmark = pytest.mark.unit

EPISODE = RewardInput(
    episode_id="train-17/3",
    task=Task("train-17", -5, (Message("system", "You inspect parts."),), {"limits": [1, 2.5, None], "deep": {"ok": True}}),
    messages=(
        Message("user", (TextPart("Inspect "), TextPart("part 17."))),
        Message("assistant", "", (ToolCall("call_0", "measure", {"part": 17, "feature": "bore"}),)),
        Message("tool", "0.02", tool_call_id="call_0", name="measure"),
        Message("assistant", "scrap: Bohrung zu groß"),
    ),
    env_reward=0.5,
    env_parts={"format": 0.5},
    metrics={"cost": 3.0},
    data={"verdict": "scrap", "n": 2**53 + 1},
    truncation="max_turns",
)


def test_an_episode_survives_the_trip_exactly() -> None:
    sent = verifier_pb2.VerifyRequest.FromString(to_request(EPISODE, "a/b-v1").SerializeToString())
    assert sent.verifier == "a/b-v1"
    assert from_request(sent) == EPISODE


def test_absent_is_not_empty() -> None:
    bare = RewardInput("e", Task("t", 0), (Message("user", "hi"),), 0.0)
    assert from_request(to_request(bare)) == bare
    named = RewardInput("e", Task("t", 0), (Message("user", "hi", name=""),), 0.0, truncation="")
    assert from_request(to_request(named)) == named


def test_a_score_survives_the_trip_and_nan_does_not_pass() -> None:
    score = Score(0.25, {"reason": 1.0}, {"expected": "scrap"})
    assert from_response(to_response(score)) == score
    for response in (verifier_pb2.VerifyResponse(score=math.nan), verifier_pb2.VerifyResponse(score=1.0, parts={"p": math.inf})):
        with pytest.raises(InvalidScore, match="finite"):
            from_response(response)


def test_values_per_turn_travel_one_for_each_turn() -> None:
    score = Score(0.5, turns=(1.0, 0.0))
    assert from_response(to_response(score)) == score
    said = (Message("user", "hi"), Message("assistant", "a"), Message("tool", "b"), Message("assistant", "c"))
    two = RewardInput("e", Task("t", 0), said, 0.0)
    check_turns(score, two)
    check_turns(Score(0.5), two)
    with pytest.raises(InvalidScore, match="turns of the score has 3 values, the episode has 2"):
        check_turns(Score(0.5, turns=(1.0, 0.0, 1.0)), two)
    with pytest.raises(InvalidScore, match="finite"):
        from_response(verifier_pb2.VerifyResponse(score=1.0, turns=[math.inf]))


def test_data_that_is_not_json_is_named() -> None:
    bad = RewardInput("e", Task("t", 0), (), 0.0, data={"truth": [np.float32(1.0)]})
    with pytest.raises(PayloadError, match=r"data: truth\[0\] is a float32"):
        to_request(bad)


def test_a_foreign_request_is_checked() -> None:
    with pytest.raises(PayloadError, match=r"messages\[0\]\.role"):
        from_request(verifier_pb2.VerifyRequest(messages=[common_pb2.Message(text="hi")]))
    with pytest.raises(PayloadError, match="data_json: must be a JSON object"):
        from_request(verifier_pb2.VerifyRequest(data_json="[]"))


@pytest.mark.parametrize("function", [lambda: 1.0, lambda episode, other: 1.0])
def test_a_verifier_takes_one_episode(function: Any) -> None:
    with pytest.raises(ValueError, match="must take one argument"):
        verifier("test/arity-v1")(function)
    assert "test/arity-v1" not in [row.id for row in VERIFIERS.list()]


def test_verifier_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="namespace/name-vN"):
        verifier("verdict")
    with pytest.raises(ValueError, match="at least one verifier"):
        VerifierService([])
    with pytest.raises(ValueError, match="deadline_s must be a positive"):
        RemoteVerifier("verdict", "127.0.0.1:5", deadline_s=0)
    with pytest.raises(ValueError, match="host:port"):
        RemoteVerifier("verdict", "verdicts")


def test_a_remote_verifier_can_be_sent_to_another_process() -> None:
    there = pickle.loads(pickle.dumps(RemoteVerifier("verdict", "127.0.0.1:5", 2.0, "a/b-v1")))
    assert (there.name, there.culprit, there.deadline_s, there.verifier) == ("verdict", "verdict@127.0.0.1:5", 2.0, "a/b-v1")


def test_the_verifier_that_a_recipe_names_of_several_is_the_one_that_is_asked_and_checked() -> None:
    """Through what makes the rubric of a recipe, and what asks its services before a run."""
    service = VerifierService([Verifier("my/low-v1", lambda episode: 0.25), Verifier("my/high-v1", lambda episode: 0.75)])

    async def answer(method: str, request: Any) -> Any:
        return await (service.Describe(request, None) if method == "Describe" else service.answer(request))

    def run(id: str | None) -> Any:
        rewards = [RewardConfig(verifier="service:several", verifier_id=id, name="verdict")]
        environment = SimpleNamespace(id="burnish/Arithmetic-v0", args={})
        return SimpleNamespace(environment=environment, rewards=rewards, reinforced=(), suites=(), limits=SimpleNamespace(check_s=20.0))

    address = "several.example:50051?tls=1"
    try:
        with MockTransport(answer, address):
            for id, value in (("my/low-v1", 0.25), ("my/high-v1", 0.75)):
                check_services(run(id), {"several": address})
                at = [one.model_copy(update={"verifier": address}) for one in run(id).rewards]
                reward, *_ = asyncio.run(make_rubric(at, 0.0, retries=0).score(EPISODE))
                assert (reward.total, reward.parts["verdict"]) == (value, value)
            for wrong, says in ((None, "say which one to use"), ("my/hihg-v1", "has no verifier 'my/hihg-v1'; did you mean 'my/high-v1'")):
                with pytest.raises(ValueError, match=says):
                    check_services(run(wrong), {"several": address})
    finally:
        service.close()
