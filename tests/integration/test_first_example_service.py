"""The first example in processes of its own: its recipe finds its parts, and its verifier is asked over gRPC."""

from __future__ import annotations

import asyncio
import subprocess
import sys
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


def test_the_recipe_finds_its_parts_in_a_fresh_process() -> None:
    code = (
        "from burnish.recipe.components import check_components\n"
        "from burnish import load_config, resolve\n"
        "check_components(resolve(load_config('examples/first/recipe.toml')))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert result.returncode == 0, result.stderr
