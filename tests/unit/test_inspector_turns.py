"""What each turn was given stands beside what was said in it."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from tests.unit.test_inspector_pages import EPISODE, HOSTILE, NAME
from tests.unit.test_inspector_pages import root as root

from burnish.envs.types import Episode, Message, Reward, Task, Turn
from burnish.inspector.pages.app import pages
from burnish.inspector.turns import TurnReward, rewards_by_turn, spoken_in
from burnish.rollout.store.episodes import EpisodeStore
from burnish.rollout.store.moments import Moment

pytestmark = pytest.mark.unit

ASKED, SAID = Message("user", "x"), Message("assistant", "x")
CHAT = [ASKED, SAID, ASKED, SAID, Message("tool", "x"), SAID]
"""The first of the assistant's is the prompt's."""


def test_the_policy_spoke_in_the_last_messages_of_the_assistant() -> None:
    assert [spoken_in(CHAT, turns) for turns in (0, 1, 2, 3, 9)] == [[], [5], [3, 5], [1, 3, 5], [1, 3, 5]]


def test_each_turn_has_what_is_stored_of_it() -> None:
    found: dict[str, Any] = {
        "turns": [{}, {}],
        "env_rewards": [0.5, None],
        "credit": [0.25],
        "turn_parts": {"polite": [1.0, 0.0], "odd": [3]},
    }
    first, second = TurnReward(1, 0.5, 0.25, {"polite": 1.0, "odd": 3}), TurnReward(2, None, None, {"polite": 0.0})
    assert rewards_by_turn(found, CHAT) == {3: first, 5: second}
    nothing: dict[str, Any] = {"turns": None, "env_rewards": None, "credit": None, "turn_parts": {}}
    assert rewards_by_turn(nothing, CHAT) == {} and rewards_by_turn({**nothing, "turns": [{}]}, CHAT) == {5: TurnReward(1)}


def test_the_page_of_an_episode_shows_beside_each_turn_what_it_was_given(root: Path) -> None:
    one = np.array([1], np.int32)
    turns = tuple(Turn(one, np.zeros(1, np.float32), one, "stop", 0.1, 0.1, given) for given in (0.5, -0.125))
    judged = Reward(0.75, {"env": 0.375, HOSTILE: 1.0}, {HOSTILE: (1.0, 0.0)}, (0.25, 0.0625))
    with EpisodeStore(root / NAME.rpartition("/")[2] / "episodes", "nano") as store:
        store.put(Moment("rft", 2, "train", "sampled"), [Episode(Task("train-5", 1), 0, (), tuple(CHAT), judged, turns)])
    with TestClient(pages(root)) as client:
        page = client.get(EPISODE.replace("step=1", "step=2").replace("train-1/0", "train-5/0")).text
        before = client.get(EPISODE).text
    said = [html.unescape(role) for role in re.findall(r'<span class="role">(.*?)</span>', page, re.DOTALL)]
    assert [role.partition(" ")[0] for role in said] == [message.role for message in CHAT] and said[1] == "assistant"
    assert said[3].startswith("assistant · turn 1 · the environment gave 0.5 · <script>") and said[3].endswith(" 1 · 0.25 of the total")
    assert said[5].startswith("assistant · turn 2 · the environment gave -0.125 · ") and said[5].endswith(" 0 · 0.0625 of the total")
    assert "<script>alert" not in page and "<img" not in page and "the environment gave" not in before
