"""Who may come in, and how much at a time: keys, their scopes and limits, and a bound on everything that is under way.

A request is let in while its key has something left, and what it took is counted when it has ended: nobody knows before how long an answer
will be. A key can so go over its tokens by what it had under way, which `parallel` bounds.
"""

from __future__ import annotations

import math
import re
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal

from ..rpc.security import is_loopback
from .keys import Key, Keyring, Route, holder
from .spending import Spending

MINUTE_S: Final = 60.0
_PORT: Final = re.compile(r":[0-9]*$")
LIMITED: Final[tuple[Route, ...]] = ("chat", "completions", "guardrail")
"""Routes for which a model or a detector works."""
AGAIN_S: Final = 1.0
"""When to come again, where only other answers' ends are waited for."""

Reason = Literal[
    "no_key", "expired", "revoked", "keys_unreadable", "route", "unknown_route", "method", "model", "requests", "tokens", "parallel",
    "budget", "full", "too_large", "too_slow", "gone", "invalid", "guard", "answer", "unstored", "host", "engine", "late", "fault",
    "starting", "ending",
]  # fmt: skip
"""Why a request was refused, as it is counted."""


class Refused(Exception):
    """A request that is not answered. code: what OpenAI's clients are told beside the status. again_s: when to come again, None: not to."""

    def __init__(
        self, status: int, reason: Reason, message: str, *, code: str = "", param: str | None = None, again_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.code, self.param, self.again_s = status, reason, message, code, param, again_s


class Window:
    """What happened in the last 60 seconds, by amount: never more than a limit in any 60 seconds, whenever they begin."""

    def __init__(self) -> None:
        self._events = deque[tuple[float, int]]()
        self._sum = 0

    def add(self, now: float, amount: int) -> None:
        self._forget(now)
        self._events.append((now, amount))
        self._sum += amount

    def wait_s(self, now: float, limit: int) -> float:
        """Seconds until less than `limit` lies in the last 60; 0 when that is so now."""
        self._forget(now)
        over = self._sum - limit + 1
        for at, amount in self._events if over > 0 else ():
            over -= amount
            if over <= 0:
                return at + MINUTE_S - now
        assert over <= 0, "a limit is at least 1"
        return 0.0

    def _forget(self, now: float) -> None:
        while self._events and self._events[0][0] <= now - MINUTE_S:
            self._sum -= self._events.popleft()[1]


@dataclass(slots=True)
class _Used:
    """What a key has used lately."""

    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    parallel: int = 0


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """Who asks: the name of a key, and what it may; without keys, "" and everything."""

    name: str = ""
    key: Key | None = None

    def may_ask(self, model: str) -> bool:
        return self.key is None or self.key.models is None or model in self.key.models


class RequestAdmission:
    """Lets requests in, or raises `Refused`.

    keys: None lets everybody in. most: requests that may be under way at a time, whoever's. spent: what keys have spent in all, None counts
    it nowhere, and no key may then have a budget. hosts: names that the service goes by where nobody needs a key, None: any; a browser that
    was led here by another name does what a stranger's page says. Not for several threads: all calls come from one event loop.
    """

    def __init__(
        self,
        keys: Keyring | None = None,
        most: int = 4096,
        spent: Spending | None = None,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], datetime] = lambda: datetime.now(UTC),
        hosts: Collection[str] | None = None,
    ) -> None:
        self._keys, self._spent, self._clock, self._today = keys, spent, clock, today
        self.most, self._hosts, self.ending = most, hosts, False
        self._used: dict[str, _Used] = {}
        self._under_way = 0

    def drain(self) -> int:
        """Let nobody in any more; say how many requests are under way that were let in before."""
        self.ending = True
        return self._under_way

    def who(self, headers: Iterable[tuple[bytes, bytes]]) -> KeyHolder:
        """Whose key the headers of a request carry. Raises Refused: 401, or 503 while the keys file cannot be read; 403
        where no key is needed and the request was for another host."""
        if self._keys is None:
            self._check_host(headers)
            return KeyHolder()
        try:
            keys = self._keys.current()
        except ValueError:  # nobody knows who is revoked; the file is named where it is logged, not to whoever asks
            raise Refused(503, "keys_unreadable", "the keys of this service cannot be read", code="keys_unreadable", again_s=5.0) from None
        name = holder(keys, (value for header, value in headers if header.lower() == b"authorization"))
        if name is None:
            said = "this service needs an API key: send it as Authorization: Bearer KEY"
            raise Refused(401, "no_key", said, code="invalid_api_key")
        if keys[name].revoked is not None:
            raise Refused(401, "revoked", f"the key {name!r} was revoked", code="invalid_api_key")
        if keys[name].ended(self._today()):
            raise Refused(401, "expired", f"the key {name!r} has expired", code="invalid_api_key")
        return KeyHolder(name, keys[name])

    def _check_host(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        if self._hosts is None:
            return
        for host in (value.decode("latin-1") for header, value in headers if header.lower() == b"host"):
            name = _PORT.sub("", host.strip()).lower().removesuffix(".")
            if name not in self._hosts and not is_loopback(name):
                said = (
                    f"without keys this service is for its own machine, and not called {host[:100]!r}; ask for localhost, or give it keys"
                )
                raise Refused(403, "host", said, code="insufficient_permissions")

    async def check_budget(self, caller: KeyHolder, route: Route) -> None:
        """To be asked before `visit`. Raises Refused: 429 when a key has spent its budget, 503 while nobody can say."""
        key = caller.key
        if key is None or key.budget_tokens is None or route not in LIMITED:
            return
        assert self._spent is not None, "a keys file has its spending beside it"
        try:
            spent = await self._spent.spent(key)
        except sqlite3.Error:
            said = "what the keys of this service have spent cannot be read"
            raise Refused(503, "keys_unreadable", said, code="keys_unreadable", again_s=5.0) from None
        if spent >= key.budget_tokens:
            said = f"the key {caller.name!r} has spent its budget of {key.budget_tokens} tokens"
            raise Refused(429, "budget", said, code="insufficient_quota")

    @contextmanager
    def visit(self, caller: KeyHolder, route: Route) -> Iterator[Visit]:
        """Let a caller call a route: what it took is counted at the end. Raises Refused: 403, 429, or 503 when too much is under way."""
        key = caller.key
        if key is not None and route not in key.routes:
            said = f"the key {caller.name!r} may not call this; it may call {', '.join(key.routes)}"
            raise Refused(403, "route", said, code="insufficient_permissions")
        visit = Visit(self, caller)
        if route not in (*LIMITED, "feedback"):  # a disk works for that
            yield visit
            return
        if self.ending:
            raise Refused(503, "ending", "this service is ending, and answers what it has", code="overloaded", again_s=AGAIN_S)
        if key is not None:
            self._check_limits(caller.name, key, route)
        if self._under_way >= self.most:
            raise Refused(503, "full", f"{self.most} requests are under way; come again", code="overloaded", again_s=AGAIN_S)
        if route != "feedback":
            visit.take(1)
        self._under_way += 1
        if key is not None:
            self._used_by(key).requests.add(self._clock(), 1)
        try:
            yield visit
        finally:
            self._under_way -= 1
            visit.end()

    def _used_by(self, key: Key) -> _Used:
        return self._used.setdefault(key.sha256, _Used())

    def _check_limits(self, name: str, key: Key, route: Route) -> None:
        used, now = self._used_by(key), self._clock()
        per_minute: tuple[tuple[Literal["requests", "tokens"], Window, int | None], ...] = (
            ("requests", used.requests, key.requests_per_minute),
            ("tokens", used.tokens, key.tokens_per_minute if route != "feedback" else None),
        )
        for what, window, limit in per_minute:
            wait = window.wait_s(now, limit) if limit is not None else 0.0
            if wait > 0:
                said = f"the key {name!r} has {limit} {what} a minute; come again in {math.ceil(wait)} s"
                raise Refused(429, what, said, code="rate_limit_exceeded", again_s=wait)


class Visit:
    """One request that was let in."""

    def __init__(self, admission: RequestAdmission, caller: KeyHolder) -> None:
        self._admission, self.caller = admission, caller
        self._answers = 0
        self.tokens = 0
        """Of the prompt and the answers, as far as they are written."""

    def take(self, answers: int) -> None:
        """Have this many answers written at a time. Raises Refused: 429 when others are being written, 400 when it may never be so many."""
        key = self.caller.key
        if key is None or answers <= self._answers:
            return
        limit, used = key.parallel, self._admission._used_by(key)
        if limit is not None and answers > limit:
            said = f"n: the key {self.caller.name!r} may have {limit} answers written at a time, not {answers}"
            raise Refused(400, "parallel", said, param="n")
        if limit is not None and used.parallel + answers - self._answers > limit:
            said = f"the key {self.caller.name!r} has {limit} answers at a time, and that many are being written"
            raise Refused(429, "parallel", said, code="rate_limit_exceeded", again_s=AGAIN_S)
        used.parallel += answers - self._answers
        self._answers = answers

    def end(self) -> None:
        """Count what it took."""
        key, admission = self.caller.key, self._admission
        if key is None:
            return
        used = admission._used_by(key)
        used.parallel -= self._answers
        self._answers = 0
        if self.tokens:
            used.tokens.add(admission._clock(), self.tokens)
            if admission._spent is not None:
                admission._spent.note(key, self.tokens)
