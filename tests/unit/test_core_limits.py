"""Every limit of a wait that a recipe names reaches who waits."""

from __future__ import annotations

import re
import subprocess
import tomllib
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from burnish import cluster
from burnish.recipe import rehearsal
from burnish.recipe.limits import LimitsConfig
from burnish.recipe.load import config_from_data
from burnish.recipe.resolve import ResolvedRun, resolve
from burnish.rewards.config import RewardConfig
from burnish.trainer.evaluation.suites.suite import Suite

pytestmark = pytest.mark.unit

WHAT = {
    "name": "demo",
    "model": "m",
    "environment": "a/B-v0",
    "rollout": {"concurrency": 7, "episode_timeout_s": 1.0},
    "engine": {"request_timeout_s": 1.0},
}
SECONDS = {
    "check_s": 1.0, "stall_s": 2.0, "answer_s": 3.0, "sync_s": 4.0, "restart_s": 5.0, "place_s": 7.0, "learner_s": 6.0,
    "restarts": 13, "restart_window_s": 14.0, "rehearse_s": 8.0, "cancel_s": 9.0, "follow_s": 10.0, "kill_s": 11.0, "tracker_s": 12.0,
}  # fmt: skip


def resolved(**more: Any) -> ResolvedRun:
    return resolve(config_from_data({**WHAT, "limits": SECONDS, **more}))


def test_fleet_and_learner_wait_as_long_as_the_recipe_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from burnish import session
    from burnish.trainer.fleet import FleetLimits
    from burnish.trainer.learner.group import LearnerLimits
    from burnish.trainer.rllib import RFTConfig

    class Seen(Exception):
        pass

    def build(config: RFTConfig) -> None:  # a runner may take a step's 30 s more to drop its work
        assert config.fleet_limits == FleetLimits(
            concurrency=7, stall_s=2.0, answer_s=3.0, sync_s=4.0, restart_s=5.0, cancel_s=39.0, restarts=13, restart_window_s=14.0
        )  # and a step's 30
        assert config.learner_limits == LearnerLimits(call_s=6.0, place_s=7.0, follow_s=10.0, apart=True)
        assert config.worker_setup is not None and config.worker_setup.cancel_s == 9.0
        raise Seen

    monkeypatch.setattr(RFTConfig, "build_algo", build)
    monkeypatch.setattr(session, "verified_model", lambda model: tmp_path)
    on_nodes = resolved(resources={"ray_address": "auto", "learners": 2, "trusted_network": True})
    with pytest.raises(Seen), session.session_over(on_nodes, {}, {"rft.sampling": 1}):
        pass


