"""The number of replicas follows the load; what dies is replaced."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from burnish.cli.deploy import default_name
from burnish.hosting.scaling import Scale, Scaler, ServiceReplicas

if TYPE_CHECKING:
    from burnish.hosting.ray_actors import RayReplicaPool

pytestmark = pytest.mark.unit


class Shop:
    """A fleet in memory: `load` per replica as the test says. takes: seconds from when one starts until it serves, or does not."""

    def __init__(self, room: int = 99, takes: float = 0.0) -> None:
        self.room, self.takes = room, takes
        self.now, self.since = 0.0, -1.0
        self.begun: list[float] = []
        self.load: dict[str, int | None] = {}
        self.published: list[list[str]] = []
        self.count = 0

    def start(self) -> str | None:
        if self.since < 0:
            self.since = self.now
            self.begun.append(self.now)
        if self.now < self.since + self.takes:
            return None
        self.since = -1.0
        if len(self.load) >= self.room:
            raise ValueError("no room")
        self.count += 1
        self.load[f"h:{self.count}"] = 0
        return f"h:{self.count}"

    def loads(self) -> dict[str, int | None]:
        return dict(self.load)

    def abandon(self) -> None:
        self.since = -1.0

    def stop(self, addresses: Sequence[str]) -> None:
        for address in addresses:
            del self.load[address]

    def publish(self, addresses: list[str]) -> None:
        self.published.append(list(addresses))

    def asked_to_stop(self) -> bool:
        return False


def made(shop: Shop, low: int, high: int) -> tuple[ServiceReplicas, list[str]]:
    said: list[str] = []
    deployment = ServiceReplicas(shop, Scale(low, high, in_flight=10, calm_s=30.0), said.append, leave_s=3.0, clock=lambda: shop.now)
    assert deployment.start()
    return deployment, said


def step(deployment: ServiceReplicas, shop: Shop, now: float) -> None:
    shop.now = now
    deployment.step()


def test_scales_read_as_written() -> None:
    assert (Scale.parse("1..8").low, Scale.parse("1..8").high) == (1, 8)
    assert (Scale.parse("3").low, Scale.parse("3").high) == (3, 3)
    for text in ("", "0", "8..1", "1..", "1-8", "x"):
        with pytest.raises(ValueError, match="replicas"):
            Scale.parse(text)


def test_more_at_once_fewer_only_after_calm() -> None:
    scaler = Scaler(Scale(1, 8, in_flight=10, calm_s=30.0))
    assert [scaler.wanted(load, at) for at, load in ((0, 0), (1, 35), (2, 5), (30, 5), (31.5, 5))] == [1, 4, 4, 4, 1]
    assert scaler.wanted(10_000, 40) == 8


def test_a_replica_that_leaves_is_unpublished_before_it_ends() -> None:
    shop = Shop()
    deployment, _ = made(shop, 1, 8)
    shop.load["h:1"] = 25
    step(deployment, shop, 0)
    assert shop.published[-1] == ["h:1", "h:2", "h:3"]
    shop.load["h:1"], shop.load["h:2"] = 5, 2
    step(deployment, shop, 31)
    assert shop.published[-1] == ["h:1", "h:2"], "the least loaded one goes first"
    assert "h:3" in shop.load, "clients may not have noticed yet"
    step(deployment, shop, 34)
    assert "h:3" not in shop.load


def test_a_replica_that_leaves_keeps_its_sessions_and_may_be_taken_back() -> None:
    shop = Shop()
    deployment, said = made(shop, 1, 8)
    shop.load["h:1"] = 25
    step(deployment, shop, 0)
    shop.load |= {"h:1": 6, "h:2": 3, "h:3": 1}
    step(deployment, shop, 31)
    step(deployment, shop, 32)
    assert (shop.published[-1], said[-1]) == (["h:1"], "1 replica")
    step(deployment, shop, 60)
    assert sorted(shop.load) == ["h:1", "h:2", "h:3"], "sessions are open on all of them"
    shop.load["h:3"] = 0
    step(deployment, shop, 61)
    assert sorted(shop.load) == ["h:1", "h:2"]
    shop.load["h:1"] = 15
    step(deployment, shop, 62)
    assert (shop.published[-1], shop.count) == (["h:1", "h:2"], 3), "no other was started"


def test_what_dies_is_replaced_and_what_keeps_dying_ends_it() -> None:
    shop = Shop()
    deployment, said = made(shop, 2, 2)
    shop.load["h:1"] = None
    step(deployment, shop, 0)
    assert deployment.addresses == ["h:2", "h:3"]
    assert said[2] == "replica h:1 is gone; starting another"
    with pytest.raises(RuntimeError, match="died 6 times in a row"):
        for at in range(10):
            shop.load[deployment.addresses[0]] = None
            step(deployment, shop, at)


def test_a_full_cluster_does_not_end_what_runs() -> None:
    shop = Shop(room=2)
    deployment, said = made(shop, 1, 8)
    shop.load["h:1"] = 80
    step(deployment, shop, 0)
    step(deployment, shop, 1)
    assert deployment.addresses == ["h:1", "h:2"]
    assert [line for line in said if "stays at" in line] == ["stays at 2 of 8 replicas: no room"]
    deployment.stop()
    assert (shop.load, shop.published[-1]) == ({}, [])


def test_what_is_gone_is_replaced_though_growth_pauses() -> None:
    shop = Shop(room=1)
    deployment, said = made(shop, 1, 2)
    shop.load["h:1"] = 20
    step(deployment, shop, 0)
    assert said[-1] == "stays at 1 of 2 replicas: no room"
    shop.load["h:1"] = None
    step(deployment, shop, 1)
    assert shop.published[-1] == ["h:2"]


def test_a_replacement_that_does_not_start_is_tried_again_soon() -> None:
    shop = Shop()
    deployment, said = made(shop, 2, 2)
    shop.load["h:1"], shop.room = None, 1
    step(deployment, shop, 0)
    assert (deployment.addresses, said[-1]) == (["h:2"], "stays at 1 of 2 replicas: no room")
    shop.room = 2
    step(deployment, shop, 4)
    assert deployment.addresses == ["h:2"], "it is not tried at every step"
    step(deployment, shop, 5)
    assert deployment.addresses == ["h:2", "h:3"]


def test_the_last_replica_may_take_some_attempts_to_replace() -> None:
    shop = Shop()
    deployment, _ = made(shop, 1, 2)
    shop.load["h:1"], shop.room = None, 0
    step(deployment, shop, 0)
    shop.room = 1
    step(deployment, shop, 5)
    assert shop.published[-2:] == [[], ["h:2"]]
    step(deployment, shop, 6)
    shop.load["h:2"], shop.room = None, 0
    with pytest.raises(ValueError, match="no room"):
        for at in range(10, 60):
            step(deployment, shop, at)
    assert (at, deployment.addresses) == (30, []), "one died, and five attempts failed"


def test_a_start_that_takes_long_holds_up_nothing_and_the_pause_after_it_counts_from_its_end() -> None:
    shop = Shop()
    deployment, said = made(shop, 1, 8)
    shop.load["h:1"] = 25
    step(deployment, shop, 0)
    shop.load["h:1"], shop.takes, shop.begun = 35, 120.0, []
    step(deployment, shop, 1)
    assert (shop.begun, said[-1]) == ([1], "3 replicas"), "the fourth is on its way"
    shop.load["h:2"] = None
    step(deployment, shop, 2)
    assert shop.published[-1] == ["h:1", "h:3"], "what died is not published any longer"
    shop.load["h:1"] = 0
    step(deployment, shop, 40)
    step(deployment, shop, 60)
    assert (shop.published[-1], list(shop.load)) == (["h:3"], ["h:3"]), "nor do too many stay"
    shop.load["h:3"], shop.room = 35, 1
    for now in range(100, 151):
        step(deployment, shop, now)
    assert (shop.begun, said[-1]) == ([1], "stays at 1 of 4 replicas: no room"), "it was over at 121"
    step(deployment, shop, 151)
    assert shop.begun == [1, 151]
    deployment.stop()
    assert (shop.since, shop.load) == (-1.0, {})


def test_one_of_several_that_dies_whenever_it_is_up_ends_it_though_rounds_pass_while_it_starts() -> None:
    shop = Shop()
    deployment, _ = made(shop, 2, 2)
    shop.takes = 2.0
    with pytest.raises(RuntimeError, match="died 6 times in a row"):
        for now in range(40):
            if len(deployment.addresses) == 2:
                shop.load[deployment.addresses[1]] = None
            step(deployment, shop, now)


def test_a_replica_that_died_while_it_left_is_not_taken_back() -> None:
    shop = Shop()
    deployment, _ = made(shop, 1, 8)
    shop.load["h:1"] = 15
    step(deployment, shop, 0)
    shop.load["h:1"] = 1
    step(deployment, shop, 31)
    assert shop.published[-1] == ["h:1"]
    shop.load |= {"h:1": 15, "h:2": None}
    step(deployment, shop, 32)
    assert shop.published[-1] == ["h:1", "h:3"]
    step(deployment, shop, 35)
    assert "h:2" not in shop.load


def test_a_deployment_that_is_asked_to_stop_while_it_starts_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from burnish.hosting import ray_actors

    class Slow(Shop):
        def __init__(self, _: object) -> None:
            super().__init__(takes=math.inf)
            pools.append(self)

        def asked_to_stop(self) -> bool:
            return True

    pools: list[Slow] = []
    fakes = {"load_services": lambda *_: [], "ray_cluster": contextlib.nullcontext, "_find": lambda _: None, "RayReplicaPool": Slow}
    for name, fake in fakes.items():
        monkeypatch.setattr(ray_actors, name, fake)
    said: list[str] = []
    ray_actors.deploy(ray_actors.DeployOptions("verifier", "a.py:f", "f", Scale(1, 2), host="127.0.0.1"), said.append)
    assert (said, pools[0].begun, pools[0].since) == ([], [0.0], -1.0)


def pool_of_fakes(monkeypatch: pytest.MonkeyPatch, get: Callable[..., None]) -> tuple[RayReplicaPool, object, list[object]]:
    """A pool, the one actor that it makes, and those that were killed. get: what asks for an actor's answer."""
    import ray

    from burnish.hosting.ray_actors import DeployOptions, RayReplicaPool

    killed: list[object] = []
    actor = SimpleNamespace(start=SimpleNamespace(remote=lambda *_: None))
    made = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda _: actor))
    fakes = {"available_resources": lambda: {"CPU": 4.0}, "nodes": list, "remote": lambda _: made, "get": get, "kill": killed.append}
    for name, fake in fakes.items():
        monkeypatch.setattr(ray, name, fake)
    pool = object.__new__(RayReplicaPool)
    pool._options, pool._actors, pool._starting = DeployOptions("verifier", "a.py:f", "f", Scale(1, 2)), {}, None
    return pool, actor, killed


