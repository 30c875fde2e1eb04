"""Do tools keep their contract? In this process or behind gRPC: a `ToolSet` and a `RemoteToolSet` are held to the same.

    print(render(check_tools(ToolSet.from_module(my_tools), {"shelf": {"bolts": 3}}, [("count", {"item": "bolts"})])))

Each check runs in a thread of its own under a deadline, and passes, fails or is skipped with one line that says what was seen.
"""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from ..failures import EpisodeFailure, FailureKind, short_traceback
from ..tool_sessions import SessionTools
from ..tools import ToolContext, ToolRejected, Tools, ToolSet
from .conformance import HOSTILE_TEXTS, Broken, Check, NeedsSample, Report, Skipped, percentiles, run_checks
from .schema_samples import sample

Call = tuple[str, Mapping[str, Any]]

GIVE_DATA = "if it needs the data of a task, give some: --arg 'data={…}'"
CONCURRENT = 16
CALLS_PER_TOOL = 8
HOSTILE_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**63 - 1,
    1e308,
    0.5,
    "",
    "x" * 10_000,
    [],
    [[[]]],
    {},
    {"a": {"b": 1}},
    "\ud800",
    2**200,
)


def drawn_calls(schema: Mapping[str, Any]) -> Iterator[Call]:
    """Seeded calls of one tool that fit its schema."""
    function = schema["function"]
    parameters = function.get("parameters", {})
    for seed in range(CALLS_PER_TOOL if parameters.get("properties") else 1):
        yield function["name"], sample(parameters, seed)


class _Raised(Broken):
    """A tool raised."""


@dataclass(frozen=True, slots=True)
class _Subject:
    """What the checks work on: tools, the data of a task, and calls that mean something or at least fit the schemas."""

    tools: Tools
    data: Mapping[str, Any]
    calls: tuple[Call, ...]

    def context(self, episode: str, seed: int = 0) -> ToolContext:
        return ToolContext(f"check-{episode}", seed, copy.deepcopy(dict(self.data)))

    def may_lack_data(self, name: str) -> bool:
        """Whether a tool may fail for want of a task's data: none was given, and it gets to know the task, or who knows."""
        return not self.data and not (isinstance(self.tools, ToolSet) and name in self.tools.names and not self.tools.reads_context(name))

    def raises(self, call: Call) -> bool:
        try:
            self.answer(call, self.context("raises"))
        except _Raised:
            return True
        return False

    def answer(self, call: Call, context: ToolContext) -> str:
        """What the policy would read. Raises Broken when the tool fails instead of answering or rejecting."""
        name, arguments = call
        try:
            return self.tools.call(name, arguments, context)
        except ToolRejected as rejection:
            return f"rejected: {rejection}"
        except EpisodeFailure as error:
            fault = _Raised if error.failure.kind is FailureKind.TOOL_ERROR else Broken
            raise fault(f"{_shown(call)} fails: {error.failure.detail}") from None
        except Exception as error:
            raise Broken(f"{_shown(call)} raises: {short_traceback(error)}") from error


def check_tools(
    tools: Tools, data: Mapping[str, Any] | None = None, calls: Sequence[Call] = (), *, name: str = "tools", deadline_s: float = 60.0
) -> Report:
    """Run every check on the tools.

    data: of the task that calls come from, for tools that read `context.data`. calls: ones that mean something, `("count", {"item":
    "bolts"})`, made beside ones drawn from the schemas. deadline_s: seconds each check may take. What is wrong is in the report.
    """
    drawn = [call for schema in tools.schemas() for call in drawn_calls(schema)]
    subject = _Subject(tools, dict(data or {}), (*calls, *drawn))
    waits = "a tool waits without a deadline"
    checks = run_checks(CHECKS, subject, deadline_s, waits)
    if checks[-1].status == "pass":
        checks += run_checks(ANSWER_CHECKS, subject, deadline_s, waits)
    else:
        checks += tuple(Check(title, "skip", "it needs calls that are answered") for title in ANSWER_CHECKS)
    report = Report(name, checks)
    return replace(report, latency_ms=_latency(subject)) if report.passed else report


def _schemas(subject: _Subject) -> str:
    schemas = subject.tools.schemas()
    for schema in schemas:
        function = schema.get("function")
        if schema.get("type") != "function" or not isinstance(function, dict) or not str(function.get("name", "")).isidentifier():
            raise Broken(f"{schema!r:.120} is no OpenAI function schema")
        name, parameters = function["name"], function.get("parameters", {})
        try:
            Draft202012Validator.check_schema(parameters)
        except SchemaError as error:
            raise Broken(f"{name}: its parameters are no valid JSON schema: {error.message}") from None
        if parameters.get("type") != "object":
            raise Broken(f"{name}: the parameters must be an object, not {parameters.get('type')!r}")
        json.dumps(schema, allow_nan=False)
    names = [schema["function"]["name"] for schema in schemas]
    if len(set(names)) < len(names):
        raise Broken(f"two tools share a name: {', '.join(names)}")
    silent = [schema["function"]["name"] for schema in schemas if not schema["function"].get("description")]
    return f"{', '.join(names)}" + (f"; without a description, which the policy would read: {', '.join(silent)}" if silent else "")


def _calls(subject: _Subject) -> str:
    answers = list[tuple[Call, str]]()
    for call in subject.calls:
        try:
            answers.append((call, subject.answer(call, subject.context("calls"))))
        except _Raised as reason:
            if subject.may_lack_data(call[0]):
                raise NeedsSample(f"{reason}\n{GIVE_DATA}") from None
            raise
    answered = [call[0] for call, answer in answers if not answer.startswith("rejected: ")]
    counts = f"{len(answers)} calls that fit the schemas: {len(answered)} answered, {len(answers) - len(answered)} rejected"
    for call, answer in answers:
        if call[0] not in answered:
            data = "" if subject.data else ", or the data of a task: --arg 'data={…}'"
            form = f"{call[0]}({', '.join(f'{key}=…' for key in call[1])})"
            raise NeedsSample(f"{counts}\n{_shown(call)} is {answer:.200}\ngive a call that means something: --reply '{form}'{data}")
    return counts


