"""`ToolEnv`: gives an environment tools, so that its author writes neither parsing nor dispatch."""

from __future__ import annotations

import logging
import queue
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any, SupportsFloat, TypeVar

import gymnasium
from gymnasium.error import ResetNeeded

from .call_lines import call_lines
from .contract import ConversationEnv, Observation
from .failures import EpisodeFailure, Failure, FailureKind, boundary
from .tool_calls import Malformed, ToolParser, find_parser, parser_id
from .tool_sessions import OpenTools, open_tools
from .tools import ToolContext, ToolRejected, Tools
from .types import Message, Task, ToolCall

log = logging.getLogger("burnish.envs")

AUTO = "auto"

T = TypeVar("T")


class ToolEnv(gymnasium.Wrapper[Observation, str, Observation, str]):
    """Runs the tool calls in the policy's text and answers with `tool` messages; any other text goes to the wrapped environment.

    env: the conversation environment that judges final answers.
    tools: a `ToolSet`, `SessionTools` or a `RemoteToolSet`; shared between environments. A session of them is opened with each episode and
    closed with the next one or the environment.
    parser: "pythonic", "hermes", or the id of another (see `tool_calls`). "auto" is the one that fits the model's chat template, as the
    rollout says at reset, and "pythonic" where nobody says or the template shows none.
    max_calls: tool calls per episode; further ones are answered with a request for the final answer.

    The calls of a turn (32 at most) run side by side, each in a thread, unless the tools keep state; they are
    answered in their order. A turn with tool calls has
    reward 0. A call the tool refuses, one too many, and text that cannot be read as a call are ordinary
    observations. `info` carries the tools' schemas at reset; metrics `tool_calls` (calls run), `tool_rejected` (of those, refused by
    the tool, and calls beyond max_calls) and `malformed_calls`; and `data["tool_calls"]`, all calls so far as
    `{"name", "arguments", "status"}` with status "ok", "rejected" or "over_limit", in the order of the `tool_call_id` of their answers,
    "call_0", …; `data["call_lines"]`, once there are calls, which characters of a turn's text hold them, `[begin, end]` under the id of
    the turn's first; and, at reset, `data["tool_parser"]`, the id of the parser.

    The wrapped environment may have two optional methods: `tool_context() -> ToolContext | Mapping` says what tools get to know (a
    mapping is laid over the task's data), and `on_tool_result(call, text) -> info | None` hears of every result (to count costs, say;
    what it returns goes into the step's `info`). A reset without a seed draws one, so that environment and tools agree on it.

    Raises EpisodeFailure TOOL_ERROR when a tool fails, ValueError on an unknown parser.
    """

    def __init__(self, env: ConversationEnv, tools: Tools, parser: str = AUTO, max_calls: int = 32) -> None:
        super().__init__(env)
        if max_calls < 0:
            raise ValueError(f"ToolEnv: max_calls must be at least 0, not {max_calls}")
        self._tools = tools
        self._schemas = tools.schemas()
        self._parser = parser
        if parser != AUTO:
            find_parser(parser)
        self._max_calls = max_calls
        self._done = True
        self._session: OpenTools | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        task: Task | None = (options or {}).get("task")
        if seed is None:
            seed = task.seed if task else int(self.env.unwrapped.np_random.integers(2**31))
        messages, info = self.env.reset(seed=seed, options=options)
        self._calls: list[dict[str, Any]] = []
        self._lines: dict[str, list[int]] = {}
        self._counts = {"tool_calls": 0.0, "tool_rejected": 0.0, "malformed_calls": 0.0}
        self._use_parser((options or {}).get("tool_parser"))
        self._context = self._make_context((options or {}).get("episode_id") or uuid.uuid4().hex, seed, task.data if task else {})
        self._close_session()
        self._session = open_tools(self._tools, self._context)
        self._done = False
        info = self._with_calls(info)
        return messages, {**info, "data": {**info["data"], "tool_parser": self._parser_id}, "tools": self._schemas}

    def step(self, action: str) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        if self._done:
            raise ResetNeeded("ToolEnv: the episode is over; call reset() before step()")
        parsed = self._parse(action, self._schemas)
        if parsed == ():
            messages, reward, terminated, truncated, info = self.env.step(action)
            self._done = terminated or truncated
            return messages, reward, terminated, truncated, self._with_calls(info)
        self._heard: dict[str, Any] = {}
        if isinstance(parsed, Malformed):
            self._counts["malformed_calls"] += 1
            answer: Observation = (Message("tool", f"Error: {parsed.reason}."),)
        else:
            self._lines[f"call_{len(self._calls)}"] = list(call_lines(action, parsed, self._parse, self._schemas))
            answer = self._run(parsed)
        return answer, 0.0, False, False, self._with_calls(self._heard)

    def close(self) -> None:
        self._close_session()
        super().close()  # type: ignore[no-untyped-call]

    def _close_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            try:
                session.close()
            except EpisodeFailure as failure:  # the episode is over, and its outcome does not depend on this
                log.warning("closing the tools of episode %s: %s", self._context.episode_id, failure)

    def _use_parser(self, of_template: str | None) -> None:
        self._parser_id = parser_id(self._parser if self._parser != AUTO else of_template or "pythonic")
        self._parse: ToolParser = find_parser(self._parser_id)

    def _run(self, parsed: Sequence[ToolCall]) -> Observation:
        calls = [ToolCall(f"call_{len(self._calls) + i}", call.name, call.arguments) for i, call in enumerate(parsed)]
        left = max(0, self._max_calls - int(self._counts["tool_calls"]))
        over = ("over_limit", f"Error: all {self._max_calls} tool calls are used; give your final answer.")
        assert self._session is not None, "a reset opens it"
        allowed = [partial(self._dispatch, self._session, call) for call in calls[:left]]
        answered = [call() for call in allowed] if self._session.ordered else _side_by_side(allowed)
        answered += [over] * len(calls[left:])
        for call, (status, text) in zip(calls, answered, strict=True):
            self._calls.append({"name": call.name, "arguments": dict(call.arguments), "status": status})
            self._counts["tool_calls"] += status != "over_limit"
            self._counts["tool_rejected"] += status != "ok"
            if status == "ok" and self.env.has_wrapper_attr("on_tool_result"):
                self._heard.update(self.env.get_wrapper_attr("on_tool_result")(call, text) or {})
        return tuple(Message("tool", text, tool_call_id=call.id, name=call.name) for call, (_, text) in zip(calls, answered, strict=True))

    def _dispatch(self, session: OpenTools, call: ToolCall) -> tuple[str, str]:
        try:
            with boundary(FailureKind.TOOL_ERROR, f"tool {call.name}", ToolRejected):
                text = session.call(call.name, call.arguments)
        except ToolRejected as rejection:
            return "rejected", f"Error: {rejection}"
        if not isinstance(text, str):
            raise EpisodeFailure(Failure(FailureKind.TOOL_ERROR, f"tool {call.name}", f"returned {type(text).__name__} instead of str"))
        return "ok", text

    def _make_context(self, episode_id: str, seed: int, data: Mapping[str, Any]) -> ToolContext:
        if not self.env.has_wrapper_attr("tool_context"):
            return ToolContext(episode_id, seed, dict(data))
        given = self.env.get_wrapper_attr("tool_context")()
        return given if isinstance(given, ToolContext) else ToolContext(episode_id, seed, {**data, **given})

    def _with_calls(self, info: Mapping[str, Any]) -> dict[str, Any]:
        recorded = {"tool_calls": [dict(call) for call in self._calls], **({"call_lines": dict(self._lines)} if self._lines else {})}
        return {**info, "metrics": {**self._counts, **info.get("metrics", {})}, "data": {**info.get("data", {}), **recorded}}


def _side_by_side(calls: Sequence[Callable[[], T]]) -> list[T]:
    """What all return, in order, each from a thread of its own. Raises what the first one to fail raised, without waiting for the others.

    Bounded by whoever waits for the step: a call that never returns keeps its thread, which keeps no process alive.
    """
    if len(calls) < 2:
        return [call() for call in calls]
    ended: queue.SimpleQueue[tuple[int, T | BaseException]] = queue.SimpleQueue()

    def work(i: int, call: Callable[[], T]) -> None:
        try:
            ended.put((i, call()))
        except BaseException as error:
            ended.put((i, error))

    for i, call in enumerate(calls):
        threading.Thread(target=copy_context().run, args=(work, i, call), name=f"burnish-tool-{i}", daemon=True).start()
    found: dict[int, T] = {}
    while len(found) < len(calls):
        i, result = ended.get()
        if isinstance(result, BaseException):
            raise result
        found[i] = result
    return [found[i] for i in range(len(calls))]
