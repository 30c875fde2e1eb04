"""The function-calling environment: functions are described, a question is asked, and one answer holds the calls that it takes."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from ...call_lines import call_lines
from ...contract import Observation
from ...spaces import MessagesSpace, UnicodeText
from ...tool_calls import Malformed, Parsed, ToolParser, find_parser
from ...types import Message, Task, message_from_dict
from .cases import make_case
from .matching import Wanted, are_wanted, check_wanted

SYSTEM = "Call the functions that the question asks for, with the values that it gives. Where none of them fits, call none and say so."
WRITTEN = " Write each call on a line of its own, as name(parameter=value), and nothing else."
"""Where the model's chat template does not say how a call is written."""
PLAIN = "burnish/pythonic-v1"


class FunctionCalls(gymnasium.Env[Observation, str]):
    """`burnish/FunctionCalls-v0`: one question, one answer. The reward is 1.0 when the answer holds exactly the calls that are wanted, in
    any order, with right values (`matching.are_wanted`), else 0.0. Where no call is wanted, any answer without one is right that says
    something. Nothing is run; `data["tool_calls"]` and `data["call_lines"]` say which calls it holds, and where, as `ToolEnv` does.

    A task may bring its own case in its data: `tools` (OpenAI function schemas), `calls` (as `matching` has them), and `messages` (OpenAI
    chat messages), unless it has a prompt of its own, which is then asked as it stands. The case of a task without any of these is made
    from its seed.

    Calls are read as the model's chat template has them written, and as Python where it does not say. Raises ValueError for a task whose
    case is unfit.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  # gymnasium declares it on the instance
    observation_space = MessagesSpace()
    action_space = UnicodeText()
    reward_parts = ("right",)

    def __init__(self) -> None:
        self._wanted: tuple[Wanted, ...] | None = None

    @staticmethod
    def check_task(task: Task) -> None:
        """Raise ValueError as `reset` does, for a task that is only read."""
        if _brings(task):
            _brought(task)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        given = options or {}
        template_parser, task = given.get("tool_parser"), given.get("task")
        parser = template_parser or PLAIN
        self._parse: ToolParser = find_parser(parser)
        if task is not None and _brings(task):
            messages, tools, wanted = _brought(task)
        else:
            case = make_case(seed if seed is not None else int(self.np_random.integers(2**31)))
            messages, tools, wanted = (Message("user", case.question),), case.tools, case.calls
        self._tools, self._wanted = tools, wanted
        said = SYSTEM if template_parser else SYSTEM + WRITTEN
        data = {"calls": [{name: dict(values) for name, values in one.items()} for one in wanted], "tool_parser": parser}
        return _opening(said, messages) if messages else (), {"tools": tools, "data": data}

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if self._wanted is None:
            raise ResetNeeded("burnish/FunctionCalls-v0: the episode is over; call reset() before step()")
        wanted, self._wanted = self._wanted, None
        calls = self._parse(action, self._tools)
        right = float(not isinstance(calls, Malformed) and bool(action.strip()) and are_wanted(calls, wanted))
        return (), right, True, False, {"reward_parts": {"right": right}, "data": self._recorded(action, calls)}

    def _recorded(self, action: str, calls: Parsed) -> dict[str, Any]:
        """The calls of an answer and the characters of it that hold them, as `ToolEnv` has them."""
        if isinstance(calls, Malformed) or not calls:
            return {"tool_calls": []}
        rows = [{"name": call.name, "arguments": dict(call.arguments), "status": "not_run"} for call in calls]
        return {"tool_calls": rows, "call_lines": {"call_0": list(call_lines(action, calls, self._parse, self._tools))}}


def _brings(task: Task) -> bool:
    """Whether a task brings its own case. Raises ValueError when it asks and does not say which calls are right."""
    if "calls" in task.data:
        return True
    asks = "prompt" if task.prompt else next((key for key in ("messages", "tools") if key in task.data), None)
    if asks is not None:
        raise ValueError(f"a task that brings a case of its own, here by its {asks}, says in calls what is right: [] where no call is")
    return False


def _brought(task: Task) -> tuple[tuple[Message, ...], tuple[dict[str, Any], ...], tuple[Wanted, ...]]:
    """What a task's data says: the messages that come behind its prompt, the tools, and the calls."""
    tools, rows = task.data.get("tools") or (), task.data.get("messages") or ()
    wanted = check_wanted(task.data["calls"])
    if not isinstance(tools, list | tuple):
        raise ValueError(f"tools must be a list of OpenAI function schemas, not {type(tools).__name__}")
    if task.prompt:
        return (), tuple(tools), wanted
    messages = tuple(message_from_dict(row, f"messages[{i}]") for i, row in enumerate(rows))
    if not messages:
        raise ValueError("a task that brings calls asks by a prompt, or by messages in its data; this one has neither")
    return messages, tuple(tools), wanted


def _opening(said: str, messages: tuple[Message, ...]) -> Observation:
    """The messages behind what is said of all of them, with a system message of their own as its end."""
    if messages[0].role == "system":
        return Message("system", f"{said}\n\n{messages[0].text}"), *messages[1:]
    return Message("system", said), *messages
