"""The example that stands behind Ray Serve's own gRPC ingress: unary calls that the same client makes by itself."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from burnish.envs.failures import EpisodeFailure
from burnish.envs.types import Message, Task
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.types import RewardInput

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 180.0


@pytest.fixture
def ingress() -> Iterator[str]:
    """The address at which the example serves. Ctrl-C ends it in order."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "examples.verifier.ray_serve", str(port)]
    env = {**os.environ, "VERIFIER_TOKEN": "s3cret"}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            assert select.select([process.stdout], [], [], WAIT_S)[0], f"the example said nothing for {WAIT_S} s"
            assert f"127.0.0.1:{port}" in process.stdout.readline()
            yield f"127.0.0.1:{port}"
            process.send_signal(signal.SIGINT)
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()


def episode(number: int) -> RewardInput:
    messages = (Message("user", "How many?"), Message("assistant", f"I counted.\n{number}"))
    return RewardInput(f"t-{number}/0", Task(f"t-{number}", number), messages, 0.0, data={"answer": 7})


def test_verdicts_come_through_serves_proxy_by_unary_calls(ingress: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERIFIER_TOKEN", "s3cret")
    remote = RemoteVerifier("short-answer", f"{ingress}?token_env=VERIFIER_TOKEN", deadline_s=60.0)

    async def judge() -> list[float]:
        return [score.value for score in await asyncio.gather(*(remote.score(episode(number)) for number in range(16)))]

    assert asyncio.run(asyncio.wait_for(judge(), WAIT_S)) == [float(number == 7) for number in range(16)]
    with pytest.raises(EpisodeFailure, match="the token is wrong"):
        asyncio.run(RemoteVerifier("short-answer", ingress, deadline_s=60.0).score(episode(7)))
