"""What `/health` and `/ready` say, of engines that live, die, hang, or are busy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from ray.exceptions import RayActorError

from burnish.serving import liveness
from burnish.serving.app import chat_service
from burnish.serving.audit import Books
from burnish.serving.engine import ProbedApp
from burnish.serving.gateway import Router
from burnish.serving.liveness import FRESH_S, HEARD_S, Liveness
from burnish.serving.routes import VersionShare, names
from burnish.serving.wire import USAGE

pytestmark = pytest.mark.unit

ROUTES = {"a": (VersionShare("v1", 1.0), VersionShare("v2", 1.0)), "b": (VersionShare("v1", 1.0), VersionShare("new", 0.0))}


class Version:
    """A version's handle. state: "lives", "dead" or "hangs"."""

    def __init__(self) -> None:
        self.state, self.asked = "lives", 0

    def options(self, method_name: str) -> Version:
        assert method_name == "check_health"
        return self

    async def remote(self) -> None:
        self.asked += 1
        if self.state == "dead":
            raise RayActorError()
        if self.state == "hangs":
            await asyncio.Event().wait()


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, Version]:
    found: dict[str, Version] = {
        "burnish-a@v1": Version(),
        "burnish-a@v2": Version(),
        "burnish-b@v1": Version(),
        "burnish-b@new": Version(),
    }
    monkeypatch.setattr("burnish.serving.gateway.serve.get_app_handle", lambda name: found[name])
    monkeypatch.setattr(liveness, "FRESH_S", 0.0)
    monkeypatch.setattr(liveness, "ASK_S", 0.05)
    return found


async def probed(router: Router) -> tuple[int, int]:
    """What `/health` and `/ready` answer to whoever has no key."""
    async with client(chat_service(router, lambda: names(router.routes))) as asking:
        return (await asking.get("/health")).status_code, (await asking.get("/ready")).status_code


async def test_a_deployment_is_healthy_while_each_model_has_an_engine_that_answers(versions: dict[str, Version]) -> None:
    router = Router(Books(), 60)
    assert await probed(router) == (503, 503), "nothing is there"
    await router.follow({"a": ROUTES["a"]})
    assert await probed(router) == (200, 503), "the start is not over"
    await router.follow(ROUTES)
    router.started = True
    assert await probed(router) == (200, 200)
    versions["burnish-a@v1"].state = "dead"
    assert await probed(router) == (200, 200), "the other version of the model answers"
    versions["burnish-b@v1"].state = "hangs"
    assert await probed(router) == (503, 200), "what nobody is sent to does not answer for its model"
    versions["burnish-a@v2"].state = "dead"
    assert await probed(router) == (503, 503)
    versions["burnish-b@v1"].state = "lives"
    assert await probed(router) == (503, 200)


async def test_an_engine_is_asked_once_for_all_who_ask_and_not_while_it_answers() -> None:
    now, asked, lives = [0.0], list[str](), [True]

    async def ask(version: str) -> bool:
        asked.append(version)
        await asyncio.sleep(0)
        return lives[0]

    async def send(_: Any) -> None: ...

    alive = Liveness(ask, lambda: now[0])
    assert await asyncio.gather(*(alive.lives("m:v1") for _ in range(50))) == [True] * 50
    assert asked == ["m:v1"]
    lives[0] = False
    assert await alive.lives("m:v1"), "what was found holds for a moment"
    now[0] += FRESH_S
    assert not await alive.lives("m:v1")
    for status in (400, 503):
        failing = alive.hearing("m:v1", send)
        await failing({"type": USAGE, "prompt_tokens": 3, "completion_tokens": 0})
        await failing({"type": "http.response.start", "status": status})
        await failing({"type": "http.response.body"})
        assert not await alive.lives("m:v1"), "what fails may come from before the engine"
    hearing = alive.hearing("m:v1", send)
    await hearing({"type": "http.response.start", "status": 200})
    assert not await alive.lives("m:v1")
    await hearing({"type": "http.response.body"})
    now[0] += HEARD_S / 2
    assert await alive.lives("m:v1") and asked == ["m:v1"] * 2, "it answers, so it is not asked"
    now[0] += HEARD_S / 2
    assert not await alive.lives("m:v1")
    await alive.hearing("m:v1", send)({"type": USAGE, "prompt_tokens": 3, "completion_tokens": 1})
    assert await alive.lives("m:v1"), "it samples, though nothing of the answer is out"


@pytest.mark.parametrize("error", [None, TimeoutError("it hangs"), RuntimeError("it is dead")])
async def test_one_engine_is_healthy_and_ready_while_it_lives(error: Exception | None) -> None:
    async def check() -> None:
        if error is not None:
            raise error

    never: Callable[..., Any] = pytest.fail
    async with client(chat_service(ProbedApp(never, check), lambda: ("m",))) as asking:
        for path in ("/health", "/ready"):
            assert ((await asking.get(path)).status_code, (await asking.get(path)).content) == (503 if error else 200, b"")
            assert (await asking.post(path)).status_code == 405
