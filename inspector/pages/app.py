"""Pages on which people look at runs: a web application over folders of runs, made on the server, with little script.

    /rollouts                               the runs
    /rollouts/-/compare?run=NAME&run=NAME   two runs or more, side by side
    /rollouts/NAME                          one run: curves, evaluations, the ledger
    /rollouts/NAME/episodes?…               its episodes: filtered, sorted, searched
    /rollouts/NAME/episode?…                one episode: what was said and earned, every token; with json=1 as data

Everything shown was written by a model, an environment or a tool. It is escaped, stripped of what steers a display, and kept still by a
content security policy that allows the pages' own two files and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlencode

from jinja2 import Environment
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from ...envs.types import message_from_dict
from ..comparing import MOST, side_by_side
from ..library import EXACT, Library, Order, Wanted
from ..rendering import environment
from ..report import curves_of, headline, phase_rows
from ..runs import final_ledger, phases_of, read_run
from ..text import finite
from .runs import find_run, list_runs
from .tokens import COLOURS, Colour, shown_tokens, tokenizer_of

HERE = Path(__file__).parent
PAGE = 50
"""Episodes on one page of a list."""
POLICY = "; ".join((
    "default-src 'none'", "style-src 'self'", "script-src 'self'", "connect-src 'self'", "img-src 'self'", "form-action 'self'",
    "base-uri 'none'", "frame-ancestors 'self'",
))  # fmt: skip
ASSETS = {"style.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
TEXTS = ("phase", "split", "mode", "task", "failure", "culprit", "truncation", "engine")
assert set(TEXTS) <= set(EXACT)


@dataclass(frozen=True, slots=True)
class Site:
    """What the pages are of: a folder of runs, or one run; and how they are drawn."""

    root: Path
    templates: Environment

    def show(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        page = self.templates.get_template(f"{template}.html.jinja")
        return HTMLResponse(page.render(base="/rollouts", asset=asset_name, **values), status)


Page = Callable[[Site, Request], Response]


def pages(root: Path, prefix: str = "") -> Starlette:
    """The application over the run folders in `root`, or over the one run that `root` is. prefix: put before every path."""
    site, base = Site(root, environment(HERE / "templates")), f"{prefix}/rollouts"
    shown: dict[str, Page] = {
        "/static/{name}": asset,
        "/-/compare": comparison,
        "/{run}/episodes": episodes,
        "/{run}/episode": episode,
        "/{run}": one_run,
        "": all_runs,
    }
    routes = [Route(f"{base}{path}", _guarded(site, page)) for path, page in shown.items()]
    routes.append(Route(f"{base}/", lambda _: RedirectResponse("/rollouts")))
    return Starlette(routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=_headers)])


def _guarded(site: Site, page: Page) -> Callable[[Request], Awaitable[Response]]:
    async def call(request: Request) -> Response:
        try:
            return await run_in_threadpool(page, site, request)  # files are read there, not on the loop
        except LookupError as error:
            return site.show("gone", 410, what=str(error.args[0]))  # at a 404 Ray's dashboard would answer instead
        except ValueError as error:
            return site.show("gone", 400, what=str(error))

    return call


def all_runs(site: Site, request: Request) -> Response:
    """The runs, the latest first."""
    return site.show("runs", runs=list_runs(site.root))


def one_run(site: Site, request: Request) -> Response:
    """What a run has come to."""
    line = find_run(site.root, request.path_params["run"])
    run = read_run(line.path)
    return site.show(
        "run",
        line=line,
        run=run,
        headline=headline(run),
        rows=phase_rows(run),
        curves={phase: curves_of(run, phase) for phase in phases_of(run.metrics)},
        ledger=final_ledger(run.ledger),
        config=json.dumps(run.config, indent=2, ensure_ascii=False),
        last=run.metrics[-1] if run.metrics else None,
    )


def comparison(site: Site, request: Request) -> Response:
    """Two runs or more, side by side, the one that began first before the others."""
    paths = [find_run(site.root, name).path for name in request.query_params.getlist("run")[: MOST + 1]]
    return site.show("compare", found=side_by_side(sorted(paths, key=lambda path: (path / "seeds.json").stat().st_mtime)))


def episodes(site: Site, request: Request) -> Response:
    """The episodes that were asked for, a page at a time."""
    line = find_run(site.root, request.path_params["run"])
    wanted, page = _wanted(request.query_params)
    library = Library(line.path / "episodes")
    chosen = {name: value for name, value in request.query_params.items() if name != "page" and value}
    total = library.count(wanted)
    near = [number for number in (page - 1, page + 1) if 1 <= number <= -(-total // PAGE)]
    return site.show(
        "episodes",
        line=line,
        rows=library.listed(wanted),
        total=total,
        page=page,
        first=wanted.first,
        links={number: f"?{urlencode({**chosen, 'page': number})}" for number in near},
        choices=library.choices(),
        chosen=chosen,
        orders=get_args(Order),
    )


def episode(site: Site, request: Request) -> Response:
    """One episode, as a page or as data."""
    line, asked = find_run(site.root, request.path_params["run"]), request.query_params
    moment = (asked.get("phase", ""), _number(asked, "step", 0), asked.get("split", ""), asked.get("mode", ""))
    library = Library(line.path / "episodes")
    found = library.one(*moment, asked.get("episode", ""))
    if found is None:
        raise LookupError("this run has no such episode; it may have been dropped when the run was resumed")
    if asked.get("json"):
        return Response(json.dumps(finite(found)), media_type="application/json")  # ASCII: a model may write what UTF-8 cannot hold
    colour: Colour = asked.get("colour") if asked.get("colour") in COLOURS else "logprob"  # type: ignore[assignment]
    return site.show(
        "episode",
        line=line,
        e=found,
        chat=[message_from_dict(message) for message in found["messages"]],
        group=library.group(*moment, found["task"]),
        trajectories=shown_tokens(found, colour, tokenizer_of(line.path)),
        colour=colour,
        colours=COLOURS,
        link=lambda **changed: f"?{urlencode({**asked, **changed})}",
    )


def asset(site: Site, request: Request) -> Response:
    """One of the pages' own files."""
    name = request.path_params["name"].partition(".")[2]
    if name not in ASSETS:
        raise LookupError("there is no such file")
    headers = {"cache-control": "public, max-age=31536000, immutable"}
    return Response((HERE / "static" / name).read_bytes(), media_type=ASSETS[name], headers=headers)


