"""Pages on which people look at runs: a web application over folders of runs, made on the server, with little script.

    /rollouts                               the runs
    /rollouts/-/compare?run=NAME&run=NAME   two runs or more, side by side
    /rollouts/-/models                      the checkpoints of the runs: stage, lineage, what was measured
    /rollouts/-/console                     deployments and services that were named when the pages were started, and how they are
    /rollouts/-/drift?before=…&after=…      the same tasks at two moments, of one run or two
    /rollouts/NAME                          one run: curves, evaluations, the ledger
    /rollouts/NAME/report                   its report, where it has one, in a frame in which nothing runs
    /rollouts/NAME/episodes?…               its episodes: filtered, sorted, searched
    /rollouts/NAME/episode?…                one episode: what was said and earned, every token; with json=1 as data
    /rollouts/NAME/group?…                  the attempts at one task at one moment, side by side
    /rollouts/NAME/drawing?…                the same episode as its environment draws it, for a frame in which nothing runs

Everything shown was written by a model, an environment or a tool. It is escaped, stripped of what steers a display, and kept still by a
content security policy that allows the pages' own two files and nothing else.
"""

from __future__ import annotations

import json
import math
import re
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
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from ...rollout.store.moments import moments
from ..comparing import MOST, side_by_side
from ..console import WatchedPlaces
from ..database import USUAL, Database, DatabaseLimits
from ..drift import RunMoment, drift_between
from ..hits import around_first
from ..kept import kept_of
from ..library import Library
from ..listing import DEEPEST, EXACT, RANGES, Order, Wanted, of_part
from ..own_view import POLICY as DRAWN_POLICY
from ..suspects import Suspects, suspects_of
from ..text import finite
from .branching import branching_of, checkpoints_of
from .cluster import Nodes
from .groups import BESIDE, group_view
from .indexing import WORTH, Indexer
from .links import STATIC, Served
from .progress import progress_of
from .runs import RunLine, find_run, list_runs
from .tokens import COLOURS, Colour
from .views import MOVES, NOTHING_LISTED, chat_of, drawing_of, drawn, episode_view, library_of, models_view, report_of, run_view, templates

PAGE = 50
"""Episodes on one page of a list."""
POLICY = "; ".join((
    "default-src 'none'", "style-src 'self'", "script-src 'self'", "connect-src 'self'", "img-src 'self'", "form-action 'self'",
    "base-uri 'none'", "frame-src 'self'", "frame-ancestors 'self'",
))  # fmt: skip
ASSETS = {"style.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
TEXTS = ("phase", "split", "mode", "task", "failure", "culprit", "truncation", "engine")
assert set(TEXTS) <= set(EXACT)
FAILED: Mapping[str, bool | None] = {"": None, "yes": True, "no": False}
WHOLE = ("tokens", "version")
"""Ranges of whole numbers."""
RARER = ("task", "engine", "culprit", "part", "tool", *(f"{name}_{end}" for name in RANGES for end in ("from", "to")))
"""What a list is narrowed by in the folded part of its form."""
_REAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Site:
    """What the pages are of: a folder of runs, or one run; how they are drawn, what answers their questions, what else is watched, and the
    nodes of the cluster whose dashboard shows them."""

    root: Path
    templates: Environment
    db: Database
    indexer: Indexer
    watched: WatchedPlaces | None = None
    nodes: Nodes | None = None

    def show(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(drawn(self.templates, template, Served(), **values), status)


Page = Callable[[Site, Request], Response]


def pages(
    root: Path, prefix: str = "", limits: DatabaseLimits = USUAL, watched: WatchedPlaces | None = None, nodes: Nodes | None = None
) -> Starlette:
    """The application over the run folders in `root`, or over the one run that `root` is.

    prefix: put before every path. limits: of what answers questions about stored episodes. watched: what the console shows beside runs.
    nodes: of the cluster whose dashboard shows the pages, to which they then link. Raises ValueError when the limits cannot be kept.
    """
    db, base = Database(limits), f"{prefix}/rollouts"
    site = Site(root, templates(), db, Indexer(db), watched, nodes)
    shown: dict[str, Page] = {
        "/static/{name}": asset,
        "/-/compare": comparison,
        "/-/drift": drift,
        "/-/models": all_models,
        "/-/console": console,
        "/{run}/report": report,
        "/{run}/episodes": episodes,
        "/{run}/episode": episode,
        "/{run}/group": group,
        "/{run}/drawing": drawing,
        "/{run}": one_run,
        "": all_runs,
        "/": all_runs,  # no redirect: Ray would follow it, and without the key
    }
    routes = [Route(f"{base}{path}", _guarded(site, page)) for path, page in shown.items()]
    return Starlette(routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=_headers)])


