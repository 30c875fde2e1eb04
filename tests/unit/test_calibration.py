"""`burnish runs calibration`: how sure stored answers were, from their log-probabilities, against how often they were right, by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.stored_run import recipe, tiny_model
from typer.testing import CliRunner, Result

from burnish.cli.main import app
from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, Message, Outcome, Reward, Task, Trajectory, Turn
from burnish.rollout.store.episodes import EpisodeStore
from burnish.rollout.store.moments import Moment
from burnish.run.folder import create_run

pytestmark = pytest.mark.unit

ASKED = Message("user", "When is order K due?")


def turn_of(chances: Sequence[float]) -> Turn:
    return Turn(np.arange(len(chances), dtype=np.int32), np.log(np.asarray(chances, np.float32)), np.zeros(len(chances), np.int32), "stop")


def episode(task: str, says: str | None, chances: Sequence[float], right: float, sample: int = 0, **more: Any) -> Episode:
    """An attempt that said this in its last turn, whose tokens were sampled with these probabilities after an unlikely turn before it."""
    turns = (turn_of([0.01, 0.02]), turn_of(chances))
    prompt, sampled = 2, np.concatenate([turn.logprobs for turn in turns])
    whole = Trajectory(
        np.arange(prompt + len(sampled), dtype=np.int32),
        np.arange(prompt + len(sampled)) >= prompt,
        np.concatenate([np.zeros(prompt, np.float32), sampled]),
        np.concatenate([np.full(prompt, -1, np.int32), np.zeros(len(sampled), np.int32)]),
    )
    said = (Message("assistant", "Let me look."), Message("user", "Do."), *((Message("assistant", says),) if says is not None else ()))
    outcome: Outcome = Reward(right, {"env": right, "env.half": 0.5})
    return Episode(Task(task, 1), sample, (whole,), (ASKED, *said), more.pop("outcome", outcome), turns=turns, **more)


HELD_OUT = [
    episode("a", "Friday", [0.95, 1.0], 1.0, env_data={"kind": "answerable"}),
    episode("b", "Monday", [0.75, 1.0], 0.0, env_data={"kind": "answerable"}),
    episode("c", "Tuesday, but I can't say more.", [0.5, 0.9], 0.0, env_data={"kind": "missing"}),
    episode("d", "I do not know.", [0.9], 1.0, env_data={"kind": "missing"}),
    episode("e", None, [0.9], 0.0, env_data={"kind": "missing"}),
    episode("f", "Friday", [0.9], 0.0, env_data={}, outcome=Failure(FailureKind.ENV_ERROR, "tests/A-v0", "it broke")),
]
TRAINED = [
    *(episode("a", says, [0.5], right, i) for i, (says, right) in enumerate([("Friday", 1.0), ("friday.", 1.0), ("Monday", 0.0)])),
    *(episode("b", says, [0.5], 0.0, i) for i, says in enumerate(["10", "I do not know", "I don't know, sorry."])),
    episode("c", "20. I am not sure.", [0.5], 0.0, outcome=Reward(0.0, {"env": 0.0})),  # lacks a part that others have, and so has 0 of it
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    made = create_run(recipe(tiny_model(folder / "tiny"), "burnish/Arithmetic-v0"), run_dir=folder / "run")
    with EpisodeStore(made.episodes, made.path.name) as store:
        store.put(Moment("sft", 3, "heldout", "sampled"), HELD_OUT)
        store.put(Moment("rft", 1, "train", "sampled"), TRAINED)
    return made.path


def burnish(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["runs", "calibration", *(str(argument) for argument in arguments)])


def rows(*arguments: str | Path) -> list[dict[str, Any]]:
    found = burnish(*arguments, "--json")
    assert found.exit_code == 0, found.output
    made: list[dict[str, Any]] = json.loads(found.stdout)["rows"]
    return made


def test_the_probability_of_the_last_turn_is_how_sure_an_answer_was(run: Path) -> None:
    # 0.95 right, 0.75 and 0.5 x 0.9 = 0.45 wrong: bins of their own, with gaps of 0.05, 0.75 and 0.45.
    (row,) = rows(run)
    assert (row["phase"], row["step"], row["split"], row["mode"], row["of"]) == ("sft", 3, "heldout", "sampled", "")
    assert (row["answered"], row["abstained"], row["none"]) == (3, 1, 1)
    assert (row["right"], row["sure"]) == (pytest.approx(1 / 3), pytest.approx(2.15 / 3))
    assert row["calibration_error"] == pytest.approx(1.25 / 3)
    curve = [(point["coverage"], point["risk"]) for point in row["risk_coverage"]]
    assert curve == [pytest.approx((1 / 3, 0.0)), pytest.approx((2 / 3, 1 / 2)), pytest.approx((1.0, 2 / 3))]


def test_with_one_bin_it_is_the_gap_of_the_means(run: Path) -> None:
    (row,) = rows(run, "--bins", "1")
    assert row["calibration_error"] == pytest.approx(2.15 / 3 - 1 / 3)


def test_the_mean_probability_of_the_tokens_is_another_measure(run: Path) -> None:
    (row,) = rows(run, "--confidence", "token")
    assert row["sure"] == pytest.approx((0.975 + 0.875 + 0.7) / 3)


def test_answers_are_told_apart_by_what_the_task_knows(run: Path) -> None:
    known, missing = rows(run, "--by", "kind")
    assert [known[name] for name in ("of", "answered", "abstained", "none", "right")] == ["answerable", 2, 0, 0, 0.5]
    assert [missing[name] for name in ("of", "answered", "abstained", "none", "right")] == ["missing", 1, 1, 1, 0.0]


def test_agreement_is_of_a_tasks_attempts(run: Path) -> None:
    # "Friday" in 2 of 3 attempts, right; "I do not know" in 2 of 3; a guess with a hedge in 1 of 1, wrong.
    (row,) = rows(run, "--split", "train", "--confidence", "agreement")
    assert (row["answered"], row["abstained"], row["none"], row["right"]) == (2, 1, 0, 0.5)
    assert row["sure"] == pytest.approx((2 / 3 + 1) / 2)
    assert [(point["coverage"], point["risk"]) for point in row["risk_coverage"]] == [(0.5, 1.0), (1.0, 0.5)]


def test_what_is_no_log_probability_is_refused_in_a_line(tmp_path: Path) -> None:
    made = create_run(recipe(tiny_model(tmp_path / "tiny"), "burnish/Arithmetic-v0"), run_dir=tmp_path / "run")
    with EpisodeStore(made.episodes, made.path.name) as store, np.errstate(divide="ignore"):
        for i, chance in enumerate([2.0, np.nan, np.inf, 0.0, 1.001]):
            store.put(Moment(f"p{i}", 1, "heldout", "sampled"), [episode("a", "Friday", [chance], 1.0)])
    for i, value in enumerate(["0.69", "nan", "inf", "-inf"]):
        found = burnish(made.path, "--phase", f"p{i}")
        assert found.exit_code == 2 and f"sampler_logprobs has {value}" in found.stderr and "parquet: episode 'a/0': " in found.stderr, (
            found.stderr
        )
    (rounded,) = rows(made.path, "--phase", "p4")
    assert rounded["sure"] == 1.0


def test_what_the_terminal_says(run: Path) -> None:
    lines = [" ".join(line.split()) for line in burnish(run).output.splitlines()]
    assert lines == [
        "phase step mode answered abstained no answer right sure error risk at 25% risk at 50% risk at 75% risk at 100%",
        "sft 3 sampled 3 1 1 33.3% 71.7% 41.7% 0.0% 50.0% 66.7% 66.7%",
    ]
    _, nothing = burnish(run, "--by", "kind", "--part", "env.half").output.splitlines()[:2]
    assert nothing.split()[:4] == ["sft", "3", "sampled", "answerable"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--part", "correct"], "none of these episodes has a part 'correct' of the reward; there are env, env.half"),
        (["--by", "level"], "the task's data has no field 'level'; there are kind"),
        (["--confidence", "agreement"], "none of these tasks was attempted more than once"),
        (["--phase", "cpt"], "has no such episodes; stored are rft up to step 1, sft up to step 3"),
        (["--bins", "0"], "--bins"),
    ],
)
def test_what_cannot_be_said_is_refused_in_a_line(run: Path, arguments: list[str], said: str) -> None:
    found = burnish(run, *arguments)
    assert found.exit_code == 2 and said in found.stderr, found.stderr
