"""`burnish inspect --behind-dashboard`: the rollouts on the dashboard of a Ray that `ray start` makes, as on a cluster that a run joins."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from tests.integration.started import WAIT_S, Started
from tests.unit.test_inspector_pages import root as root
from tests.unit.test_inspector_pages import token as token

from burnish.inspector.pages.dashboard import nodes_around, script_path

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def started_ray(port: int, dashboard: int, pages: str = "") -> Iterator[None]:
    """A head node in a group of processes of its own; `ray stop` would end those of others, too."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets have short names
    options = [
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        *([f"--proxy-server-url={pages}"] if pages else []),
        f"--temp-dir={folder}",
    ]
    room = ["--num-cpus=1", "--object-store-memory=80000000", "--dashboard-agent-listen-port=0", "--disable-usage-stats"]
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", *options, *room]
    with (Path(folder) / "out").open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)


def get(address: str, **headers: str) -> tuple[int, str]:
    try:
        with DIRECT.open(urllib.request.Request(address, headers=headers), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def cookie_of(dashboard: str, token: str) -> str:
    """What Ray's dashboard gives a browser that has the token, and the pages behind it take."""
    asked = urllib.request.Request(f"{dashboard}/api/authenticate", b"", {"Authorization": f"Bearer {token}"})
    with DIRECT.open(asked, timeout=60) as answer:
        return str(answer.headers["Set-Cookie"])


def until(what: Callable[[], bool], wanted: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline, f"no {wanted} in {WAIT_S} s"
        time.sleep(0.5)


def answers(address: str) -> bool:
    try:
        return get(address)[0] == 200
    except OSError:
        return False


def test_the_dashboard_of_a_ray_that_somebody_starts_shows_the_rollouts_to_who_has_its_token(
    root: Path, token: str, start: Callable[..., Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    port, dashboard = free_port(), free_port()
    pages = start("inspect", str(root), "--behind-dashboard", "--port", "0")
    pages.until_said("--proxy-server-url=")
    (url,) = (word.partition("=")[2] for word in pages.said.split() if word.startswith("--proxy-server-url="))
    with started_ray(port, dashboard, url):
        at = f"http://127.0.0.1:{dashboard}"
        until(lambda: answers(f"{at}/"), "start page")
        assert script_path()[1:] in get(f"{at}/")[1]  # Ray's start page, with the entry
        assert get(f"{at}/rollouts")[0] == 401 and get(f"{at}/rollouts", Authorization="Bearer wrong")[0] == 403
        status, text = get(f"{at}/rollouts", Authorization=f"Bearer {token}")
        assert status == 200 and "nano-20260101-000000" in text
        assert get(f"{url}/rollouts")[0] == 403  # nor is there a way round the dashboard
        cookie = cookie_of(at, token)
        name, _, attributes = cookie.partition(";")
        assert {"httponly", "samesite=strict"} <= {one.strip().lower() for one in attributes.split(";")}  # no other site sends it
        assert get(f"{at}/rollouts", Cookie=name)[0] == 200
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        until(lambda: list(nodes_around().values()) == [True], "node, which is up after its dashboard")
    assert pages.end(signal.SIGTERM) == (143, [])


def test_the_pages_of_a_ray_that_asks_for_no_token_are_not_served(
    root: Path, start: Callable[..., Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    refused = start("inspect", str(root), "--behind-dashboard", "--port", "0")
    assert refused.process.wait(WAIT_S) == 2 and "would show the rollouts to everybody" in refused.said