def _hostile_arguments(subject: _Subject) -> str:
    made = 0
    for schema in subject.tools.schemas():
        for call in _hostile_calls(schema["function"]):
            subject.answer(call, subject.context("hostile"))
            made += 1
    return f"{made} calls: wrong types, missing and huge arguments, control characters; answered or rejected"


def _unknown(subject: _Subject) -> str:
    first = subject.tools.schemas()[0]["function"]["name"]
    arguments = next(dict(arguments) for name, arguments in subject.calls if name == first)
    unknown: tuple[Call, ...] = (("no_such_tool", {}), ("\ud800", {}), (first, {**arguments, "no_such_argument": 1}))
    for call in unknown:
        try:
            answer = subject.answer(call, subject.context("unknown"))
        except _Raised as reason:  # so does a call that fits: then it is not what is unknown that it fails by
            if subject.may_lack_data(first) and subject.raises((first, arguments)):
                raise NeedsSample(f"{reason}\n{GIVE_DATA}") from None
            raise
        if not answer.startswith("rejected: "):
            raise Broken(f"{_shown(call)} is answered; a tool or an argument that does not exist must be rejected, or the policy learns it")
    return "tools and arguments that do not exist are rejected"


def _determinism(subject: _Subject) -> str:
    _same(_told(subject, "a"), _told(subject, "b"), "two episodes of one task")
    return f"{len(subject.calls)} calls in two episodes of one task: equal answers"


def _isolation(subject: _Subject) -> str:
    alone = _told(subject, "alone")
    mine, other = subject.context("mine"), subject.context("other", seed=1)
    mixed = []
    for call, strange in zip(subject.calls, reversed(subject.calls), strict=True):
        subject.answer(strange, other)
        mixed.append(subject.answer(call, mine))
    _same(list(zip(subject.calls, alone, strict=True)), list(zip(subject.calls, mixed, strict=True)), "alone and beside another episode")
    return "an episode is not disturbed by another one's calls"


def _concurrency(subject: _Subject) -> str:
    alone, together = _told(subject, "alone"), dict[int, list[str]]()
    errors: list[BaseException] = []

    def work(index: int) -> None:
        try:
            together[index] = _told(subject, f"thread-{index}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(CONCURRENT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise Broken(f"in {CONCURRENT} threads: {errors[0]}")
    for answers in together.values():
        _same(list(zip(subject.calls, alone, strict=True)), list(zip(subject.calls, answers, strict=True)), "alone and in several threads")
    return f"{CONCURRENT} episodes in threads of their own read what one alone reads"


def _untouched(subject: _Subject) -> str:
    for name, arguments in subject.calls:
        context, given = subject.context("untouched"), copy.deepcopy(dict(arguments))
        subject.answer((name, given), context)
        if dict(context.data) != dict(subject.data):
            raise Broken(f"{name} changes the data of the task; every attempt at a task sees the same: copy what you change")
        if given != dict(arguments):
            raise Broken(f"{name} changes the arguments it is given")
    return "the task's data and the arguments stay as they were"


def _pickling(subject: _Subject) -> str:
    if isinstance(subject.tools, ToolSet | SessionTools):
        raise Skipped("tools of this process are imported by the processes that use them, not sent")
    again: Tools = ForkingPickler.loads(bytes(ForkingPickler.dumps(subject.tools)))
    if again.schemas() != subject.tools.schemas():
        raise Broken("the tools sent to another process have other schemas")
    return "the tools can be sent to another process"


CHECKS: Mapping[str, Callable[[_Subject], str]] = {
    "schemas": _schemas,
    "unknown names": _unknown,
    "pickling": _pickling,
    "calls": _calls,
}
ANSWER_CHECKS: Mapping[str, Callable[[_Subject], str]] = {
    "hostile arguments": _hostile_arguments,
    "determinism": _determinism,
    "isolation": _isolation,
    "concurrency": _concurrency,
    "input untouched": _untouched,
}


def _told(subject: _Subject, episode: str) -> list[str]:
    context = subject.context(episode)
    return [subject.answer(call, context) for call in subject.calls]


def _same(first: Sequence[Any], second: Sequence[Any], how: str) -> None:
    for a, b in zip(first, second, strict=True):
        if a != b:
            raise Broken(f"{how}: one call, two answers\nfirst   {a!r:.300}\nsecond  {b!r:.300}")


def _shown(call: Call) -> str:
    return f"{call[0]}({', '.join(f'{key}={value!r:.40}' for key, value in call[1].items())})"


def _hostile_calls(function: Mapping[str, Any]) -> Iterator[Call]:
    name, parameters = function["name"], function.get("parameters", {})
    whole = sample(parameters, 0, complete=True)
    yield name, {}
    for key in whole:
        yield name, {other: value for other, value in whole.items() if other != key}
        for value in (*HOSTILE_VALUES, *HOSTILE_TEXTS):
            yield name, {**whole, key: value}


def _latency(subject: _Subject, calls: int = 100, budget_s: float = 5.0) -> dict[str, float]:
    seconds: list[float] = []
    end, context = time.monotonic() + budget_s, subject.context("latency")
    while len(seconds) < calls and (not seconds or time.monotonic() < end):
        call = subject.calls[len(seconds) % len(subject.calls)]
        started = time.perf_counter()
        subject.answer(call, context)
        seconds.append(time.perf_counter() - started)
    return percentiles({"call": seconds})
