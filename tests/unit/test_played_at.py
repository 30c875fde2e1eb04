"""Where an episode was played, as Ray calls it: kept with it, shown on its page, and a link only in its own cluster's dashboard."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from ray.exceptions import RaySystemError
from starlette.testclient import TestClient
from tests.unit.stored_run import seeded, speaking, tiny_model

from burnish.envs.types import Episode, Message, Reward, Task
from burnish.inspector.database import Database
from burnish.inspector.library import Library
from burnish.inspector.pages.app import pages
from burnish.inspector.pages.bundle import write_bundle
from burnish.inspector.pages.cluster import PlayedAt, played_at
from burnish.inspector.pages.dashboard import nodes_here
from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.env_runner import LLMEnvRunner
from burnish.rollout.store.episodes import EpisodeStore
from burnish.rollout.store.moments import Moment
from burnish.rollout.worker import WorkerSetup

pytestmark = pytest.mark.unit

ACTOR, NODE, GONE = "ab" * 16, "cd" * 28, "ef" * 28
HOSTILE = '"><script>alert(1)</script>\x1b[31m/../#/actors/" onmouseover="alert(2)'
MOMENT = Moment("rft", 1, "train", "sampled")
PLACES = {
    "train-0": (ACTOR, NODE),
    "train-1": (ACTOR, GONE),
    "train-2": (ACTOR, "12" * 28),
    "train-3": (HOSTILE, NODE),
    "train-4": ("", ""),
}


def nodes() -> Mapping[str, bool]:
    """Of a cluster that has one node, and had another."""
    return {NODE: True, GONE: False}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "placed-1"
    run.mkdir(parents=True)
    for name, content in (("config.json", "{}"), ("seeds.json", '{"run": 1}'), ("versions.json", '{"packages": {}}')):
        (run / name).write_text(content)
    episodes = [
        Episode(Task(task, 1), 0, (), (Message("user", "?"),), Reward(1.0, {"env": 1.0}), actor=actor, node=node)
        for task, (actor, node) in PLACES.items()
    ]
    with EpisodeStore(run / "episodes", run.name) as store:
        store.put(MOMENT, episodes)
    return run.parent


def page(root: Path, task: str, known: Callable[[], Mapping[str, bool]] | None) -> str:
    with TestClient(pages(root, nodes=known)) as client:
        answer = client.get(f"/rollouts/placed-1/episode?phase=rft&step=1&split=train&mode=sampled&episode={task}/0")
    assert answer.status_code == 200
    return answer.text.partition("<main")[2]


def test_the_runner_says_which_actor_on_which_node_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = SimpleNamespace(get_actor_id=lambda: ACTOR, get_node_id=lambda: NODE, namespace="none of a run")
    monkeypatch.setattr("burnish.rollout.env_runner.ray.get_runtime_context", lambda: here)
    monkeypatch.setattr("burnish.rollout.worker.make_engine", speaking("7"))
    limits = RolloutConfig(max_tokens_per_turn=8, retries=0)
    setup = WorkerSetup(tiny_model(tmp_path / "tiny"), "burnish/Arithmetic-v0", rollout=limits, engine=EngineConfig(max_context=512))
    monkeypatch.setattr("burnish.rollout.env_runner.EnvRunner.__init__", lambda self, **given: None)
    runner = LLMEnvRunner(config=SimpleNamespace(worker_setup=setup, success_part=""), worker_index=1)
    try:
        runner.submit(seeded(1), 2, 1.0)
        (group,) = runner.sample(wait_s=60.0)
        assert [(episode.actor, episode.node) for episode in group.episodes] == [(ACTOR, NODE)] * 2
    finally:
        runner.stop()


def test_a_store_keeps_both_and_one_of_an_earlier_burnish_has_neither(root: Path) -> None:
    file = root / "placed-1" / "episodes" / MOMENT.file
    table = pq.read_table(file)
    assert set(table.column("schema").to_pylist()) == {4}
    assert table.column("actor").to_pylist()[0] == ACTOR and table.column("node").to_pylist()[4] == ""
    pq.write_table(table.drop_columns(["actor", "node"]), file)
    row = Library(root / "placed-1" / "episodes").one("rft", 1, "train", "sampled", "train-0/0")
    assert row is not None and row["reward"] == 1.0
    assert "actor" not in page(root, "train-0", nodes)


def test_in_the_dashboard_of_their_cluster_they_lead_to_rays_own_pages(root: Path) -> None:
    found = page(root, "train-0", nodes)
    assert f'<a href="/#/actors/{ACTOR}">{ACTOR}</a>' in found
    assert f'<a href="/#/cluster/nodes/{NODE}">{NODE}</a>' in found and f'<a href="/#/logs/?nodeId={NODE}">' in found
    ended = page(root, "train-1", nodes)
    assert f'<a href="/#/actors/{ACTOR}">' in ended and GONE in ended and "/#/cluster" not in ended and "/#/logs" not in ended


@pytest.mark.parametrize(("task", "known"), [("train-0", None), ("train-0", dict), ("train-2", nodes)])
def test_elsewhere_they_are_text(root: Path, task: str, known: Callable[[], Mapping[str, bool]] | None) -> None:
    found = page(root, task, known)
    assert ACTOR in found and PLACES[task][1] in found and "/#/" not in found


def test_outside_of_ray_nothing_is_said(root: Path) -> None:
    assert "actor" not in page(root, "train-4", nodes)


def test_what_is_no_id_is_text_and_short(root: Path) -> None:
    found = page(root, "train-3", nodes)
    assert "<script>alert" not in found and 'href="/#/actors' not in found and "\x1b" not in found
    assert HOSTILE.replace("\x1b", "\\x1b") in html.unescape(found)
    long = played_at({"actor": "a" * 10**6, "node": "A" * 10**6}, nodes)
    assert long == PlayedAt("a" * 100, "A" * 100)
    for node in (NODE.upper(), NODE + "\n", "../" + NODE, "٣" * 56):
        assert played_at({"actor": ACTOR, "node": node}, lambda: {node: True}) == PlayedAt(ACTOR, node)  # noqa: B023


def test_a_bundle_holds_text_alone(root: Path, tmp_path: Path) -> None:
    write_bundle(root / "placed-1", tmp_path / "bundle", 100, Database())
    text = "".join(file.read_text() for file in (tmp_path / "bundle").rglob("*.html"))
    assert ACTOR in text and 'href="/#/' not in text


def test_the_nodes_are_those_of_the_cluster_that_this_process_is_part_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended() -> Any:
        raise RaySystemError("Ray has not been started yet.")

    assert nodes_here() == {}
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": NODE, "Alive": True}, {"NodeID": GONE, "Alive": False}])
    assert nodes_here() == nodes()
    monkeypatch.setattr(ray, "nodes", ended)
    assert nodes_here() == {}
