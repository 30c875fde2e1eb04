"""Deployments: the file, who is answered by which version, and what happens when the file is edited."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from ray.serve.config import AutoscalingConfig

from burnish.serving.canary.config import JudgeTable
from burnish.serving.canary.watch import Judgement
from burnish.serving.config import ServingConfig
from burnish.serving.deployment import (
    LASTING_S,
    LONGEST_WAIT_S,
    AutoscalingTable,
    Deployer,
    Deployment,
    Faults,
    State,
    VersionTable,
    read_deployment,
)
from burnish.serving.fleet import replicas_of
from burnish.serving.keys import parse_keys
from burnish.serving.routes import Routes, VersionShare, app_name, engine_name, engines_of, names, shadows_for, version_for, versions_of

pytestmark = pytest.mark.unit

CALLERS = [f"caller-{i}" for i in range(2000)]


def deployment(**weights: float) -> Deployment:
    """One model, m, with a version for each weight."""
    return Deployment.model_validate({"models": {"m": {"versions": {v: {"model": f"runs/{v}", "weight": w} for v, w in weights.items()}}}})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "models: is required"),
        ("[models.m.versions]", "models.m.versions"),
        ('[models."M m".versions.v1]\nmodel = "a"', "models.M m"),
        ('[models.m.versions.v1]\nmodel = "a"\nwieght = 1', "wieght"),
        ('[models.m.versions.v1]\nmodel = "a"\nweight = 0', "every version has weight 0"),
        ('[models.m.versions.v1]\nmodel = "a"\nweight = inf', "weight"),
        ('[models.m.versions.v1]\nmodel = "a"\nshadow = 0.5', "every version has weight 0"),
        ('[models.m.versions.v1]\nmodel = "a"\nshadow = 0.5\nweight = 1', "remove its weight, or shadow"),
        ('[models.m.versions.v1]\nmodel = "a"\nshadow = 2', "shadow"),
        ('[models.m.versions.v1]\nmodel = "a"\n[models.m.versions.v1.adapters]\nv1 = "b"', "a version has that name"),
        ('[models.m.versions.v1]\nmodel = "a"\n[models.m.versions.v1.adapters]\n"a:b" = "b"', "adapters.a:b"),
        ('[models.m.versions.v1]\nmodel = "a"\nreplicas = 2\nautoscaling.max_replicas = 3', "replicas has no effect beside autoscaling"),
        ('[models.m.versions.v1]\nmodel = "a"\nautoscaling = {min_replicas = 2, max_replicas = 2}', "nothing follows the load"),
        ('[models.m.versions.v1]\nmodel = "a"\nautoscaling = {min_replicas = 0, max_replicas = 2}', "min_replicas"),
        ('[models.m.versions.v1]\nmodel = "a"\nautoscaling = {max_replicas = 2, target_ongoing_requests = 0}', "target_ongoing_requests"),
        ('[service]\nname = "x"\n[models.m.versions.v1]\nmodel = "a"', "models are named by their tables"),
        ('[service]\nhost = "0.0.0.0"\n[models.m.versions.v1]\nmodel = "a"', "not loopback"),
        ('[service]\nhost = "0.0.0.0"\n[models.m.versions.v1]\nmodel = "a"', "in a deployment keys_file, api_key_file or api_key_env"),
        ('[models.Inspector.versions.v1]\nmodel = "a"', r"d\.toml: models\.Inspector: a name is in small letters"),
        ('[models.m.versions.V1]\nmodel = "a"', r"d\.toml: models\.m\.versions\.V1: a name is in small letters"),
        (f'[models.{"m" * 65}.versions.v1]\nmodel = "a"', "m: must have at most 64 characters"),
        ('[models.m.versions.v1]\nmodel = "a"\njudge = {}', r'and verifier = "host:port" \(one that runs\)$'),
        ('[models.m.versions.v1]\nmodel = "a"\njudge = {use = "a/b-v1", name = "a b"}', "judge.name: a name has at most 64 letters"),
        ('[models.m.versions.v1]\nmodel = "a"\nweight = "0.6"', "models.m.versions.v1.weight"),
        ('[models.m.versions.v1]\nmodel = "a"\nreplicas = 2.0', "models.m.versions.v1.replicas"),
        ('[models.m.versions.v1]\nmodel = "a"\nreplicas = true', "models.m.versions.v1.replicas"),
        ('[service]\nport = "80"\n[models.m.versions.v1]\nmodel = "a"', "service.port"),
        ("[models", "not TOML"),
        ("a." * 40 + "a = 1", "not TOML: a key of more than 32 parts"),
    ],
)
def test_a_file_that_is_none_is_said_so_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "d.toml").write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        read_deployment(tmp_path / "d.toml")
    assert "\n" not in str(caught.value)


def test_a_whole_number_is_a_weight_and_a_list_is_read(tmp_path: Path) -> None:
    service = '[service]\npolicy = "p.toml"\nplugins = ["a.py", "b.py"]'
    (tmp_path / "d.toml").write_text(f'{service}\n[models.m.versions.v1]\nmodel = "a"\nweight = 3')
    found = read_deployment(tmp_path / "d.toml")
    assert (found.service.plugins, found.models["m"].versions["v1"].weight) == (("a.py", "b.py"), 3.0)


def test_no_two_versions_are_one_application() -> None:
    versions = {"inspector": ["a-v1", "v1"], "inspector-a": ["v1"], "inspector-": ["v1"]}
    tables = {model: {"versions": {version: {"model": "runs/x"} for version in found}} for model, found in versions.items()}
    served = Deployment.model_validate({"models": tables}).served()
    assert len(served) == 4 == len(set(map(app_name, served)))


def shares(**weights: float) -> Routes:
    return {"m": tuple(VersionShare(version, weight) for version, weight in weights.items())}


@given(st.lists(st.floats(0, 100), min_size=1, max_size=5).filter(any))
def test_versions_share_callers_by_their_weights(weights: list[float]) -> None:
    routes = shares(**{f"v{i}": weight for i, weight in enumerate(weights)})
    drawn = [version_for(routes, "m", caller) for caller in CALLERS]
    for i, weight in enumerate(weights):
        assert abs(drawn.count(f"m:v{i}") / len(CALLERS) - weight / sum(weights)) < 0.06, "five standard deviations at the widest"


def test_a_canary_that_grows_takes_callers_over_and_gives_none_back() -> None:
    before: set[str] = set()
    for weight in (0, 1, 5, 20, 50, 100):
        routes = shares(v1=100 - weight, v2=weight)
        now = {caller for caller in CALLERS if version_for(routes, "m", caller) == "m:v2"}
        assert before <= now
        before = now
    assert len(before) == len(CALLERS)


def test_a_version_is_asked_for_by_name_whatever_its_weight_and_models_draw_apart() -> None:
    routes = {**shares(v1=1, v2=0), "other": (VersionShare("v1", 0.5), VersionShare("v2", 0.5))}
    assert names(routes) == ["m", "other", "m:v1", "m:v2", "other:v1", "other:v2"]
    assert version_for(routes, "m:v2", "x") == "m:v2"
    half = shares(v1=0.5, v2=0.5)
    same = [version_for(half, "m", one)[-1] == version_for(routes, "other", one)[-1] for one in CALLERS]
    assert 0.4 < sum(same) / len(same) < 0.6, "who is in one model's canary need not be in another's"


def test_a_caller_may_be_named_by_half_a_character() -> None:
    routes = {"m": (VersionShare("v1", 1.0), VersionShare("v2", 0.0, shadow=1.0))}
    assert (version_for(routes, "m", "\ud800"), shadows_for(routes, "m", "\ud800")) == ("m:v1", ["m:v2"])


def test_an_adapter_is_asked_for_beside_its_model_of_the_versions_that_have_it() -> None:
    routes = {"m": (VersionShare("v1", 0.9, ("search",)), VersionShare("v2", 0.1, ("search", "sort")), VersionShare("v3", 0))}
    assert names(routes) == [
        "m", "m:v1", "m:v2", "m:v3", "m:search", "m:sort", "m:v1:search", "m:v2:search", "m:v2:sort",
    ]  # fmt: skip
    assert versions_of(routes) == ["m:v1", "m:v2", "m:v3"]
    drawn = {caller: version_for(routes, "m:search", caller) for caller in CALLERS}
    assert drawn == {caller: version_for(routes, "m", caller) for caller in CALLERS}, "a caller is where it is, with an adapter or without"
    assert {version_for(routes, "m:sort", caller) for caller in CALLERS} == {"m:v2"}
    assert version_for(routes, "m:v2:search", "x") == "m:v2"
    idle = {"m": (VersionShare("v1", 1.0), VersionShare("v2", 0.0, ("sort",)))}
    assert version_for(idle, "m:sort", "x") == "m:v2", "no weight is needed where only one has it"
    asked = {name: engine_name(routes, name, version_for(routes, name, "x")) for name in names(routes)}
    assert asked["m:v1:search"] == "m:v1:search" and asked["m:sort"] == "m:v2:sort" and asked["m:v3"] == "m:v3"


def test_a_shadow_answers_nobody_and_gets_a_share_of_callers_that_grows() -> None:
    table = VersionTable.model_validate({"model": "a", "shadow": 0.05})
    assert table.weight == 0
    before, routes = set[str](), dict[str, tuple[VersionShare, ...]]()
    for share in (0.0, 0.05, 0.5, 1.0):
        routes = {"m": (VersionShare("v1", 1.0), VersionShare("v2", 0.0, ("search",), share), VersionShare("v3", 0.0, (), share / 2))}
        now = {caller for caller in CALLERS if "m:v2" in shadows_for(routes, "m", caller)}
        assert before <= now and abs(len(now) / len(CALLERS) - share) < 0.06
        assert {version_for(routes, "m", caller) for caller in CALLERS} == {"m:v1"}
        before = now
    assert {len(shadows_for(routes, "m", caller)) for caller in CALLERS} == {1, 2}, "shadows draw apart"
    assert [shadows_for(routes, asked, "x") for asked in ("m:v1", "m:search", "m:v2:search", "gone")] == [[], [], [], []]


def test_a_shadow_may_change_while_it_runs_and_is_said(deployer: Deployer, shop: Shop, said: list[str]) -> None:
    def shadowed(share: float) -> Deployment:
        versions = {"v1": {"model": "runs/v1"}, "v2": {"model": "runs/v2", "weight": 0, "shadow": share}}
        return Deployment.model_validate({"models": {"m": {"versions": versions}}})

    deployer.turn(shadowed(0.05))
    shop.comes_up("m:v1")
    deployer.turn(shadowed(0.05))
    assert shop.routes == {"m": (VersionShare("v1", 1.0),)}, "nobody waits for a shadow"
    shop.comes_up("m:v2")
    deployer.check(shadowed(0.5), shadowed(0.05))
    deployer.turn(shadowed(0.5))
    assert said[-1] == "m: v1 100.0%, v2 shadows 50.0%"


def test_routes_say_how_many_engines_there_may_be(deployer: Deployer, shop: Shop) -> None:
    scaled = {"model": "runs/v2", "autoscaling": {"min_replicas": 1, "max_replicas": 5}}
    versions = {"v1": {"model": "runs/v1", "replicas": 3}, "v2": scaled}
    deployer.turn(Deployment.model_validate({"models": {"m": {"versions": versions}}}))
    shop.comes_up("m:v1")
    shop.comes_up("m:v2")
    deployer.turn(Deployment.model_validate({"models": {"m": {"versions": versions}}}))
    assert engines_of(shop.routes) == 8 and engines_of({}) == 0


def test_what_ray_serve_is_told_of_replicas() -> None:
    options = ServingConfig(max_concurrent=7)
    assert replicas_of(VersionTable(model="a", replicas=3), options) == {"num_replicas": 3}
    told = replicas_of(VersionTable.model_validate({"model": "a", "autoscaling": {"max_replicas": 4}}), options)["autoscaling_config"]
    assert (told["min_replicas"], told["max_replicas"], told["initial_replicas"], told["target_ongoing_requests"]) == (1, 4, 1, 7)
    AutoscalingConfig(**told)  # Ray's own, which takes no field that it does not know


class Shop:
    """A fleet in memory. begun, ended: what was asked of it, in order."""

    def __init__(self) -> None:
        self.states: dict[str, tuple[State, str]] = {}
        self.judged: dict[str, Judgement] = {}
        self.begun, self.ended, self.routes, self.started = list[str](), list[str](), dict[str, Any](), False

    def start(self, name: str, table: VersionTable) -> None:
        self.states[name] = ("starting", "")
        self.begun.append(name)

    def state(self, name: str) -> tuple[State, str]:
        return self.states[name]

    def stop(self, name: str) -> None:
        assert all(name not in names({model: shares}) for model, shares in self.routes.items()), "callers are still sent there"
        del self.states[name]
        self.ended.append(name)

    def route(self, routes: Routes, started: bool) -> None:
        assert all(self.states[name][0] == "ready" for name in names(routes) if name not in routes)
        self.routes, self.started = dict(routes), started

    def judgements(self) -> dict[str, Judgement]:
        return self.judged

    def comes_up(self, name: str) -> None:
        self.states[name] = ("ready", "")


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def deployer(shop: Shop, said: list[str]) -> Deployer:
    return Deployer(shop, said.append)


def test_a_model_is_answered_once_all_that_answer_for_it_are_there(deployer: Deployer, shop: Shop) -> None:
    file = deployment(v1=95, v2=5, v3=0)
    deployer.turn(file)
    assert shop.begun == ["m:v1", "m:v2", "m:v3"] and shop.routes == {} and not deployer.ready(file)
    shop.comes_up("m:v1")
    deployer.turn(file)
    assert shop.routes == {}
    shop.comes_up("m:v2")
    deployer.turn(file)
    assert shop.routes == shares(v1=95, v2=5)
    shop.comes_up("m:v3")
    deployer.turn(file)
    assert shop.routes == shares(v1=95, v2=5, v3=0) and deployer.ready(file)


def test_a_start_is_over_once_every_model_was_there_whatever_is_added_later(deployer: Deployer, shop: Shop) -> None:
    file = deployment(v1=1)
    deployer.turn(file)
    assert not shop.started
    shop.comes_up("m:v1")
    deployer.turn(file)
    assert shop.started
    deployer.turn(file.model_copy(update={"models": {**file.models, "other": file.models["m"]}}))
    assert shop.begun[-1] == "other:v1" and "other" not in shop.routes and shop.started


def test_a_rollback_is_one_turn_and_nothing_starts_or_ends(deployer: Deployer, shop: Shop, said: list[str]) -> None:
    for name in ("m:v1", "m:v2"):
        deployer.turn(deployment(v1=1, v2=1))
        shop.comes_up(name)
    deployer.turn(deployment(v1=1, v2=1))
    said.clear()
    deployer.turn(deployment(v1=1, v2=0))
    assert shop.routes == shares(v1=1, v2=0) and (shop.begun, shop.ended) == (["m:v1", "m:v2"], [])
    deployer.turn(deployment(v1=1, v2=0))
    assert said == ["m: v1 100.0%, v2 0.0%"]


def test_a_new_version_takes_over_when_it_is_there_and_the_old_one_ends_then(deployer: Deployer, shop: Shop) -> None:
    deployer.turn(deployment(v1=1))
    shop.comes_up("m:v1")
    deployer.turn(deployment(v1=1))
    for _ in range(3):
        deployer.turn(deployment(v2=1))
        assert shop.routes == shares(v1=1) and shop.ended == []
    shop.comes_up("m:v2")
    deployer.turn(deployment(v2=1))
    assert shop.routes == shares(v2=1) and shop.ended == ["m:v1"]


def test_a_version_that_does_not_start_is_said_once_and_changes_nothing(deployer: Deployer, shop: Shop, said: list[str]) -> None:
    deployer.turn(deployment(v1=1))
    shop.comes_up("m:v1")
    deployer.turn(deployment(v1=1))
    deployer.turn(deployment(v1=1, v2=1))
    shop.states["m:v2"] = ("failed", "no such model")
    for _ in range(3):
        deployer.turn(deployment(v1=1, v2=1))
    assert shop.routes == shares(v1=1)
    assert [line for line in said if "did not start" in line] == ["m:v2 did not start, and its model is answered as before: no such model"]
    with pytest.raises(RuntimeError, match="m:v2 did not start: no such model"):
        deployer.ready(deployment(v1=1, v2=1))
    deployer.turn(deployment(v1=1))
    assert shop.ended == ["m:v2"]


def test_edits_that_cannot_be_followed_are_said(deployer: Deployer) -> None:
    running = deployment(v1=1)
    deployer.turn(running)
    other = Deployment.model_validate(tomllib.loads('[models.m.versions.v1]\nmodel = "runs/other"'))
    with pytest.raises(ValueError, match="m:v1 runs 1 x runs/v1, not with this model; call what is another model"):
        deployer.check(other, running)
    with pytest.raises(ValueError, match="at the next start only"):
        deployer.check(running.model_copy(update={"service": running.service.model_copy(update={"port": 1})}), running)
    deployer.check(deployment(v1=3, v2=1), running)
    more = Deployment.model_validate(tomllib.loads('[models.m.versions.v1]\nmodel = "runs/v1"\nadapters.search = "runs/search"'))
    with pytest.raises(ValueError, match="m:v1 runs 1 x runs/v1, not with this adapters"):
        deployer.check(more, running)


def test_an_edit_of_a_version_that_did_not_start_is_told_so_and_why(deployer: Deployer, shop: Shop) -> None:
    running = deployment(v1=1)
    deployer.turn(running)
    shop.states["m:v1"] = ("failed", "it failed to start 3 times:\nTraceback\n  a line\nOSError: no space left\n")
    other = Deployment.model_validate(tomllib.loads('[models.m.versions.v1]\nmodel = "runs/other"'))
    with pytest.raises(
        ValueError,
        match=r"^m:v1 did not start with 1 x runs/v1 \(OSError: no space left\), not with this model; call what is another model",
    ):
        deployer.check(other, running)


def test_a_version_whose_start_cannot_be_asked_for_is_started_later(
    deployer: Deployer, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shop, "start", lambda *given: (_ for _ in ()).throw(ConnectionError("Ray is not there")))
        with pytest.raises(ConnectionError):
            deployer.turn(deployment(v1=1))
    deployer.turn(deployment(v1=1))
    assert shop.begun == ["m:v1"]


@pytest.mark.parametrize("lasting_s", [LASTING_S, 2 * LASTING_S])
def test_a_fault_that_passes_is_said_once_and_one_that_lasts_ends_it(said: list[str], lasting_s: float) -> None:
    now = [0.0]
    faults, waits = Faults(said.append, lasting_s, lambda: now[0]), list[float]()
    while not faults.lasting(RuntimeError("many lines\nof a traceback\nthe gateway is gone")):
        waits.append(faults.wait_s)
        now[0] += faults.wait_s
    assert waits[:3] == [0.5, 1.0, 2.0] and max(waits) == LONGEST_WAIT_S and lasting_s <= now[0] <= lasting_s + LONGEST_WAIT_S
    assert said == ["the deployment cannot be followed now, and is tried again: RuntimeError: the gateway is gone"]
    faults.over()
    assert said[1:] == ["the deployment is followed again"] and faults.wait_s == 0.25
    assert not faults.lasting(OSError("again")), "what passed counts no more"


def test_the_files_of_the_page_are_what_it_says() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text()
    keys, smallest, deployed, further, *_ = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert parse_keys(keys, "keys.toml")["search-team"].parallel == 4
    (only,) = Deployment.model_validate(tomllib.loads(smallest)).served().values()
    assert only.weight > 0, "it answers"
    served = Deployment.model_validate(tomllib.loads(deployed)).served()
    assert {name: table.weight for name, table in served.items()} == {"inspector:v1": 95, "inspector:v2": 5}
    one, two = Deployment.model_validate(tomllib.loads(further)).served().values()
    assert one.autoscaling is not None and set(one.adapters) == {"night-shift", "welding"} and (two.weight, two.shadow) == (0, 0.05)


@pytest.mark.parametrize(
    ("heading", "table"),
    [
        ("`[service]`", ServingConfig),
        ("`[models.NAME.versions.VERSION]`", VersionTable),
        ("`[models.NAME.versions.VERSION.autoscaling]`", AutoscalingTable),
        ("`[models.NAME.versions.VERSION.judge]`", JudgeTable),
    ],
)
def test_docs_serving_has_every_key_of_a_deployment(heading: str, table: type[BaseModel]) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text()
    begins = page.index(f"| {heading} |")
    rows = page[begins : page.index("\n\n", begins)].splitlines()[2:]
    named = {key for row in rows for key in re.findall(r"`([a-z_0-9]+)`", row.split(" | ")[0])}
    assert named == set(table.model_fields) - ({"name"} if table is ServingConfig else set())
