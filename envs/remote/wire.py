"""Messages, tasks and what a step tells as `burnish.v1` messages, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any, Final, TypeVar

from ...rpc.payload import MAX_JSON_CHARS, PayloadError, check_together, decode_json, encode_json, utf8
from ...v1 import common_pb2, environment_pb2
from ..contract import Observation, StepInfo
from ..types import Message, Role, Task, TextPart, ToolCall

T = TypeVar("T")

MAX_ENTRIES: Final = 65_536
"""Messages of an episode or a task, and parts and tool calls of a message: two bytes on the wire make one of them."""

_ROLE_TO_WIRE: dict[Role, common_pb2.Role.ValueType] = {
    "system": common_pb2.ROLE_SYSTEM,
    "user": common_pb2.ROLE_USER,
    "assistant": common_pb2.ROLE_ASSISTANT,
    "tool": common_pb2.ROLE_TOOL,
}
_ROLE_FROM_WIRE = {number: role for role, number in _ROLE_TO_WIRE.items()}


def messages_into_wire(messages: Iterable[Message], wire: Any) -> None:
    """Append messages to a repeated field. Raises PayloadError when the arguments of a tool call are no plain JSON, naming the call."""
    for message in messages:
        _message_into_wire(message, wire.add())


def messages_to_wire(messages: Iterable[Message]) -> list[common_pb2.Message]:
    """Messages by themselves; see `messages_into_wire`."""
    made = []
    for message in messages:
        made.append(common_pb2.Message())
        _message_into_wire(message, made[-1])
    return made


def messages_from_wire(where: str, wire: Sequence[common_pb2.Message]) -> Observation:
    """Raises PayloadError when a message has no role or its JSON is not an object, naming the place below `where`, or when there are too
    many, or too much JSON in all of them."""
    _check_count(where, wire)
    rows = wire[:]  # a list: protobuf's own iteration is slow
    if not rows:
        return ()
    if sum(message.ByteSize() for message in rows) > MAX_JSON_CHARS:
        _check_json(f"{where}: arguments_json of all calls", (call.arguments_json for message in rows for call in message.tool_calls))
    try:
        return tuple([_message_from_wire(message) for message in rows])
    except PayloadError:  # the places are only worked out when there is something to say about one
        for i, message in enumerate(rows):
            try:
                _message_from_wire(message)
            except PayloadError as error:
                raise PayloadError(f"{where}[{i}].{error}") from None
        raise


def task_into_wire(task: Task, wire: common_pb2.Task) -> None:
    """Fill in a message's task. Raises PayloadError when the task's data is no plain JSON, naming the place."""
    wire.id, wire.seed = task.id, task.seed
    if task.data:
        wire.data_json = encode_object("task.data", task.data)
    messages_into_wire(task.prompt, wire.prompt)


def task_to_wire(task: Task) -> common_pb2.Task:
    """A task by itself; see `task_into_wire`."""
    wire = common_pb2.Task()
    task_into_wire(task, wire)
    return wire


def task_from_wire(wire: common_pb2.Task) -> Task:
    """Raises PayloadError when a message or the data is malformed, naming the field."""
    data = decode_object("task.data_json", wire.data_json) if wire.data_json else {}
    return Task(wire.id, wire.seed, messages_from_wire("task.prompt", wire.prompt), data)


def info_into_wire(info: StepInfo, wire: environment_pb2.StepInfo) -> None:
    """Fill in a message's info. Raises PayloadError when tools or data are no plain JSON, naming the place."""
    wire.SetInParent()  # it is there even when it says nothing
    if info.tools:
        wire.tools_json.extend([encode_object(f'info["tools"][{i}]', tool) for i, tool in enumerate(info.tools)])
    if info.reward_parts:
        wire.reward_parts.update({utf8(name): value for name, value in info.reward_parts.items()})
    if info.metrics:
        wire.metrics.update({utf8(name): value for name, value in info.metrics.items()})
    if info.labels:
        wire.labels.update({utf8(name): utf8(label) for name, label in info.labels.items()})
    if info.data:
        wire.data_json = encode_object('info["data"]', info.data)


