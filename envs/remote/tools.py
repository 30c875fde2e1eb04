"""Tools behind gRPC: the service over a `ToolSet`, and `RemoteToolSet`, which environments use as if the tools were local."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from importlib.metadata import version
from typing import Any

import grpc

from ...rpc.address import shown_address
from ...rpc.batches import BatchedHandler, Limits
from ...rpc.client import BatchedClient, unary_blocking
from ...rpc.errors import CODES, RpcError, RpcRemoteError, RpcTimeout, Status
from ...rpc.methods import CALL, CONTRACT
from ...rpc.payload import PayloadError, decode_json, encode_json, utf8
from ...v1 import tool_pb2, tool_pb2_grpc
from ..failures import EpisodeFailure, Failure, FailureKind, short_traceback
from ..tools import ToolContext, ToolRejected, ToolSet, observation, unknown_tool


class ToolService(tool_pb2_grpc.ToolServiceServicer):
    """Serves a `ToolSet`, unary and batched. Sync tools run in worker threads, async ones on the server's event loop."""

    full_name = "burnish.v1.ToolService"

    def __init__(self, tools: ToolSet, limits: Limits | None = None) -> None:
        self._tools = tools
        self._handler = BatchedHandler(CALL, self._call, limits)

    def add_to(self, server: grpc.aio.Server) -> None:
        tool_pb2_grpc.add_ToolServiceServicer_to_server(self, server)

    @property
    def in_flight(self) -> int:
        return self._handler.in_flight

    @property
    def able(self) -> bool:
        return self._handler.able

    async def drain(self) -> None:
        await self._handler.drain()

    def close(self) -> bool:
        return self._handler.close()

    async def Describe(self, request: tool_pb2.DescribeToolsRequest, context: Any) -> tool_pb2.DescribeToolsResponse:
        functions = [schema["function"] for schema in self._tools.schemas()]
        rows = [
            tool_pb2.ToolInfo(
                name=function["name"], description=function["description"], parameters_json=json.dumps(function["parameters"])
            )
            for function in functions
        ]
        return tool_pb2.DescribeToolsResponse(contract=CONTRACT, server_version=f"burnish {version('burnish')}", tools=rows)

    async def Call(self, request: tool_pb2.CallRequest, context: Any) -> tool_pb2.CallResponse:
        return await self._handler.unary(request, context)

    async def CallStream(self, request_iterator: AsyncIterator[tool_pb2.CallStreamRequest], context: Any) -> None:  # type: ignore[override]
        await self._handler.stream(request_iterator, context)

    async def _call(self, request: tool_pb2.CallRequest) -> tool_pb2.CallResponse:
        try:
            arguments = decode_json(request.arguments_json)
            context = ToolContext(request.episode_id, request.task_seed, decode_json(request.task_data_json))
        except PayloadError as error:
            raise Status("INVALID_ARGUMENT", str(error)) from None
        try:
            return tool_pb2.CallResponse(text=await self._run(request.tool, arguments, context))
        except ToolRejected as rejection:
            return tool_pb2.CallResponse(rejected=utf8(str(rejection)))
        except EpisodeFailure as failure:
            raise Status("UNKNOWN", failure.failure.detail) from failure
        except Exception as error:
            raise Status("UNKNOWN", short_traceback(error)) from error

    async def _run(self, name: str, arguments: Mapping[str, Any], context: ToolContext) -> str:
        one = self._tools.find(name)
        if not one.is_async:
            return await self._handler.in_thread(self._tools.call, name, arguments, context)
        return observation(name, await one.function(**one.bind(arguments, context)))


