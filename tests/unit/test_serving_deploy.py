"""What Ray Serve is told of the chat service."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from burnish.serving import deploy
from burnish.serving.admission import Refused
from burnish.serving.audit import RECORD, Books, Record
from burnish.serving.config import ServingConfig
from burnish.serving.rules import Rules

pytestmark = pytest.mark.unit


def test_what_waits_for_the_model_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Serve's own queue has no end: a client that is not told to come again would wait for all that came before it."""
    told: dict[str, Any] = {}

    def deployment(service: Any, **options: Any) -> Any:
        told.update(options)
        return SimpleNamespace(bind=lambda *arguments: None)

    serve = SimpleNamespace(
        deployment=deployment, start=lambda **options: None, run=lambda *app, **options: None, HTTPOptions=SimpleNamespace
    )
    monkeypatch.setattr(deploy, "serve", serve)
    monkeypatch.setattr(deploy, "is_ready", lambda url: True)
    deploy._deploy(tmp_path, "chat", ServingConfig(max_concurrent=3), Rules(), 8000, "http://127.0.0.1:8000")
    assert (told["max_ongoing_requests"], told["max_queued_requests"]) == (3 * 17 + 128, 128)


def test_a_service_may_be_silent_for_as_long_as_a_start_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is started in a lost one's place takes as long as the first did; for a large model that is minutes."""
    now, answered = [0.0], [0.0]
    answers = {5.0, *(float(at) for at in range(595, 1000, 5))}  # silent from 5 to 595 s

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def is_ready(url: str) -> bool:
        if now[0] in answers:
            answered[0] = now[0]
        return now[0] in answers

    monkeypatch.setattr(deploy, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(deploy, "is_ready", is_ready)
    monkeypatch.setattr(deploy, "status_message", lambda: "")
    handle = deploy.ServingHandle("http://127.0.0.1:8000", "chat", owns_ray=False, ready_timeout_s=600.0, answer_s=300.0)
    with pytest.raises(RuntimeError, match="has not answered for 600 s: nothing took the place of what was lost"):
        handle.wait()
    assert answered == [995.0] and 1595 <= now[0] <= 1605


class Application:
    """A service that is to end. left: what it says that it is still answering, one after the other."""

    def __init__(self, *left: int | Exception) -> None:
        self.left, self.asked = list(left), 0
        self.drain = SimpleNamespace(remote=lambda: self)

    def result(self, timeout_s: float) -> int:
        self.asked += 1
        found = self.left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


@pytest.mark.parametrize(
    ("left", "asked", "slept"),
    [
        ([0], 1, 0.0),
        ([2, 1, 0], 3, 2 * deploy.POLL_S + deploy.LAST_S),
        ([1] * 99, 16, 3.0 + deploy.LAST_S),
        ([1, TimeoutError()], 2, deploy.POLL_S),
    ],
)
def test_the_end_waits_for_what_is_being_answered_and_no_longer(
    monkeypatch: pytest.MonkeyPatch, left: list[Any], asked: int, slept: float
) -> None:
    now, application = [0.0], Application(*left)

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(deploy, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(deploy, "ray", SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setattr(deploy, "serve", SimpleNamespace(get_app_handle=lambda name: application))
    deploy.drain("burnish-chat", 3.0)
    assert application.asked == asked and now[0] == pytest.approx(slept)


@pytest.mark.parametrize("broken", [False, True])
def test_a_second_interruption_ends_what_is_left(monkeypatch: pytest.MonkeyPatch, broken: bool) -> None:
    ended = list[bool]()

    def drain(name: str, seconds: float) -> None:
        assert (name, seconds, ended) == ("burnish-chat", 300.0, [])
        if broken:
            raise KeyboardInterrupt

    monkeypatch.setattr(deploy, "drain", drain)
    monkeypatch.setattr(deploy, "stop_serving", ended.append)
    handle = deploy.ServingHandle("http://127.0.0.1:8000", "chat", owns_ray=True, ready_timeout_s=600.0, answer_s=300.0)
    told: AbstractContextManager[object] = pytest.raises(KeyboardInterrupt) if broken else nullcontext()
    with told:
        handle.stop()
    assert ended == [True]


async def test_a_version_that_left_while_a_request_was_looked_at_is_unknown() -> None:
    from burnish.serving.gateway import Router

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"messages": []}', "more_body": False}

    async def send(_: Any) -> None:
        raise AssertionError("nothing is answered")

    scope = {"type": "http", "path": "/v1/chat/completions", RECORD: Record(model="inspector:v1")}
    with pytest.raises(Refused, match=r"there is no model 'inspector:v1'") as refused:
        await Router(Books(), 60)(scope, receive, send)
    assert refused.value.status == 404
