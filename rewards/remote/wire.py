"""Episodes and scores as `burnish.v1` messages, and back."""

from __future__ import annotations

from collections.abc import Mapping

from ...envs.remote.wire import decode_object, encode_object, messages_from_wire, messages_into_wire, task_from_wire, task_into_wire
from ...rpc.payload import utf8
from ...v1 import verifier_pb2
from ..types import InvalidScore, RewardInput, Score, turns_of


def to_request(episode: RewardInput, verifier: str = "") -> verifier_pb2.VerifyRequest:
    """Raises PayloadError when data or tool arguments are no plain JSON (numpy values, NaN, …), naming the place."""
    request = verifier_pb2.VerifyRequest(
        verifier=verifier,
        episode_id=episode.episode_id,
        env_reward=episode.env_reward,
        data_json=encode_object("data", episode.data) if episode.data else "",
        truncation=episode.truncation,
        answer=None if episode.answer is None else utf8(episode.answer),
    )
    # Filled in place: protobuf copies the messages that a constructor is given, and its maps are slow even when they stay empty.
    task_into_wire(episode.task, request.task)
    messages_into_wire(episode.messages, request.messages)
    if episode.env_parts:
        request.env_parts.update(episode.env_parts)
    if episode.metrics:
        request.metrics.update(episode.metrics)
    return request


def from_request(request: verifier_pb2.VerifyRequest) -> RewardInput:
    """Raises PayloadError when a field is missing or its JSON is not an object, naming the field. `answer` follows from the messages."""
    data_json = request.data_json
    return RewardInput(
        request.episode_id,
        task_from_wire(request.task),
        messages_from_wire("messages", request.messages),
        request.env_reward,
        _numbers(request.env_parts),
        _numbers(request.metrics),
        decode_object("data_json", data_json) if data_json else {},
        request.truncation if request.HasField("truncation") else None,
    )


def to_response(score: Score) -> verifier_pb2.VerifyResponse:
    """A score as the message that carries it."""
    response = verifier_pb2.VerifyResponse(score=score.value)
    if score.parts:
        response.parts.update(score.parts)
    if score.labels:
        response.labels.update({utf8(k): utf8(v) for k, v in score.labels.items()})
    if score.turns:
        response.turns.extend(score.turns)
    if score.explanation:
        response.explanation = utf8(score.explanation)
    return response


def from_response(response: verifier_pb2.VerifyResponse) -> Score:
    """Raises InvalidScore when a number is not finite: a server in any language may have sent it."""
    labels = dict(response.labels) if len(response.labels) else {}
    turns = tuple(response.turns) if len(response.turns) else ()
    return Score(response.score, _numbers(response.parts), labels, turns, response.explanation)


def check_turns(score: Score, episode: RewardInput) -> None:
    """Raise InvalidScore when a score has values per turn, and not one for each turn of the episode."""
    if score.turns and len(score.turns) != (turns := len(turns_of(episode))):
        raise InvalidScore(f"turns of the score has {len(score.turns)} values, the episode has {turns}")


def _numbers(wire: Mapping[str, float]) -> dict[str, float]:
    return dict(wire) if len(wire) else {}  # most are empty, and copying a map of protobuf is slow
