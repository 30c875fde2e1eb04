"""Tools for tests, answered by functions of this process, without a socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...rpc.transport.mock import MockTransport
from ..tool_sessions import SessionTools
from ..tools import Tool, ToolSet
from .tools import ToolService


@contextmanager
def mock_tools(*tools: Tool[..., Any] | ToolSet | SessionTools, address: str = "mock:1") -> Iterator[MockTransport]:
    """Have these tools answer whoever calls the tool service at `address`, as long as the block runs.

    tools: functions decorated with `@tool`, or one `ToolSet` or `SessionTools`. Calls are turned into messages and back, as on the way to a
    real service; a tool that raises is the failure it would be. `calls` of the mock holds what arrived, openings of sessions included.
    Raises ValueError when one of several is not a tool.

    Example: `with mock_tools(count, address="127.0.0.1:50052") as mock: …`.
    """
    given: list[Any] = list(tools)
    service = ToolService(given[0] if len(given) == 1 and isinstance(given[0], ToolSet | SessionTools) else ToolSet(given))

    async def answer(method: str, request: Any) -> Any:
        return await (service.Describe(request, None) if method == "Describe" else service.answer(request))

    try:
        with MockTransport(answer, address) as mock:
            yield mock
    finally:
        service.close()
