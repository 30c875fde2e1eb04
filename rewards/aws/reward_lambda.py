"""`burnish/reward-lambda-v1`: a reward function with the contract of a reward Lambda, list in and list out, wherever it runs.

[[rewards]]
use = "burnish/reward-lambda-v1"
args = { handler = "my_rewards.py:lambda_handler" }     # or "https://…", or an AWS Lambda's name or ARN
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...envs.failures import EpisodeFailure, Failure, FailureKind
from ...rpc.payload import PayloadError
from ...rpc.urls import check_url
from ..calling.per_loop import PerLoop
from ..plugin import reward
from ..types import RewardInput, Score
from .handlers import Handler, HandlerSettings, env_token, load_handler, make_handler, require_boto3
from .rows import MAX_ANSWER_BYTES, BadAnswer, event_row, read_answer

MAX_TIMEOUT_S = 900.0
"""A Lambda ends after 15 minutes."""
MAX_CONCURRENCY = 100
DEADLINE_S = 900.0
GRACE_S = 30.0
MAX_EVENT_BYTES = MAX_ANSWER_BYTES
ROWS_OWN = (FailureKind.REWARD_ERROR, FailureKind.REWARD_INVALID, FailureKind.VERIFIER_ERROR, FailureKind.VERIFIER_INVALID)
"""Failures of a whole event that one of its rows may have caused: what a policy writes must not cost the episodes it travels with."""
TRIED_ALONE = 4
"""Rows of a failed event that are tried alone, one after the other, before the handler itself counts as broken."""

T = TypeVar("T")

_handlers: PerLoop[Handler] = PerLoop()


class LambdaOptions(BaseModel):
    """Options of `burnish/reward-lambda-v1`.

    handler: `module:handler` or `path.py:handler`, called `handler(event, context)`; a URL, which gets the event by POST; or the name
    or ARN of an AWS Lambda (`lambda:NAME:ALIAS` with an alias). envelope: "list" sends the bare list, "body" sends it as API Gateway
    does, as text under `body`; answers are read in both forms. chunk: episodes in one event at most. timeout_s: seconds one call may
    take, from when its turn comes. concurrency: calls at once, in each process that scores. deadline_s: seconds for all events of one
    batch, the wait for their turns and rows sent again included; by default 900, or twice timeout_s where that is more. Episodes whose
    event is late fail, the others keep their scores. token_env: the environment variable with a URL's bearer token. region, endpoint_url:
    of AWS, where boto3's own configuration is not meant.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    handler: str = Field(min_length=1)
    envelope: Literal["list", "body"] = "list"
    chunk: int = Field(default=16, ge=1, le=1000)
    timeout_s: float = Field(default=60.0, gt=0, le=MAX_TIMEOUT_S)
    concurrency: int = Field(default=16, ge=1, le=MAX_CONCURRENCY)
    deadline_s: float | None = Field(default=None, gt=0, le=2 * MAX_TIMEOUT_S)
    token_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    region: str | None = None
    endpoint_url: str | None = Field(default=None, pattern=r"^https?://\S+$")

    @model_validator(mode="after")
    def _can_be_called(self) -> LambdaOptions:
        kind = self.settings.kind
        for key, owner in {"token_env": "http", "region": "aws", "endpoint_url": "aws"}.items():
            if getattr(self, key) is not None and kind != owner:
                where = "a URL" if owner == "http" else "an AWS Lambda"
                raise ValueError(f"{key}: no effect, {self.handler} is not {where}; remove it")
        if kind == "python":
            load_handler(self.handler)
        elif kind == "http":
            check_url(self.handler, "token" if self.token_env else None)
            env_token(self.token_env)
        else:
            if self.endpoint_url is not None:
                check_url(self.endpoint_url, "signature with its session token")
            require_boto3(self.handler)
        return self

    @property
    def batch_s(self) -> float:
        """Seconds for all events of one batch."""
        return self.deadline_s if self.deadline_s is not None else max(DEADLINE_S, 2 * self.timeout_s)

    @property
    def settings(self) -> HandlerSettings:
        """How the handler is called."""
        return HandlerSettings(self.handler, self.timeout_s, self.concurrency, self.token_env, self.region, self.endpoint_url)


