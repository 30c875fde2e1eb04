"""The console page: deployments and services that the user named, asked over real sockets how they are, slow and hostile ones too."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.cookiejar import CookieJar
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from starlette.testclient import TestClient
from tests.unit.test_core_limits import resolved
from tests.unit.test_inspector_pages import root as root
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.cluster import watched_of
from burnish.hosting import watched as watched_module
from burnish.hosting.process import ServiceProcess
from burnish.hosting.watched import ASK_S, watched_by_run, watched_places
from burnish.inspector.pages.app import pages
from burnish.rollout.store.json_lines import JsonLines
from burnish.serving.canary.rollbacks import rollbacks_file
from burnish.serving.deployment import read_deployment

pytestmark = pytest.mark.unit

HOSTILE = "<script>alert(1)</script>"
DEPLOYMENT = """
[service]
port = {port}

[models.inspector.versions.v1]
model = "runs/first"
weight = 3
replicas = 2

[models.inspector.versions.v2]
model = "runs/second"
weight = 1

[models.inspector.versions.v2.judge]
verifier = "127.0.0.1:50051"

[models.inspector.versions.v3]
model = "runs/third"
shadow = 0.5
forced = "{forced}"

[models.inspector.versions.v3.autoscaling]
max_replicas = 4
"""


@contextmanager
def gateway(status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Iterator[tuple[int, list[str]]]:
    """A server whose `/health` answers so; its port, and the paths that were asked for."""
    asked = list[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], asked
        server.shutdown()


@contextmanager
def speaker(say: Callable[[socket.socket], None]) -> Iterator[int]:
    """What listens, and does this with who comes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=say, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]


def drips(connection: socket.socket) -> None:
    """An answer without an end, a byte at a time."""
    try:
        connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
        while True:
            connection.sendall(b"y")
            time.sleep(0.1)
    except OSError:
        pass


def deployment_file(folder: Path, port: int, forced: str = "it is wanted") -> Path:
    file = folder / "inspector.toml"
    file.write_text(DEPLOYMENT.format(port=port, forced=forced))
    return file


def test_a_deployment_is_asked_where_its_file_says_and_shown_with_its_versions(tmp_path: Path, root: Path) -> None:
    with gateway() as (port, asked):
        file = deployment_file(tmp_path, port, HOSTILE)
        with JsonLines(rollbacks_file(file)) as lines:
            lines.append({"version": "inspector:v2", "model": "runs/second"})
        watched = watched_places([file], [])
        (place,) = watched.look()
        assert (place.health.state, asked) == ("healthy", ["/health"]) and place.health.seconds is not None
        assert [(one.name, one.model, one.share, one.shadow, one.replicas, one.rolled_back) for one in place.versions] == [
            ("inspector:v1", "runs/first", 1.0, 0.0, "2", False),
            ("inspector:v2", "runs/second", 0.0, 0.0, "1", True),
            ("inspector:v3", "runs/third", 0.0, 0.5, "1 to 4", False),
        ]
        with TestClient(pages(root, watched=watched), base_url="http://127.0.0.1:8266") as client:
            assert 'href="/rollouts/-/console"' in client.get("/rollouts").text
            page = client.get("/rollouts/-/console").text
            for said in ("healthy", "inspector:v1", "runs/third", "rolled back", "a canary, judged", "1 to 4", "a copy of 50"):
                assert said in page, said
            assert f'href="http://127.0.0.1:{port}/metrics"' in page and 'href="/rollouts/-/models"' in page
            assert HOSTILE not in page and "alert(1)" in page, "what a file says is text"
            file.write_text("models = 1")
            broken = client.get("/rollouts/-/console")
            assert broken.status_code == 200 and "It cannot be read" in broken.text, "edited since, and the page goes on"


@pytest.mark.parametrize("status", [404, 500, 503])
def test_what_answers_otherwise_is_unhealthy(status: int) -> None:
    with gateway(status) as (port, _):
        (place,) = watched_places([], [f"http://127.0.0.1:{port}/v1"]).look()
    assert (place.health.state, place.health.said) == ("unhealthy", f"/health answered {status}")
    assert place.metrics == f"http://127.0.0.1:{port}/metrics"


def test_nobody_is_led_elsewhere() -> None:
    with gateway() as (other, heard), gateway(302, (("location", f"http://127.0.0.1:{other}/health"),)) as (port, _):
        (place,) = watched_places([], [f"http://127.0.0.1:{port}"]).look()
    assert (place.health.state, heard) == ("unhealthy", [])


