"""The first example's verifier in a process of its own, asked over gRPC."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from burnish.envs.types import Message, Task
from burnish.hosting.process import ServiceProcess
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.types import RewardInput, Score

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


def test_the_served_verifier_judges_an_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    messages = (Message("user", "Can we ship 2 bolts?"), Message("assistant", "No."))
    episode = RewardInput("t/0", Task("t", 3), messages, 0.0, {}, {"tool_calls": 1.0}, {"answer": "yes"})
    with ServiceProcess("verifier", "examples.first.orders:shipped", tmp_path / "shipped.log") as service:
        score = asyncio.run(RemoteVerifier("shipped", service.address).score(episode))
    assert score == Score(0.0, {}, {"expected": "yes", "predicted": "no"})
