"""Verifiers whose calls hang: threads that are all stuck are told to whoever asks, and processes are killed."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.envs.types import Message, Task
from burnish.hosting.process import ServiceProcess
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.remote.service import Verifier, VerifierService
from burnish.rewards.types import RewardInput
from burnish.rpc.background import background
from burnish.rpc.batches import Limits
from burnish.rpc.server import Server

pytestmark = pytest.mark.integration

TARGETS = Path(__file__).with_name("rpc_targets.py")
WAIT_S = 120.0
EPISODE = RewardInput("e/0", Task("e", 17), (Message("assistant", "pass"),), 1.0)
BACKTRACK = RewardInput("e/1", Task("e", 17), (Message("assistant", "a" * 64 + "b"),), 1.0)


def wait_for_health(channel: grpc.Channel, wanted: int) -> None:
    health, deadline = health_pb2_grpc.HealthStub(channel), time.monotonic() + WAIT_S
    for service in ("", VerifierService.full_name):
        while health.Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S).status != wanted:
            assert time.monotonic() < deadline, f"health of {service!r} did not become {wanted}"
            time.sleep(0.02)


def failure_of(remote: RemoteVerifier, episode: RewardInput) -> tuple[FailureKind, str]:
    with pytest.raises(EpisodeFailure) as caught:
        asyncio.run(remote.score(episode))
    return caught.value.failure.kind, caught.value.failure.detail


def test_a_server_whose_threads_are_all_stuck_says_so_refuses_at_once_and_recovers() -> None:
    release = threading.Event()

    def hang(episode: RewardInput) -> float:
        assert release.wait(WAIT_S)
        return 1.0

    server = Server([VerifierService([Verifier("test/hang-v1", hang)], Limits(threads=2))])
    address = background().run(server.start(), WAIT_S)
    try:
        with grpc.insecure_channel(address) as channel:
            wait_for_health(channel, health_pb2.HealthCheckResponse.SERVING)
            late = RemoteVerifier("hang", address, deadline_s=2.0)
            assert {failure_of(late, EPISODE)[0] for _ in range(2)} == {FailureKind.VERIFIER_TIMEOUT}
            wait_for_health(channel, health_pb2.HealthCheckResponse.NOT_SERVING)
            patient = RemoteVerifier("hang", address, deadline_s=WAIT_S)
            started = time.monotonic()
            kind, detail = failure_of(patient, EPISODE)
            assert "all 2 worker threads are stuck in calls whose callers gave up" in detail
            assert kind is FailureKind.VERIFIER_UNAVAILABLE and time.monotonic() - started < WAIT_S / 2
            release.set()
            wait_for_health(channel, health_pb2.HealthCheckResponse.SERVING)
            assert asyncio.run(patient.score(EPISODE)).value == 1.0
    finally:
        release.set()
        background().run(server.stop(), WAIT_S)


def test_a_verifier_in_processes_survives_calls_that_backtrack(tmp_path: Path) -> None:
    with ServiceProcess("verifier", f"{TARGETS}:backtrack", tmp_path / "log") as service, grpc.insecure_channel(service.address) as channel:
        patient, late = RemoteVerifier("b", service.address, deadline_s=WAIT_S), RemoteVerifier("b", service.address, deadline_s=2.0)
        assert asyncio.run(patient.score(EPISODE)).value == 1.0

        async def both() -> list[object]:
            hung = [late.score(BACKTRACK) for _ in range(40)]  # more than a server has threads
            return list(await asyncio.gather(*hung, return_exceptions=True))

        kinds = [error.failure.kind for error in asyncio.run(both()) if isinstance(error, EpisodeFailure)]
        assert kinds == [FailureKind.VERIFIER_TIMEOUT] * 40
        wait_for_health(channel, health_pb2.HealthCheckResponse.SERVING)
        assert asyncio.run(patient.score(EPISODE)).value == 1.0
