"""Tools behind gRPC: the service over a `ToolSet`, and `RemoteToolSet`, which environments use as if the tools were local."""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import grpc

from ...rpc.address import shown_address
from ...rpc.batches import BatchedHandler, Limits
from ...rpc.client import BatchedClient, Pin, describe_blocking
from ...rpc.errors import CODES, RpcError, RpcRemoteError, RpcTimeout, RpcUnavailable, Status
from ...rpc.methods import CALL, CONTRACT
from ...rpc.pauses import growing_pause
from ...rpc.payload import PayloadError, check_together, decode_json, decode_value, encode_json, utf8
from ...rpc.user_code import is_asked_for
from ...v1 import tool_pb2, tool_pb2_grpc
from ..failures import EpisodeFailure, Failure, FailureKind, short_traceback
from ..registry import shortened
from ..tool_sessions import LocalSession, SessionTools
from ..tools import ToolContext, ToolRejected, ToolSet, observation, unknown_tool
from .service import SessionLimits
from .tool_sessions import Guard, ToolSessions, close_all

log = logging.getLogger("burnish.envs")

ATTEMPTS = 3
"""How often one call of a session is sent while the service cannot be reached. The service does nothing twice."""
RETRY_S = 0.1
CLOSE_S = 5.0


class ToolService(tool_pb2_grpc.ToolServiceServicer):
    """Serves a `ToolSet`, or `SessionTools`, unary and batched. Sync tools run in worker threads, async ones on the server's event loop.

    A client may open a session per episode (see the contract): then no call happens twice, and `SessionTools` keep their object. sessions:
    how many at a time, and how long one may be idle.
    """

    full_name = "burnish.v1.ToolService"

    def __init__(self, tools: ToolSet | SessionTools, limits: Limits | None = None, sessions: SessionLimits | None = None) -> None:
        self._tools = tools
        self._handler = BatchedHandler(CALL, self.answer, limits)
        ordered = isinstance(tools, SessionTools)
        self._sessions = ToolSessions(
            self._make, self._answer, self._handler.in_thread, sessions or SessionLimits(), self._handler.limits, ordered
        )

    def add_to(self, server: grpc.aio.Server) -> None:
        tool_pb2_grpc.add_ToolServiceServicer_to_server(self, server)

    @property
    def in_flight(self) -> int:
        """Calls at work, waited for or not, or sessions open, whichever are more: what this server has on its hands."""
        return max(self._handler.in_flight, len(self._sessions), self._sessions.at_work)

    @property
    def able(self) -> bool:
        return self._handler.able

    async def drain(self) -> None:
        await self._handler.drain()

    def close(self) -> bool:
        """Close the tools of all sessions and release the threads; False when user code is stuck in one."""
        left = self._sessions.close()
        closer = threading.Thread(target=close_all, args=(left,), name="burnish-close-tools", daemon=True)
        closer.start()
        closer.join(CLOSE_S)
        return self._handler.close() and not closer.is_alive()

    async def Describe(self, request: tool_pb2.DescribeToolsRequest, context: Any) -> tool_pb2.DescribeToolsResponse:
        functions = [schema["function"] for schema in self._tools.schemas()]
        rows = [
            tool_pb2.ToolInfo(
                name=function["name"], description=function["description"], parameters_json=json.dumps(function["parameters"])
            )
            for function in functions
        ]
        return tool_pb2.DescribeToolsResponse(
            contract=CONTRACT,
            server_version=f"burnish {version('burnish')}",
            tools=rows,
            sessions=True,
            idle_timeout_s=self._sessions.limits.idle_s,
            ordered=isinstance(self._tools, SessionTools),
        )

    async def Call(self, request: tool_pb2.CallRequest, context: Any) -> tool_pb2.CallResponse:
        return await self._handler.unary(request, context)

    async def CallStream(self, request_iterator: AsyncIterator[tool_pb2.CallStreamRequest], context: Any) -> None:  # type: ignore[override]
        await self._handler.stream(request_iterator, context)

    async def answer(self, request: tool_pb2.CallRequest) -> tool_pb2.CallResponse:
        """The answer to one request, however it came. Raises Status."""
        if request.session_id:
            return await self._sessions.handle(request)
        if request.session_step:
            raise Status("INVALID_ARGUMENT", "session_id must be set to open or close a session")
        if isinstance(self._tools, ToolSet):
            return await self._answer(await self._handler.read(self._make, request), request, _unguarded)
        return await self._alone(request)

    async def _alone(self, request: tool_pb2.CallRequest) -> tool_pb2.CallResponse:
        """A call without a session, on an object of its own."""
        try:
            session = await self._handler.in_thread(self._make, request)
            try:
                return await self._answer(session, request, _unguarded)
            finally:
                await self._handler.in_thread(session.close)
        except EpisodeFailure as failure:
            raise Status("UNKNOWN", failure.failure.detail) from failure

    def _make(self, request: tool_pb2.CallRequest) -> LocalSession:
        """The tools for one session, or for a call without one."""
        context = _context(request)
        return self._tools.open(context) if isinstance(self._tools, SessionTools) else LocalSession(self._tools, context)

    async def _answer(self, session: LocalSession, request: tool_pb2.CallRequest, guard: Guard[str]) -> tool_pb2.CallResponse:
        arguments, data = await self._handler.read(_arguments, request)
        context = session.context
        if data is not None:  # of this call; the rest holds for the whole session
            context = replace(context, data=data)
        tools, name = session.tools, request.tool
        assert isinstance(tools, ToolSet), "sessions of this server hold tool sets"
        try:
            one = tools.find(name)
            if one.is_async:
                bound = await self._handler.read(lambda _: one.bind(arguments, context), request)
                text = observation(name, await one.function(**bound))
            else:
                text = await self._handler.in_thread(guard, lambda: tools.call(name, arguments, context))
            return tool_pb2.CallResponse(text=text)
        except ToolRejected as rejection:
            return tool_pb2.CallResponse(rejected=utf8(str(rejection)))
        except EpisodeFailure as failure:
            raise Status("UNKNOWN", failure.failure.detail) from failure
        except Status:
            raise
        except BaseException as error:  # a sys.exit would end the server
            if is_asked_for(error):
                raise
            raise Status("UNKNOWN", short_traceback(error)) from error


