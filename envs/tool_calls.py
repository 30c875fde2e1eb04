"""Reads tool calls out of what the policy wrote.

Two formats are read here: `pythonic`, `measure(17, "bore")`, several on lines of their own or in a list, and `hermes`,
`<tool_call>{"name": "measure", "arguments": {"part": 17, "feature": "bore"}}</tool_call>`. Others are found by id: `vllm/kimi_k2-v1` is
the parser that vLLM calls kimi_k2 (see `rollout/engine/vllm_tools.py`), and a distribution lists its own under `burnish.tool_parsers`.

Text around calls is thinking aloud and is ignored. Text without a call is a final answer. Text that tries to call a tool and fails is
`Malformed`, with a reason to tell the policy. Nothing here raises on any text: whatever the policy writes is its own doing.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .registry import ID_PATTERN, Registry, did_you_mean
from .spaces import is_text
from .types import ToolCall

MAX_CALL_CHARS = 8192
MAX_CALLS = 32
MAX_DEPTH = 16

_LINE_START = re.compile(r"^[ \t]*(?:\[[ \t]*)?([A-Za-z_][A-Za-z0-9_]{0,63})[ \t]*\(", re.MULTILINE)
_NEXT_CALL = re.compile(r"[ \t]*[,;][ \t]*([A-Za-z_][A-Za-z0-9_]{0,63})[ \t]*\(")
_LIST_START, _LIST_NEXT = re.compile(r"\[\s*+(?=[A-Za-z_])"), re.compile(r"\s*+,\s*+(?=[A-Za-z_])")
_WHOLE_CALL = re.compile(r"\[?\s*[A-Za-z_][A-Za-z0-9_]{0,63}\s*\(.*\)\s*\]?", re.DOTALL)
_FENCE = re.compile(r"^[ \t]*```.*$", re.MULTILINE)
_BRACKET = re.compile(
    r"""[()\[\]{}]|\"{3}(?:[^"\\]|\\.|\"(?!\"\"))*+(?:\"{3})?|'{3}(?:[^'\\]|\\.|'(?!''))*+(?:'{3})?"""
    r"""|\"(?:[^"\\\n]|\\.)*+\"?|'(?:[^'\\\n]|\\.)*+'?""",
    re.DOTALL,
)
"""Brackets, and texts as Python has them; one that is never closed goes to the end of its line, so that every character is read once."""
_PLAINLY = re.compile(
    r"""[rRuU]?(?:\"{3}(?:[^"\\]|\\.|\"(?!\"\"))*+\"{3}|\"(?:[^"\\]|\\.)*+\"|'{3}(?:[^'\\]|\\.|'(?!''))*+'{3}|'(?:[^'\\]|\\.)*+')"""
    r"|(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][+-]?[0-9]++)?+|True|False|None",
    re.DOTALL,
)
"""A value that is written as what it is: a text in one piece, a number in digits. A guard reads what is written, a tool what it means."""
_LINE_END = re.compile(rb"\r\n?|\n")
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Malformed:
    """The text tries to call a tool and cannot be read. before: the whole calls that stand before what cannot be.

    Example: `Malformed("the call has no closing parenthesis")`.
    """

    reason: str
    before: tuple[ToolCall, ...] = ()


Parsed = tuple[ToolCall, ...] | Malformed


class ToolParser(Protocol):
    """Reads calls of `tools` (OpenAI function schemas) out of `text`. Raises nothing on any text."""

    def __call__(self, text: str, tools: Sequence[Mapping[str, Any]]) -> Parsed: ...


TOOL_PARSERS: Registry[ToolParser] = Registry("tool-call parser", "burnish.tool_parsers")


class _Unreadable(Exception):
    """Carries a reason from deep inside a parser up to its `Malformed`."""


def parse_tool_calls(text: str, tools: Sequence[Mapping[str, Any]], parser: str = "pythonic") -> Parsed:
    """The calls in `text`; an empty tuple when it holds none and is a final answer.

    tools: OpenAI function schemas; positional arguments are named in the order of their `properties`. Whether the arguments suit
    the tool is for the tool to say. Raises ValueError when `parser` is unknown, and nothing on any text.

    Example: `parse_tool_calls('measure(17, "bore")', tools)` is `(ToolCall("call_0", "measure", {"part": 17, "feature": "bore"}),)`.
    """
    return find_parser(parser)(text, tools)


