"""Ray's dashboard with the pages in it. Ray has no plug-in for that, but asks a proxy of ours first, and shows its own page at our 404.

`/` is Ray's own start page with one script more, which adds an entry to its navigation. Ray does not promise any of that, so the page is
changed only where it is the one that this was tried with; on any other the pages are still at `/rollouts`. The script is below `/static/`,
which Ray shows to who has given no token yet, as the start page itself. All else asks for Ray's token here, too: the address at which Ray
finds the pages is on the command line of its dashboard, which every account of the machine reads.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import ray
import ray.dashboard
from ray import _raylet
from ray._private.authentication import authentication_constants as names
from ray._private.authentication import authentication_utils
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray.exceptions import AuthenticationError, RayError, RaySystemError
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from .links import BASE, STATIC, asset_name

KNOWN = frozenset({"fb897d85f3c47644c764f70204530d44bda9cf78ea49c08495163fbfb7dc53de"})
"""SHA-256 of the start pages that the script fits."""
ASK_S = 2
"""How long the dashboard may take to say which nodes there are."""
MOST_NODES = 10_000


def script_path() -> str:
    """Where the script is: Ray tells browsers to keep it for a year, so its name changes with what it holds."""
    return f"/static/rollouts-{asset_name('entry.js')}"


def with_entry(app: ASGIApp, prefix: str) -> ASGIApp:
    """The application, for those who have Ray's token, and before it Ray's start page with an entry that leads to it."""
    page, script, place = start_page(), (STATIC / "entry.js").read_bytes(), f"{prefix}{script_path()}"

    def start(_: Request) -> Response:
        return PlainTextResponse("not ours", 404) if page is None else HTMLResponse(page)

    def entry(_: Request) -> Response:
        return Response(script, media_type="text/javascript")

    shown = Starlette(routes=[Route(f"{prefix}/", start), Route(place, entry), Mount("", _with_token(app))])
    return _ours_alone(shown, {f"{prefix}/", place, f"{prefix}{BASE}"}, f"{prefix}{BASE}/")


def _ours_alone(app: ASGIApp, exact: Set[str], below: str) -> ASGIApp:
    """The application, and for what is Ray's a 404 before anything of ours is asked: each request of Ray's own pages waits for it. exact,
    below: the paths that are ours, and what those begin with that are, too."""
    not_ours = PlainTextResponse("not ours", 404)

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        ours = scope["type"] != "http" or scope["path"] in exact or scope["path"].startswith(below)
        await (app if ours else not_ours)(scope, receive, send)

    return call


def _with_token(app: ASGIApp) -> ASGIApp:
    """The application for those who give Ray's token where and as Ray takes it; for nobody in a process whose Ray asks for none."""
    refused = PlainTextResponse("Ray's token is missing or wrong: open these pages on Ray's dashboard, which asks for it", 403)

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        known = scope["type"] != "http" or _holds_token(Request(scope))
        await (app if known else refused)(scope, receive, send)

    return call


def _holds_token(request: Request) -> bool:
    said = request.headers.get(names.AUTHORIZATION_HEADER_NAME) or request.headers.get(names.RAY_AUTHORIZATION_HEADER_NAME)
    token = request.cookies.get(names.AUTHENTICATION_TOKEN_COOKIE_NAME)
    if not said and token:
        said = f"{names.AUTHORIZATION_BEARER_PREFIX}{token}"
    if not said or not authentication_utils.is_token_auth_enabled():  # and then every token is valid
        return False
    return bool(authentication_utils.validate_request_token(said))


def ask_for_token() -> None:
    """Have this process know Ray's token, as a node that `ray start` makes here does. Raises ValueError where such a node asks for none, or
    there is none."""
    mode = os.environ.setdefault("RAY_AUTH_MODE", "token")
    raylet: Any = _raylet  # which has no types
    raylet.Config.initialize("")
    if not authentication_utils.is_token_auth_enabled():
        raise ValueError(
            f"RAY_AUTH_MODE={mode[:20]}: a Ray that asks for no token would show the rollouts to everybody; start it, and this, with =token"
        )
    try:
        ensure_token_if_auth_enabled(create_token_if_missing=False)
    except AuthenticationError as error:
        raise ValueError("Ray has no token here: `ray get-auth-token --generate` makes one; then start the head node") from error


def start_page(folder: Path | None = None) -> str | None:
    """Ray's start page with our script; None where it is not there, or is one that nobody tried."""
    file = (folder or Path(ray.dashboard.__file__).parent / "client" / "build") / "index.html"
    if not file.is_file():
        return None
    said = file.read_bytes()
    if hashlib.sha256(said).hexdigest() not in KNOWN:
        return None
    return said.decode().replace("</body>", f'<script src="{script_path()[1:]}" defer></script></body>', 1)


def nodes_here() -> Mapping[str, bool]:
    """The ids of the nodes of the cluster that this process is part of, those that are gone among them, and whether each is alive; none
    before it is part of one, and after."""
    if not ray.is_initialized():
        return {}
    try:
        return {str(node["NodeID"]): bool(node["Alive"]) for node in ray.nodes()}
    except RaySystemError:  # it ended this very moment
        return {}


def nodes_around() -> Mapping[str, bool]:
    """The same of the cluster on this machine that this process is no part of, as its dashboard says; none where that says nothing."""
    try:
        found = list_nodes("auto", limit=MOST_NODES, timeout=ASK_S, raise_on_missing_output=False)
    except (ConnectionError, RayStateApiException, RayError, ValueError):  # it is not up yet, or not any more
        return {}
    return {str(node.node_id): node.state == "ALIVE" for node in found}