def _guarded(site: Site, page: Page) -> Callable[[Request], Awaitable[Response]]:
    async def call(request: Request) -> Response:
        try:
            return await run_in_threadpool(page, site, request)  # files are read there, not on the loop
        except LookupError as error:
            return site.show("gone", 410, what=str(error.args[0]))  # at a 404 Ray's dashboard would answer instead
        except ValueError as error:
            return site.show("gone", 400, what=str(error))
        except RecursionError:  # a value may be read, and yet be too deep for what goes through it
            return site.show("gone", 400, what="what is stored there is nested too deep to be shown")
        except OSError as error:  # of a file that is another user's, or is gone meanwhile
            return site.show("gone", 400, what=f"{error.filename}: {error.strerror}" if error.filename else str(error))

    return call


def all_runs(site: Site, request: Request) -> Response:
    """The runs, the latest first."""
    runs = list_runs(site.root)
    return site.show("runs", runs=runs, reached=progress_of(runs), watched=site.watched is not None)


def all_models(site: Site, request: Request) -> Response:
    """The checkpoints of every run."""
    return site.show("models", found=models_view(list_runs(site.root)))


def console(site: Site, request: Request) -> Response:
    """What is watched beside the runs, as it is now."""
    if site.watched is None:
        raise LookupError(
            "nothing was named to be watched: burnish inspect --deployment FILE or --service ADDRESS, or [services] or resources.watch of "
            "a run's recipe"
        )
    return site.show("console", places=site.watched.look(), why=site.watched.why)


def one_run(site: Site, request: Request) -> Response:
    """What a run has come to."""
    line = find_run(site.root, request.path_params["run"])
    looked = site.indexer.look(line.path / "episodes")
    stored = Library(line.path / "episodes", site.db, WORTH if looked.note else None)  # it is drawn anew every few seconds
    return site.show("run", index=looked.note, **run_view(line, stored))


def report(site: Site, request: Request) -> Response:
    """The report of a run, as it lies in its folder."""
    page = report_of(find_run(site.root, request.path_params["run"]))
    if page is None:
        raise LookupError("this run has no report; it is written at its end, and by burnish report RUN")
    return HTMLResponse(page, headers={"content-security-policy": f"frame-ancestors 'self'; {DRAWN_POLICY}"})


def comparison(site: Site, request: Request) -> Response:
    """Two runs or more, side by side, the one that began first before the others."""
    paths = [find_run(site.root, name).path for name in request.query_params.getlist("run")[: MOST + 1]]
    return site.show("compare", found=side_by_side(sorted(paths, key=lambda path: (path / "seeds.json").stat().st_mtime)))


