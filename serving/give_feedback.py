"""`POST /v1/feedback` and `DELETE /v1/feedback/ID`: what clients say of their answers, and that they want them gone."""

from __future__ import annotations

import json
import re
from typing import Final

from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from ..envs.pydantic_words import first_error
from .admission import Refused, Visit
from .feedback.desk import FeedbackDesk
from .feedback.rows import LONGEST_TEXT, GivenFeedback
from .front import Front
from .keys import Route
from .wire import BODY_S, answer, is_json, read_aside, read_body, read_json, refuse

FEEDBACK: Final = "/v1/feedback"
LARGEST_BODY: Final = 16 * LONGEST_TEXT
"""A correction whose every character is written as two escapes of UTF-16 has three quarters of it."""
MAX_DEPTH: Final = 4
MOST_VALUES: Final = 64
"""In feedback: one that says all there is to say has not half as many."""
_ONE: Final = re.compile(rf"{FEEDBACK}/([A-Za-z0-9-]{{1,100}})")


class FeedbackApp:
    """ASGI middleware that takes feedback; all else goes on to `app`."""

    def __init__(self, desk: FeedbackDesk, front: Front, app: ASGIApp, body_s: float = BODY_S) -> None:
        self._desk, self._front, self._app, self._body_s = desk, front, app, body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].rstrip("/") if scope["type"] == "http" else ""
        if path != FEEDBACK and not path.startswith(f"{FEEDBACK}/"):
            await self._app(scope, receive, send)
            return
        one = _ONE.fullmatch(path)

        async def answered(scope: Scope, send: Send, visit: Visit) -> None:
            if one is not None:
                await answer(send, 200, await self._deleted(one[1], visit))
            else:
                await answer(send, 200, await self._given(scope, receive, visit))

        await self._front.handle(scope, send, _called(path, scope["method"], one is not None), answered, refuse)

    async def _given(self, scope: Scope, receive: Receive, visit: Visit) -> bytes:
        if not is_json(scope["headers"]):
            raise Refused(415, "invalid", "feedback is JSON: send it with Content-Type: application/json")
        body = await read_body(receive, self._body_s, LARGEST_BODY)
        row = await self._desk.give(await read_aside(read_feedback, body), visit.caller.name)
        return json.dumps({"id": row.id, "object": "feedback", "conversation": row.asked is not None}).encode()

    async def _deleted(self, id: str, visit: Visit) -> bytes:
        removed = await self._desk.forget(id, visit.caller.name)
        return json.dumps({"id": id, "object": "feedback.deleted", "deleted": removed > 0}).encode()


def read_feedback(body: bytes) -> GivenFeedback:
    """Raises Refused, 400, naming what is wrong. What has many values is refused before any of them is looked at."""
    try:
        return GivenFeedback.model_validate(read_json(body, MAX_DEPTH, MOST_VALUES))
    except ValidationError as error:
        details = error.errors(include_url=False)
        where = next((one for one in details if one["type"] == "extra_forbidden"), details[0])["loc"]
        said = first_error(error, GivenFeedback)[:500]
        raise Refused(400, "invalid", said, param=str(where[0])[:100] if where else None) from None
    except ValueError as error:
        raise Refused(400, "invalid", f"the feedback is not valid JSON: {str(error)[:200]}") from None


def _called(path: str, method: str, one: bool) -> Route | Refused:
    if not one and path != FEEDBACK:
        return Refused(404, "unknown_route", f"there is no {path[:200]}")
    wanted = "DELETE" if one else "POST"
    return "feedback" if method == wanted else Refused(405, "method", f"{path[:200]} takes {wanted}, not {method}")
