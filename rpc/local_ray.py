"""A Ray of one's own, on this machine."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from . import ray_ends
from .extras import require

ATTEMPTS = 3
_LATE = ("timed out during startup", "Timed out waiting for file")  # of the node, and of its control service
_TAKEN = ("Address already in use", "socket.bind(")  # of a port that was free when Ray chose it; it may quote a traceback without its end

PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30"}
"""Ray Serve kills a proxy that is not ready within 5 s, as on a busy machine, and whoever waits for it gets the death of an actor."""

_watchers: list[subprocess.Popen[bytes]] = []
"""Those of the Rays that this process has started; each ends with its Ray."""

_log = logging.getLogger(__name__)


def start_local_ray(**options: Any) -> Any:
    """`ray.init(address="local", …)`: what it returns. `RAY_ADDRESS` is not looked at.

    Ray gives a node 30 seconds to start and has no option for more, which a busy machine may need, and somebody may take a port between its
    being found free and its use: then it is started afresh, up to three times in all. A process of its own ends what Ray leaves when this
    one is killed (`ray_ends.py`).

    Raises RuntimeError when that is so each time, ValueError in a folder that holds another "burnish" or where the environment turns Ray's
    authentication off, and what else Ray raises.

    Example: `start_local_ray(num_cpus=4, include_dashboard=False)`.
    """
    check_folder()
    check_authentication()
    require("a local Ray", ["ray"], "train")
    import ray

    for name, seconds in PATIENCE.items():
        os.environ.setdefault(name, seconds)  # which Ray's processes inherit
    before, mark = _children(), uuid.uuid4().hex
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with _marked(mark):
                started = ray.init(address="local", **options)
            _watch(mark)
            return started
        except Exception as error:  # Ray has no class of its own for this
            late, taken = (any(words in str(error) for words in known) for known in (_LATE, _TAKEN))
            if not (late or taken):
                raise
            ray.shutdown()
            _end(_children() - before)
            why = "did not start within its 30 s" if late else "found a port taken that it had found free"
            if attempt == ATTEMPTS:
                raise RuntimeError(f"Ray {why}, {ATTEMPTS} times; is the machine too busy? {error}") from error
            _log.warning("Ray %s (attempt %d of %d): %s", why, attempt, ATTEMPTS, error)
    raise AssertionError("the last attempt returns or raises")


def check_authentication() -> None:
    """Raise ValueError where Ray would listen on every address, as it does, and ask nobody for its token."""
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode.lower() != "token":  # Ray takes "" and what it does not know for "disabled"
        raise ValueError(
            f"RAY_AUTH_MODE={mode[:20]}: Ray listens on every address, and whoever reaches it would run code here; unset it, or start a "
            "Ray yourself and name it in resources.ray_address"
        )


@contextmanager
def _marked(mark: str) -> Iterator[None]:
    """Have what is started here inherit the mark. This process may have one itself, of a Ray that it is a worker of.

    SPT_NOENV has Ray's agents, which give themselves other names, keep their environment where `/proc` shows it: the names would be written
    over some of it, and over which is chance, since a raylet hands its environment on in no order.
    """
    wanted = {ray_ends.MARK: mark, "SPT_NOENV": "1"}
    own = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in own.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _watch(mark: str) -> None:
    """Start the process that ends what is left with the mark. Neither Ctrl-C nor the end of this process's group reaches it."""
    bare = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
    command = [sys.executable, "-I", "-S", ray_ends.__file__, str(os.getpid()), mark]
    nothing = subprocess.DEVNULL
    _watchers[:] = [one for one in _watchers if one.poll() is None]
    _watchers.append(
        subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True, env=bare, cwd="/")
    )  # fmt: skip


def check_folder() -> None:
    """Raise ValueError where Ray's processes, which look first in the folder that one starts in, would find another "burnish" than this."""
    found = PathFinder.find_spec("burnish", [os.getcwd(), *sys.path])
    this = sys.modules[__name__.partition(".")[0]].__spec__
    if found is not None and this is not None and found.origin != this.origin:
        raise ValueError(f"{Path.cwd()} holds a folder called burnish, which Python takes for this program; start from another folder")


def _children() -> set[int]:
    """The processes below this one, by their numbers, as Linux shows them."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
    found, layer = set[int](), {os.getpid()}
    while layer:
        layer = {child for child, parent in parents.items() if parent in layer}
        found |= layer
    return found


def _end(processes: set[int]) -> None:
    """Kill what is left of a node that did not come up: Ray would keep it until this process ends, beside the next one."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
