"""The number of replicas follows the load; what dies is replaced."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from burnish.cli.deploy import default_name
from burnish.hosting.scaling import Scale, Scaler, ServiceReplicas

pytestmark = pytest.mark.unit


class Shop:
    """A fleet in memory: `load` per replica as the test says."""

    def __init__(self, room: int = 99) -> None:
        self.room = room
        self.load: dict[str, int | None] = {}
        self.published: list[list[str]] = []
        self.count = 0

    def start(self) -> str:
        if len(self.load) >= self.room:
            raise ValueError("no room")
        self.count += 1
        self.load[f"h:{self.count}"] = 0
        return f"h:{self.count}"

    def loads(self) -> dict[str, int | None]:
        return dict(self.load)

    def stop(self, address: str) -> None:
        del self.load[address]

    def publish(self, addresses: list[str]) -> None:
        self.published.append(list(addresses))

    def asked_to_stop(self) -> bool:
        return False


def made(shop: Shop, low: int, high: int) -> tuple[ServiceReplicas, list[str]]:
    said: list[str] = []
    deployment = ServiceReplicas(shop, Scale(low, high, in_flight=10, calm_s=30.0), said.append, leave_s=3.0)
    deployment.start()
    return deployment, said


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
    deployment.step(0)
    assert shop.published[-1] == ["h:1", "h:2", "h:3"]
    shop.load["h:1"], shop.load["h:2"] = 5, 2
    deployment.step(31)
    assert shop.published[-1] == ["h:1", "h:2"], "the least loaded one goes first"
    assert "h:3" in shop.load, "clients may not have noticed yet"
    deployment.step(34)
    assert "h:3" not in shop.load


def test_a_replica_that_leaves_keeps_its_sessions_and_may_be_taken_back() -> None:
    shop = Shop()
    deployment, said = made(shop, 1, 8)
    shop.load["h:1"] = 25
    deployment.step(0)
    shop.load |= {"h:1": 6, "h:2": 3, "h:3": 1}
    deployment.step(31)
    deployment.step(32)
    assert (shop.published[-1], said[-1]) == (["h:1"], "1 replica")
    deployment.step(60)
    assert sorted(shop.load) == ["h:1", "h:2", "h:3"], "sessions are open on all of them"
    shop.load["h:3"] = 0
    deployment.step(61)
    assert sorted(shop.load) == ["h:1", "h:2"]
    shop.load["h:1"] = 15
    deployment.step(62)
    assert (shop.published[-1], shop.count) == (["h:1", "h:2"], 3), "no other was started"


def test_what_dies_is_replaced_and_what_keeps_dying_ends_it() -> None:
    shop = Shop()
    deployment, said = made(shop, 2, 2)
    shop.load["h:1"] = None
    deployment.step(0)
    assert deployment.addresses == ["h:2", "h:3"]
    assert said[2] == "replica h:1 is gone; starting another"
    with pytest.raises(RuntimeError, match="died 6 times in a row"):
        for at in range(10):
            shop.load[deployment.addresses[0]] = None
            deployment.step(at)


def test_a_full_cluster_does_not_end_what_runs() -> None:
    shop = Shop(room=2)
    deployment, said = made(shop, 1, 8)
    shop.load["h:1"] = 80
    deployment.step(0)
    deployment.step(1)
    assert deployment.addresses == ["h:1", "h:2"]
    assert [line for line in said if "stays at" in line] == ["stays at 2 of 8 replicas: no room"]
    deployment.stop()
    assert (shop.load, shop.published[-1]) == ({}, [])


def test_what_is_gone_is_replaced_though_growth_pauses() -> None:
    shop = Shop(room=1)
    deployment, said = made(shop, 1, 2)
    shop.load["h:1"] = 20
    deployment.step(0)
    assert said[-1] == "stays at 1 of 2 replicas: no room"
    shop.load["h:1"] = None
    deployment.step(1)
    assert shop.published[-1] == ["h:2"]


def test_a_replacement_that_does_not_start_is_tried_again_soon() -> None:
    shop = Shop()
    deployment, said = made(shop, 2, 2)
    shop.load["h:1"], shop.room = None, 1
    deployment.step(0)
    assert (deployment.addresses, said[-1]) == (["h:2"], "stays at 1 of 2 replicas: no room")
    shop.room = 2
    deployment.step(4)
    assert deployment.addresses == ["h:2"], "it is not tried at every step"
    deployment.step(5)
    assert deployment.addresses == ["h:2", "h:3"]


def test_the_last_replica_may_take_some_attempts_to_replace() -> None:
    shop = Shop()
    deployment, _ = made(shop, 1, 2)
    shop.load["h:1"], shop.room = None, 0
    deployment.step(0)
    shop.room = 1
    deployment.step(5)
    assert shop.published[-2:] == [[], ["h:2"]]
    deployment.step(6)
    shop.load["h:2"], shop.room = None, 0
    with pytest.raises(ValueError, match="no room"):
        for at in range(10, 60):
            deployment.step(at)
    assert (at, deployment.addresses) == (30, []), "one died, and five attempts failed"


@pytest.mark.parametrize(
    ("error", "said"),
    [("ActorDiedError", []), ("OutOfMemoryError", ["x"]), ("RuntimeEnvSetupError", ["x"]), ("ActorUnschedulableError", ["x"])],
)
def test_a_replica_that_dies_while_it_starts_is_said_in_one_line(error: str, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from burnish.hosting.ray_actors import DeployOptions, RayReplicaPool

    def get(*_: object, **__: object) -> None:
        raise getattr(ray.exceptions, error)(*said)

    killed: list[object] = []
    actor = SimpleNamespace(start=SimpleNamespace(remote=lambda *_: None))
    made = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: actor))
    fakes = {"available_resources": lambda: {"CPU": 4.0}, "nodes": list, "remote": lambda _: made, "get": get, "kill": killed.append}
    for name, fake in fakes.items():
        monkeypatch.setattr(ray, name, fake)
    pool = object.__new__(RayReplicaPool)
    pool._options, pool._actors = DeployOptions("verifier", "a.py:f", "f", Scale(1, 2)), {}
    with pytest.raises(ValueError, match=rf"^a replica did not start: {error}: .+$"):
        pool.start()
    assert (killed, pool._actors) == ([actor], {})


def test_names_come_from_the_target() -> None:
    names = {"my_team/checks.py:verdict": "verdict", "a/b-v1": "b", "my_team.tools": "tools", "x/bench.py": "bench", "m:f": "f"}
    assert {target: default_name(target) for target in names} == names
