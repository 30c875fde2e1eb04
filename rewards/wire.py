"""Episodes and scores as `burnish.v1` messages, and back."""

from __future__ import annotations

from ..envs.wire import decode_object, encode_object, messages_from_wire, messages_to_wire, task_from_wire, task_to_wire
from ..rpc.payload import utf8
from ..v1 import verifier_pb2
from .types import InvalidScore, RewardInput, Score


def to_request(episode: RewardInput, verifier: str = "") -> verifier_pb2.VerifyRequest:
    """Raises PayloadError when data or tool arguments are no plain JSON (numpy values, NaN, …), naming the place."""
    return verifier_pb2.VerifyRequest(
        verifier=verifier,
        episode_id=episode.episode_id,
        task=task_to_wire(episode.task),
        messages=messages_to_wire(episode.messages),
        env_reward=episode.env_reward,
        env_parts=episode.env_parts,
        metrics=episode.metrics,
        data_json=encode_object("data", episode.data),
        truncation=episode.truncation,
    )


def from_request(request: verifier_pb2.VerifyRequest) -> RewardInput:
    """Raises PayloadError when a field is missing or its JSON is not an object, naming the field."""
    return RewardInput(
        episode_id=request.episode_id,
        task=task_from_wire(request.task),
        messages=messages_from_wire("messages", request.messages),
        env_reward=request.env_reward,
        env_parts=dict(request.env_parts),
        metrics=dict(request.metrics),
        data=decode_object("data_json", request.data_json),
        truncation=request.truncation if request.HasField("truncation") else None,
    )


def to_response(score: Score) -> verifier_pb2.VerifyResponse:
    """Raises InvalidScore when the score has values per turn, which the message cannot carry."""
    if score.turns:
        raise InvalidScore("a verifier cannot give values per turn; leave turns of the score empty")
    return verifier_pb2.VerifyResponse(score=score.value, parts=score.parts, labels={utf8(k): utf8(v) for k, v in score.labels.items()})


def from_response(response: verifier_pb2.VerifyResponse) -> Score:
    """Raises InvalidScore when a number is not finite: a server in any language may have sent it."""
    return Score(response.score, dict(response.parts), dict(response.labels))
