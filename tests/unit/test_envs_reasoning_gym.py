"""`burnish/ReasoningGym-v0` over a stand-in of the package's two functions, and over the package itself where it is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.unit.test_core_plan import recipe

from burnish.envs.builtin import reasoning_gym as module
from burnish.envs.builtin.reasoning_gym import ID, LONGEST, REFUSED, SYSTEM, answer_in
from burnish.envs.checks.environment import check_environment, render
from burnish.envs.contract import make_env, reset_env, step_env
from burnish.envs.types import Task
from burnish.recipe.components import check_components
from burnish.trainer.evaluation.suites.finding import find_suite

pytestmark = pytest.mark.unit


FAULTS = {
    "[]": TypeError("list indices must be integers"),
    "{}": KeyError(0),
    "[[": RecursionError("maximum recursion depth exceeded"),
    "1e999": OverflowError("cannot convert float infinity to integer"),
}
"""What scorers of the package raise, by what was answered."""


class Sums:
    """As a set of the package is: one entry, and a scorer that gives part of the marks for an answer with words around it."""

    def __init__(self, seed: int, size: int, most: int = 10) -> None:
        assert size == 1
        if most < 1:
            raise AssertionError("most must be positive")
        self.entry = {"question": f"What is {seed % most} + 1?", "answer": str(seed % most + 1), "metadata": {}}

    def __getitem__(self, index: int) -> dict[str, Any]:
        assert index == 0
        return self.entry

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        assert entry is self.entry and answer is not None
        if answer in FAULTS:
            raise FAULTS[answer]
        if answer == "nan":
            return float(answer)
        return 1.0 if int(answer) == int(entry["answer"]) else 0.01


def create_dataset(name: str, **config: Any) -> Sums:
    if name != "sums":
        raise ValueError(f"Dataset '{name}' not registered")
    return Sums(**config)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    stand_in = ModuleType("reasoning_gym")
    stand_in.create_dataset = create_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reasoning_gym", stand_in)
    monkeypatch.setattr(module, "version", lambda name: module.VERSION)
    yield


def play(seed: int, answer: str, **kwargs: Any) -> Any:
    env = make_env(ID, dataset="sums", **kwargs)
    messages, info = reset_env(env, ID, Task("t", seed))
    assert [one.role for one in messages] == ["system", "user"] and messages[0].text == SYSTEM
    return messages[1].text, info.data["reference_answer"], step_env(env, ID, answer)


@pytest.mark.usefixtures("package")
def test_a_question_is_that_of_its_seed_and_scored_by_its_set() -> None:
    asked, answer, step = play(7, "7 + 1 is <answer>9</answer>, no, <answer> 8\n</answer>")
    assert (asked, answer, step.reward, step.terminated) == ("What is 7 + 1?", "8", 1.0, True)
    assert step.info.reward_parts == {"score": 1.0, "unreadable": 0.0}
    assert play(2**32 + 3, "4")[::2][0] == "What is 3 + 1?", "seeds go round at 32 bits"
    assert play(3, "4", config={"most": 2})[0] == "What is 1 + 1?"
    assert play(7, "9")[2].reward == 0.01, "what a set gives is what it is worth"


@pytest.mark.usefixtures("package")
def test_an_answer_that_the_scorer_cannot_read_is_worth_nothing_and_said() -> None:
    for answer in ("eight", *FAULTS):
        step = play(7, answer)[2]
        assert (step.reward, step.info.reward_parts) == (0.0, {"score": 0.0, "unreadable": 1.0})
    assert play(7, "nan")[2].info.reward_parts == {"score": 0.0, "unreadable": 0.0}, "a score that is no number is none"


@pytest.mark.usefixtures("package")
def test_an_answer_of_any_length_is_not_scored() -> None:
    assert play(7, "8".rjust(LONGEST, "0"))[2].reward == 1.0
    step = play(7, "8".rjust(LONGEST + 1, "0"))[2]
    assert (step.reward, step.info.reward_parts) == (0.0, {"score": 0.0, "unreadable": 1.0})


@pytest.mark.usefixtures("package")
def test_it_keeps_the_contract() -> None:
    report = check_environment(ID, {"dataset": "sums"}, replies=["8", "<answer>3</answer>"], other_process=False)
    assert report.passed, render(report)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("kwargs", "problem"),
    [
        ({"dataset": "products"}, "dataset 'products' cannot be made: Dataset 'products' not registered"),
        ({"dataset": "sums", "config": {"most": 0}}, "cannot be made: most must be positive"),
        ({"dataset": "sums", "config": {"least": 0}}, "cannot be made: .*unexpected keyword argument 'least'"),
        ({"dataset": "sums", "config": {"seed": 1}}, "config.seed is the task's; remove it"),
        ({"dataset": "countdown"}, "countdown is not offered: its scorer would run what the policy writes as a program"),
        ({"dataset": "coin_flip"}, "coin_flip is not offered: its scorer takes hours, or more memory than there is, for a few letters"),
        ({"dataset": "propositional_logic"}, "is not offered: its scorer takes hours"),
        ({"dataset": "rubiks_cube"}, "is not offered: its scorer takes hours"),
        ({"dataset": "rush_hour"}, "is not offered: its scorer takes hours"),
        ({"dataset": "complex_arithmetic"}, "complex_arithmetic is not offered: its scorer takes nan for a right answer"),
        ({"dataset": "number_sorting"}, "number_sorting is not offered: its scorer takes nan for a right answer"),
        ({"dataset": "game_of_life_halting"}, "its scorer takes any answer for a right one"),
        ({"dataset": ["sums"]}, "dataset must be the name of a set, not list"),
    ],
)
def test_what_cannot_be_asked_is_refused(kwargs: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make_env(ID, **kwargs)


def test_a_recipe_is_refused_in_a_line_where_the_package_is_absent_or_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", absent)
    run = recipe(tmp_path, environment=ID, environment_args={"dataset": "sums"})
    with pytest.raises(
        ValueError, match=rf"environment_args: {ID}: reasoning-gym is not installed here: pip install reasoning-gym==0\.1\.25"
    ):
        check_components(run)
    monkeypatch.setattr(module, "version", lambda name: "0.2")
    with pytest.raises(ValueError, match=r"needs reasoning-gym 0\.1\.25, whose scorers are known, and 0.2 is installed"):
        check_components(run)


@pytest.mark.usefixtures("package")
def test_a_suite_names_its_set_and_seeds(tmp_path: Path) -> None:
    file = tmp_path / "sums.toml"
    file.write_text(f'id = "a/sums-v1"\nabout = "Sums."\nenvironment = "{ID}"\nenvironment_args = {{ dataset = "sums" }}\nseeds = [5, 9]\n')
    suite = find_suite(str(file))
    assert suite.tasks is not None and suite.success == "env"
    assert [task.seed for task in suite.tasks(100)] == [5, 6, 7, 8]


def test_the_answer_is_between_the_last_tags_or_all() -> None:
    assert (answer_in(" 8 \n"), answer_in("<answer>8"), answer_in("<answer></answer>")) == ("8", "<answer>8", "")


def test_the_sets_of_the_real_package_are_asked_and_score_their_own_answers() -> None:
    try:
        module._check_package()
    except ValueError as error:
        pytest.skip(str(error))
    from reasoning_gym.factory import DATASETS

    assert set(DATASETS) > set(REFUSED)
    for name in ("chain_sum", "leg_counting", "number_sequence", "prime_factorization"):
        env = make_env(ID, dataset=name)
        _, info = reset_env(env, ID, Task("t", 1_900_000_000))
        answer = info.data["reference_answer"]
        assert step_env(env, ID, f"I say <answer>{answer}</answer>").reward == 1.0
        reset_env(env, ID, Task("t", 1_900_000_000))
        assert step_env(env, ID, "no idea").reward < 0.1
