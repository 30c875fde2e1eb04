"""Several replicas, sessions over them, servers without the stream, and servers with too much to do."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.envs.remote.env import RemoteEnv
from burnish.envs.types import Message, Task
from burnish.hosting.process import ServiceProcess
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.types import RewardInput, Score

pytestmark = pytest.mark.integration

TESTS = Path(__file__).resolve().parent
TARGETS = TESTS / "rpc_targets.py"
WAIT_S = 120.0


def episode(reward: float = 1.0, **data: Any) -> RewardInput:
    return RewardInput("e/0", Task("e", 17), (Message("user", "hi"),), reward, data=data)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scores(remote: RemoteVerifier, episodes: list[RewardInput]) -> list[Score | BaseException]:
    async def run() -> list[Score | BaseException]:
        return await asyncio.wait_for(asyncio.gather(*(remote.score(one) for one in episodes), return_exceptions=True), WAIT_S)

    return asyncio.run(run())


def kinds(results: list[Score | BaseException]) -> Counter[str]:
    return Counter(str(one.failure.kind) if isinstance(one, EpisodeFailure) else type(one).__name__ for one in results)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[ServiceProcess]]:
    services = [ServiceProcess("verifier", f"{TARGETS}:pid", tmp_path / f"{i}.log", port=free_port()) for i in range(2)]
    for service in services:
        service.start()
    yield services
    for service in services:
        service.stop(grace_s=2.0)


def both(services: list[ServiceProcess]) -> RemoteVerifier:
    return RemoteVerifier("pid", ",".join(service.address for service in services), deadline_s=WAIT_S)


def test_calls_spread_over_replicas_by_what_they_have_in_flight(pair: list[ServiceProcess]) -> None:
    remote = both(pair)
    remote.check()
    first = scores(remote, [episode(s=0.3) for _ in range(40)])
    by = Counter(one.value for one in first if isinstance(one, Score))
    assert by == {float(service.pid or 0): 20 for service in pair}
    counts = remote._client.counts()
    assert (counts.connections, counts.items_sent) == (2, 40)


def test_a_replica_that_died_is_left_out_and_taken_back(pair: list[ServiceProcess]) -> None:
    remote = both(pair)

    async def run() -> list[Score | BaseException]:
        waiting = [asyncio.create_task(remote.score(episode(s=3.0))) for _ in range(20)]
        while remote._client.counts().items_sent < 20:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)  # both have begun
        assert pair[0].pid is not None
        os.kill(pair[0].pid, signal.SIGKILL)
        return await asyncio.gather(*waiting, return_exceptions=True)

    assert kinds(asyncio.run(run())) == {"Score": 10, FailureKind.VERIFIER_UNAVAILABLE: 10}
    after = scores(remote, [episode() for _ in range(20)])
    assert {one.value for one in after if isinstance(one, Score)} == {float(pair[1].pid or 0)}
    assert kinds(after) == {"Score": 20}

    pair[0].stop()
    pair[0].start()
    deadline = time.monotonic() + WAIT_S
    while float(pair[0].pid or 0) not in {one.value for one in scores(remote, [episode(s=0.05)] * 4) if isinstance(one, Score)}:
        assert time.monotonic() < deadline, "the replica that came back gets no calls"


def test_a_replica_that_drains_loses_nothing(pair: list[ServiceProcess]) -> None:
    remote = both(pair)

    async def run() -> list[Score | BaseException]:
        tasks = []
        for number in range(200):
            tasks.append(asyncio.create_task(remote.score(episode(s=0.1))))
            if number == 100:
                pair[0]._process.terminate()  # type: ignore[union-attr]
            await asyncio.sleep(0.005)
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(run())
    assert kinds(results) == {"Score": 200}, [one for one in results if not isinstance(one, Score)]


def test_when_every_replica_is_down_the_failure_says_so() -> None:
    ports = [free_port(), free_port()]
    remote = RemoteVerifier("pid", ",".join(f"127.0.0.1:{port}" for port in ports), deadline_s=1.0)
    (down,) = scores(remote, [episode()])
    assert isinstance(down, EpisodeFailure)
    assert (down.failure.kind, down.failure.detail) == (
        FailureKind.VERIFIER_UNAVAILABLE,
        "could not connect within 1 s; is the service running?",
    )


@pytest.fixture
def unary_only() -> Iterator[str]:
    with subprocess.Popen([sys.executable, str(TESTS / "unary_only.py")], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"127.0.0.1:{int(process.stdout.readline())}"
        process.kill()


def test_a_server_without_the_stream_gets_unary_calls(unary_only: str) -> None:
    remote = RemoteVerifier("foreign", unary_only, deadline_s=WAIT_S)
    results = scores(remote, [episode(i / 8) for i in range(1000)])
    assert [one.value for one in results if isinstance(one, Score)] == [i / 8 for i in range(1000)]
    counts = remote._client.counts()
    assert (counts.unary_calls, counts.results_received) == (1000, 0)


def test_deadline_cancellation_and_overload_hold_for_unary_calls(unary_only: str) -> None:
    brief = RemoteVerifier("foreign", unary_only, deadline_s=2.0)
    (late,) = scores(brief, [episode(do="wait")])
    assert isinstance(late, EpisodeFailure)
    assert late.failure.kind == FailureKind.VERIFIER_TIMEOUT
    patient = RemoteVerifier("foreign", unary_only, deadline_s=WAIT_S)

    async def give_up() -> None:
        task = asyncio.create_task(patient.score(episode(do="wait")))
        while (await patient.score(episode())).parts["waited"] != 2:
            await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    asyncio.run(asyncio.wait_for(give_up(), WAIT_S))
    deadline = time.monotonic() + WAIT_S
    while scores(patient, [episode()])[0].parts["cancelled"] != 2:  # type: ignore[union-attr]
        assert time.monotonic() < deadline, "the server was not told"
    (busy,) = scores(patient, [episode(do="busy")])
    assert isinstance(busy, Score)
    assert busy.parts["refused"] == 2


def test_overload_is_waited_for_within_the_deadline() -> None:
    command = [sys.executable, str(TESTS / "overloaded.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        try:
            patient = RemoteVerifier("slow", address, deadline_s=WAIT_S)
            assert kinds(scores(patient, [episode(s=0.05)] * 40)) == {"Score": 40}  # the server takes four at a time
            brief = RemoteVerifier("slow", address, deadline_s=4.0)
            results = scores(brief, [episode(s=60.0)] * 6)
            late = [one.failure for one in results if isinstance(one, EpisodeFailure)]
            assert [one.kind for one in late] == [FailureKind.VERIFIER_TIMEOUT] * 6
            assert sum("the service was overloaded and refused the call" in one.detail for one in late) == 2
            assert "4 items are in flight on this stream" in late[-1].detail
        finally:
            process.kill()


# ------------------------------------------------------------------------------------------------ sessions over replicas


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[list[ServiceProcess]]:
    """Two servers of the puppet environment; `steps_at` reads what each did."""
    target = f"{TESTS / 'env_targets.py'}:test/Puppet-v0"
    services = [ServiceProcess("environment", target, tmp_path / f"{i}.log", kwargs={"file": str(tmp_path / f"{i}.did")}) for i in range(2)]
    for service in services:
        service.start()
    yield services
    for service in services:
        service.stop(grace_s=2.0)


def steps_at(service: ServiceProcess, number: int) -> int:
    """How many episodes took their `number`-th step on a server."""
    return Path(service.kwargs["file"]).read_text().splitlines().count(f"step {number}")


def test_a_session_stays_on_its_replica_and_sessions_spread(worlds: list[ServiceProcess]) -> None:
    address = ",".join(service.address for service in worlds)
    envs = [RemoteEnv(address, deadline_s=WAIT_S) for _ in range(20)]
    with ThreadPoolExecutor(20) as threads:
        list(threads.map(lambda env: env.reset(seed=1), envs))
        for number, word in ((1, "hello"), (2, "again"), (3, "end")):
            results = list(threads.map(lambda env, word=word: env.step(word), envs))
            assert {result[0][0].text for result in results} == {f"{number}: {word}"}
            assert {result[2] for result in results} == {word == "end"}
            assert [steps_at(service, number) for service in worlds] == [10, 10]
        for env in envs:  # one after the other: nothing is in flight when the next begins
            env.reset(seed=2)
            env.step("end")
    assert all(steps_at(service, 1) >= 10 + 7 for service in worlds)  # a pin may be let go a little after its session
    assert sum(steps_at(service, 1) for service in worlds) == 40


def test_sessions_of_a_replica_that_died_end_and_new_ones_go_to_the_other(worlds: list[ServiceProcess]) -> None:
    address = ",".join(service.address for service in worlds)
    envs = [RemoteEnv(address, deadline_s=WAIT_S) for _ in range(20)]

    def play(env: RemoteEnv) -> EpisodeFailure | str:
        try:
            return str(env.step("end")[0][0].text)
        except EpisodeFailure as failure:
            return failure

    for env in envs:
        env.reset(seed=1)
    assert worlds[0].pid is not None
    os.kill(worlds[0].pid, signal.SIGKILL)
    with ThreadPoolExecutor(20) as threads:
        began = time.monotonic()
        ends = list(threads.map(play, envs))
        assert time.monotonic() - began < WAIT_S / 2
        failures = [one.failure for one in ends if isinstance(one, EpisodeFailure)]
        assert [one for one in ends if isinstance(one, str)] == ["1: end"] * 10
        assert {(one.kind, one.culprit) for one in failures} == {(FailureKind.ENV_ERROR, f"test/Puppet-v0@{address}")}
        assert len(failures) == 10
        assert all(f"replica {worlds[0].address}" in one.detail for one in failures), failures

        list(threads.map(lambda env: env.reset(seed=2), envs))
        assert list(threads.map(play, envs)) == ["1: end"] * 20
    assert steps_at(worlds[1], 1) == 30
