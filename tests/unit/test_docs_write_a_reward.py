"""The page "write a reward": what it says to paste works, and its examples do what it says."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from burnish.envs.types import Message, Task
from burnish.rewards.config import RewardConfig
from burnish.rewards.plugin import REWARDS, make_group_scorer, make_scorer
from burnish.rewards.types import RewardInput

pytestmark = pytest.mark.unit

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "write-a-reward.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_what_it_says_to_paste_works(tmp_path: Path) -> None:
    commands, shown = blocks("")[:2]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(shown)
    assert "my-team/answer-v1: passed" in result.stdout


def test_its_tables_are_recipes() -> None:
    entries = [RewardConfig(**entry) for text in blocks("toml") for entry in tomllib.loads(text).get("rewards", [])]
    assert [entry.name for entry in entries] == ["answer", "limits", "cheapest", "inspection-cost"]


async def test_its_examples_give_what_it_says() -> None:
    async def ask_the_judge(texts: list[str]) -> list[str]:
        return ["1" if text == "7" else "maybe" for text in texts]

    names: dict[str, Any] = {"ask_the_judge": ask_the_judge, "__name__": "page"}
    before = set(REWARDS._loaded)
    try:
        for text in blocks("python"):
            exec(compile(text, "write-a-reward.md", "exec", dont_inherit=True), names)
        episodes = [
            RewardInput(f"t/{i}", Task("t", 1), (Message("user", "?"), Message("assistant", said)), 0.0, metrics={"cost": float(i)})
            for i, said in enumerate(["7", "seven"])
        ]
        assert [one.value for one in await make_group_scorer("my-team/cheapest-v1").score_group(episodes)] == [1.0, 0.0]  # type: ignore[union-attr]
        assert (await make_scorer("my-team/short-turns-v1").score(episodes[1])).turns == (-0.005,)
        judged = make_scorer("my-team/judged-v1")
        right, unclear = await asyncio.gather(*(judged.score(one) for one in episodes), return_exceptions=True)
        assert getattr(right, "value", None) == 1.0
        assert "the judge said 'maybe'" in str(unclear)
        assert (await make_scorer("my-team/limits-v1", params={"limit": 2}).score(episodes[1])).value == 0.0
    finally:
        for id in set(REWARDS._loaded) - before:
            REWARDS._loaded.pop(id)
            REWARDS._sources.pop(id)
