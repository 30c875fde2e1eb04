"""Who may read the pages: whoever has the key, from a browser that was sent to this very address."""

from __future__ import annotations

import hmac
import secrets
from urllib.parse import parse_qs, urlencode

from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


def new_key() -> str:
    """A key that nobody guesses."""
    return secrets.token_urlsafe(24)


class WithKey:
    """An application for those who have the key: `?key=…` once, then a cookie. hosts: names that the server goes by, with port; a request
    for another name was led here by somebody's DNS, and is refused.

    A browser sends its cookies for a host to every port there, so the cookie is called after the port, and holds another word than the key.
    """

    def __init__(self, app: ASGIApp, key: str, hosts: frozenset[str]) -> None:
        self._app, self._key, self._hosts, self._token = app, key, hosts, new_key()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        cookie = f"burnish_{host.rpartition(':')[2]}"
        if host not in self._hosts:
            await PlainTextResponse("these pages are not served under that name", 403)(scope, receive, send)
            return
        asked = parse_qs(scope["query_string"].decode("latin-1"))
        given = asked.pop("key", [""])[0]
        if _same(given, self._key):
            there = scope["path"] + (f"?{urlencode(asked, doseq=True)}" if asked else "")
            answer = RedirectResponse("/" + there.lstrip("/"), 303)  # one slash: two would name another host
            answer.set_cookie(cookie, self._token, httponly=True, samesite="strict", path="/")
            await answer(scope, receive, send)
            return
        if not _same(cookie_parser(headers.get("cookie", "")).get(cookie, ""), self._token):
            await PlainTextResponse("the key is missing or wrong: open the address that the program printed", 401)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode())
