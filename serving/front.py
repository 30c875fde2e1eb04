"""Where every request comes in: who asks is found out, limits are held to, and what became of it is counted and logged."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from starlette.types import Message, Scope, Send

from .admission import Refused, RequestAdmission, Visit
from .audit import RECORD, Books, Record
from .feedback.desk import FeedbackDesk
from .keys import Route
from .observed import Observe

ID_PREFIXES: Final[Mapping[str, str]] = {"chat": "chatcmpl", "completions": "cmpl"}
Answer = Callable[[Scope, Send, Visit], Awaitable[None]]
Refuse = Callable[[Send, Refused], Awaitable[None]]


class Front:
    """Admission and books of one service. desk: where feedback is taken, None takes none. observers: who looks at answers afterwards.

    Example: `Front()` lets everybody in and writes no log.
    """

    def __init__(self, admission: RequestAdmission | None = None, books: Books | None = None, desk: FeedbackDesk | None = None) -> None:
        self.admission, self.books, self.desk = admission or RequestAdmission(), books or Books(), desk
        self.observers: list[Observe] = [desk.remember] if desk is not None else []

    async def handle(self, scope: Scope, send: Send, route: Route | Refused, answer: Answer, refuse: Refuse) -> None:
        """Have a request answered, unless it may not be. route: what is called, or why there is nothing to call, which those without a key
        are not told. answer: gets a scope that carries the request's record, and may raise Refused as long as it has sent nothing."""
        record = Record("" if isinstance(route, Refused) else route)
        record.id = f"{ID_PREFIXES.get(record.route, record.route)}-{uuid.uuid4().hex}"
        known = began = False

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
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
                    await answer({**scope, RECORD: record}, noted, visit)
                finally:
                    visit.tokens = record.tokens
        except Refused as refused:
            record.refused = refused.reason
            await refuse(noted, refused)
        finally:
            self.books.ended(record, known, began)
