"""`ToolEnv`: gives an environment tools, so that its author writes neither parsing nor dispatch."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium
from gymnasium.error import ResetNeeded

from .contract import ConversationEnv, Observation
from .failures import EpisodeFailure, Failure, FailureKind, short_traceback
from .tool_calls import Malformed, parameter_names, tool_parser
from .tool_sessions import OpenTools, open_tools
from .tools import ToolContext, ToolRejected, Tools
from .types import Message, Task, ToolCall

log = logging.getLogger("burnish.envs")


class ToolEnv(gymnasium.Wrapper[Observation, str, Observation, str]):
    """Runs the tool calls in the policy's text and answers with `tool` messages; any other text goes to the wrapped environment.

    env: the conversation environment that judges final answers.
    tools: a `ToolSet`, `SessionTools` or a `RemoteToolSet`; shared between environments. A session of them is opened with each episode and
    closed with the next one or the environment.
    parser: "pythonic" or "hermes" (see `tool_calls`).
    max_calls: tool calls per episode; further ones are answered with a request for the final answer.

    A turn with tool calls has reward 0. A call the tool refuses, one too many, and text that cannot be read as a call are ordinary
    observations. `info` carries the tools' schemas at reset; metrics `tool_calls` (calls run), `tool_rejected` (of those, refused by
    the tool, and calls beyond max_calls) and `malformed_calls`; and `data["tool_calls"]`, all calls so far as
    `{"name", "arguments", "status"}` with status "ok", "rejected" or "over_limit".

    The wrapped environment may have two optional methods: `tool_context() -> ToolContext | Mapping` says what tools get to know (a
    mapping is laid over the task's data), and `on_tool_result(call, text) -> info | None` hears of every result (to count costs, say;
    what it returns goes into the step's `info`). A reset without a seed draws one, so that environment and tools agree on it.

    Raises EpisodeFailure TOOL_ERROR when a tool fails, ValueError on an unknown parser.
    """

    def __init__(self, env: ConversationEnv, tools: Tools, parser: str = "pythonic", max_calls: int = 32) -> None:
        super().__init__(env)
        if max_calls < 0:
            raise ValueError(f"ToolEnv: max_calls must be at least 0, not {max_calls}")
        self._tools = tools
        self._schemas = tools.schemas()
        self._parameters = parameter_names(self._schemas)
        self._parse = tool_parser(parser)
        self._max_calls = max_calls
        self._done = True
        self._session: OpenTools | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        task: Task | None = (options or {}).get("task")
        if seed is None:
            seed = task.seed if task else int(self.env.unwrapped.np_random.integers(2**31))
        messages, info = self.env.reset(seed=seed, options=options)
        self._calls: list[dict[str, Any]] = []
        self._counts = {"tool_calls": 0.0, "tool_rejected": 0.0, "malformed_calls": 0.0}
        self._context = self._make_context((options or {}).get("episode_id") or uuid.uuid4().hex, seed, task.data if task else {})
        self._close_session()
        self._session = open_tools(self._tools, self._context)
        self._done = False
        return messages, {**self._with_calls(info), "tools": self._schemas}

    def step(self, action: str) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        if self._done:
            raise ResetNeeded("ToolEnv: the episode is over; call reset() before step()")
        parsed = self._parse(action, self._parameters)
        if parsed == ():
            messages, reward, terminated, truncated, info = self.env.step(action)
            self._done = terminated or truncated
            return messages, reward, terminated, truncated, self._with_calls(info)
        self._heard: dict[str, Any] = {}
        if isinstance(parsed, Malformed):
            self._counts["malformed_calls"] += 1
            answer: Observation = (Message("tool", f"Error: {parsed.reason}."),)
        else:
            answer = tuple(self._run(call) for call in parsed)
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

    def _run(self, parsed: ToolCall) -> Message:
        call = ToolCall(f"call_{len(self._calls)}", parsed.name, parsed.arguments)
        status, text = self._dispatch(call)
        self._calls.append({"name": call.name, "arguments": dict(call.arguments), "status": status})
        self._counts["tool_calls"] += status != "over_limit"
        self._counts["tool_rejected"] += status != "ok"
        return Message("tool", text, tool_call_id=call.id, name=call.name)

    def _dispatch(self, call: ToolCall) -> tuple[str, str]:
        if self._counts["tool_calls"] >= self._max_calls:
            return "over_limit", f"Error: all {self._max_calls} tool calls are used; give your final answer."
        try:
            assert self._session is not None, "a reset opens it"
            text = self._session.call(call.name, call.arguments)
        except ToolRejected as rejection:
            return "rejected", f"Error: {rejection}"
        except EpisodeFailure:
            raise
        except Exception as error:
            raise EpisodeFailure(Failure(FailureKind.TOOL_ERROR, f"tool {call.name}", short_traceback(error))) from error
        if not isinstance(text, str):
            raise EpisodeFailure(Failure(FailureKind.TOOL_ERROR, f"tool {call.name}", f"returned {type(text).__name__} instead of str"))
        if self.env.has_wrapper_attr("on_tool_result"):
            self._heard.update(self.env.get_wrapper_attr("on_tool_result")(call, text) or {})
        return "ok", text

    def _make_context(self, episode_id: str, seed: int, data: Mapping[str, Any]) -> ToolContext:
        if not self.env.has_wrapper_attr("tool_context"):
            return ToolContext(episode_id, seed, dict(data))
        given = self.env.get_wrapper_attr("tool_context")()
        return given if isinstance(given, ToolContext) else ToolContext(episode_id, seed, {**data, **given})

    def _with_calls(self, info: Mapping[str, Any]) -> dict[str, Any]:
        calls = [dict(call) for call in self._calls]
        return {**info, "metrics": {**self._counts, **info.get("metrics", {})}, "data": {**info.get("data", {}), "tool_calls": calls}}