@reward("burnish/reward-lambda-v1", timeout_s=2 * MAX_TIMEOUT_S + GRACE_S, level="batch", max_batch=256, max_concurrent=MAX_CONCURRENCY)
async def reward_lambda(episodes: Sequence[RewardInput], *, options: LambdaOptions) -> list[Score | Failure]:
    """Score with a reward Lambda: a Python handler, a URL, or AWS.

    One result per episode, in order. What is wrong with one row fails that episode; a handler that is late or away fails the event, and
    the episodes of other events keep their scores.
    Failures name handler and task: VERIFIER_* from a URL or AWS, REWARD_* from a Python handler.
    """
    handler = _handlers.get(options.settings, lambda: make_handler(options.settings))
    rows: dict[str, dict[str, Any]] = {}
    results: dict[str, Score | Failure] = {}
    ids = distinct([episode.episode_id for episode in episodes])
    for id, episode in zip(ids, episodes, strict=True):
        try:
            rows[id] = {**event_row(episode), "id": id}
        except PayloadError as error:
            results[id] = Failure(FailureKind.REWARD_ERROR, options.handler, f"the episode cannot be sent: {error}")
    results |= await _Batch(handler, options).ask(rows)
    return [_of_task(results[id], episode.task.id) for id, episode in zip(ids, episodes, strict=True)]


def distinct(ids: Sequence[str]) -> list[str]:
    """The ids, numbered where one comes again. Example: `distinct(["a", "a", "b"])` is `["a", "a#1", "b"]`."""
    used: set[str] = set()
    found = []
    for id in ids:
        fresh, count = id, 0
        while fresh in used:
            count += 1
            fresh = f"{id}#{count}"
        used.add(fresh)
        found.append(fresh)
    return found


def chunks(rows: Mapping[str, dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """The rows in events of at most `size` rows and, unless one row alone is larger, `MAX_EVENT_BYTES`."""
    chunk: list[dict[str, Any]] = []
    total = 0
    for row in rows.values():
        length = len(json.dumps(row)) + 2
        if chunk and (len(chunk) == size or total + length > MAX_EVENT_BYTES):
            yield chunk
            chunk, total = [], 0
        chunk.append(row)
        total += length
    if chunk:
        yield chunk


class _Batch:
    """The events of one batch: all at once, then, where an event failed as a whole, its rows alone, if the handler is known to answer at
    all. One that fails whatever it is asked is asked once per event."""

    def __init__(self, handler: Handler, options: LambdaOptions) -> None:
        self._handler = handler
        self._options = options

    async def ask(self, rows: Mapping[str, dict[str, Any]]) -> dict[str, Score | Failure]:
        """What the handler says of each row, within the batch's deadline; rows that have no answer by then are late."""
        kind = FailureKind.REWARD_TIMEOUT if self._options.settings.kind == "python" else FailureKind.VERIFIER_TIMEOUT
        late = Failure(kind, self._options.handler, f"no answer within the batch's {self._options.batch_s:g} s")
        self._found: dict[str, Score | Failure] = dict.fromkeys(rows, late)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._options.batch_s):
                events = list(chunks(rows, self._options.chunk))
                failed = await self._all(self._event(event) for event in events)
                if self._handler.answered:
                    await self._all(self._alone(event) for event, lost in zip(events, failed, strict=True) if lost and len(event) > 1)
        return self._found

    async def _event(self, rows: list[dict[str, Any]]) -> bool:
        """Ask about some rows; True when that failed as a whole, and one of them may be why."""
        try:
            self._found |= await _invoke(self._handler, rows, self._options)
        except EpisodeFailure as error:
            self._found |= {row["id"]: error.failure for row in rows}
            return error.failure.kind in ROWS_OWN
        self._handler.answered = True
        return False

    async def _alone(self, rows: list[dict[str, Any]]) -> None:
        left = list(rows)
        while left and len(rows) - len(left) < TRIED_ALONE:
            if not await self._event([left.pop(0)]):  # the handler answers: what it cannot stand is some other row
                await self._all(self._event([row]) for row in left)
                return

    async def _all(self, work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
        return [task.result() for task in tasks]


async def _invoke(handler: Handler, rows: list[dict[str, Any]], options: LambdaOptions) -> dict[str, Score | Failure]:
    """Raises EpisodeFailure when the call fails as a whole."""
    event: Any = rows if options.envelope == "list" else {"body": json.dumps(rows), "isBase64Encoded": False}
    try:
        found = read_answer(await handler.invoke(event), [row["id"] for row in rows])
    except BadAnswer as error:
        raise EpisodeFailure(Failure(handler.invalid, options.handler, str(error))) from error
    return {
        id: Failure(handler.invalid, options.handler, str(result)) if isinstance(result, BadAnswer) else result
        for id, result in found.items()
    }


def _of_task(result: Score | Failure, task_id: str) -> Score | Failure:
    return replace(result, detail=f"task {task_id}: {result.detail}") if isinstance(result, Failure) else result