def asset_name(name: str) -> str:
    """An asset under a name that changes with what it holds, so that a browser may keep it."""
    return f"{hashlib.sha256((HERE / 'static' / name).read_bytes()).hexdigest()[:12]}.{name}"


async def _headers(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
    """The headers of every answer."""
    response = await call(request)
    response.headers.update({"content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "same-origin"})
    response.headers.setdefault("cache-control", "no-store")
    return response


def _wanted(asked: Mapping[str, str]) -> tuple[Wanted, int]:
    """What a list is asked for, and its page from 1. Raises ValueError for what is no number or no order."""
    page, step = max(1, _number(asked, "page", 1)), asked.get("step")
    order: Any = asked.get("order") or "latest"
    if order not in get_args(Order):
        raise ValueError(f"order: {order!r} is none of {', '.join(get_args(Order))}")
    failed = {"yes": True, "no": False}.get(asked.get("failed", ""))
    exact = {name: asked[name] for name in TEXTS if asked.get(name)}
    return Wanted(exact, _number(asked, "step", 0) if step else None, failed, asked.get("text", ""), order, PAGE * (page - 1), PAGE), page


def _number(asked: Mapping[str, str], name: str, default: int) -> int:
    said = asked.get(name) or str(default)
    if not said.isascii() or not said.isdigit() or len(said) > 9:
        raise ValueError(f"{name}: {said[:20]!r} is no number")
    return int(said)
