"""What Ray itself shows of a run: its logs and actors by name on the dashboard, and what it was at in the timeline."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.state import list_actors
from tests.integration.test_behind_dashboard import answers, free_port, started_ray, until

from burnish.cluster import dashboard_url, ray_session
from burnish.hosting.ray_actors import Directory, ReplicaActor
from burnish.inspector.pages.dashboard import ask_for_token
from burnish.recipe.placement import Placement
from burnish.rollout.env_runner import LLMEnvRunner
from burnish.trainer.learner.group import LearnerActor
from burnish.trainer.marks import mark

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

RAY = Path(sys.executable).with_name("ray")
NAME = "nano [1] *"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run's folder, and the cluster that it has joined."""
    folder = tmp_path_factory.mktemp("runs") / NAME
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "verdicts.log").write_text("the service says\n")
    subprocess.run([RAY, "get-auth-token", "--generate"], capture_output=True, timeout=120, check=True)
    ask_for_token()
    port, dashboard = free_port(), free_port()
    with started_ray(port, dashboard):
        until(lambda: answers(f"http://127.0.0.1:{dashboard}/"), "start page")
        with ray_session(Placement("cpu", ray_address=f"127.0.0.1:{port}"), folder):
            yield folder


class Talking(LearnerActor):
    def say(self) -> int:
        print("the learner says", flush=True)
        return os.getpid()


def on_dashboard(path: str, **asked: str) -> str:
    """What Ray's dashboard answers to who has its token."""
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    headers = get_auth_headers_if_auth_enabled({})
    request = urllib.request.Request(f"{dashboard_url()}{path}?{urllib.parse.urlencode(asked)}", headers=headers)
    browser, deadline = urllib.request.build_opener(urllib.request.ProxyHandler({})), time.monotonic() + 120
    while True:  # it is up before it knows its node's agent
        try:
            with browser.open(request, timeout=60) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            assert time.monotonic() < deadline, error.read()
            time.sleep(0.5)


def test_the_logs_of_a_run_lie_beside_rays_under_its_name(run: Path) -> None:
    learner = ray.remote(Talking).options(num_cpus=0).remote(0, 1, 60.0)
    number = ray.get(learner.say.remote(), timeout=120)
    node = ray.get_runtime_context().get_node_id()

    def listed(folder: str) -> set[str]:
        found = json.loads(on_dashboard("/api/v0/logs", node_id=node, glob=f"{folder}*"))
        return {name for names in found["data"]["result"].values() for name in names}

    def said(file: str) -> str:
        return on_dashboard("/api/v0/logs/file", node_id=node, filename=file)

    assert "burnish-nano_1_/" in listed("")
    own = {f"burnish-nano_1_/learner-0-{number}.{end}" for end in ("out", "err")}
    assert listed("burnish-nano_1_/") == {*own, "burnish-nano_1_/services/"}
    assert listed("burnish-nano_1_/services/") == {"burnish-nano_1_/services/verdicts.log"}
    assert "the service says" in said("burnish-nano_1_/services/verdicts.log")
    assert "the learner says" in said(f"burnish-nano_1_/learner-0-{number}.out")


def test_actors_have_names_that_say_what_they_are(run: Path) -> None:
    """Ray shows `__repr__` as an actor's name, of which two runs, and one that is started again, may have the same."""
    made = [(Talking, (1, 2, 60.0)), (Directory, ("verdict",)), (ReplicaActor, ("verdict",)), (Directory, ("verdict",)), (Runner, ())]
    kept = [ray.remote(kind).options(num_cpus=0).remote(*arguments) for kind, arguments in made]
    wanted = sorted(["Learner 1", "Directory(verdict)", "Directory(verdict)", "Replica(verdict)", "LLMEnvRunner(rollout-3)"])

    def named() -> list[str]:
        known = {actor._actor_id.hex() for actor in kept}
        return sorted(
            actor.repr_name or ""
            for actor in list_actors(ray.get_runtime_context().gcs_address, detail=True, timeout=60)
            if actor.actor_id in known
        )

    until(lambda: len([name for name in named() if name]) == len(wanted), "name of each")
    assert named() == wanted


class Runner(LLMEnvRunner):
    """Without an engine."""

    def __init__(self) -> None:
        self.worker_index = 3


def test_the_timeline_has_marks_of_the_run(run: Path) -> None:
    with mark("step", "rft 3"), mark("sync"):
        time.sleep(0.05)
    with pytest.raises(ValueError, match="as it was raised"), mark("checkpoint", "rft 3"):
        raise ValueError("as it was raised")

    def found() -> dict[str, dict[str, Any]]:
        return {event["cat"]: event for event in ray.timeline() if event["ph"] == "X" and event["cat"].startswith("burnish.")}

    until(lambda: len(found()) == 3, "third mark")
    step, sync, failed = (found()[f"burnish.{kind}"] for kind in ("step", "sync", "checkpoint"))
    assert (step["name"], sync["name"]) == ("step rft 3", "sync") and "as it was raised" in failed["args"]["value"]
    assert step["ts"] <= sync["ts"] and sync["ts"] + sync["dur"] <= step["ts"] + step["dur"] and sync["dur"] >= 50_000
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run([RAY, "timeline", "--address", address], capture_output=True, text=True, timeout=120, check=True)
    (file,) = re.findall(r"/\S+\.json", done.stdout + done.stderr)
    assert {"step rft 3", "sync"} <= {event["name"] for event in json.loads(Path(file).read_text())}
    Path(file).unlink()

    began = time.perf_counter()
    for _ in range(1000):
        with mark("step", "rft 4"):
            pass
    assert time.perf_counter() - began < 0.1, "a microsecond each"
