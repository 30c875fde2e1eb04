"""The moderation verifier as `burnish serve-verifier` runs it, over a socket, judging whole episodes of its environment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from burnish.envs.builtin.moderation.wording import ruling_text
from burnish.envs.contract import make_env, reset_env
from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.envs.types import Message, Task
from burnish.hosting.process import ServiceProcess
from burnish.rewards.builtin.moderation import moderation
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.types import RewardInput

pytestmark = pytest.mark.integration


def episode(seed: int, answer: str | None = None) -> RewardInput:
    """The case of this seed; without an answer, the right one."""
    messages, info = reset_env(make_env("burnish/ContentModeration-v0"), "moderation", Task("t", seed))
    right = ruling_text(info.data["decision"], info.data["rules"][0])
    return RewardInput(f"e{seed}/0", Task("t", seed), (*messages, Message("assistant", answer or right)), 0.0, data=info.data)


def test_it_judges_over_a_socket_as_in_this_process(tmp_path: Path) -> None:
    target = "burnish.rewards.builtin.moderation:verdict"
    with ServiceProcess("verifier", target, log=tmp_path / "log") as service:
        remote = RemoteVerifier("verdict", service.address, deadline_s=60.0)
        for item in (*map(episode, range(10)), *(episode(seed, "rule 1: remove") for seed in range(10)), episode(3, "hm")):
            assert asyncio.run(remote.score(item)) == moderation(item)
        with pytest.raises(EpisodeFailure, match="must have `decision`") as caught:
            asyncio.run(remote.score(RewardInput("e/0", Task("t", 1), (Message("user", "?"), Message("assistant", "rule 1: allow")), 0.0)))
        assert caught.value.failure.kind is FailureKind.VERIFIER_ERROR
