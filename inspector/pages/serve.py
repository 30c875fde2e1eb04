"""Serving the pages: by themselves (`burnish inspect`), or to Ray's dashboard, which asks here first and shows its own pages otherwise."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.responses import RedirectResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from ..console import WatchedPlaces
from ..database import USUAL, DatabaseLimits
from .access import WithKey, new_key
from .app import pages
from .dashboard import ask_for_token, nodes_around, nodes_here, with_entry

START_S = 20.0


def inspect_forever(
    root: Path, port: int, said: Callable[[str], None], limits: DatabaseLimits = USUAL, watched: WatchedPlaces | None = None
) -> None:
    """Serve the runs in `root` on loopback until SIGINT or SIGTERM. said: called with the address, once it answers. limits: of the
    database behind the pages. watched: what its console shows.

    Raises ValueError when the port is taken, or the limits cannot be kept.
    """
    shown = pages(root, limits=limits, watched=watched)
    listening = _listen(port)
    key, port = new_key(), listening.getsockname()[1]
    hosts = frozenset(f"{name}:{port}" for name in ("127.0.0.1", "localhost"))
    app = Starlette(routes=[Route("/", lambda _: RedirectResponse("/rollouts")), Mount("/", shown)])
    server = _server(WithKey(app, key, hosts))
    with listening:
        said(f"http://127.0.0.1:{port}/rollouts?key={key}")
        server.run(sockets=[listening])


def inspect_behind_dashboard(
    root: Path, port: int, said: Callable[[str], None], limits: DatabaseLimits = USUAL, watched: WatchedPlaces | None = None
) -> None:
    """Serve the runs in `root` to the dashboard of a Ray that somebody else starts on this machine, until SIGINT or SIGTERM. said: called
    with its `--proxy-server-url`, once it answers. limits, watched: as of `inspect_forever`.

    Only who has Ray's token is answered. Raises ValueError when the port is taken, the limits cannot be kept, or Ray asks for no token.
    """
    ask_for_token()
    app = with_entry(pages(root, limits=limits, watched=watched, nodes=nodes_around), "")
    with _listen(port) as listening:
        said(f"http://127.0.0.1:{listening.getsockname()[1]}")
        _server(app).run(sockets=[listening])


@contextmanager
def behind_dashboard(root: Path, watched: WatchedPlaces | None = None) -> Iterator[str]:
    """Serve the runs in `root` to Ray's dashboard from a thread; yields the `proxy_server_url` for `ray.init`.

    Its path is a key: only who knows it is answered, and of them, since Ray puts it on a command line, who has Ray's token. watched: what
    their console shows.
    """
    secret, listening = f"/{new_key()}", _listen(0)
    server = _server(with_entry(pages(root, secret, watched=watched, nodes=nodes_here), secret))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="pages", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}{secret}"
    finally:
        server.should_exit = True
        thread.join(START_S)
        listening.close()


def _listen(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(("127.0.0.1", port))
    except OSError as error:
        made.close()
        raise ValueError(f"--port: 127.0.0.1:{port} cannot be used: {error.strerror}; give another, or 0 for a free one") from error
    made.listen()
    return made


def _server(app: ASGIApp) -> uvicorn.Server:
    return uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off", timeout_graceful_shutdown=2))
