"""Where calls go: which replicas there are, which of them take calls, and what becomes of sessions when that changes."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from typing import Any

import pytest

from burnish.rpc.address import Endpoint, Target
from burnish.rpc.background import background
from burnish.rpc.errors import RpcTimeout, RpcUnavailable
from burnish.rpc.methods import VERIFY
from burnish.rpc.pauses import growing_pause
from burnish.rpc.transport import replicas as module
from burnish.rpc.transport.calls import Call, Pin
from burnish.rpc.transport.replica import Replica
from burnish.rpc.transport.replicas import EJECT_AFTER, Replicas
from burnish.rpc.transport.resolve import targets_of

pytestmark = pytest.mark.unit

ONE, TWO, THREE = (Target(f"10.0.0.{number}:1", "verifiers.test") for number in (1, 2, 3))


def test_pauses_grow_to_their_limit_and_never_overflow() -> None:
    assert [growing_pause(n, 0.5, 15.0) for n in (0, 1, 4, 5, 1024, 100_000)] == [0.5, 1.0, 8.0, 15.0, 15.0, 15.0]
    assert growing_pause(10_000, 0.0, 60.0) == 0.0


# ------------------------------------------------------------------------------------------------------------------- names


def rows(*addresses: str) -> list[Any]:
    return [(socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 1)) for one in addresses]


async def looked_up(monkeypatch: pytest.MonkeyPatch, found: Any, address: str = "verifiers.test:1") -> tuple[Target, ...]:
    async def getaddrinfo(*_: Any, **__: Any) -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return await targets_of(Endpoint.parse(address))


async def test_a_replica_is_the_same_target_however_many_addresses_its_name_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await looked_up(monkeypatch, rows("10.0.0.2", "10.0.0.1")) == (ONE, TWO)
    assert await looked_up(monkeypatch, rows("10.0.0.1")) == (ONE,)
    assert await looked_up(monkeypatch, rows("fd00::1", "10.0.0.1")) == (ONE,)
    assert await looked_up(monkeypatch, rows("fd00::1")) == (Target("[fd00::1]:1", "verifiers.test"),)
    assert await looked_up(monkeypatch, OSError("down"), "127.0.0.1:1") == (Target("127.0.0.1:1"),)


async def test_a_name_that_cannot_be_looked_up_is_no_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RpcUnavailable, match=r"verifiers.test:1: the name 'verifiers.test' cannot be looked up: Name or service not known"):
        await looked_up(monkeypatch, socket.gaierror(-2, "Name or service not known"))


# ---------------------------------------------------------------------------------------------------- replicas without wires


class Waiter:
    """Keeps what calls came to."""

    def __init__(self) -> None:
        self.results: list[Any] = []

    def deliver(self, future: Any, result: Any) -> None:
        self.results.append(result)


class Scene:
    """`Replicas` whose connections open at once, whose calls stay where they went, and whose directory says what the test does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *targets: Target) -> None:
        self.answer: tuple[Target, ...] | RpcUnavailable = targets
        self.healthy = True
        self.waiter = Waiter()
        self.closed: list[Target] = []
        monkeypatch.setattr(module, "targets_of", self._targets)
        monkeypatch.setattr(module, "REFRESH_S", 0.0)
        monkeypatch.setattr(module, "EJECT_S", 0.02)
        monkeypatch.setattr(Replica, "connect", lambda replica: self._open(replica))
        monkeypatch.setattr(Replica, "send", lambda replica, call: self._take(replica, call))
        monkeypatch.setattr(Replica, "close", lambda replica: self.closed.append(replica.target))
        monkeypatch.setattr(Replica, "answers", lambda replica, timeout_s: self._answers())
        home = background()
        home_loop, home.loop = home.loop, asyncio.get_running_loop()
        try:
            self.replicas = Replicas(Endpoint.parse("verifiers.test:1"), VERIFY, 1.0, home)
        finally:
            home.loop = home_loop

    async def _targets(self, endpoint: Endpoint) -> tuple[Target, ...]:
        if isinstance(self.answer, RpcUnavailable):
            raise self.answer
        return self.answer

    async def _answers(self) -> bool:
        return self.healthy

    def _open(self, replica: Replica) -> None:
        replica.state = "open"
        self.replicas.opened(replica)

    def _take(self, replica: Replica, call: Call) -> None:
        call.replica, call.sent = replica, True
        replica.calls[call.request_id] = call

    async def call(self, pin: Pin | None = None, timeout_s: float = 60.0) -> Call:
        call = Call(None, timeout_s, self.waiter, None, pin)
        self.replicas.submit(call)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return call

    def end(self, call: Call, result: Any = "fine") -> None:
        del call.replica.calls[call.request_id]
        self.replicas.settled(call, result)

    async def reached(self, count: int = 40) -> Counter[Target]:
        """Where so many calls go, each answered before the next."""
        found: Counter[Target] = Counter()
        for _ in range(count):
            call = await self.call()
            found[call.replica.target] += 1
            self.end(call)
        return found


