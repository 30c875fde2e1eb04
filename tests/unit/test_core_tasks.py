"""`[tasks]` in a recipe: what contradicts it, what its files must hold, and what the plan says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from burnish.recipe.components import check_components
from burnish.recipe.load import config_data, config_from_data, load_config
from burnish.recipe.resolve import resolve

pytestmark = pytest.mark.unit


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    for name, first in (("train", 0), ("held_out", 10)):
        rows = [{"messages": [{"role": "user", "content": f"question {i}"}]} for i in range(first, first + 3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "held_out")}


def recipe(files: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    base = {"name": "t", "model": "m", "environment": "burnish/SingleTurn-v0", **more}
    return base if files is None else {**base, "tasks": files}


def problems(data: dict[str, Any]) -> str:
    with pytest.raises(ValueError) as caught:
        check_components(resolve(config_from_data(data, "r.toml")))
    return str(caught.value)


def test_a_recipe_on_files_is_accepted_and_survives_its_run_folder(files: dict[str, str], tmp_path: Path) -> None:
    config = config_from_data(recipe(files))
    check_components(resolve(config))
    (tmp_path / "config.json").write_text(json.dumps(config_data(config)))
    assert load_config(tmp_path) == config


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"evaluation": {"seeds": [5, 500]}}, "evaluation.seeds: has no effect with [tasks], whose held_out is what is measured"),
        ({"train_seeds": [0, 5]}, "train_seeds: has no effect with [tasks], whose train is what is trained on"),
        ({"evaluation": {"tasks": 4}}, "evaluation.tasks: 4, but "),
    ],
)
def test_what_contradicts_tasks(files: dict[str, str], more: dict[str, Any], message: str) -> None:
    assert message in problems(recipe(files, **more))


def test_rows_that_an_environment_cannot_ask_are_all_named_before_anything_starts(files: dict[str, str], tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "Where is order 17?"}]
    cases: list[Any] = [[{"track": {"order": [17]}}], [{"track": {"order": 18}}], None, []]
    rows = [{"messages": [{**asked[0], "content": f"order {i}"}], "calls": calls} for i, calls in enumerate(cases)]
    Path(files["train"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path(files["held_out"]).write_text(json.dumps({"messages": asked, "call": []}) + "\n")
    assert problems(recipe(files, environment="burnish/FunctionCalls-v0")).splitlines() == [
        f"{files['train']}:2: calls[0].track must give each parameter a list of the values that are right",
        f"{files['train']}:3: calls must be a list of at most 32 objects, one per call, empty where none is to be made",
        f"{files['held_out']}:1: a task that brings a case of its own, here by its prompt, says in calls what is right: "
        "[] where no call is",
    ]
    check_components(resolve(config_from_data(recipe(files))))  # another environment may mean anything by it


def test_what_is_wrong_with_the_files(files: dict[str, str]) -> None:
    assert problems(recipe({**files, "held_out": files["train"]})) == (
        "r.toml: tasks.held_out: is tasks.train; held-out tasks must never be trained on"
    )
    assert "r.toml: tasks.train: gone.jsonl is not there" in problems(recipe({**files, "train": "gone.jsonl"}))
    assert "r.toml: tasks.train: train.docx: the suffix '.docx' is unknown" in problems(recipe({**files, "train": "train.docx"}))
    assert "tasks.held_out: is required" in problems(recipe({"train": files["train"]}))
    assert "tasks.heldout: unknown key; did you mean 'held_out'?" in problems(recipe({**files, "heldout": "x.jsonl"}))
    Path(files["held_out"]).write_text('{"messages": [{"role": "user", "content": "question 1"}]}\n{"messages": 5}\n')
    assert problems(recipe(files)).splitlines() == [
        f"{files['held_out']}:2: messages: must be a list of messages, at least one",
        f"{files['held_out']}:1: messages: are trained on ({files['train']}:2); held-out tasks must never be",
    ]


def test_the_environment_for_files_needs_files() -> None:
    assert "tasks: burnish/SingleTurn-v0 asks what a file of tasks asks; add [tasks] with train and held_out" in problems(recipe(None))
