"""Does a tool service keep its contract? `check_tools` through burnish's client, and what any client may count on: codes, health, streams.

print(render(check_tool_service("127.0.0.1:50052", {"shelf": {"bolts": 3}})))
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...rpc.bounds import answers_of
from ...rpc.errors import CODES, code_name
from ...rpc.methods import CALL
from ...rpc.payload import encode_json
from ...rpc.probe import call_raw
from ...v1 import tool_pb2
from ..remote.tools import RemoteToolSet
from .conformance import Broken, NeedsSample, Report, Skipped, run_checks
from .services import check_health, check_reflection, expect_code, offers_stream, outcome_of_one
from .tools import GIVE_DATA, Call, check_tools, drawn_calls

UNARY = "/burnish.v1.ToolService/Call"


@dataclass(frozen=True, slots=True)
class _Subject:
    """What the checks work on. streams, sessions: whether the service has them."""

    address: str
    data: Mapping[str, Any]
    calls: tuple[Call, ...]
    call_s: float
    streams: bool
    sessions: bool

    def request(self, call: Call) -> tool_pb2.CallRequest:
        return tool_pb2.CallRequest(
            tool=call[0],
            arguments_json=encode_json(call[1]),
            episode_id="check-service",
            task_seed=0,
            task_data_json=encode_json(self.data),
        )

    def may_lack_data(self) -> None:
        """Raises NeedsSample where none was given and a call that fits fails: an object of a class of tools is made from a task's data."""
        if not self.data and self.unary(self.request(self.calls[0]))[0] == CODES["UNKNOWN"]:
            raise NeedsSample(f"a call that fits the schemas gives UNKNOWN\n{GIVE_DATA}")

    def unary(self, request: tool_pb2.CallRequest) -> tuple[int, Any]:
        code, payload, _ = call_raw(self.address, UNARY, request.SerializeToString(), self.call_s)
        return code, answers_of(tool_pb2.CallResponse)(payload) if code == 0 else None

    def streamed(self, request: tool_pb2.CallRequest) -> tuple[int, Any]:
        return outcome_of_one(self.address, CALL, request, self.call_s)


def check_tool_service(
    address: str, data: Mapping[str, Any] | None = None, calls: Sequence[Call] = (), *, deadline_s: float = 60.0
) -> Report:
    """Run every check on the tool service at `address`; the arguments are those of `check_tools`.

    Raises ValueError when it cannot be reached or is no tool service; the rest is in the report.
    """
    call_s = deadline_s / 3
    remote = RemoteToolSet(address, call_s)
    remote.check(call_s)
    drawn = [call for schema in remote.schemas() for call in drawn_calls(schema)]
    subject = _Subject(address, dict(data or {}), (*calls, *drawn), call_s, offers_stream(address, CALL, call_s), remote.has_sessions)
    checks = run_checks(CHECKS, subject, deadline_s, "the service waits without a deadline, or leaves a stream open")
    report = check_tools(remote, data, calls, name=f"tools at {address}", deadline_s=deadline_s)
    return Report(report.subject, (*checks, *report.checks), report.latency_ms)


def _reflection(subject: _Subject) -> str:
    return check_reflection(subject.address, CALL.service, subject.call_s)


def _health(subject: _Subject) -> str:
    return check_health(subject.address, CALL.service, subject.call_s)


def _unary_and_stream(subject: _Subject) -> str:
    if not subject.streams:
        raise Skipped("the service offers no stream, only unary calls")
    for call in subject.calls:
        request = subject.request(call)
        alone, batched = subject.unary(request), subject.streamed(request)
        if alone != batched:
            raise Broken(f"{call[0]}({dict(call[1])!r:.80}): unary {_said(alone)}, on the stream {_said(batched)}")
    return f"{len(subject.calls)} calls with equal results"


def _garbage(subject: _Subject) -> str:
    subject.may_lack_data()
    ways = {"unary": subject.unary, **({"on the stream": subject.streamed} if subject.streams else {})}
    for how, ask in ways.items():
        for field in ("arguments_json", "task_data_json"):
            request = subject.request(subject.calls[0])
            setattr(request, field, "{no json")
            expect_code("INVALID_ARGUMENT", ask(request)[0], f"{field} that is no JSON, {how}")
    code, _, _ = call_raw(subject.address, UNARY, b"\xff\xff\xff\xff", subject.call_s)
    if code == 0:
        raise Broken("bytes that are no message get a result")
    return f"malformed fields are INVALID_ARGUMENT, bytes that are no message {code_name(code)}"


def _sessions(subject: _Subject) -> str:
    if not subject.sessions:
        raise Skipped("the service has no sessions; every call is sent once")
    subject.may_lack_data()
    ways = {"unary": subject.unary, **({"on the stream": subject.streamed} if subject.streams else {})}
    for how, ask in ways.items():
        session = uuid.uuid4().hex
        call = subject.request(subject.calls[0])
        call.session_id, call.call_id = session, "0"
        opening, closing = subject.request(subject.calls[0]), tool_pb2.CallRequest(session_id=session)
        opening.session_id, opening.session_step = session, tool_pb2.SESSION_STEP_OPEN
        closing.session_step = tool_pb2.SESSION_STEP_CLOSE
        expect_code("NOT_FOUND", ask(call)[0], f"a call in a session that was never opened, {how}")
        for request, what in ((opening, "opening a session"), (opening, "opening it again")):
            if code := ask(request)[0]:
                raise Broken(f"{what}, {how}, gives {code_name(code)}")
        first, again = ask(call), ask(call)
        if first != again:
            raise Broken(f"a call with the same call_id, {how}: first {_said(first)}, then {_said(again)}; nothing may happen twice")
        for what in ("closing a session", "closing it again"):
            if code := ask(closing)[0]:
                raise Broken(f"{what}, {how}, gives {code_name(code)}")
        expect_code("NOT_FOUND", ask(call)[0], f"a call in a session that was closed, {how}")
    return "opened, called twice with one id and one answer, and closed"


CHECKS: Mapping[str, Callable[[_Subject], str]] = {
    "reflection": _reflection,
    "health": _health,
    "unary and stream": _unary_and_stream,
    "sessions": _sessions,
    "garbage": _garbage,
}


def _said(outcome: tuple[int, Any]) -> str:
    code, response = outcome
    return code_name(code) if code else f"{response.WhichOneof('outcome')} {(response.text or response.rejected)!r:.80}"
