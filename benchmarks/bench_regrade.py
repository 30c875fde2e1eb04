"""How long grading stored episodes again takes: `pytest benchmarks/bench_regrade.py -m slow -s`.

10,000 episodes of eight messages each, in groups of eight, under a reward written in Python, with reading and comparing them.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from burnish.envs.types import Episode, Message, Reward, Task
from burnish.inspector.regrade import compared, regrade
from burnish.inspector.stored import Which, stored_episodes
from burnish.rewards.build import make_rubric
from burnish.rewards.config import RewardConfig
from burnish.rewards.plugin import reward
from burnish.rewards.types import RewardInput
from burnish.rollout.store.episodes import EpisodeStore
from burnish.rollout.store.moments import Moment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EPISODES, GROUP, STEPS = 10_000, 8, 25
BAR_S = 10.0


def short_answers(episode: RewardInput) -> float:
    said = episode.answer or ""
    return 1.0 - len(said) / 100 + 0.01 * sum(word in episode.data["answer"] for word in said.split())


def write(folder: Path) -> None:
    turn = "the part on the bench measures 12.03 against a limit of 12.00 to 12.05, so it passes; "
    with EpisodeStore(folder, "bench") as store:
        for step in range(STEPS):
            store.put(Moment("rft", step, "train", "sampled"), [_episode(turn, step, i) for i in range(EPISODES // STEPS)])


def _episode(turn: str, step: int, i: int) -> Episode:
    task = Task(f"train-{step}-{i // GROUP}", i, data={"answer": "within"})
    said = [Message("user" if k % 2 == 0 else "assistant", turn * 3) for k in range(7)]
    return Episode(task, i % GROUP, (), (*said, Message("assistant", "within " * (i % 9))), Reward(i % 5 / 4, {"env": i % 5 / 4}))


def test_ten_thousand_episodes_are_graded_in_under_ten_seconds(tmp_path: Path) -> None:
    write(tmp_path)
    reward("bench/short-answers-v1")(short_answers)
    started = time.perf_counter()
    episodes = list(stored_episodes(tmp_path, Which()))
    read = time.perf_counter()
    rubric = make_rubric([RewardConfig(use="bench/short-answers-v1")], 0.0, 0)
    graded, left_out = regrade(episodes, lambda _: rubric)
    scored = time.perf_counter()
    found = compared(graded, left_out)
    ended = time.perf_counter()
    print(f"\n{found.episodes:,} episodes: read {read - started:.2f} s, scored {scored - read:.2f} s, compared {ended - scored:.2f} s")
    assert (found.episodes, found.failed) == (EPISODES, 0)
    assert ended - started < BAR_S