def test_the_environments_proxy_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with gateway() as (proxy, heard), gateway() as (port, _):
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        (place,) = watched_places([], [f"http://127.0.0.1:{port}"]).look()
    assert (place.health.state, heard) == ("healthy", [])


def test_who_is_silent_drips_or_is_not_there_holds_nobody_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = gone.getsockname()[1]
    with speaker(lambda connection: time.sleep(60)) as silent, speaker(drips) as dripping, speaker(lambda one: one.close()) as closes:
        ports = (silent, dripping, closes, nobody)
        watched = watched_places([], [*(f"http://127.0.0.1:{port}" for port in ports), f"127.0.0.1:{silent}", f"127.0.0.1:{nobody}"])
        began = time.monotonic()
        found = watched.look()
        took = time.monotonic() - began
    assert [place.health.state for place in found] == ["unreachable"] * 6 and all(place.health.said for place in found)
    assert took < 5 * ASK_S, "all are asked at once"


def test_a_name_that_takes_long_to_resolve_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve, over = socket.getaddrinfo, threading.Event()

    def slowly(host: Any, *rest: Any, **options: Any) -> Any:
        if host in ("slow.test", b"slow.test"):
            over.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return resolve(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slowly)
    with gateway() as (port, _):
        watched = watched_places([], ["http://slow.test:8000", f"http://127.0.0.1:{port}"])
        began = time.monotonic()
        slow, healthy = watched.look()
        took = time.monotonic() - began
    over.set()
    assert (slow.health.state, slow.health.said, healthy.health.state) == ("unreachable", "no answer within 2 s", "healthy")
    assert took < 2 * ASK_S


def test_a_service_is_asked_by_its_own_health_check(tmp_path: Path) -> None:
    (tmp_path / "checks.py").write_text("from burnish import verifier\n\n@verifier('mine/yes-v1')\ndef yes(request):\n    return 1.0\n")
    with ServiceProcess("verifier", f"{tmp_path / 'checks.py'}:yes", log=tmp_path / "log") as service:
        watched = watched_places([], [service.address])
        (place,) = watched.look()
        assert (place.name, place.health.state, place.metrics) == (service.address, "healthy", "")
    (place,) = watched.look()
    assert place.health.state == "unreachable"