def find_parser(name: str) -> ToolParser:
    """The parser with this id; a bare name is burnish's own, `hermes` for `burnish/hermes-v1`. Raises ValueError when there is none."""
    return TOOL_PARSERS.get(parser_id(name))


def parser_id(name: str) -> str:
    """Example: `parser_id("hermes")` is `"burnish/hermes-v1"`; an id stays what it is."""
    return name if "/" in name else f"burnish/{name}-v1"


TEMPLATE_MARKS: Sequence[tuple[Sequence[str], str]] = (
    (("<tool_call>", "<function="), "vllm/qwen3_coder-v1"),
    (("<tool_call>", "<arg_key>"), "vllm/glm45-v1"),
    (("<minimax:tool_call>",), "vllm/minimax_m2-v1"),
    (("<tool_call>",), "burnish/hermes-v1"),
    (("<｜tool▁calls▁begin｜>", "```json"), "vllm/deepseek_v3-v1"),
    (("<｜tool▁calls▁begin｜>",), "vllm/deepseek_v31-v1"),
    (("<|tool_calls_section_begin|>",), "vllm/kimi_k2-v1"),
    (("<|python_start|>",), "vllm/llama4_pythonic-v1"),
    (('{"name": function name, "parameters":',), "vllm/llama3_json-v1"),
    (("[TOOL_CALLS]",), "vllm/mistral-v1"),
    (("functools[",), "vllm/phi4_mini_json-v1"),
)
"""Texts in a chat template that show how it writes a tool call, and what reads that; the first line whose texts are all there counts."""


def parser_of_template(chat_template: str | None) -> str | None:
    """The id of the parser for calls as this chat template writes them, or None when it shows none.

    Example: Qwen3's template tells the policy to write `<tool_call>` around JSON: "burnish/hermes-v1".
    """
    text = chat_template or ""
    return next((parser for marks, parser in TEMPLATE_MARKS if all(mark in text for mark in marks)), None)


def check_agreement(reads: object, template_parser: str | None) -> None:
    """Raise ValueError when tools are described in one format and read in another: every call would end its episode as an answer.

    reads: the id of the parser that the environment says it has (`info["data"]["tool_parser"]`), None when it says nothing. A parser of
    somebody's own is taken to fit.
    """
    known = {parser for _, parser in TEMPLATE_MARKS} | {"burnish/pythonic-v1"}
    if template_parser is None or not isinstance(reads, str) or _format(reads) not in {_format(one) for one in known}:
        return
    if _format(reads) != _format(template_parser):
        raise ValueError(
            f"the model's chat template has tools called in the format of {template_parser}, and the environment reads {reads}: no call "
            f'would be seen; make its ToolEnv with parser = "auto" or "{template_parser}", or set rollout.describe_tools = false and '
            "explain the tools in the environment's own words"
        )


def _format(id: str) -> str:
    match = ID_PATTERN.match(id)
    return match["name"] if match else id