async def test_equal_replicas_share_calls_that_come_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, ONE, TWO)
    assert set(await scene.reached()) == {ONE, TWO}


async def test_a_replica_that_lets_calls_time_out_is_left_out_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, ONE, TWO)
    scene.healthy = False
    await scene.reached()
    timed_out = 0
    for _ in range(60):
        call = await scene.call()
        if call.replica.target == ONE:
            scene.replicas._expire(call)  # as its deadline would
            timed_out += 1
        else:
            scene.end(call)
    assert timed_out == EJECT_AFTER
    assert sum(isinstance(one, RpcTimeout) for one in scene.waiter.results) == timed_out
    scene.healthy = True
    for _ in range(500):
        if ONE in await scene.reached(4):
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("the replica that answers again gets no calls")


async def test_an_answer_between_timeouts_and_a_last_replica_keep_it_in(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, ONE)
    scene.healthy = False
    for _ in range(5):
        scene.replicas._expire(await scene.call())
    assert set(await scene.reached(3)) == {ONE}
    scene = Scene(monkeypatch, ONE, TWO)
    for _ in range(20):
        call = await scene.call()
        (scene.replicas._expire if call.replica.missed == 0 and call.replica.target == ONE else scene.end)(call)
    assert set(await scene.reached()) == {ONE, TWO}


async def sessions(scene: Scene, count: int) -> list[Pin]:
    pins = [Pin() for _ in range(count)]
    for pin in pins:
        scene.end(await scene.call(pin))
    return pins


async def followed(scene: Scene, pins: list[Pin]) -> None:
    """Calls of sessions go where their sessions are."""
    for pin in pins:
        call = await scene.call(pin)
        assert call.replica.target == pin.target
        scene.end(call)


async def test_what_a_directory_cannot_say_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, ONE, TWO)
    pins = await sessions(scene, 8)
    assert Counter(pin.target for pin in pins) == {ONE: 4, TWO: 4}
    scene.answer = RpcUnavailable("verifiers.test:1", "the name cannot be looked up")
    await followed(scene, pins)
    assert set(await scene.reached()) == {ONE, TWO}
    assert scene.closed == []


async def test_a_replica_that_is_named_no_more_keeps_its_sessions_and_gets_no_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, ONE, TWO)
    pins = await sessions(scene, 4)
    scene.answer = (TWO, THREE)
    scene.end(await scene.call())
    assert set(await scene.reached()) == {TWO, THREE}
    await followed(scene, pins)
    assert scene.closed == []
    pins = [one for one in pins if one.target != ONE]  # the sessions on it end
    await scene.reached(2)
    assert scene.closed == [ONE]


async def test_a_replica_that_is_named_again_is_the_same_one(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, ONE, TWO)
    pin = Pin()
    scene.end(await scene.call(pin))
    before = scene.replicas._home(pin.target)  # type: ignore[arg-type]
    for answer in ((Target("10.0.0.9:1"),), (ONE, TWO)):
        scene.answer = answer
        await scene.reached(2)
    assert scene.replicas._home(pin.target) is before  # type: ignore[arg-type]