def test_a_replica_that_does_not_start_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from burnish.hosting.ray_actors import START_S

    def get(*_: object, **__: object) -> None:
        raise ray.exceptions.GetTimeoutError

    now = [0.0]
    monkeypatch.setattr("burnish.hosting.ray_actors.time", SimpleNamespace(monotonic=lambda: now[0]))
    pool, actor, killed = pool_of_fakes(monkeypatch, get)
    assert (pool.start(), pool.start(), killed) == (None, None, [])
    now[0] = START_S
    with pytest.raises(ValueError, match=r"^a replica did not start within 120 s; has the cluster 1 CPUs to spare for it \(--cpus\)\?$"):
        pool.start()
    assert (killed, pool._starting, pool._actors) == ([actor], None, {})


@pytest.mark.parametrize(
    ("error", "said"),
    [("ActorDiedError", []), ("OutOfMemoryError", ["x"]), ("RuntimeEnvSetupError", ["x"]), ("ActorUnschedulableError", ["x"])],
)
def test_a_replica_that_dies_while_it_starts_is_said_in_one_line(error: str, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def get(*_: object, **__: object) -> None:
        raise getattr(ray.exceptions, error)(*said)

    pool, actor, killed = pool_of_fakes(monkeypatch, get)
    with pytest.raises(ValueError, match=rf"^a replica did not start: {error}: .+$"):
        pool.start()
    assert (killed, pool._actors, pool._starting) == ([actor], {}, None)


def test_names_come_from_the_target() -> None:
    names = {"my_team/checks.py:verdict": "verdict", "a/b-v1": "b", "my_team.tools": "tools", "x/bench.py": "bench", "m:f": "f"}
    assert {target: default_name(target) for target in names} == names
