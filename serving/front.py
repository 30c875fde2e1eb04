"""Where every request comes in: who asks is found out, limits are held to, and what became of it is counted and logged.

Whatever goes wrong is said to the client in its own API's shape, and at the end of a stream that had begun; none of it leaves the service
as an exception, which Serve would answer in words of its own.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from starlette.types import Message, Scope, Send

from .admission import Refused, RequestAdmission, Visit
from .audit import RECORD, Books, Record
from .event_stream import DONE, event
from .feedback.desk import FeedbackDesk
from .keys import Route
from .observed import Observe
from .wire import error_of, is_stream, told_where

ID_PREFIXES: Final[Mapping[str, str]] = {"chat": "chatcmpl", "completions": "cmpl"}
Answer = Callable[[Scope, Send, Visit], Awaitable[None]]
Refuse = Callable[[Send, Refused], Awaitable[None]]
_log = logging.getLogger(__name__)


class Front:
    """Admission and books of one service. desk: where feedback is taken, None takes none. observers: who looks at answers afterwards.
    answer_s: how long an answer may take, None: for ever.

    Example: `Front()` lets everybody in and writes no log.
    """

    def __init__(
        self,
        admission: RequestAdmission | None = None,
        books: Books | None = None,
        desk: FeedbackDesk | None = None,
        answer_s: float | None = None,
    ) -> None:
        self.admission, self.books, self.desk, self._answer_s = admission or RequestAdmission(), books or Books(), desk, answer_s
        self.observers: list[Observe] = [desk.remember] if desk is not None else []

    async def handle(self, scope: Scope, send: Send, route: Route | Refused, answer: Answer, refuse: Refuse) -> None:
        """Have a request answered, unless it may not be. route: what is called, or why there is nothing to call, which those without a key
        are not told. answer: gets a scope that carries the request's record; what it raises is said to the client."""
        record = Record("" if isinstance(route, Refused) else route)
        record.id = f"{ID_PREFIXES.get(record.route, record.route)}-{uuid.uuid4().hex}"
        known = began = False
        start: Message = {}

        async def noted(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                record.status, start = message["status"], message
            await send(message)

        try:
            caller = self.admission.who(scope["headers"])
            known, record.key = True, caller.name
            if record.route in ID_PREFIXES and self.desk is not None:
                record.id = self.desk.ids.new(ID_PREFIXES[record.route], caller.name)
            if isinstance(route, Refused):
                raise route
            await self.admission.check_budget(caller, route)
            with self.admission.visit(caller, route) as visit:
                self.books.began(record)
                began = True
                try:
                    await self._in_time(answer({**scope, RECORD: record}, noted, visit))
                finally:
                    visit.tokens = record.tokens
        except Exception as error:
            refused = _refused_for(error)
            record.refused = refused.reason
            if not start:
                await refuse(noted, refused)
            elif is_stream(start):
                last = event({"error": error_of(refused)}) + DONE + b"\n\n"
                await send({"type": "http.response.body", "body": last, "more_body": False})
            else:
                raise  # half of a whole answer went out: only breaking it off says so
        finally:
            self.books.ended(record, known, began)

    async def _in_time(self, answering: Awaitable[None]) -> None:
        deadline = asyncio.timeout(self._answer_s)
        try:
            async with deadline:
                await answering
        except TimeoutError:
            if not deadline.expired():
                raise
            said = f"the answer was not there within the {self._answer_s:.0f} s that one may take; ask for less"
            raise Refused(504, "late", said, code="timeout") from None


def _refused_for(error: Exception) -> Refused:
    """What a client is told: of a fault of the service's own, nothing but that it is one."""
    if isinstance(error, Refused):
        return error
    _log.error("a request failed: %s", told_where(error))
    return Refused(500, "fault", "the service failed at this request, which is no fault of the request's", code="internal_error")
