"""Which tasks of two moments are the same ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.test_rollout_episodes import episode, stored

from burnish.envs.types import Reward
from burnish.inspector.drift import RunMoment, drift_between
from burnish.inspector.library import Library
from burnish.rollout.store.moments import Moment, Split

pytestmark = pytest.mark.unit


def run_at(home: Path, task: str, split: Split, **config: object) -> None:
    home.mkdir()
    (home / "config.json").write_text(json.dumps({"environment": "a/A-v0", "seed": 1, "train_seeds": [0, 9], **config}))
    one = episode(1, 0, Reward(1.0))
    stored(home / "episodes", replace(one, task=replace(one.task, id=task)), moment=Moment("rft", 1, split, "sampled"))


@pytest.mark.parametrize(
    ("task", "split", "changed", "alike"),
    [
        ("train-3", "train", {}, True),
        ("train-3", "train", {"seed": 2}, False),  # its place in an order that the seed makes
        ("train-3", "train", {"train_seeds": [5, 9]}, False),
        ("train-3:row-7", "train", {"seed": 2}, True),  # a row of a file, by its name
        ("heldout-3", "heldout", {"seed": 2, "train_seeds": [5, 9]}, True),  # by its own seed
        ("heldout-3", "heldout", {"environment": "a/B-v0"}, False),
    ],
)
def test_a_task_of_training_is_the_same_one_in_two_runs_of_one_seed(
    tmp_path: Path, task: str, split: Split, changed: dict[str, object], alike: bool
) -> None:
    runs = {name: tmp_path / name for name in ("a", "b")}
    run_at(runs["a"], task, split)
    run_at(runs["b"], task, split, **changed)
    before, after = (RunMoment(name, Moment("rft", 1, split, "sampled")) for name in runs)
    found = drift_between(before, after, runs, {name: Library(run / "episodes") for name, run in runs.items()})
    assert (len(found.moves), found.alike) == (1, alike)
