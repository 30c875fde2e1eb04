"""What follows a deployment file: faults that pass, and edits made while it starts. The fleet is in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.test_serving_deployment import Shop

from burnish.serving import deployment as module
from burnish.serving import fleet as fleets
from burnish.serving.canary.config import JudgeTable
from burnish.serving.config import ServingConfig
from burnish.serving.deployment import VersionTable, read_deployment
from burnish.serving.fleet import DeploymentHandle, ServeFleet
from burnish.serving.routes import Routes
from burnish.serving.rules import Rules

pytestmark = pytest.mark.unit

TEXT = '[models.m.versions.{version}]\nmodel = "runs/x"\n'
WAIT_S = 60.0


class Quick(Shop):
    """Starts at once, and fails to route as often as it is told to. turned: set with every routing that goes well."""

    def __init__(self) -> None:
        super().__init__()
        self.fails, self.turned = 0, threading.Event()

    def start(self, name: str, table: module.VersionTable) -> None:
        super().start(name, table)
        self.comes_up(name)

    def route(self, routes: Routes, started: bool) -> None:
        if self.fails:
            self.fails -= 1
            raise TimeoutError("the gateway did not answer")
        super().route(routes, started)
        self.turned.set()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fleets, "is_ready", lambda url: True)
    monkeypatch.setattr(fleets, "stop_serving", lambda owns_ray: None)
    monkeypatch.setattr(fleets, "POLL_S", 0.01)
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.01)
    (tmp_path / "d.toml").write_text(TEXT.format(version="v1"))
    return tmp_path / "d.toml"


def until(shop: Quick, true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if true():
            return
        shop.turned.clear()
        assert shop.turned.wait(WAIT_S)
    raise AssertionError("a thousand turns did not bring it")


def handle(file: Path, shop: Quick, said: list[str]) -> DeploymentHandle:
    seen, read = fleets._state_of(file), read_deployment(file)
    read = read.model_copy(update={"service": fleets._on_this_machine(read.service)})
    return DeploymentHandle(file, (read, seen), shop, "http://x", False, said.append)


def test_a_fault_of_the_gateway_does_not_end_a_deployment(file: Path) -> None:
    shop, said = Quick(), list[str]()
    with handle(file, shop, said) as running:
        running.start()
        shop.fails = 3
        until(shop, lambda: "the deployment is followed again" in said)
        file.write_text(TEXT.format(version="v2"))
        until(shop, lambda: list(shop.states) == ["m:v2"])
    assert [line for line in said if "tried again" in line] == [
        "the deployment cannot be followed now, and is tried again: TimeoutError: the gateway did not answer"
    ]


def test_a_fault_that_lasts_ends_it_with_one_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[float]()

    def impatient(say: Callable[[str], None], lasting_s: float) -> module.Faults:
        given.append(lasting_s)
        return module.Faults(say, 0.0)

    monkeypatch.setattr(fleets, "Faults", impatient)
    shop = Quick()
    with handle(file, shop, []) as running:
        running.start()
        shop.fails = 10**9
        with pytest.raises(RuntimeError, match=r"^the deployment is no longer followed: TimeoutError: the gateway did not answer$"):
            running.wait()
    assert given == [ServingConfig().ready_timeout_s], "a gateway that was lost has as long to start as the first had"


def test_an_edit_made_while_ray_starts_is_followed_from_the_start(file: Path) -> None:
    shop, said = Quick(), list[str]()
    running = handle(file, shop, said)
    file.write_text(TEXT.format(version="v2"))  # between reading the file and what runs
    with running:
        running.start()
        until(shop, lambda: list(shop.states) == ["m:v2"])


def test_an_edit_takes_a_version_out_that_will_not_start(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Quick()
    monkeypatch.setattr(shop, "comes_up", lambda name: None if name == "m:v1" else Shop.comes_up(shop, name))
    running = handle(file, shop, [])
    monkeypatch.setattr("time.sleep", lambda seconds: file.write_text(TEXT.format(version="v2")))
    with running:
        running.start()
    assert shop.routes["m"][0].version == "v2"


def test_no_queue_of_serves_is_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines, a judge and the gateway in front of them: Serve's own bound is none."""
    told: dict[str, dict[str, Any]] = {}

    def deployment(service: Any, **options: Any) -> Any:
        told[options["name"]] = options
        return SimpleNamespace(bind=lambda *arguments: None)

    monkeypatch.setattr(fleets, "serve", SimpleNamespace(deployment=deployment))
    monkeypatch.setattr(fleets, "Starting", lambda *arguments: SimpleNamespace(is_over=lambda: True))
    for name in ("servable_model", "find_adapters", "judge_of", "start_proxy"):
        monkeypatch.setattr(fleets, name, lambda *arguments: tmp_path)
    options = ServingConfig(max_concurrent=3)
    ServeFleet(options, None).start("m:v1", VersionTable(model="a", judge=JudgeTable(use="my-team/right-v1")))
    fleets._start_gateway(options, Rules(), 8000)
    assert told.keys() == {"model", "judge", "gateway"}
    assert all(0 < one["max_queued_requests"] <= 10_000 for one in told.values()), told