def test_answers_that_end_before_new_weights_have_their_own_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Otherwise an engine that is only slow would be killed for a long answer."""
    from burnish import session
    from burnish.trainer.rllib import RFTConfig

    seen: list[float] = []

    def build(config: RFTConfig) -> None:
        assert config.fleet_limits is not None
        seen.append(config.fleet_limits.sync_s)
        raise InterruptedError

    monkeypatch.setattr(RFTConfig, "build_algo", build)
    monkeypatch.setattr(session, "verified_model", lambda model: tmp_path)
    for how in ("finish", "recompute"):
        engine = {"request_timeout_s": 0.5, "on_new_weights": how}
        with (
            pytest.raises(InterruptedError),
            session.session_over(resolved(engine=engine, rft={"rollouts": "async"}), {}, {"rft.sampling": 1}),
        ):
            pass
    assert seen == [4.0 + 1.0 + 0.5, 4.0], "its tokens come until the episode's time is over, or the engine hangs"


def test_services_are_asked_and_started_with_the_recipes_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from burnish.rewards.remote.client import RemoteVerifier

    asked: list[float] = []
    monkeypatch.setattr(RemoteVerifier, "check", lambda self, timeout_s: asked.append(timeout_s))
    run = resolved(
        services={"v": {"verifier": "my.module:verdict", "start_timeout_s": 8.0}}, rewards=[{"verifier": "service:v", "name": "verdict"}]
    )
    cluster.check_services(run, {"v": "127.0.0.1:1"})
    assert asked == [1.0]

    class Process:
        def __init__(self, *args: Any, ready_s: float, **kwargs: Any) -> None:
            asked.append(ready_s)

        def start(self) -> str:
            return "127.0.0.1:1"

        def stop(self) -> None:
            pass

    monkeypatch.setattr(cluster, "ServiceProcess", Process)
    with cluster.services_of(run.services, tmp_path) as addresses:
        assert (addresses, asked) == ({"v": "127.0.0.1:1"}, [1.0, 8.0])


def test_services_of_blended_environments_and_of_suites_are_asked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from burnish.envs.remote.env import RemoteEnv
    from burnish.envs.remote.tools import RemoteToolSet
    from burnish.rewards.remote.client import RemoteVerifier

    asked = list[str]()
    monkeypatch.setattr(RemoteEnv, "check", lambda self, timeout_s: asked.append(self._culprit))
    monkeypatch.setattr(RemoteToolSet, "check", lambda self, timeout_s: asked.append(f"tools@{self.address}"))
    monkeypatch.setattr(RemoteVerifier, "check", lambda self, timeout_s: asked.append(self.culprit))
    blended = [
        {"environment": "burnish/Remote-v0", "environment_args": {"address": "service:world"}, "percent": 10},
        {"environment": "a/Shop-v0", "environment_args": {"tools": "service:tools"}, "percent": 10},
        {"environment": "burnish/Remote-v0", "environment_args": {"address": "ray:far"}, "percent": 10, "name": "far"},
    ]
    services = {"world": {"environment": "a/World-v0"}, "tools": {"tools": "my.tools"}}
    judged = (RewardConfig(verifier="h:3", name="right"),)
    skill = Suite(
        "a/skill-v1", "", tasks=lambda count: (), environment="burnish/Remote-v0", environment_args={"address": "h:4"}, rewards=judged
    )
    monkeypatch.setattr(ResolvedRun, "suites", (skill, Suite("a/texts-v1", "", texts=lambda count: ())))
    run = resolved(rft={"blend": blended}, services=services, resources={"ray_address": "auto"})
    cluster.check_services(run, {"world": "h:1", "tools": "h:2"}, without_ray=True)
    assert asked == ["environment@h:1", "tools@h:2", "environment@h:4", "right@h:3"]
    assert cluster.on_ray(run) == ["ray:far"], "which is asked once the run belongs to the cluster"


def test_no_limit_is_left_out_of_these_tests() -> None:
    assert SECONDS.keys() == LimitsConfig.model_fields.keys()


def test_a_rehearsal_has_the_recipes_time_and_that_of_its_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*command: Any, timeout: float, **how: Any) -> None:
        assert timeout == 8.0 + 3 * (0 + 1) * 1.0, "three times an episode's own, for each try"
        raise subprocess.TimeoutExpired("rehearsal", timeout)

    monkeypatch.setattr("burnish.recipe.rehearsal.subprocess.run", run)
    with pytest.raises(TimeoutError, match="the rehearsal of one episode did not end within 11 s"):
        rehearsal.rehearse_apart(resolved(rollout={"episode_timeout_s": 1.0, "concurrency": 7, "retries": 0}), {})


def test_learners_follow_one_that_failed_within_the_recipes_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from burnish.trainer.learner.group import LearnerGroup

    waits, gone = list[float](), ray.exceptions.RayError("it failed")

    def wait(calls: list[str], timeout: float) -> tuple[list[str], list[str]]:
        waits.append(timeout)
        return (["failed"], ["silent"]) if len(waits) == 1 else ([], ["silent"])

    def get(calls: list[str]) -> None:
        raise gone

    learners = object.__new__(LearnerGroup)
    learners._timeout_s, learners._follow_s, learners._actors, learners._group = 6000.0, 10.0, [], None
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(ray.exceptions.RayError, match="it failed"):
        learners._get(["failed", "silent"])
    assert waits[0] > 5000 and waits[1] <= 10.0


def test_the_processes_of_a_learner_that_is_replaced_have_the_recipes_time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from burnish import session

    class Seen(Exception):
        pass

    def kill(processes: Any, wait_s: float) -> None:
        raise Seen(processes, wait_s)

    monkeypatch.setattr(session, "kill_processes", kill)
    algo = SimpleNamespace(learner_group=SimpleNamespace(shutdown=lambda: None))
    with pytest.raises(Seen) as seen:
        session.Session(resolved(), Path(), {}, algo, learners=[("n", 1, "b")]).restart_learner()
    assert seen.value.args == ([("n", 1, "b")], 11.0)


def test_trackers_have_the_recipes_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from burnish.run import pipeline

    class Seen(Exception):
        pass

    def tracked(config: Any, told: Any, said: Any, wait_s: float) -> None:
        raise Seen(wait_s)

    monkeypatch.setattr(pipeline, "tracked", tracked)
    monkeypatch.setattr(pipeline, "driven", lambda path, recipe, resume, say: nullcontext())
    with pytest.raises(Seen, match="12"):
        pipeline.run(resolved(), tmp_path)


def test_niceness_reaches_rays_node_and_only_one_that_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    import ray

    monkeypatch.setenv("RAY_worker_niceness", "15")
    monkeypatch.setattr(ray, "init", lambda **options: None)
    for niceness, told in ((None, "15"), (3, "3")):
        cluster._start_ray(resolved(resources={} if niceness is None else {"worker_niceness": niceness}).placement)
        assert os.environ["RAY_worker_niceness"] == told  # noqa: SIM112  # as Ray spells it
    with pytest.raises(ValueError, match="worker_niceness has no effect with ray_address"):
        resolved(resources={"worker_niceness": 3, "ray_address": "auto"})


def test_docs_the_page_shows_every_limit_with_its_default() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "resume.md").read_text()
    (table,) = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert tomllib.loads(table) == {"limits": LimitsConfig().model_dump()}


def test_docs_the_page_names_every_table_and_key_that_a_resume_may_change() -> None:
    from burnish.run.resume import FREE

    page = (Path(__file__).resolve().parents[2] / "docs" / "resume.md").read_text()
    listed = page.partition("## What may be different")[2].partition("\n\nA run that is finished")[0]
    assert [name for name in FREE if f"`{name}`" not in listed and f"`[{name}]`" not in listed] == []