def info_to_wire(info: StepInfo) -> environment_pb2.StepInfo:
    """An info by itself; see `info_into_wire`."""
    wire = environment_pb2.StepInfo()
    info_into_wire(info, wire)
    return wire


def info_from_wire(wire: environment_pb2.StepInfo) -> dict[str, Any]:
    """The `info` of a reset or step, only the keys that say something. Raises PayloadError when JSON is not an object, naming the field."""
    _check_count("info.tools_json", wire.tools_json)
    check_together("info.tools_json", wire.tools_json)
    info: dict[str, Any] = {
        "tools": [decode_object(f"info.tools_json[{i}]", text) for i, text in enumerate(wire.tools_json)],
        "reward_parts": _sorted(wire.reward_parts),
        "metrics": _sorted(wire.metrics),
        "labels": _sorted(wire.labels),
        "data": decode_object("info.data_json", wire.data_json),
    }
    return {key: value for key, value in info.items() if value}


def _sorted(wire: Mapping[str, T]) -> dict[str, T]:
    """A map of protobuf as a dictionary; its own order differs from process to process."""
    return dict(sorted(wire.items()))


def encode_object(where: str, value: Mapping[str, Any]) -> str:
    """`encode_json` whose PayloadError says where the value is."""
    try:
        return encode_json(value)
    except PayloadError as error:
        raise PayloadError(f"{where}: {error}") from None


def decode_object(where: str, text: str) -> dict[str, Any]:
    """`decode_json` whose PayloadError says where the text is."""
    try:
        return decode_json(text)
    except PayloadError as error:
        raise PayloadError(f"{where}: {error}") from None


def _message_into_wire(message: Message, wire: common_pb2.Message) -> None:
    wire.role = _ROLE_TO_WIRE[message.role]
    if isinstance(message.content, str):
        wire.text = utf8(message.content)
    else:
        wire.parts.CopyFrom(common_pb2.TextParts(parts=[common_pb2.TextPart(text=utf8(part.text)) for part in message.content]))
    for call in message.tool_calls:
        arguments = encode_object(f"arguments of {call.name}", call.arguments)
        wire.tool_calls.add(id=utf8(call.id), name=utf8(call.name), arguments_json=arguments)
    if message.tool_call_id is not None:
        wire.tool_call_id = utf8(message.tool_call_id)
    if message.name is not None:
        wire.name = utf8(message.name)  # of a tool that the policy made up, perhaps


def _message_from_wire(wire: common_pb2.Message) -> Message:
    role = _ROLE_FROM_WIRE.get(wire.role)
    if role is None:
        raise PayloadError(f"role is {wire.role}; set one of ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, ROLE_TOOL")
    return Message(
        role,
        _text_parts(wire.parts.parts) if wire.WhichOneof("content") == "parts" else wire.text,
        _tool_calls(wire.tool_calls),
        wire.tool_call_id if wire.HasField("tool_call_id") else None,
        wire.name if wire.HasField("name") else None,
    )


def _text_parts(wire: Sequence[common_pb2.TextPart]) -> tuple[TextPart, ...]:
    _check_count("parts", wire)
    return tuple([TextPart(part.text) for part in wire])


def _tool_calls(wire: Sequence[common_pb2.ToolCall]) -> tuple[ToolCall, ...]:
    if not len(wire):
        return ()
    _check_count("tool_calls", wire)
    rows = enumerate(wire)
    return tuple([ToolCall(call.id, call.name, decode_object(f"tool_calls[{i}].arguments_json", call.arguments_json)) for i, call in rows])


def _check_json(where: str, texts: Iterable[str]) -> None:
    """Raise PayloadError where texts of JSON, each of them within its bounds, are too large together."""
    characters = sum(map(len, texts))
    if characters > MAX_JSON_CHARS:
        raise PayloadError(f"{where} has {characters} characters of JSON; the limit is {MAX_JSON_CHARS}")


def _check_count(where: str, wire: Sized) -> None:
    if len(wire) > MAX_ENTRIES:
        raise PayloadError(f"{where} holds {len(wire)} entries; the limit is {MAX_ENTRIES}")
