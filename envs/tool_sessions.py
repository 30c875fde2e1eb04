"""Tools that keep state for the length of an episode: a class whose methods are tools, made anew for each.

class Shelf:
    def __init__(self, context: ToolContext) -> None:
        self.left = dict(context.data["shelf"])

    @tool
    def take(self, item: str) -> str:
        '''Take an item.'''
        self.left[item] -= 1
        return f"{self.left[item]} left"

    def close(self) -> None: ...        # if there is something to let go of

ToolEnv(env, SessionTools(Shelf))       # or `burnish serve-tools module:Shelf`, and a RemoteToolSet
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from .failures import FailureKind, boundary
from .tools import Tool, ToolContext, Tools, ToolSet


class OpenTools(Protocol):
    """The tools of one episode."""

    @property
    def ordered(self) -> bool:
        """Whether calls must follow each other in their order, as the tools keep state; otherwise those of one turn run side by side."""
        ...

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Run one tool. Raises as `Tools.call` does."""
        ...

    def close(self) -> None:
        """The episode is over."""
        ...


class LocalSession:
    """Tools of this process with the context of one episode. on_close: what their object has to do in the end. ordered: see `OpenTools`."""

    def __init__(self, tools: Tools, context: ToolContext, on_close: Callable[[], object] | None = None, ordered: bool = False) -> None:
        self.ordered = ordered
        self.tools = tools
        self.context = context
        self._on_close = on_close

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        return self.tools.call(name, arguments, self.context)

    def close(self) -> None:
        close, self._on_close = self._on_close, None
        if close is not None:
            close()


class SessionTools:
    """Tools that are methods of a class. Every episode gets an object of its own, made as `kind(context)` and closed by its `close`, if it
    has one. Calls of one episode never overlap.

    Raises ValueError when the class has no tools or cannot be made from a context. Example: `SessionTools(Shelf)`.
    """

    def __init__(self, kind: Callable[[ToolContext], object]) -> None:
        if not inspect.isclass(kind):
            raise ValueError(f"{kind!r} is no class; SessionTools takes a class whose methods are decorated with @tool")
        self._kind: Any = kind
        found = {key: value for base in reversed(kind.__mro__) for key, value in vars(base).items()}
        self._tools: dict[str, Tool[..., Any]] = {
            key: one for key, one in found.items() if isinstance(one, Tool) and one.is_method and not key.startswith("_")
        }
        if not self._tools:
            raise ValueError(f"class {kind.__qualname__} has no tools; decorate methods with @tool (from burnish.envs.tools)")
        try:
            inspect.signature(kind).bind(None)
        except TypeError:
            raise ValueError(f"class {kind.__qualname__} must be made from one argument, the ToolContext of the episode") from None

    @property
    def names(self) -> list[str]:
        return list(self._tools)

    def schemas(self) -> list[dict[str, Any]]:
        """The tools as OpenAI function schemas, in the order of the class."""
        return [one.schema() for one in self._tools.values()]

    def open(self, context: ToolContext) -> LocalSession:
        """The tools of one episode. Raises EpisodeFailure TOOL_ERROR when the object cannot be made."""
        culprit = f"tools {self._kind.__qualname__}"
        with boundary(FailureKind.TOOL_ERROR, culprit):
            made = self._kind(context)

        def close() -> None:
            with boundary(FailureKind.TOOL_ERROR, f"{culprit}.close"):
                if hasattr(made, "close"):
                    made.close()

        return LocalSession(ToolSet([one.__get__(made) for one in self._tools.values()]), context, close, ordered=True)

    def call(self, name: str, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """One call by itself, on an object of its own."""
        session = self.open(context)
        try:
            return session.call(name, arguments)
        finally:
            session.close()


def open_tools(tools: Tools, context: ToolContext) -> OpenTools:
    """The tools of one episode: a session where they have sessions, otherwise the tools with that context."""
    opened: OpenTools = tools.open(context) if hasattr(tools, "open") else LocalSession(tools, context)
    return opened
