"""Episodes and scores as `burnish.v1` messages, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..envs.types import Message, Role, Task, TextPart, ToolCall
from ..rpc.payload import PayloadError, decode_json, encode_json, utf8
from ..v1 import common_pb2, verifier_pb2
from .types import RewardInput, Score

_ROLE_TO_WIRE: dict[Role, common_pb2.Role.ValueType] = {
    "system": common_pb2.ROLE_SYSTEM,
    "user": common_pb2.ROLE_USER,
    "assistant": common_pb2.ROLE_ASSISTANT,
    "tool": common_pb2.ROLE_TOOL,
}
_ROLE_FROM_WIRE = {number: role for role, number in _ROLE_TO_WIRE.items()}


def to_request(episode: RewardInput, verifier: str = "") -> verifier_pb2.VerifyRequest:
    """Raises PayloadError when data or tool arguments are no plain JSON (numpy values, NaN, …), naming the place."""
    request = verifier_pb2.VerifyRequest(
        verifier=verifier,
        episode_id=episode.episode_id,
        env_reward=episode.env_reward,
        data_json=_json("data", episode.data) if episode.data else "",
        truncation=episode.truncation,
    )
    # Filled in place: protobuf copies the messages that a constructor is given, and its maps are slow even when they stay empty.
    task = request.task
    task.id, task.seed = episode.task.id, episode.task.seed
    if episode.task.data:
        task.data_json = _json("task.data", episode.task.data)
    for message in episode.task.prompt:
        _message_to_wire(message, task.prompt.add())
    for message in episode.messages:
        _message_to_wire(message, request.messages.add())
    if episode.env_parts:
        request.env_parts.update(episode.env_parts)
    if episode.metrics:
        request.metrics.update(episode.metrics)
    return request


def from_request(request: verifier_pb2.VerifyRequest) -> RewardInput:
    """Raises PayloadError when a field is missing or its JSON is not an object, naming the field."""
    task, data_json, task_json = request.task, request.data_json, request.task.data_json
    return RewardInput(
        request.episode_id,
        Task(task.id, task.seed, _messages("task.prompt", task.prompt), _object("task.data_json", task_json) if task_json else {}),
        _messages("messages", request.messages),
        request.env_reward,
        _numbers(request.env_parts),
        _numbers(request.metrics),
        _object("data_json", data_json) if data_json else {},
        request.truncation if request.HasField("truncation") else None,
    )


def to_response(score: Score) -> verifier_pb2.VerifyResponse:
    response = verifier_pb2.VerifyResponse(score=score.value)
    if score.parts:
        response.parts.update(score.parts)
    if score.labels:
        response.labels.update({utf8(k): utf8(v) for k, v in score.labels.items()})
    return response


def from_response(response: verifier_pb2.VerifyResponse) -> Score:
    """Raises InvalidScore when a number is not finite: a server in any language may have sent it."""
    return Score(response.score, _numbers(response.parts), dict(response.labels) if len(response.labels) else {})


def _message_to_wire(message: Message, wire: common_pb2.Message) -> None:
    wire.role = _ROLE_TO_WIRE[message.role]
    if isinstance(message.content, str):
        wire.text = utf8(message.content)
    else:
        wire.parts.CopyFrom(common_pb2.TextParts(parts=[common_pb2.TextPart(text=utf8(part.text)) for part in message.content]))
    for call in message.tool_calls:
        wire.tool_calls.add(id=call.id, name=utf8(call.name), arguments_json=_json(f"arguments of {call.name}", call.arguments))
    if message.tool_call_id is not None:
        wire.tool_call_id = message.tool_call_id
    if message.name is not None:
        wire.name = message.name


def _messages(where: str, wire: Sequence[common_pb2.Message]) -> tuple[Message, ...]:
    rows = wire[:]  # a list: protobuf's own iteration is slow
    if not rows:
        return ()
    try:
        return tuple([_message_from_wire(message) for message in rows])
    except PayloadError:  # the places are only worked out when there is something to say about one
        for i, message in enumerate(rows):
            try:
                _message_from_wire(message)
            except PayloadError as error:
                raise PayloadError(f"{where}[{i}].{error}") from None
        raise


def _message_from_wire(wire: common_pb2.Message) -> Message:
    role = _ROLE_FROM_WIRE.get(wire.role)
    if role is None:
        raise PayloadError(f"role is {wire.role}; set one of ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, ROLE_TOOL")
    return Message(
        role,
        tuple([TextPart(part.text) for part in wire.parts.parts]) if wire.WhichOneof("content") == "parts" else wire.text,
        _tool_calls(wire.tool_calls),
        wire.tool_call_id if wire.HasField("tool_call_id") else None,
        wire.name if wire.HasField("name") else None,
    )


def _tool_calls(wire: Sequence[common_pb2.ToolCall]) -> tuple[ToolCall, ...]:
    if not len(wire):
        return ()
    rows = enumerate(wire)
    return tuple([ToolCall(call.id, call.name, _object(f"tool_calls[{i}].arguments_json", call.arguments_json)) for i, call in rows])


def _numbers(wire: Mapping[str, float]) -> dict[str, float]:
    return dict(wire) if len(wire) else {}  # most are empty, and copying a map of protobuf is slow


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