def _context(request: tool_pb2.CallRequest) -> ToolContext:
    """Raises Status INVALID_ARGUMENT when the task's data cannot be read."""
    try:
        return ToolContext(request.episode_id, request.task_seed, decode_json(request.task_data_json))
    except PayloadError as error:
        raise Status("INVALID_ARGUMENT", str(error)) from None


def _arguments(request: tool_pb2.CallRequest) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Of a call, and the task's data where it brings some. Raises Status INVALID_ARGUMENT when they cannot be read."""
    try:
        data = decode_json(request.task_data_json) if request.task_data_json else None
        return decode_json(request.arguments_json), data
    except PayloadError as error:
        raise Status("INVALID_ARGUMENT", str(error)) from None


def _unguarded(work: Callable[[], str]) -> str:
    return work()


class RemoteToolSet:
    """The tools of a service, with the interface of a local `ToolSet`. Picklable; every process makes its own connection.

    deadline_s: seconds one call may take, reconnecting and waiting for a free session included. has_sessions: whether the service has
    sessions, known once it was asked for its schemas.

    Example: `ToolEnv(Orders(), RemoteToolSet("127.0.0.1:50052", deadline_s=5.0))`.
    """

    def __init__(self, address: str, deadline_s: float = 10.0) -> None:
        if not deadline_s > 0:
            raise ValueError(f"tools at {address}: deadline_s must be a positive number of seconds, not {deadline_s!r}")
        self.address = address
        self.deadline_s = deadline_s
        self._client = BatchedClient(address, CALL)
        self._schemas: list[dict[str, Any]] | None = None
        self.has_sessions = self._ordered = False

    def schemas(self) -> list[dict[str, Any]]:
        """The tools as OpenAI function schemas, asked of the service once.

        Raises EpisodeFailure TOOL_ERROR or TOOL_TIMEOUT naming the address when the service cannot say.
        """
        if self._schemas is None:
            try:
                self._describe(self.deadline_s)
            except RpcError as error:
                raise self._failure("tools", error) from error
        assert self._schemas is not None, "they were just asked for"
        return self._schemas

    def call(self, name: str, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Run one tool on the service, without a session: it is sent once. Raises ToolRejected when the policy got the call wrong,
        EpisodeFailure TOOL_ERROR or TOOL_TIMEOUT naming tool and address otherwise."""
        request = self._request(name, arguments)
        request.episode_id, request.task_seed, request.task_data_json = context.episode_id, context.seed, self._data(name, context)
        try:
            return self._read(name, self._client.call_blocking(request, self.deadline_s))
        except RpcError as error:
            raise self._failure(name, error) from error

    def open(self, context: ToolContext) -> RemoteToolSession:
        """The tools of one episode, all on one replica, where the service has sessions; `ToolEnv` opens and closes one per episode.
        Nothing is sent before the first call."""
        return RemoteToolSession(self, context)

    def check(self, timeout_s: float = 10.0) -> None:
        """Ask the service for its tools. Raises ValueError when it cannot be reached or is no tool service of this contract."""
        try:
            self._describe(timeout_s)
        except RpcError as error:
            raise ValueError(f"tool service at {shown_address(self.address)} does not answer: {error.message}") from error

    def _describe(self, timeout_s: float) -> None:
        answer = describe_blocking(self.address, CALL.service, tool_pb2.DescribeToolsRequest(), tool_pb2.DescribeToolsResponse, timeout_s)
        if answer.contract != CONTRACT:
            raise RpcRemoteError(self.address, f"it speaks {answer.contract!r}; this burnish speaks {CONTRACT!r}", CODES["INTERNAL"])
        self._schemas = _schemas(self.address, answer.tools)
        self.has_sessions, self._ordered = answer.sessions, answer.ordered

    def _request(self, name: str, arguments: Mapping[str, Any]) -> tool_pb2.CallRequest:
        known = [schema["function"]["name"] for schema in self.schemas()]
        if name not in known:  # a name the policy made up may not even be valid UTF-8
            raise ToolRejected(unknown_tool(name, known))
        try:
            return tool_pb2.CallRequest(tool=name, arguments_json=encode_json(arguments))
        except PayloadError as error:
            raise ToolRejected(f"{name}: {error}") from None

    def _data(self, name: str, context: ToolContext) -> str:
        try:
            return encode_json(context.data)
        except PayloadError as error:
            failure = Failure(FailureKind.TOOL_ERROR, self._culprit(name), f"the task's data cannot be sent: {error}")
            raise EpisodeFailure(failure) from error

    def _read(self, name: str, response: tool_pb2.CallResponse) -> str:
        """The observation. Raises ToolRejected, or RpcRemoteError when there is none."""
        match response.WhichOneof("outcome"):
            case "text":
                return response.text
            case "rejected":
                raise ToolRejected(response.rejected)
            case "json":
                try:
                    return json.dumps(decode_value(response.json), ensure_ascii=False)
                except PayloadError as error:
                    raise RpcRemoteError(self.address, f"tool {name!r} answers no JSON: {error}", CODES["DATA_LOSS"]) from None
            case _:
                raise RpcRemoteError(self.address, "the service sent no observation and no rejection", CODES["INTERNAL"])

    def _culprit(self, name: str) -> str:
        return f"{name}@{shown_address(self.address)}"

    def _failure(self, name: str, error: RpcError) -> EpisodeFailure:
        kind = FailureKind.TOOL_TIMEOUT if isinstance(error, RpcTimeout) else FailureKind.TOOL_ERROR
        return EpisodeFailure(Failure(kind, self._culprit(name), error.message))


class RemoteToolSession:
    """The tools of one episode on a service; made by `RemoteToolSet.open`.

    In a session a call has an id, by which the service knows it again: when the connection breaks or the service says that it is
    unavailable, the call is sent again, to the same replica, and is run once all the same. Where the service has no sessions, calls are
    those of the `RemoteToolSet`, and are sent once.
    """

    def __init__(self, tools: RemoteToolSet, context: ToolContext) -> None:
        self._tools = tools
        self._context = context
        self._id = self._data = ""
        self._pin = Pin()
        self._calls = itertools.count()
        self._lock = threading.Lock()

    @property
    def ordered(self) -> bool:
        return self._tools._ordered

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Run one tool. Raises as `RemoteToolSet.call` does."""
        tools = self._tools
        request = tools._request(name, arguments)
        if not tools.has_sessions:
            return tools.call(name, arguments, self._context)
        deadline = time.monotonic() + tools.deadline_s
        try:
            with self._lock:
                data = tools._data(name, self._context)
                if not self._id:
                    self._open(data, deadline)
                elif data != self._data:  # an environment may have changed it since
                    request.task_data_json = data or "{}"
                request.session_id, request.call_id = self._id, str(next(self._calls))
            return tools._read(name, self._send(request, deadline))
        except RpcError as error:
            raise tools._failure(name, error) from error

    def close(self) -> None:
        """End the session, so that the service need not wait for it to expire. A service that cannot be told is noted in the log."""
        session, self._id = self._id, ""
        if not session:
            return
        request = tool_pb2.CallRequest(session_id=session, session_step=tool_pb2.SESSION_STEP_CLOSE)
        try:
            self._tools._client.call_blocking(request, min(self._tools.deadline_s, CLOSE_S), self._pin)
        except RpcError as error:
            log.warning("%s: closing session %s: %s", self._tools._culprit("tools"), session, error.message)

    def _open(self, data: str, deadline: float) -> None:
        request = tool_pb2.CallRequest(
            session_id=uuid.uuid4().hex,
            session_step=tool_pb2.SESSION_STEP_OPEN,
            episode_id=self._context.episode_id,
            task_seed=self._context.seed,
            task_data_json=data,
        )
        self._send(request, deadline)
        self._id, self._data = request.session_id, data

    def _send(self, request: tool_pb2.CallRequest, deadline: float) -> tool_pb2.CallResponse:
        for attempt in range(ATTEMPTS):
            try:
                return self._tools._client.call_blocking(request, max(round(deadline - time.monotonic(), 3), 0.001), self._pin)
            except RpcUnavailable:
                pause = growing_pause(attempt, RETRY_S, 1.0)
                if attempt == ATTEMPTS - 1 or time.monotonic() + pause > deadline:
                    raise
                if request.session_step == tool_pb2.SESSION_STEP_OPEN:
                    self._pin = Pin()  # nothing has begun: any replica will do
                time.sleep(pause)
        raise AssertionError("unreachable: the last attempt returns or raises")


def _schemas(address: str, rows: Sequence[tool_pb2.ToolInfo]) -> list[dict[str, Any]]:
    try:
        check_together("parameters_json of all tools", [row.parameters_json for row in rows])
    except PayloadError as error:
        raise RpcRemoteError(address, str(error), CODES["DATA_LOSS"]) from None
    return [_schema(address, row) for row in rows]


def _schema(address: str, row: tool_pb2.ToolInfo) -> dict[str, Any]:
    try:
        parameters = decode_json(row.parameters_json)
    except PayloadError as error:
        raise RpcRemoteError(address, f"the schema of tool {shortened(row.name)!r} is unreadable: {error}", CODES["DATA_LOSS"]) from None
    return {"type": "function", "function": {"name": row.name, "description": row.description, "parameters": parameters}}
