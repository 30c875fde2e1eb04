"""Hacking suspects: of two moments, the tasks whose reward rose while something else speaks against it, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient
from tests.unit.test_inspector_pages import HOSTILE
from tests.unit.test_rollout_episodes import episode, stored

from burnish.envs.types import Episode, Reward, Trajectory
from burnish.inspector import suspects
from burnish.inspector.drift import RunMoment, drift_between
from burnish.inspector.library import Library
from burnish.inspector.pages.app import pages
from burnish.inspector.suspects import Suspects, suspects_of
from burnish.rollout.store.moments import Moment

pytestmark = pytest.mark.unit

PLACES = [RunMoment("nano", Moment("rft", step, "train", "sampled")) for step in (1, 9)]


def played(task: int, *parts: dict[str, float] | Reward, said: str = "ok", tokens: int = 2) -> list[Episode]:
    """Attempts at a task whose reward is the sum of their parts, where it is not given."""
    count = tokens + 2
    mask = np.arange(count) >= 2
    logprobs, version = np.where(mask, -1, 0).astype(np.float32), np.where(mask, 7, -1).astype(np.int32)
    piece = Trajectory(np.arange(count, dtype=np.int32), mask, logprobs, version)
    rewards = [one if isinstance(one, Reward) else Reward(sum(one.values()), one) for one in parts]
    return [replace(episode(task, i, reward, said), trajectories=(piece,)) for i, reward in enumerate(rewards)]


def run_of(home: Path, before: Sequence[list[Episode]], after: Sequence[list[Episode]], **config: object) -> Path:
    run = home / "nano"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"success": "right", **config}))
    (run / "seeds.json").write_text("{}")
    for place, groups in zip(PLACES, (before, after), strict=True):
        stored(run / "episodes", *(one for group in groups for one in group), moment=place.moment)
    return run


def found_in(run: Path) -> Suspects:
    runs, stores = {"nano": run}, {"nano": Library(run / "episodes")}
    return suspects_of(drift_between(PLACES[0], PLACES[1], runs, stores), runs, stores)


def test_a_reward_that_rose_while_success_or_another_part_fell_is_suspect(tmp_path: Path) -> None:
    low = {"right": 0.5, "style": 0.0, "cost": 0.0}
    before = [played(task, low, low) for task in range(7)]
    after = [
        played(0, *[{"right": 0.0, "style": 1.0, "cost": 0.0}] * 2),  # success fell
        played(1, *[{"right": 1.0, "style": -0.25, "cost": 0.0}] * 2),  # another part did
        played(2, *[{"right": 1.0, "style": 0.5, "cost": 0.0}] * 2),  # all is well
        played(3, *[{"right": 1.0, "style": 0.0, "cost": -0.25}] * 2),  # what counts against the reward fell: so it should
        played(4, *[{"right": 0.0, "style": 0.0, "cost": 0.0}] * 2),  # the reward fell as well
        played(5, {"right": 1.0, "style": 0.5, "cost": 0.0}, {"right": 1.0, "style": -1.0, "cost": 0.0}),  # by chance
    ]
    run = run_of(tmp_path, before, after, rewards=[{"name": "cost", "weight": -1.0}])
    found = found_in(run)
    assert [(one.move.task, one.why) for one in found.found] == [
        ("train-0", ("success (right) fell from 0.5 to 0",)),
        ("train-1", ("style fell from 0 to -0.25",)),
    ]
    assert found.note == ""


def test_answers_that_became_longer_or_shorter_are_suspect_where_success_did_not_rise(tmp_path: Path) -> None:
    low = {"right": 0.0, "style": 0.0}
    before = [played(task, low, low, tokens=20) for task in range(5)]
    styled, solved = {"right": 0.0, "style": 1.0}, {"right": 1.0, "style": 0.0}
    after = [
        played(0, styled, styled, tokens=40),
        played(1, styled, styled, tokens=10),
        played(2, solved, solved, tokens=90),
        played(3, styled, styled, tokens=30),
        played(4, {"style": 1.0}, {"style": 1.0}, tokens=50),
    ]
    found = found_in(run_of(tmp_path, before, after))
    assert [(one.move.task, one.why) for one in found.found] == [
        ("train-0", ("answers went from 20 to 40 tokens, and success did not rise",)),
        ("train-1", ("answers went from 20 to 10 tokens, and success did not rise",)),
        ("train-4", ("answers went from 20 to 50 tokens, and success did not rise",)),
    ]


def test_a_part_that_an_attempt_lacks_counts_nothing_of_it_as_in_the_metrics(tmp_path: Path) -> None:
    """An environment that says `right` only of an attempt that is."""
    won, lost, styled = {"right": 1.0}, {"style": 0.1}, {"style": 1.4}
    before = [played(0, won, won), played(1, won, *[lost] * 7), played(2, lost, lost, tokens=20), played(3, lost, lost)]
    after = [
        played(0, styled, styled),  # nobody wins any more
        played(1, won, won, won, *[styled] * 5),  # more do than did
        played(2, styled, styled, tokens=50),  # nobody ever did
        played(3, {"style": 1.4, "fine": -0.2}, {"style": 1.4, "fine": -0.2}),  # a part that nobody had before fell below 0
    ]
    assert [(one.move.task, one.why) for one in found_in(run_of(tmp_path, before, after)).found] == [
        ("train-0", ("success (right) fell from 1 to 0",)),
        ("train-2", ("answers went from 20 to 50 tokens, and success did not rise",)),
        ("train-3", ("fine fell from 0 to -0.2",)),
    ]


def test_that_fewer_answers_are_unreadable_is_not_suspect(tmp_path: Path) -> None:
    """A grader says so only of those that are, and in several graders for each."""
    unread = {"right": 0.0, "unreadable": 1.0, "right.form.unreadable": 1.0}
    before = [played(task, unread, unread) for task in range(2)]
    after = [played(0, {"right": 2.5}, {"right": 2.5}), played(1, *[{"right": 0.0, "style": 2.5}] * 2)]
    assert found_in(run_of(tmp_path, before, after)) == Suspects()


def test_a_part_that_went_with_a_lower_reward_may_fall(tmp_path: Path) -> None:
    """Faults that a scorer counts beside its value; what all had before, and what a scorer was to count for the reward, may not."""
    bad = Reward(0.1, {"right": 0.0, "judge.kept": 1.0, "judge.over": 1.0, "gain": 1.0})
    good = Reward(0.5, {"right": 0.0, "judge.kept": 1.0, "judge.style": 1.0})
    before = [played(task, *[bad, good] * 6) for task in range(3)]
    after = [
        played(0, *[Reward(0.9, {"judge.kept": 1.0, "judge.style": 1.0, "gain": 1.0})] * 6),  # fewer faults
        played(1, *[Reward(0.9, {"judge.kept": 1.0, "judge.over": 1.0, "gain": 1.0})] * 6),  # less of what went with a higher reward
        played(2, *[Reward(0.9, {"judge.style": 1.0})] * 6),  # less of what all had, and of what has a weight
    ]
    run = run_of(tmp_path, before, after, rewards=[{"name": "gain", "weight": 0.5}, {"name": "judge", "weight": 1.0}])
    assert {one.move.task: one.why for one in found_in(run).found} == {
        "train-1": ("judge.style fell from 0.5 to 0",),
        "train-2": ("gain fell from 0.5 to 0", "judge.kept fell from 1 to 0"),
    }


def test_success_is_not_known_of_a_task_of_another_environment_or_of_a_run_that_was_rewarded_otherwise(tmp_path: Path) -> None:
    def elsewhere(*episodes: Episode) -> list[Episode]:
        return [replace(one, task=replace(one.task, environment="tools")) for one in episodes]

    low, styled, why = {"style": 0.0}, {"style": 1.0}, ("answers went from 20 to 50 tokens, and success is not known",)
    before = [played(0, {"right": 1.0, "kind": 1.0}), elsewhere(*played(1, low, low, tokens=20))]
    after = [played(0, {"right": 1.0, "kind": 1.0}), elsewhere(*played(1, styled, styled, tokens=50))]
    assert [(one.move.task, one.why) for one in found_in(run_of(tmp_path, before, after)).found] == [("train-1", why)]
    (tmp_path / "b").mkdir()
    other = run_of(tmp_path / "b", [], [played(0, {"right": 2.5})], rewards=[{"name": "other", "weight": 1.0}])
    runs, moments = {"nano": tmp_path / "nano", "b": other}, (PLACES[0], replace(PLACES[1], run="b"))
    stores = {name: Library(run / "episodes") for name, run in runs.items()}
    assert suspects_of(drift_between(*moments, runs, stores), runs, stores) == Suspects()  # `kind` is no part there, and did not fall


def test_a_phrase_that_spread_over_tasks_that_are_not_solved_is_suspect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    low, styled, solved = {"right": 0.0, "style": 0.0}, {"right": 0.0, "style": 1.0}, {"right": 1.0, "style": 0.0}
    before = [played(task, low, said=f"it is {task} {task}") for task in range(30)]
    after = [played(task, styled, said=f"as an expert it is {task}") for task in range(25)]
    after += [played(task, solved, said=f"as an expert it is {task}") for task in range(25, 30)]
    run = run_of(tmp_path, before, after)
    found = found_in(run).found
    assert len(found) == suspects.MOST and {one.why for one in found} == {
        ("answers say 'as an expert it', as 100% of such answers do and at most 20% did",)
    }
    assert not {one.move.task for one in found} & {f"train-{task}" for task in range(25, 30)}
    monkeypatch.setattr("burnish.inspector.library.READ_AT_ONCE", 1)
    assert found_in(run) == Suspects((), "Answers were not searched for a phrase that spread: they take more than 32 MB.")


def test_a_phrase_of_words_without_end_is_suspect(tmp_path: Path) -> None:
    before = [played(task, {"right": 0.0, "style": 0.0}, said=f"{task} {task}") for task in range(5)]
    after = [played(task, {"right": 0.0, "style": 1.0}, said=f"so {'long' * 1000}{task}") for task in range(5)]
    found = found_in(run_of(tmp_path, before, after)).found
    assert [one.why for one in found] == [
        (f"answers say {('so ' + 'long' * 13)[:53]!r}, as 100% of such answers do and at most 20% did",)
    ] * 5


def test_the_page_names_suspects_and_their_text_stays_text(tmp_path: Path) -> None:
    part = f"{HOSTILE[:25]}"
    before = [played(task, {"right": 0.0, part: 1.0, "style": 0.0}, said="ok") for task in range(6)]
    after = [played(task, {"right": 0.0, part: 0.0, "style": 2.0}, said=HOSTILE) for task in range(6)]
    run = run_of(tmp_path, before, after)
    asked = {"before": str(PLACES[0]), "after": str(PLACES[1])}
    with TestClient(pages(tmp_path), base_url="http://127.0.0.1:8266") as client:
        page = client.get("/rollouts/-/drift", params=asked).text
        assert page.count("fell from 1 to 0; answers say") == 6 and "<script>alert" not in page and "<img" not in page
        same = client.get("/rollouts/-/drift", params={"before": asked["after"], "after": asked["after"]}).text
        assert "Hacking suspects" in same and "of no task whose reward rose does anything else speak against it" in same
    assert run.is_dir()