def parameter_names(tools: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Tool name -> its parameter names in order, from OpenAI function schemas."""
    functions = [tool["function"] for tool in tools]
    return {function["name"]: tuple(function.get("parameters", {}).get("properties", {})) for function in functions}


def write_pythonic(calls: Sequence[ToolCall], tools: Sequence[Mapping[str, Any]]) -> str:
    """The calls as `parse_pythonic` reads them, a line each: positional where the arguments are the tool's first ones in their order.

    Example: `write_pythonic([ToolCall("", "measure", {"part": 17, "feature": "bore"})], tools)` is `'measure(17, "bore")'`.
    """
    parameters = parameter_names(tools)
    return "\n".join(_written(call, parameters.get(call.name, ())) for call in calls)


def _written(call: ToolCall, names: Sequence[str]) -> str:
    positional = tuple(call.arguments) == tuple(names[: len(call.arguments)])
    values = {
        key: json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value) for key, value in call.arguments.items()
    }
    return f"{call.name}({', '.join(value if positional else f'{key}={value}' for key, value in values.items())})"


def parse_pythonic(text: str, tools: Sequence[Mapping[str, Any]]) -> Parsed:
    """Calls written as Python with literal arguments: each at the start of a line, several on a line, or a list of them.

    A line that starts like a call of a known tool is one, whatever stands after its closing parenthesis. A call of an unknown tool is
    recognised when it is the whole text, or a whole line after a call.
    """
    parameters = parameter_names(tools)
    calls: list[ToolCall] = []
    match = next((found for found in _LINE_START.finditer(text) if found[1] in parameters), None)
    while match is not None:
        if match[1] not in parameters:
            if _is_call(line := _line_at(text, match.start())):
                return Malformed(_unknown_tool(match[1], parameters), _numbered(calls))
            match = _LINE_START.search(text, match.start() + len(line))
            continue
        start = match.end() - len(match[0].lstrip(" \t,;"))
        end = _closing(text, start)
        read = _read_pythonic(text[start : start + MAX_CALL_CHARS + 1 if end is None else end], parameters)
        if isinstance(read, Malformed):
            return Malformed(read.reason, _numbered([*calls, *_begun(text, start, parameters)]))
        calls += read
        if len(calls) > MAX_CALLS:
            return Malformed(f"more than {MAX_CALLS} tool calls at once", _numbered(calls))
        assert end is not None, "what is not closed cannot be read"
        match = _NEXT_CALL.match(text, end) or _LINE_START.search(text, end)
    if calls:
        return _numbered(calls)
    whole = _FENCE.sub("", text).strip() if len(text) <= MAX_CALL_CHARS else ""
    if _is_call(whole):
        return Malformed(_unknown_tool(whole.lstrip("[ \t\n").partition("(")[0].strip(), parameters))
    return ()


def _numbered(calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(f"call_{i}", call.name, call.arguments) for i, call in enumerate(calls))


def _begun(text: str, start: int, parameters: Mapping[str, Sequence[str]]) -> list[ToolCall]:
    """The whole calls of a list that begins at `start` and breaks off, or whose next one cannot be read."""
    calls = list[ToolCall]()
    match = _LIST_START.match(text, start)
    while match is not None and len(calls) <= MAX_CALLS:
        end = _closing(text, match.end())
        read = () if end is None else _read_pythonic(text[match.end() : end], parameters)
        if end is None or isinstance(read, Malformed):
            break
        calls += read
        match = _LIST_NEXT.match(text, end)
    return calls


def _line_at(text: str, start: int) -> str:
    end = text.find("\n", start)
    return text[start : len(text) if end < 0 else end]


def _is_call(text: str) -> bool:
    """Whether this is a call, or a list of them, of any tool with literal arguments and nothing else."""
    return len(text) <= MAX_CALL_CHARS and bool(_WHOLE_CALL.fullmatch(text)) and not isinstance(_read_pythonic(text, None), Malformed)


def _closing(text: str, start: int) -> int | None:
    """Where the brackets that open first at `start` are closed, strings left out; None when they are not, or too far away."""
    depth = 0
    for token in _BRACKET.finditer(text, start, start + MAX_CALL_CHARS + 1):
        depth += 1 if token[0] in "([{" else -1 if token[0] in ")]}" else 0
        if depth == 0 and token[0] in ")]}":
            return token.end()
    return None


def _read_pythonic(code: str, parameters: Mapping[str, Sequence[str]] | None) -> Parsed:
    code = code.strip()
    if len(code) > MAX_CALL_CHARS:
        return Malformed(f"the tool call is longer than {MAX_CALL_CHARS} characters")
    try:
        body = ast.parse(code, mode="eval").body
        _check_plain(body, code)
        nodes = body.elts if isinstance(body, ast.List) else [body]
        if len(nodes) > MAX_CALLS:
            return Malformed(f"more than {MAX_CALLS} tool calls at once")
        return tuple(_read_call_node(node, i, parameters) for i, node in enumerate(nodes))
    except _Unreadable as error:
        return Malformed(str(error))
    except SyntaxError as error:
        return Malformed(f"the tool call is not valid ({error.msg}); write tool(name=value), or a list of calls")
    except (ValueError, RecursionError, MemoryError):  # a lone surrogate; nesting that the parser refuses
        return Malformed("the tool call holds characters or nesting that cannot be read")


def _check_plain(body: ast.expr, code: str) -> None:
    """Raise _Unreadable for a text in several pieces, which Python puts together (`"ner" "ve"`), and a number not in digits."""
    written = code.encode()
    starts = [0, *(end.end() for end in _LINE_END.finditer(written))]
    for node in ast.walk(body):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float):
            assert node.end_lineno is not None and node.end_col_offset is not None, "what is parsed has its place"
            begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
            if not _PLAINLY.fullmatch(written[begin:end].decode()):
                raise _Unreadable(
                    "arguments must be plain values: text between one pair of quotes, numbers in digits, true or false, lists"
                )


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


def parse_hermes(text: str, tools: Sequence[Mapping[str, Any]]) -> Parsed:
    """Calls written as JSON objects between `<tool_call>` and `</tool_call>`; the text around them is ignored.

    Arguments are an object, the same as a JSON string (OpenAI's form), or a list in the order of the tool's parameters; the keys `id` and
    `type` are left alone.
    """
    parameters = parameter_names(tools)
    blocks = text.split(_OPEN, MAX_CALLS + 1)[1:]
    if not blocks:
        return Malformed(f"{_CLOSE} without {_OPEN}") if _CLOSE in text else ()
    calls, reason = list[ToolCall](), f"more than {MAX_CALLS} tool calls at once" if len(blocks) > MAX_CALLS else ""
    try:
        for i, block in enumerate(blocks[:MAX_CALLS]):
            calls.append(_read_hermes(block, i, parameters))
    except _Unreadable as error:
        reason = reason or str(error)
    return Malformed(reason, tuple(calls)) if reason else tuple(calls)


def _read_hermes(block: str, index: int, parameters: Mapping[str, Sequence[str]]) -> ToolCall:
    code, closed, _ = block.partition(_CLOSE)
    if not closed:
        raise _Unreadable(f"{_OPEN} is not closed by {_CLOSE}")
    if len(code) > MAX_CALL_CHARS:
        raise _Unreadable(f"the tool call is longer than {MAX_CALL_CHARS} characters")
    row = _json(code)
    if not isinstance(row, dict) or not isinstance(row.get("name"), str):
        raise _Unreadable('write {"name": "<tool>", "arguments": {…}}')
    if unknown := sorted(row.keys() - {"name", "arguments", "id", "type"}):
        raise _Unreadable(f'key {_short(unknown[0])} is not known; write {{"name": "<tool>", "arguments": {{…}}}}')
    name = row["name"]
    if name not in parameters:
        raise _Unreadable(_unknown_tool(name, parameters))
    arguments = row.get("arguments")
    return ToolCall(f"call_{index}", name, _arguments(name, {} if arguments is None else arguments, parameters[name]))


def _arguments(name: str, given: Any, names: Sequence[str]) -> dict[str, Any]:
    if isinstance(given, str):
        given = _json(given) if given.strip() else {}
    if isinstance(given, list):
        if len(given) > len(names):
            raise _Unreadable(f"{name} takes {len(names)} arguments ({', '.join(names)}), not {len(given)}")
        given = dict(zip(names, given, strict=False))
    if not isinstance(given, dict):
        raise _Unreadable(f"arguments of {name} must be an object")
    plain: dict[str, Any] = _json_value(given)
    return plain


def _json(code: str) -> Any:
    try:
        return json.loads(code)
    except json.JSONDecodeError as error:
        raise _Unreadable(f"the tool call is not valid JSON ({error.msg} at character {error.pos})") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; nesting
        raise _Unreadable("the tool call holds a number or nesting that cannot be read") from error


def checked_calls(found: Sequence[tuple[str, Any]], tools: Sequence[Mapping[str, Any]]) -> Parsed:
    """Calls that another parser read, as (tool, arguments), held to the same rules as those read here. For parsers of other formats.

    Example: `checked_calls([("measure", '{"part": 17}')], tools)` is `(ToolCall("call_0", "measure", {"part": 17}),)`.
    """
    parameters, calls = parameter_names(tools), list[ToolCall]()
    reason = f"more than {MAX_CALLS} tool calls at once" if len(found) > MAX_CALLS else ""
    try:
        for name, given in found[:MAX_CALLS]:
            if name not in parameters:
                raise _Unreadable(_unknown_tool(name, parameters))
            calls.append(ToolCall(f"call_{len(calls)}", name, _arguments(name, given, parameters[name])))
    except _Unreadable as error:
        reason = reason or str(error)
    return Malformed(reason, tuple(calls)) if reason else tuple(calls)


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
