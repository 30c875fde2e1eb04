"""Episodes and scores as `burnish.v1` messages, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..envs.types import Message, Role, Task, TextPart, ToolCall
from ..rpc.payload import PayloadError, decode_json, encode_json, utf8
from ..v1 import common_pb2, verifier_pb2
from .types import InvalidScore, RewardInput, Score

_ROLE_TO_WIRE: dict[Role, common_pb2.Role.ValueType] = {
    "system": common_pb2.ROLE_SYSTEM,
    "user": common_pb2.ROLE_USER,
    "assistant": common_pb2.ROLE_ASSISTANT,
    "tool": common_pb2.ROLE_TOOL,
}
_ROLE_FROM_WIRE = {number: role for role, number in _ROLE_TO_WIRE.items()}


def to_request(episode: RewardInput, verifier: str = "") -> verifier_pb2.VerifyRequest:
    """Raises PayloadError when data or tool arguments are no plain JSON (numpy values, NaN, …), naming the place."""
    return verifier_pb2.VerifyRequest(
        verifier=verifier,
        episode_id=episode.episode_id,
        task=common_pb2.Task(
            id=episode.task.id,
            seed=episode.task.seed,
            prompt=[_message_to_wire(message) for message in episode.task.prompt],
            data_json=_json("task.data", episode.task.data),
        ),
        messages=[_message_to_wire(message) for message in episode.messages],
        env_reward=episode.env_reward,
        env_parts=episode.env_parts,
        metrics=episode.metrics,
        data_json=_json("data", episode.data),
        truncation=episode.truncation,
    )


def from_request(request: verifier_pb2.VerifyRequest) -> RewardInput:
    """Raises PayloadError when a field is missing or its JSON is not an object, naming the field."""
    task = request.task
    return RewardInput(
        episode_id=request.episode_id,
        task=Task(task.id, task.seed, _messages("task.prompt", task.prompt), _object("task.data_json", task.data_json)),
        messages=_messages("messages", request.messages),
        env_reward=request.env_reward,
        env_parts=dict(request.env_parts),
        metrics=dict(request.metrics),
        data=_object("data_json", request.data_json),
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


def _message_to_wire(message: Message) -> common_pb2.Message:
    wire = common_pb2.Message(
        role=_ROLE_TO_WIRE[message.role],
        tool_calls=[
            common_pb2.ToolCall(id=call.id, name=utf8(call.name), arguments_json=_json(f"arguments of {call.name}", call.arguments))
            for call in message.tool_calls
        ],
        tool_call_id=message.tool_call_id,
        name=message.name,
    )
    if isinstance(message.content, str):
        wire.text = utf8(message.content)
    else:
        wire.parts.CopyFrom(common_pb2.TextParts(parts=[common_pb2.TextPart(text=utf8(part.text)) for part in message.content]))
    return wire


def _messages(where: str, wire: Iterable[common_pb2.Message]) -> tuple[Message, ...]:
    return tuple(_message_from_wire(f"{where}[{i}]", message) for i, message in enumerate(wire))


def _message_from_wire(where: str, wire: common_pb2.Message) -> Message:
    if wire.role not in _ROLE_FROM_WIRE:
        raise PayloadError(f"{where}.role is {wire.role}; set one of ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, ROLE_TOOL")
    return Message(
        role=_ROLE_FROM_WIRE[wire.role],
        content=tuple(TextPart(part.text) for part in wire.parts.parts) if wire.WhichOneof("content") == "parts" else wire.text,
        tool_calls=tuple(
            ToolCall(call.id, call.name, _object(f"{where}.tool_calls[{i}].arguments_json", call.arguments_json))
            for i, call in enumerate(wire.tool_calls)
        ),
        tool_call_id=wire.tool_call_id if wire.HasField("tool_call_id") else None,
        name=wire.name if wire.HasField("name") else None,
    )


def _json(where: str, value: Mapping[str, Any]) -> str:
    try:
        return encode_json(value)
    except PayloadError as error:
        raise PayloadError(f"{where}: {error}") from None


def _object(where: str, text: str) -> dict[str, Any]:
    try:
        return decode_json(text)
    except PayloadError as error:
        raise PayloadError(f"{where}: {error}") from None