@contextmanager
def health_that_says(answer: bytes) -> Iterator[int]:
    """A gRPC server whose health service answers with these bytes."""
    server = grpc.server(ThreadPoolExecutor(1))
    check = grpc.unary_unary_rpc_method_handler(lambda request, context: answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


def test_a_place_that_fails_takes_no_other_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    (tmp_path / "bad").mkdir()
    good, bad = deployment_file(tmp_path, 0), deployment_file(tmp_path / "bad", 0)
    with gateway() as (port, _), health_that_says(b"\xff\xff") as odd:
        watched = watched_places([good, bad], [f"http://127.0.0.1:{port}", f"127.0.0.1:{odd}", "http://127.0.0.1:1"])
        asks, nothing = watched_module._http_status, dict[str, str]()

        def reading(file: Path) -> Any:
            return read_deployment(file) if file == good else 1 // 0

        async def asking(url: str) -> int:
            return await asks(url) if str(port) in url else len(nothing["https://me:hunter2@h"])

        monkeypatch.setattr(watched_module, "read_deployment", reading)
        monkeypatch.setattr(watched_module, "_http_status", asking)
        first, second, healthy, garbled, lost = watched.look()
        page = TestClient(pages(root, watched=watched), base_url="http://127.0.0.1:8266").get("/rollouts/-/console")
    assert len(first.versions) == 3 and healthy.health.state == "healthy"
    assert second.problem == "could not be read: ZeroDivisionError: integer division or modulo by zero"
    assert garbled.health.state == "unreachable" and "is no message of gRPC's health service" in garbled.health.said
    assert lost.health.state == "unknown" and lost.health.said == "could not be asked: KeyError: 'https://…@h'"
    assert page.status_code == 200 and "ZeroDivisionError" in page.text and "hunter2" not in page.text


def test_a_run_watches_the_services_of_its_recipe_and_what_the_recipe_adds(tmp_path: Path, root: Path) -> None:
    with (
        gateway() as (port, asked),
        gateway(503) as (other, _),
        ServiceProcess("environment", "burnish/Arithmetic-v0", tmp_path / "log") as service,
    ):
        rewards = [{"verifier": service.address, "name": "verdict"}, {"verifier": "service:sums", "name": "other"}]
        services = {"sums": {"address": "127.0.0.1:1"}}
        watch = [str(deployment_file(tmp_path, port)), f"http://127.0.0.1:{other}"]
        run = resolved(rewards=rewards, services=services, resources={"watch": watch})
        watched = watched_of(run, {"sums": "127.0.0.1:1"})
        assert watched is not None
        with TestClient(pages(root, watched=watched), base_url="http://127.0.0.1:8266") as client:
            assert "/-/console" in client.get("/rollouts").text
            page = client.get("/rollouts/-/console").text
        places = {place.name: place for place in watched.look()}
    assert "What the recipe of the run that goes on names" in page and "burnish inspect" not in page and page.count(">healthy</span>") == 2
    states = {name: place.health.state for name, place in places.items()}
    assert states == {"sums": "unreachable", service.address: "healthy", watch[0]: "healthy", watch[1]: "unhealthy"}
    assert set(asked) == {"/health"}


def test_a_run_without_services_watches_nothing() -> None:
    assert watched_of(resolved(), {}) is None and watched_by_run({}, []) is None


@pytest.mark.parametrize(
    ("watch", "said"),
    [
        ("none.toml", "resources.watch: none.toml cannot be read: No such file"),
        ("ray:verdict", "resources.watch: 'ray:verdict' is known to a Ray cluster only"),
        ("http://h/?token=1", "resources.watch.0: holds the parameter"),
        ("h", "must read host:port"),
    ],
)
def test_what_a_recipe_cannot_watch_is_named_when_it_is_read(watch: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"resources\.watch") as raised:
        resolved(resources={"watch": [watch]})
    assert said in str(raised.value), raised.value


def test_a_pipe_is_no_deployment_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.toml")
    with pytest.raises(ValueError, match=r"resources\.watch: .*a\.toml is not a file"):
        resolved(resources={"watch": [str(tmp_path / "a.toml")]})


def test_a_port_that_the_file_leaves_open_is_said(tmp_path: Path) -> None:
    (place,) = watched_places([deployment_file(tmp_path, 0)], []).look()
    assert (place.health.state, place.url, place.metrics) == ("unknown", "", "") and "--service" in place.health.said


def test_without_anything_named_there_is_no_console(root: Path) -> None:
    with TestClient(pages(root), base_url="http://127.0.0.1:8266") as client:
        assert "/-/console" not in client.get("/rollouts").text
        answer = client.get("/rollouts/-/console")
        assert answer.status_code == 410 and "--deployment" in answer.text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--service", "ray:verdict"], "give the address of a replica"),
        (["--service", "http://me:pw@h/x"], "a user name or password"),
        (["--service", "http://h/?token=1"], "the parameter 'token'"),
        (["--service", "http://h:8000/?n=1"], "must read http://host:port"),
        (["--service", "http://"], "must read http://host:port"),
        (["--service", "ftp://h"], "must read host:port"),
        (["--deployment", "none.toml"], "none.toml"),
        (["--service", "h:1", "--bundle", "out"], "have no effect on a bundle"),
        (["--port", "0", "--bundle", "out"], "--port has no effect on a bundle"),
        (["--behind-dashboard", "--bundle", "out"], "--behind-dashboard has no effect on a bundle"),
    ],
)
def test_what_cannot_be_watched_is_refused_at_the_start(given: list[str], said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["inspect", str(tmp_path), *given])
    assert done.exit_code == 2 and said in done.stderr and "Traceback" not in done.output
    assert "pw" not in done.stderr


def test_a_user_watches_a_deployment_and_a_service_from_the_command_line(tmp_path: Path, root: Path) -> None:
    with gateway() as (port, _), gateway(503) as (other, _):
        options = ["--port", "0", "--deployment", str(deployment_file(tmp_path, port)), "--service", f"http://127.0.0.1:{other}"]
        command = [str(Path(sys.executable).with_name("burnish")), "inspect", str(root), *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
            try:
                assert started.stdout is not None
                address = started.stdout.readline().split()[1]
                browser = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(CookieJar()))
                browser.open(address, timeout=60).close()
                with browser.open(address.partition("/rollouts")[0] + "/rollouts/-/console", timeout=60) as answer:
                    page = answer.read().decode()
            finally:
                started.terminate()
                started.wait(60)
    assert ">healthy</span>" in page and ">unhealthy</span>" in page and "/health answered 503" in page


@pytest.mark.parametrize("service", ["http://h:99999", "http://h:0", "https://h:x"])
def test_a_port_that_is_none_is_refused_before_the_page_is_made(service: str) -> None:
    with pytest.raises(ValueError, match="must read http://host:port"):
        watched_places([], [service])
