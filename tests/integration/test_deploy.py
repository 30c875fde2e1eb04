"""Replicas as Ray actors: more under load, fewer after it, and another for one that dies; the client's address stays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from burnish.envs.failures import EpisodeFailure
from burnish.envs.types import Message, Task
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.types import RewardInput
from burnish.rpc.local_ray import start_local_ray

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

TARGET = f"{Path(__file__).with_name('rpc_targets.py')}:pid"
WAIT_S = 240.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    import ray

    context = start_local_ray(
        num_cpus=4, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False, logging_level="ERROR"
    )
    yield str(context.address_info["gcs_address"])
    ray.shutdown()


def pids(remote: RemoteVerifier, count: int, seconds: float) -> set[int]:
    """The processes that answer `count` calls at a time. A call may be lost with a replica that is killed."""

    async def one() -> int | None:
        with contextlib.suppress(EpisodeFailure):
            return int((await remote.score(RewardInput("e/0", Task("e", 1), (Message("user", "hi"),), 0.0, data={"s": seconds}))).value)
        return None

    async def run() -> set[int]:
        answers = await asyncio.wait_for(asyncio.gather(*(one() for _ in range(count))), WAIT_S)
        return {pid for pid in answers if pid is not None}

    return asyncio.run(run())


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.2)


def test_replicas_follow_the_load_and_are_replaced(cluster: str) -> None:
    command = [sys.executable, "-m", "burnish.cli.main"]
    where = ["--ray-address", cluster]
    scale = ["--replicas", "1..3", "--in-flight", "4", "--calm-s", "3", "--cpus", "0.5"]
    with subprocess.Popen([*command, "deploy-verifier", TARGET, *scale, *where], stdout=subprocess.PIPE, text=True) as process:
        try:
            said: list[str] = []
            reading = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
            reading.start()
            until(lambda: len(said) > 1, "the first replica")
            assert said[0] == "pid: 1 replica\n"
            ready = json.loads(said[1])
            assert (ready["address"], len(ready["replicas"])) == ("ray:pid", 1)
            remote = RemoteVerifier("pid", "ray:pid", deadline_s=WAIT_S)
            remote.check()
            assert len(pids(remote, 1, 0.0)) == 1

            until(lambda: len(pids(remote, 24, 0.3)) == 3, "scaling up")
            until(lambda: said[-1] == "pid: 1 replica\n", "scaling down")

            until(lambda: len(pids(remote, 4, 0.05)) == 1, "the last call to one that goes")
            (left,) = pids(remote, 1, 0.0)
            os.kill(left, signal.SIGKILL)
            until(lambda: bool(pids(remote, 1, 0.0) - {left}), "the replacement")

            done = subprocess.run([*command, "undeploy", "pid", *where], capture_output=True, text=True, timeout=WAIT_S, check=False)
            assert (done.returncode, done.stdout) == (0, "pid has ended\n"), done.stderr
            assert process.wait(WAIT_S) == 0
            with pytest.raises(ValueError, match="nothing called 'pid' is deployed"):
                remote.check(5.0)
        finally:
            process.terminate()


def test_what_is_wrong_is_one_line(cluster: str) -> None:
    for arguments, says in (
        (["deploy-verifier", TARGET.replace("pid", "pidd")], "there is no 'pidd'; did you mean 'pid'"),
        (["deploy-verifier", TARGET, "--replicas", "8..1"], "replicas 8..1"),
        (["deploy-verifier", TARGET, "--host", "0.0.0.0"], "is not loopback"),
        (["undeploy", "nothing"], "nothing called 'nothing' is deployed"),
    ):
        command = [sys.executable, "-m", "burnish.cli.main", *arguments, "--ray-address", cluster]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert done.returncode != 0
        assert says in " ".join(done.stderr.split()), done.stderr


DYING = """
import os, pathlib
from burnish import verifier
if pathlib.Path("dies").exists():
    os._exit(3)
@verifier("test/dying-v1")
def dying(episode) -> float:
    return 1.0
"""


def test_a_replica_whose_process_dies_while_it_starts_is_one_line(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from burnish.hosting.ray_actors import DeployOptions, RayReplicaPool
    from burnish.hosting.scaling import Scale

    monkeypatch.chdir(tmp_path)
    (tmp_path / "dying.py").write_text(DYING)
    pool = RayReplicaPool(DeployOptions("verifier", "dying.py:dying", "dying", Scale(1, 2), cpus=0.5))
    until(lambda: pool.start() is not None, "the first one")
    served = list(pool.loads())
    (tmp_path / "dies").touch()
    with pytest.raises(ValueError, match="a replica did not start: ActorDiedError: "):
        until(lambda: pool.start() is not None, "the second one's end")
    assert pool.loads() == {served[0]: 0}
    pool.stop(served)
    assert pool.loads() == {}


def test_a_directory_that_is_lost_hears_of_the_replicas_again(cluster: str) -> None:
    import ray

    from burnish.hosting.ray_actors import DeployOptions, RayReplicaPool
    from burnish.hosting.scaling import Scale
    from burnish.rpc.ray_names import replica_addresses

    pool = RayReplicaPool(DeployOptions("verifier", TARGET, "lost", Scale(1, 2)))
    pool.publish(["h:1"])
    assert replica_addresses("lost") == ("h:1",)
    ray.kill(pool._directory, no_restart=False)

    def told() -> bool:
        assert not pool.asked_to_stop()
        with contextlib.suppress(ValueError):
            return replica_addresses("lost") == ("h:1",)
        return False

    until(told, "the new directory")


@pytest.mark.parametrize(("error", "said"), [("GetTimeoutError", ["late"]), ("ActorDiedError", []), ("NodeDiedError", ["lost"])])
def test_a_directory_that_is_late_or_lost_ends_no_replica_and_hears_the_rest_later(
    error: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from burnish.hosting.ray_actors import Directory, RayReplicaPool

    late = True

    class Method:
        def __init__(self, function: Callable[..., object]) -> None:
            self.remote = lambda *args: lambda: function(*args)

    def get(answer: Callable[[], object], timeout: float) -> object:
        if late:
            raise getattr(ray.exceptions, error)(*said)
        return answer()

    monkeypatch.setattr(ray, "get", get)
    directory, fleet = Directory("verdict"), object.__new__(RayReplicaPool)
    fleet._published = []
    fleet._directory = type("Handle", (), {name: Method(getattr(directory, name)) for name in ("publish", "asked_to_stop")})()
    fleet.publish(["h:1", "h:2"])
    assert (fleet.asked_to_stop(), directory.addresses()) == (False, [])
    late = False
    assert (fleet.asked_to_stop(), directory.addresses()) == (False, ["h:1", "h:2"])
    directory.ask_to_stop()
    assert fleet.asked_to_stop()
