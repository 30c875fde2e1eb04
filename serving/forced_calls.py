"""Calls that a model has to write: grammars of `tool_choice` "required" and of a named function, in the form that the model's parser reads.

Sampling is held to the grammar by vLLM's structured outputs. Forms in JSON keep all of a schema that vLLM's grammars know; burnish's
own, `measure(17, "bore")`, keeps types, enums and the order of parameters, and what else the schema says is for the tool to say.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ..envs.spaces import is_text
from ..envs.tool_calls import MAX_CALLS, parser_id

PYTHONIC: Final = parser_id("pythonic")
HERMES: Final = parser_id("hermes")
NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
LEVELS: Final = 4
"""How deep lists and dictionaries may lie in each other in burnish's own form."""
_SCALARS: Final = {
    "integer": '"-"? ("0" | [1-9] [0-9]{0,14})',
    "number": '"-"? ("0" | [1-9] [0-9]{0,14}) ("." [0-9]{1,15})? ("e" [+-]? [0-9]{1,2})?',
    "string": r"""("\"" ([^"\\\x00-\x1F] | "\\" ["\\nt])* "\"") | ("'" ([^'\\\x00-\x1F] | "\\" ['\\nt])* "'")""",
    "boolean": '"True" | "False"',
    "null": '"None"',
}


def forced_calls(parser: str, tools: Sequence[Mapping[str, Any]], only: str | None) -> dict[str, Any]:
    """What vLLM is told (`structured_outputs`) so that an answer is calls of these tools in the form that `parser` reads, and nothing else.

    only: the one tool that is called, once; None: any of them, once or several times. Raises ValueError where the form cannot be forced.
    Example: `forced_calls("burnish/hermes-v1", tools, "measure")` is `{"structural_tag": "…"}`.
    """
    asked = [tool["function"] for tool in tools if only in (None, tool["function"]["name"])]
    for function in asked:
        if not NAME.fullmatch(function["name"]):
            raise ValueError(f"the tool {function['name'][:80]!r} cannot be forced: a name has letters, digits, _, . and -, 64 at most")
    if parser == PYTHONIC:
        return {"grammar": pythonic_grammar(asked, once=only is not None)}
    if parser == HERMES:
        form: dict[str, Any] | None = {"type": "structural_tag", "format": _hermes(asked, once=only is not None)}
    else:
        from ..rollout.engine.vllm_tools import vllm_forced_calls  # where this runs, vLLM runs

        form = vllm_forced_calls(parser, tools, only)
    if form is None:
        raise ValueError(f"this model writes its calls as {parser} reads them, and that form cannot be forced; ask with tool_choice auto")
    return {"structural_tag": json.dumps(form)}


def _hermes(functions: Sequence[Mapping[str, Any]], once: bool) -> dict[str, Any]:
    """As chat templates of that form show it: a call on three lines."""
    tags = [
        {
            "type": "tag",
            "begin": f'<tool_call>\n{{"name": {json.dumps(function["name"])}, "arguments": ',
            "content": {"type": "json_schema", "json_schema": {"type": "object", **(function.get("parameters") or {})}},
            "end": "}\n</tool_call>",
        }
        for function in functions
    ]
    return {"type": "tags_with_separator", "tags": tags, "separator": "\n", "at_least_one": True, "stop_after_first": once}


def pythonic_grammar(functions: Sequence[Mapping[str, Any]], once: bool) -> str:
    """The calls as `envs.tool_calls.write_pythonic` writes them, in xgrammar's EBNF: arguments in order, at least to the last that the tool
    requires. Raises ValueError for a name that is none in Python."""
    for function in functions:
        if not function["name"].isidentifier() or keyword.iskeyword(function["name"]):
            raise ValueError(f"the tool {function['name']!r} cannot be forced: this model writes calls in Python, where that is no name")
    calls = " | ".join(f"call{i}" for i in range(len(functions)))
    more = "" if once else f'("\\n" call){{0,{MAX_CALLS - 1}}}'
    rules = [f"root ::= call {more}", f"call ::= {calls}"]
    rules += [f"call{i} ::= {_call(function)}" for i, function in enumerate(functions)]
    rules += [f"{name} ::= {rule}" for name, rule in _SCALARS.items()]
    scalars = " | ".join(_SCALARS)
    rules.append(f"value0 ::= {scalars}")
    for level in range(1, LEVELS + 1):
        below = f"value{level - 1}"
        rules.append(f"list{level} ::= {_list(below)}")
        rules.append(f'dict{level} ::= "{{" (string ": " {below} (", " string ": " {below})*)? "}}"')
        rules.append(f"value{level} ::= {scalars} | list{level} | dict{level}")
    return "\n".join(rules)


def _call(function: Mapping[str, Any]) -> str:
    parameters = function.get("parameters") or {}
    properties, required = parameters.get("properties") or {}, parameters.get("required")
    values = [f"({_value(schema)})" for schema in properties.values()]
    needed = max((i for i, name in enumerate(properties, 1) if isinstance(required, list) and name in required), default=0)
    rest = ""
    for i in range(len(values), needed, -1):
        before = "" if i == 1 else '", "'
        rest = f"({before} {values[i - 1]} {rest})?"
    given = ' ", " '.join(values[:needed])
    return f'"{function["name"]}(" {given} {rest} ")"'


def _value(schema: Any, level: int = LEVELS) -> str:
    """The rule of a value of this schema; of any value where the schema says what this form does not keep."""
    match schema:
        case {"enum": [*among]} if among and all(isinstance(one, int | float | None) or is_text(one) for one in among):
            return " | ".join(_written(among))
        case {"type": str() as kind} if kind in _SCALARS:
            return kind
        case {"type": "array", "items": items} if level > 1:
            return _list(f"({_value(items, level - 1)})")
        case {"type": "array"}:
            return f"list{level}"
        case {"type": "object"}:
            return f"dict{level}"
    return f"value{level}"


def _list(value: str) -> str:
    return f'"[" ({value} (", " {value})*)? "]"'


def _written(values: Sequence[Any]) -> Iterator[str]:
    """Values as Python has them, as literals of the grammar."""
    for value in values:
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
        yield json.dumps(text, ensure_ascii=False)
