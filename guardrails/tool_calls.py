"""Which tools may be called, with what: the policy's rules in order, and what none of them fits is denied."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from ..envs.types import ToolCall
from .numbers import as_float, as_number, as_truth, digits
from .patterns import compiled
from .policy import Policy, Response, ToolAction, ToolRule

MAX_ARGUMENT = 100_000
"""Characters of an argument; a call with a longer one is denied, for no rule can be held against it."""


@dataclass(frozen=True, slots=True)
class CallDecision:
    """What becomes of one tool call. rule: its number in the policy, None where none fitted. reason: for whoever wrote the call."""

    policy: str
    tool: str
    action: ToolAction
    rule: int | None
    reason: str
    where: Literal["call"] = "call"

    def to_row(self, evidence: bool = True) -> dict[str, Any]:
        """As JSON. evidence: False leaves out what the call said, its tool's name too, for logs."""
        row = {"policy": self.policy, "where": self.where, "action": self.action, "rule": self.rule}
        return {**row, "tool": self.tool, "reason": self.reason} if evidence else row


def check_call(policy: Policy, tool: str, arguments: Mapping[str, Any]) -> CallDecision:
    """Decide on a call. A policy without `[[tools]]` says nothing about tools, and allows them.

    Example: with the one rule `{ tool = "search_*", action = "allow" }`, `check_call(policy, "delete_all", {})` denies.
    """
    if policy.tools is None:
        return CallDecision(policy.id, tool, "allow", None, "")
    if not _is_unicode(tool, arguments):  # no rule can be held against it, and one that denies must not be passed by
        return CallDecision(policy.id, ascii(tool)[1:-1], "deny", None, "the call has half a character, which UTF-8 cannot hold")
    long = next((name for name, value in arguments.items() if len(_text(value)) > MAX_ARGUMENT), None)
    if long is not None:  # passed over, a rule that denies would leave it to one that allows
        reason = f"argument {str(long)[:100]!r} is longer than {MAX_ARGUMENT} characters, too long to be looked at"
        return CallDecision(policy.id, tool, "deny", None, reason)
    for number, rule in enumerate(policy.tools):
        if _fits(rule, tool, arguments):
            reason = rule.reason or ("" if rule.action == "allow" else f"the policy says {rule.action} for {rule.tool}")
            return CallDecision(policy.id, tool, rule.action, number, reason)
    return CallDecision(policy.id, tool, "deny", None, f"no rule of the policy allows {tool[:100]!r} with these arguments")


def check_calls(policy: Policy, calls: Iterable[ToolCall]) -> tuple[CallDecision, ...]:
    """Decide on each of several calls, in their order; on none where the policy says nothing about tools."""
    return tuple(check_call(policy, call.name, call.arguments) for call in calls) if policy.tools is not None else ()


def said_instead(policy: Policy, decided: Iterable[CallDecision]) -> str:
    """What is said in the place of calls that are not all allowed, "" where they are: the policy's message for what is escalated where one
    of them is, else that for what is refused."""
    actions = {one.action for one in decided} - {"allow"}
    instead: Response = "escalate" if "escalate" in actions else "refuse"
    return policy.message("", instead) if actions else ""


def _is_unicode(tool: str, arguments: Mapping[str, Any]) -> bool:
    try:
        (tool + json.dumps(dict(arguments), ensure_ascii=False, default=str)).encode()
    except UnicodeEncodeError:
        return False
    return True


def _fits(rule: ToolRule, tool: str, arguments: Mapping[str, Any]) -> bool:
    if not fnmatchcase(tool, rule.tool):
        return False
    forbids = rule.action != "allow"  # what forbids reaches farther than what allows
    for name, pattern in rule.arguments.items():
        given = [value for key, value in arguments.items() if key not in rule.arguments] if name == "*" else [arguments.get(name)]
        if name != "*" and name not in arguments:
            return False
        expression = compiled(pattern, False, over_lines=forbids)
        matching = (any(expression.fullmatch(text) is not None for text in _texts(value, forbids)) for value in given)
        if not (any(matching) if forbids else all(matching)):  # one argument more must not hide another
            return False
    return True


def _texts(value: Any, forbids: bool) -> tuple[str, ...]:
    """How a rule may read an argument. One that forbids also sees the texts in a list or an object as the tool gets them, and the numbers
    and truth values that a tool whose parameter is one makes of texts, of each other, and of what a float cannot hold."""
    text = _text(value)
    if not forbids:
        return (text,)
    turned = (_turned(value, turn) for turn in (as_number, as_float, as_truth))
    return tuple(dict.fromkeys((text, _text(value, bare=True), *(_text(one, bare=True) for one in turned))))


def _turned(value: Any, turn: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _turned(one, turn) for key, one in value.items()}
    return [_turned(one, turn) for one in value] if isinstance(value, list | tuple) else turn(value)


def _text(value: Any, bare: bool = False) -> str:
    """An argument as an expression is held against it: a text as it is, numbers in digits, all else as JSON with its keys in order, in
    whose texts quotes and backslashes alone are escaped. bare: not even those."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_quoted(str(key), bare)}: {_part(value[key], bare)}" for key in sorted(value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_part(item, bare) for item in value) + "]"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return digits(value)
    return json.dumps(value)


def _part(value: Any, bare: bool) -> str:
    return _quoted(value, bare) if isinstance(value, str) else _text(value, bare)


def _quoted(text: str, bare: bool) -> str:
    return f'"{text}"' if bare else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
