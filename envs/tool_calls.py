"""Reads tool calls out of what the policy wrote.

Two formats: `pythonic`, `measure(17, "bore")` or `[measure(17, "bore"), spec("bore")]`, and `hermes`,
`<tool_call>{"name": "measure", "arguments": {"part": 17, "feature": "bore"}}</tool_call>`. Text before a call is thinking aloud and is
ignored. Text without a call is a final answer. Text that tries to call a tool and fails is `Malformed`, with a reason to tell the
policy. Nothing here raises on any text: whatever the policy writes is its own doing.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .registry import did_you_mean
from .spaces import is_text
from .types import ToolCall

MAX_CALL_CHARS = 8192
MAX_CALLS = 32
MAX_DEPTH = 16

_LINE_START = re.compile(r"^[ \t]*(?:\[[ \t]*)?([A-Za-z_][A-Za-z0-9_]{0,63})[ \t]*\(", re.MULTILINE)
_WHOLE_CALL = re.compile(r"\[?\s*[A-Za-z_][A-Za-z0-9_]{0,63}\s*\(.*\)\s*\]?", re.DOTALL)
_FENCE = re.compile(r"^[ \t]*```.*$", re.MULTILINE)
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Malformed:
    """The text tries to call a tool and cannot be read. Example: `Malformed("the call has no closing parenthesis")`."""

    reason: str


Parsed = tuple[ToolCall, ...] | Malformed


class ToolParser(Protocol):
    """Reads calls of the tools in `parameters` (tool name -> its parameter names in order) out of `text`."""

    def __call__(self, text: str, parameters: Mapping[str, Sequence[str]]) -> Parsed: ...


class _Unreadable(Exception):
    """Carries a reason from deep inside a parser up to its `Malformed`."""


def parse_tool_calls(text: str, tools: Sequence[Mapping[str, Any]], parser: str = "pythonic") -> Parsed:
    """The calls in `text`; an empty tuple when it holds none and is a final answer.

    tools: OpenAI function schemas; positional arguments are named in the order of their `properties`. Whether the arguments suit
    the tool is for the tool to say. Raises ValueError when `parser` is unknown, and nothing on any text.

    Example: `parse_tool_calls('measure(17, "bore")', tools)` is `(ToolCall("call_0", "measure", {"part": 17, "feature": "bore"}),)`.
    """
    return tool_parser(parser)(text, parameter_names(tools))


def tool_parser(name: str) -> ToolParser:
    """The parser called `name`. Raises ValueError when there is none."""
    if name not in PARSERS:
        raise ValueError(f"tool-call parser {name!r} is unknown{did_you_mean(name, list(PARSERS))}")
    return PARSERS[name]


def parameter_names(tools: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Tool name -> its parameter names in order, from OpenAI function schemas."""
    functions = [tool["function"] for tool in tools]
    return {function["name"]: tuple(function.get("parameters", {}).get("properties", {})) for function in functions}


def parse_pythonic(text: str, parameters: Mapping[str, Sequence[str]]) -> Parsed:
    """Calls written as Python: one call, or a list of calls, with literal arguments, as the last thing in the text.

    A line that starts like a call of a known tool is one. A call of an unknown tool is recognised when it is the whole text.
    """
    for match in _LINE_START.finditer(text):
        if match[1] in parameters:
            code = text[match.start() :]
            fence = _FENCE.search(code)
            return _read_pythonic(code[: fence.start()] if fence else code, parameters)
    whole = _FENCE.sub("", text).strip() if len(text) <= MAX_CALL_CHARS else ""
    if _WHOLE_CALL.fullmatch(whole) and not isinstance(calls := _read_pythonic(whole, None), Malformed):
        return Malformed(_unknown_tool(calls[0].name, parameters))
    return ()


def _read_pythonic(code: str, parameters: Mapping[str, Sequence[str]] | None) -> Parsed:
    code = code.strip()
    if len(code) > MAX_CALL_CHARS:
        return Malformed(f"the tool call is longer than {MAX_CALL_CHARS} characters")
    try:
        body = ast.parse(code, mode="eval").body
        nodes = body.elts if isinstance(body, ast.List) else [body]
        if len(nodes) > MAX_CALLS:
            return Malformed(f"more than {MAX_CALLS} tool calls at once")
        return tuple(_read_call_node(node, i, parameters) for i, node in enumerate(nodes))
    except _Unreadable as error:
        return Malformed(str(error))
    except SyntaxError as error:
        return Malformed(f"the tool call is not valid ({error.msg}); write tool(name=value), or a list of calls, and nothing after it")
    except (ValueError, RecursionError, MemoryError):  # a lone surrogate; nesting that the parser refuses
        return Malformed("the tool call holds characters or nesting that cannot be read")


