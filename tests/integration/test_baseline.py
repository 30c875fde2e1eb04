"""PPO below the text, for real: it learns, beats chance on held-out seeds, and its demonstrations are SFT data."""

from __future__ import annotations

from pathlib import Path

import pytest

from burnish.cli.baseline import BaselinePlan, run_baseline
from burnish.trainer.data.sources import read_conversations

pytestmark = pytest.mark.integration


def test_ppo_learns_to_balance_and_shows_how(tmp_path: Path) -> None:
    said: list[str] = []
    plan = BaselinePlan(iterations=3, tasks=20, out=tmp_path / "demos.jsonl", demonstrations=4, threshold=30.0)
    chance, agent = run_baseline("burnish/CartPole-v0", {"max_turns": 50}, plan, said.append)
    assert [line.split("  ")[0] for line in said[:3]] == ["iteration 1/3", "iteration 2/3", "iteration 3/3"]
    assert agent.return_interval[0] > chance.return_interval[1]
    assert said[-1].startswith(f"{plan.out}: 4 demonstrations with a return of 30 or more, of ")
    talks = list(read_conversations(tmp_path / "demos.jsonl"))
    assert len(talks) == 4
    for talk in talks:
        replies = [message.text for message in talk.messages if message.role == "assistant"]
        assert 30 <= len(replies) <= 50 and set(replies) <= {"left", "right"}
        assert "pole angle (rad): " in talk.messages[0].text