def episodes(site: Site, request: Request) -> Response:
    """The episodes that were asked for, a page at a time."""
    line = find_run(site.root, request.path_params["run"])
    chosen = {name: value for name, value in request.query_params.items() if name != "page" and value}
    try:
        wanted, page = _wanted(request.query_params)
    except ValueError as error:
        return _list(site, line, library_of(line, site.db), 400, chosen=chosen, error=str(error))
    looked = site.indexer.look(line.path / "episodes")
    library = Library(line.path / "episodes", site.db, looked.beyond)
    total, rows = library.page(wanted)
    words = library.words(wanted.text) if wanted.text else []
    chats = library.conversations(rows) if words else [None] * len(rows)
    said = [around_first(chat_of({"messages": chat}), words) if chat else "" for chat in chats]
    near = [number for number in (page - 1, page + 1) if 1 <= number <= -(-min(total, DEEPEST) // PAGE)]
    return _list(
        site,
        line,
        library,
        rows=rows,
        words=words,
        said=said,
        total=total,
        page=page,
        first=wanted.first,
        links={number: f"?{urlencode({**chosen, 'page': number})}" for number in near},
        chosen=chosen,
        index=looked.note,
        why="" if rows else _why_none(line, wanted),
    )


def _why_none(line: RunLine, wanted: Wanted) -> str:
    """Why nothing fits, as far as what is kept tells."""
    exact = wanted.exact
    return kept_of(line.path).why_none(exact.get("phase"), wanted.step, exact.get("split"), by_id="task" in exact)


def _list(site: Site, line: RunLine, library: Library, status: int = 200, **values: Any) -> Response:
    """The form of a list, filled with what was chosen, and under it the episodes, or the error in what was asked."""
    form = {"choices": library.choices(), "orders": get_args(Order), "rarer": RARER}
    return site.show("episodes", status, **{**NOTHING_LISTED, **form, "line": line, **values})


def episode(site: Site, request: Request) -> Response:
    """One episode, as a page or as data."""
    line, asked = find_run(site.root, request.path_params["run"]), request.query_params
    library, moment, found = _asked_episode(site, line, asked)
    if asked.get("json"):
        return Response(json.dumps(finite(found)), media_type="application/json")  # ASCII: a model may write what UTF-8 cannot hold
    colour: Colour = asked.get("colour") if asked.get("colour") in COLOURS else "logprob"  # type: ignore[assignment]
    words = library.words(asked["text"]) if asked.get("text") else []
    turn = _number(asked, "turn", 0) if asked.get("turn") else None
    branching = branching_of(line, found, turn, asked.get("checkpoint", ""), *checkpoints_of(line))
    group = library.group(*moment, found["task"])
    return site.show("episode", **episode_view(line, found, group, colour, words, site.nodes, branching, asked))


def drawing(site: Site, request: Request) -> Response:
    """One episode as its environment draws it."""
    line = find_run(site.root, request.path_params["run"])
    view = drawing_of(line, _asked_episode(site, line, request.query_params)[2])
    if view is None:
        raise LookupError("nothing is registered that draws the episodes of this environment")
    return HTMLResponse(view, headers={"content-security-policy": f"sandbox; frame-ancestors 'self'; {DRAWN_POLICY}"})


def _asked_episode(site: Site, line: RunLine, asked: Mapping[str, str]) -> tuple[Library, tuple[str, int, str, str], dict[str, Any]]:
    library, moment = library_of(line, site.db), _moment(asked)
    found = library.one(*moment, asked.get("episode", ""))
    if found is None:
        raise LookupError(f"this run has no such episode; {_why_gone(line, moment)}")
    return library, moment, found


def _moment(asked: Mapping[str, str]) -> tuple[str, int, str, str]:
    return asked.get("phase", ""), _number(asked, "step", 0), asked.get("split", ""), asked.get("mode", "")


def _why_gone(line: RunLine, moment: tuple[str, int, str, str]) -> str:
    return kept_of(line.path).why_none(*moment[:3]) or "it may have been dropped when the run was resumed"


def group(site: Site, request: Request) -> Response:
    """The attempts at one task at one moment, a page at a time."""
    line, asked = find_run(site.root, request.path_params["run"]), request.query_params
    library, moment, page = library_of(line, site.db), _moment(asked), max(1, _number(asked, "page", 1))
    attempts = library.group(*moment, asked.get("task", ""))
    if not attempts:
        raise LookupError(f"this run has no such task there; {_why_gone(line, moment)}")
    if page > -(-len(attempts) // BESIDE):
        raise LookupError(f"page: there is none of that number; of this task there are {len(attempts)} attempts, {BESIDE} on a page")
    return site.show("group", **group_view(line, library, attempts, page))


def drift(site: Site, request: Request) -> Response:
    """The same tasks at two moments, of one run or two; with task=… one of them, side by side."""
    asked = request.query_params
    before, after = (RunMoment.read(asked.get(name, ""), name) for name in ("before", "after"))
    lines = {place.run: find_run(site.root, place.run) for place in (before, after)}
    stores = {name: library_of(line, site.db) for name, line in lines.items()}
    folders = {name: line.path for name, line in lines.items()}
    found = drift_between(before, after, folders, stores)
    task, sides = asked.get("task", ""), []
    suspects = Suspects() if task else suspects_of(found, folders, stores)
    for place in (before, after) if task else ():
        at = place.moment
        attempts = stores[place.run].group(at.phase, at.step, at.split, at.mode, task)
        first = stores[place.run].one(at.phase, at.step, at.split, at.mode, attempts[0]["episode"]) if attempts else None
        why = "" if attempts else kept_of(folders[place.run]).why_none(at.phase, at.step, at.split)
        sides.append((place, attempts, chat_of(first) if first else [], why))
    places = [RunMoment(name, moment) for name, line in lines.items() for _, moment in moments(line.path / "episodes")]
    return site.show("drift", found=found, task=task, sides=sides, places=places, shown=MOVES, suspects=suspects)


def asset(site: Site, request: Request) -> Response:
    """One of the pages' own files."""
    name = request.path_params["name"].partition(".")[2]
    if name not in ASSETS:
        raise LookupError("there is no such file")
    headers = {"cache-control": "public, max-age=31536000, immutable"}
    return Response((STATIC / name).read_bytes(), media_type=ASSETS[name], headers=headers)


async def _headers(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
    """The headers of every answer."""
    response = await call(request)
    response.headers.setdefault("content-security-policy", POLICY)
    response.headers.update({"x-content-type-options": "nosniff", "referrer-policy": "same-origin"})
    response.headers.setdefault("cache-control", "no-store")
    return response


def _wanted(asked: Mapping[str, str]) -> tuple[Wanted, int]:
    """What a list is asked for, and its page from 1. Raises ValueError for what is no number, no range or no order."""
    page, step = max(1, _number(asked, "page", 1)), asked.get("step")
    order: Any = asked.get("order") or "latest"
    if order not in get_args(Order):
        raise ValueError(f"order: {order[:80]!r} is none of {', '.join(get_args(Order))}")
    if asked.get("failed", "") not in FAILED:
        raise ValueError(f"failed: {asked['failed'][:80]!r} is neither yes nor no")
    between = {name: bounds for name in RANGES if (bounds := _range(asked, name)) != (None, None)}
    part = asked.get("part", "")
    if not part and of_part(order, between):
        raise ValueError("part: name the part of the reward that the list is to be narrowed or sorted by")
    wanted = Wanted(
        exact={name: asked[name] for name in TEXTS if asked.get(name)},
        step=_number(asked, "step", 0) if step else None,
        failed=FAILED[asked.get("failed", "")],
        between=between,
        part=part,
        tool=asked.get("tool", ""),
        text=asked.get("text", "").strip(),
        order=order,
        first=PAGE * (page - 1),
        most=PAGE,
    )
    return wanted, page


def _range(asked: Mapping[str, str], name: str) -> tuple[float | None, float | None]:
    """The least and the most of what is asked for, None where there is no such bound. Raises ValueError for what is no range."""
    read: Callable[[str, str], float] = _whole if name in WHOLE else _real
    least, most = (read(asked[key], key) if asked.get(key) else None for key in (f"{name}_from", f"{name}_to"))
    if least is not None and most is not None and least > most:
        raise ValueError(f"{name}: from {least:.12g} to {most:.12g} is no range: the first is above the second")
    return least, most


def _real(said: str, name: str) -> float:
    if len(said) > 40 or not _REAL.fullmatch(said.strip()) or not math.isfinite(value := float(said)):
        raise ValueError(f"{name}: {said[:20]!r} is no number")
    return value


def _number(asked: Mapping[str, str], name: str, default: int) -> int:
    return _whole(asked.get(name) or str(default), name)


def _whole(said: str, name: str) -> int:
    if not said.isascii() or not said.isdigit() or len(said) > 9:
        raise ValueError(f"{name}: {said[:20]!r} is no whole number of 0 or more")
    return int(said)
