"""The three places where a reward Lambda may be: a Python function, an HTTP URL, AWS. Each is called with a list and answers with one."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...envs.callables import is_async
from ...envs.failures import EpisodeFailure, Failure, FailureKind
from ...envs.named import function_parts
from ...envs.registry import did_you_mean, load_plugin, said_of_import
from ...rpc.extras import require
from ...rpc.security import shown_variable
from ...rpc.urls import is_here, without_secrets
from ..calling.caller import Caller, Fault
from .rows import MAX_ANSWER_BYTES, BadAnswer, parse_answer

CONNECT_S = 10.0
AWAY = (401, 403, 404, 405, 407, 408, 429, 502, 503, 504)
"""Statuses that speak of the way to an endpoint and of its load, and of no row."""
_AWS = re.compile(r"arn:aws[\w-]*:lambda:\S+|lambda:[\w-]+(:[\w$-]+)?|[\w-]+")


class Handler(Protocol):
    """Something that answers an event. invalid: the kind of failure when its answer is not what the contract says. answered: whether it
    ever gave one that is."""

    invalid: FailureKind
    answered: bool

    async def invoke(self, event: Any) -> Any:
        """The answer, as JSON data. Raises BadAnswer when it is no JSON, EpisodeFailure when there is none."""
        ...


@dataclass(frozen=True)
class HandlerSettings:
    """What a handler is made from.

    target: `module:handler` or `path.py:handler`; `https://…`; or the name or ARN of an AWS Lambda. timeout_s: seconds one call may
    take, from when its turn comes. concurrency: calls at once; more wait, as long as their caller does. token_env: the variable with the
    bearer token of a URL. region, endpoint_url: of AWS.

    Example: `HandlerSettings("my_team.rewards:handler", timeout_s=30)`.
    """

    target: str
    timeout_s: float = 60.0
    concurrency: int = 16
    token_env: str | None = None
    region: str | None = None
    endpoint_url: str | None = None

    @property
    def kind(self) -> str:
        """ "python", "http" or "aws". Raises ValueError when the target is none of them."""
        if re.match(r"https?://\S+\Z", self.target):
            return "http"
        if function_parts(self.target) is not None and not self.target.startswith("lambda:"):
            return "python"
        if _AWS.fullmatch(self.target):
            return "aws"
        raise ValueError(f"{self.target!r} is no handler; give module:handler, path.py:handler, https://…, or an AWS Lambda's name or ARN")


@dataclass(frozen=True, slots=True)
class Context:
    """What AWS passes as `context`, as far as it makes sense here."""

    function_name: str
    deadline: float
    aws_request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    memory_limit_in_mb: str = "0"

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the call is given up."""
        return max(0, round((self.deadline - time.monotonic()) * 1000))


def load_handler(target: str) -> Callable[[Any, Any], Any]:
    """The function that `module:handler` or `path.py:handler` names. Raises ValueError saying what is missing or misfit."""
    parts = function_parts(target)
    if parts is None:
        raise ValueError(f"{target!r} must read module:handler or path.py:handler")
    place, name = parts
    try:
        module = sys.modules[load_plugin(place)] if place.endswith(".py") else importlib.import_module(place)
    except ValueError:
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(f"module {place} cannot be imported: {said_of_import(error)}") from error
    handler = getattr(module, name, None)
    if not callable(handler):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__]
        raise ValueError(f"{place} has no function {name!r}{did_you_mean(name, known)}")
    try:
        inspect.signature(handler).bind(None, None)
    except TypeError:
        raise ValueError(f"{target} must take two arguments, handler(event, context)") from None
    return handler  # type: ignore[no-any-return]


class PythonHandler:
    """Calls a function of this process: an async one on the loop, any other in a thread. It gets a copy of the event."""

    invalid = FailureKind.REWARD_INVALID
    answered = False

    def __init__(self, settings: HandlerSettings) -> None:
        self.settings = settings
        function = load_handler(settings.target)

        def call(event: Any) -> Any:
            return function(event, self._context())

        async def call_async(event: Any) -> Any:
            return await function(event, self._context())

        chosen = call_async if is_async(function) else call
        self._caller = Caller(settings.target, chosen, {}, settings.timeout_s, settings.concurrency)

    async def invoke(self, event: Any) -> Any:
        try:
            answer = await self._caller.call(json.loads(json.dumps(event)))
        except Fault as fault:
            raise EpisodeFailure(Failure(fault.kind, self.settings.target, str(fault))) from fault
        try:
            text = json.dumps(answer)  # what AWS would make of it; NaN passes, to be refused with its row
        except (TypeError, ValueError, RecursionError) as error:
            raise BadAnswer(f"answers what is no JSON: {error}") from None
        return parse_answer(text)

    def _context(self) -> Context:
        return Context(self.settings.target, time.monotonic() + self.settings.timeout_s)