class RemoteToolSet:
    """The tools of a service, with the interface of a local `ToolSet`. Picklable; every process makes its own connection.

    deadline_s: seconds one call may take. Example: `RemoteToolSet("127.0.0.1:50052", deadline_s=5.0)`.
    """

    def __init__(self, address: str, deadline_s: float = 10.0) -> None:
        if not deadline_s > 0:
            raise ValueError(f"tools at {address}: deadline_s must be a positive number of seconds, not {deadline_s!r}")
        self.address = address
        self.deadline_s = deadline_s
        self._client = BatchedClient(address, CALL)
        self._schemas: list[dict[str, Any]] | None = None

    def schemas(self) -> list[dict[str, Any]]:
        """The tools as OpenAI function schemas, asked of the service once.

        Raises EpisodeFailure TOOL_ERROR or TOOL_TIMEOUT naming the address when the service cannot say.
        """
        if self._schemas is None:
            try:
                self._schemas = self._describe(self.deadline_s)
            except RpcError as error:
                raise self._failure("tools", error) from error
        return self._schemas

    def call(self, name: str, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Run one tool on the service. Raises ToolRejected when the policy got the call wrong, EpisodeFailure TOOL_ERROR or TOOL_TIMEOUT
        naming tool and address otherwise."""
        known = [schema["function"]["name"] for schema in self.schemas()]
        if name not in known:  # a name the policy made up may not even be valid UTF-8
            raise ToolRejected(unknown_tool(name, known))
        try:
            data = encode_json(context.data)
        except PayloadError as error:
            failure = Failure(FailureKind.TOOL_ERROR, self._culprit(name), f"the task's data cannot be sent: {error}")
            raise EpisodeFailure(failure) from error
        try:
            arguments_json = encode_json(arguments)
        except PayloadError as error:
            raise ToolRejected(f"{name}: {error}") from None
        request = tool_pb2.CallRequest(
            tool=name, arguments_json=arguments_json, episode_id=context.episode_id, task_seed=context.seed, task_data_json=data
        )
        try:
            response = self._client.call_blocking(request, self.deadline_s)
            if response.WhichOneof("outcome") is None:
                raise RpcRemoteError(self.address, "the service sent neither text nor rejection", CODES["INTERNAL"])
        except RpcError as error:
            raise self._failure(name, error) from error
        if response.WhichOneof("outcome") == "rejected":
            raise ToolRejected(response.rejected)
        return response.text

    def check(self, timeout_s: float = 10.0) -> None:
        """Ask the service for its tools. Raises ValueError when it cannot be reached or is no tool service of this contract."""
        try:
            self._schemas = self._describe(timeout_s)
        except RpcError as error:
            raise ValueError(f"tool service at {shown_address(self.address)} does not answer: {error.message}") from error

    def _describe(self, timeout_s: float) -> list[dict[str, Any]]:
        answer = unary_blocking(self.address, _ask, timeout_s)
        if answer.contract != CONTRACT:
            raise RpcRemoteError(self.address, f"it speaks {answer.contract!r}; this burnish speaks {CONTRACT!r}", CODES["INTERNAL"])
        return [_schema(self.address, row) for row in answer.tools]

    def _culprit(self, name: str) -> str:
        return f"{name}@{shown_address(self.address)}"

    def _failure(self, name: str, error: RpcError) -> EpisodeFailure:
        kind = FailureKind.TOOL_TIMEOUT if isinstance(error, RpcTimeout) else FailureKind.TOOL_ERROR
        return EpisodeFailure(Failure(kind, self._culprit(name), error.message))


async def _ask(channel: grpc.aio.Channel, timeout_s: float) -> tool_pb2.DescribeToolsResponse:
    return await tool_pb2_grpc.ToolServiceStub(channel).Describe(tool_pb2.DescribeToolsRequest(), timeout=timeout_s)


def _schema(address: str, row: tool_pb2.ToolInfo) -> dict[str, Any]:
    try:
        parameters = decode_json(row.parameters_json)
    except PayloadError as error:
        raise RpcRemoteError(address, f"the schema of tool {row.name!r} is unreadable: {error}", CODES["DATA_LOSS"]) from None
    return {"type": "function", "function": {"name": row.name, "description": row.description, "parameters": parameters}}