def _read_call_node(node: ast.expr, index: int, parameters: Mapping[str, Sequence[str]] | None) -> ToolCall:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise _Unreadable("write tool(name=value), or a list of such calls")
    name = node.func.id
    if parameters is not None and name not in parameters:
        raise _Unreadable(_unknown_tool(name, parameters))
    names = [f"argument_{i}" for i in range(len(node.args))] if parameters is None else list(parameters[name])
    if len(node.args) > len(names):
        raise _Unreadable(f"{name} takes {len(names)} arguments ({', '.join(names)}), not {len(node.args)}")
    arguments = {key: _literal(value) for key, value in zip(names, node.args, strict=False)}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise _Unreadable(f"{name}: ** is not allowed; name each argument")
        if keyword.arg in arguments:
            raise _Unreadable(f"{name}: argument {keyword.arg!r} is given twice")
        arguments[keyword.arg] = _literal(keyword.value)
    return ToolCall(f"call_{index}", name, arguments)


def _literal(node: ast.expr, depth: int = 0) -> Any:
    """The JSON value of a Python literal; nothing is evaluated."""
    if depth > MAX_DEPTH:
        raise _Unreadable(f"arguments are nested deeper than {MAX_DEPTH}")
    match node:
        case ast.Constant():
            return _json_value(node.value)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)) if not isinstance(number, bool):
            return _json_value(-number)
        case ast.List() | ast.Tuple():
            return [_literal(item, depth + 1) for item in node.elts]
        case ast.Dict():
            keys = [key and _literal(key, depth + 1) for key in node.keys]  # None where ** stands
            if not all(isinstance(key, str) for key in keys):
                raise _Unreadable("keys of a dict must be strings")
            return dict(zip(keys, (_literal(value, depth + 1) for value in node.values), strict=True))
        case ast.Name(id="true" | "false" | "null" as word):  # JSON's spelling, which models mix in
            return {"true": True, "false": False, "null": None}[word]
        case ast.Name():
            raise _Unreadable(f"{node.id} is not a value; put text in quotes")
    raise _Unreadable("arguments must be plain values: text, numbers, true or false, lists")


def parse_hermes(text: str, parameters: Mapping[str, Sequence[str]]) -> Parsed:
    """Calls written as JSON objects between `<tool_call>` and `</tool_call>`; the text around them is ignored."""
    blocks = text.split(_OPEN, MAX_CALLS + 1)[1:]
    if not blocks:
        return Malformed(f"{_CLOSE} without {_OPEN}") if _CLOSE in text else ()
    if len(blocks) > MAX_CALLS:
        return Malformed(f"more than {MAX_CALLS} tool calls at once")
    try:
        return tuple(_read_hermes(block, i, parameters) for i, block in enumerate(blocks))
    except _Unreadable as error:
        return Malformed(str(error))


def _read_hermes(block: str, index: int, parameters: Mapping[str, Sequence[str]]) -> ToolCall:
    code, closed, _ = block.partition(_CLOSE)
    if not closed:
        raise _Unreadable(f"{_OPEN} is not closed by {_CLOSE}")
    if len(code) > MAX_CALL_CHARS:
        raise _Unreadable(f"the tool call is longer than {MAX_CALL_CHARS} characters")
    try:
        row = json.loads(code)
    except json.JSONDecodeError as error:
        raise _Unreadable(f"the tool call is not valid JSON ({error.msg} at character {error.pos})") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; nesting
        raise _Unreadable("the tool call holds a number or nesting that cannot be read") from error
    if not isinstance(row, dict) or not isinstance(row.get("name"), str):
        raise _Unreadable('write {"name": "<tool>", "arguments": {…}}')
    if unknown := sorted(row.keys() - {"name", "arguments"}):
        raise _Unreadable(f'key {_short(unknown[0])} is not known; write {{"name": "<tool>", "arguments": {{…}}}}')
    if row["name"] not in parameters:
        raise _Unreadable(_unknown_tool(row["name"], parameters))
    arguments = row.get("arguments", {})
    if not isinstance(arguments, dict):
        raise _Unreadable(f"arguments of {row['name']} must be an object")
    return ToolCall(f"call_{index}", row["name"], _json_value(arguments))


def _json_value(value: Any, depth: int = 0) -> Any:
    """`value` when a tool behind any service could receive it, else _Unreadable."""
    if depth > MAX_DEPTH:
        raise _Unreadable(f"arguments are nested deeper than {MAX_DEPTH}")
    match value:
        case None | bool():
            return value
        case str():
            if not is_text(value):
                raise _Unreadable("an argument holds half of a surrogate pair, which is not text")
            return value
        case int():
            if abs(value) >= 2**63:
                raise _Unreadable("an argument is an integer of more than 64 bits")
            return value
        case float():
            if not math.isfinite(value):
                raise _Unreadable("an argument is not a finite number")
            return value
        case list():
            return [_json_value(item, depth + 1) for item in value]
        case dict():
            return {_json_value(key): _json_value(item, depth + 1) for key, item in value.items()}
    raise _Unreadable(f"arguments must be plain values, not {type(value).__name__}")


def _unknown_tool(name: str, parameters: Mapping[str, Sequence[str]]) -> str:
    return f"there is no tool {_short(name)}{did_you_mean(name[:64], list(parameters))}"


def _short(text: str) -> str:
    return ascii(text if len(text) <= 64 else text[:61] + "...")


PARSERS: Mapping[str, ToolParser] = {"pythonic": parse_pythonic, "hermes": parse_hermes}