class HttpHandler:
    """Posts the event as JSON. Belongs to one event loop. Raises ValueError when the token's variable is not set."""

    invalid = FailureKind.VERIFIER_INVALID
    answered = False

    def __init__(self, settings: HandlerSettings) -> None:
        import httpx2

        self.settings = settings
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._token = token = env_token(settings.token_env) or ""
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx2.Timeout(settings.timeout_s, connect=min(CONNECT_S, settings.timeout_s)),
            limits=httpx2.Limits(max_connections=settings.concurrency),
            trust_env=not is_here(settings.target),  # a proxy that the environment names is for other machines
        )

    async def invoke(self, event: Any) -> Any:
        import httpx2

        async with self._slots:
            try:
                async with asyncio.timeout(self.settings.timeout_s):
                    status, body = await self._post(event)
            except (TimeoutError, httpx2.TimeoutException):
                raise self._failure(FailureKind.VERIFIER_TIMEOUT, f"no answer within {self.settings.timeout_s:g} s") from None
            except httpx2.TransportError as error:
                raise self._failure(FailureKind.VERIFIER_UNAVAILABLE, f"{type(error).__name__}: {error}") from error
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise self._failure(FailureKind.VERIFIER_ERROR, f"{type(error).__name__}: {error}") from error
        if not 200 <= status < 300:
            kind = FailureKind.VERIFIER_UNAVAILABLE if status in AWAY else FailureKind.VERIFIER_ERROR
            said = without_secrets(body[:2000].decode("utf-8", "replace"), self._token)
            raise self._failure(kind, f"answered {status}: {said:.200}")
        return parse_answer(body)

    async def _post(self, event: Any) -> tuple[int, bytes]:
        body = bytearray()
        async with self._client.stream("POST", self.settings.target, json=event) as response:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    break
            return response.status_code, bytes(body)

    def _failure(self, kind: FailureKind, detail: str) -> EpisodeFailure:
        detail = without_secrets(detail, self._token)  # a server may answer with what it was sent
        return EpisodeFailure(Failure(kind, self.settings.target, detail))


class AwsHandler:
    """Invokes an AWS Lambda through boto3, with the credentials that boto3 finds. Raises ValueError when boto3 or a region is missing."""

    invalid = FailureKind.VERIFIER_INVALID
    answered = False

    def __init__(self, settings: HandlerSettings) -> None:
        require_boto3(settings.target)
        import boto3
        import botocore.config
        import botocore.exceptions

        self.settings = settings
        config = botocore.config.Config(
            connect_timeout=min(CONNECT_S, settings.timeout_s),
            read_timeout=settings.timeout_s,
            max_pool_connections=settings.concurrency,
            retries={"total_max_attempts": 1},  # the rubric tries again, and counts it
            proxies={} if settings.endpoint_url and is_here(settings.endpoint_url) else None,  # None: as the environment says
        )
        self._name = settings.target.removeprefix("lambda:")
        try:
            session = boto3.session.Session(region_name=settings.region)
            self._client = session.client("lambda", endpoint_url=settings.endpoint_url, config=config)
        except (botocore.exceptions.BotoCoreError, ValueError) as error:
            raise ValueError(f"{settings.target}: AWS cannot be used: {error}") from error
        self._errors = botocore.exceptions
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._threads = ThreadPoolExecutor(settings.concurrency, thread_name_prefix=f"lambda {self._name}")

    async def invoke(self, event: Any) -> Any:
        payload = json.dumps(event).encode()
        loop = asyncio.get_running_loop()
        async with self._slots:
            try:
                async with asyncio.timeout(self.settings.timeout_s):
                    answer, body = await loop.run_in_executor(self._threads, self._call, payload)
            except (TimeoutError, self._errors.ReadTimeoutError):
                raise self._failure(FailureKind.VERIFIER_TIMEOUT, f"no answer within {self.settings.timeout_s:g} s") from None
            except self._errors.ClientError as error:
                status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
                passing = status == 429 or status >= 500
                raise self._failure(FailureKind.VERIFIER_UNAVAILABLE if passing else FailureKind.VERIFIER_ERROR, str(error)) from error
            except self._errors.HTTPClientError as error:
                raise self._failure(FailureKind.VERIFIER_UNAVAILABLE, str(error)) from error
            except self._errors.BotoCoreError as error:
                raise self._failure(FailureKind.VERIFIER_ERROR, f"{type(error).__name__}: {error}") from error
        if answer.get("FunctionError"):
            raise self._failure(FailureKind.VERIFIER_ERROR, f"FunctionError {answer['FunctionError']}: {_aws_error(body)}")
        return parse_answer(body)

    def _call(self, payload: bytes) -> tuple[Mapping[str, Any], bytes]:
        answer = self._client.invoke(FunctionName=self._name, InvocationType="RequestResponse", Payload=payload)
        return answer, answer["Payload"].read(MAX_ANSWER_BYTES + 1)

    def _failure(self, kind: FailureKind, detail: str) -> EpisodeFailure:
        return EpisodeFailure(Failure(kind, self.settings.target, detail))


def require_boto3(target: str) -> None:
    """Raise ValueError saying what to install when boto3 is not here."""
    require(f"{target} is an AWS Lambda, which", ["boto3", "botocore"], "aws")


def env_token(variable: str | None) -> str | None:
    """The bearer token in an environment variable. Raises ValueError when the variable is not set."""
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise ValueError(f"token_env: the environment variable {shown_variable(variable)} is not set")
    return token


def make_handler(settings: HandlerSettings) -> Handler:
    """The handler that a target names. Raises ValueError when it cannot be made."""
    kinds: Mapping[str, Callable[[HandlerSettings], Handler]] = {"python": PythonHandler, "http": HttpHandler, "aws": AwsHandler}
    return kinds[settings.kind](settings)


def _aws_error(body: bytes) -> str:
    """The message of an error payload, `{"errorMessage", "errorType", …}`, or its beginning."""
    try:
        error = json.loads(body)
    except (ValueError, RecursionError):
        error = None
    if isinstance(error, dict) and "errorMessage" in error:
        return f"{error.get('errorType', 'Error')}: {error['errorMessage']!s:.300}"
    return body[:200].decode("utf-8", "replace")
