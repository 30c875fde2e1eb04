"""Reinforcement over several environments: which plays which task, what its episodes are worth, and what is reported of it."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.unit.one_step import make_policy
from tests.unit.test_recorded_steps import OneWorker, scripted

from burnish.envs.types import Task
from burnish.recipe.components import check_components
from burnish.recipe.load import config_from_data
from burnish.recipe.resolve import resolve
from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.worker import BlendedEnvironment, RolloutWorker, WorkerSetup
from burnish.trainer.data.blend import Blend
from burnish.trainer.data.tasks import blended_tasks, training_tasks
from burnish.trainer.phases.rft import RFTPhaseConfig
from burnish.trainer.playing import run_tasks
from burnish.trainer.schedule.metrics import Collected, rollout_metrics

pytestmark = pytest.mark.unit

SUMS = {"environment": "burnish/Arithmetic-v0", "percent": 25.0, "name": "sums"}


def stream(position: int, count: int) -> list[Task]:
    blend = Blend({"own": Fraction(3, 4), "sums": Fraction(1, 4)})
    streams = {"own": partial(training_tasks, (0, 10**9), 1), "sums": partial(training_tasks, (0, 10), 1)}
    return blended_tasks(blend, streams, position, count)


def test_tasks_of_two_environments_follow_each_other_as_the_blend_says() -> None:
    tasks = stream(0, 8)
    assert [task.environment for task in tasks] == ["", "", "", "sums"] * 2
    assert [task.id.partition(":")[0] for task in tasks] == [f"train-{i}" for i in range(8)]
    assert len({task.id for task in tasks}) == 8 and tasks[3].id == f"train-3:sums-{tasks[3].seed}"
    assert stream(5, 3) == tasks[5:], "a position says it all"
    own = [task.seed for task in tasks if not task.environment]
    assert own == [task.seed for task in training_tasks((0, 10**9), 1, 0, 6)], "each stream goes on in its own order"


def test_each_task_is_played_by_its_environment_and_only_its_own_reward_counts_there(tmp_path: Path) -> None:
    """The recipe's environment asks to subtract, and counts its reward against the policy; the other asks to add, and counts it whole."""
    setup = WorkerSetup(
        make_policy(tmp_path / "policy"),
        "burnish/Arithmetic-v0",
        {"operations": ["-"]},
        environment_weight=-1.0,
        rollout=RolloutConfig(max_tokens_per_turn=12, concurrency=16),
        engine=EngineConfig(max_context=128),
        seed=5,
        blended=(BlendedEnvironment("sums", "burnish/Arithmetic-v0", {"operations": ["+"], "max_operand": 3}),),
    )
    worker = RolloutWorker(setup, "engine", engine=ScriptedEngine(scripted, max_context=128))
    try:
        groups = list(run_tasks(OneWorker(worker), stream(0, 8), 4, 1.0))
    finally:
        worker.close()
    asked = {group.task.environment: {episode.messages[0].text for episode in group.episodes} for group in groups}
    assert all("+" in text for text in asked["sums"]) and all("-" in text for text in asked[""])
    totals: dict[str, list[float]] = {"": [], "sums": []}
    for group in groups:
        totals[group.task.environment] += [episode.reward.total for episode in group.episodes if episode.reward]
    assert set(totals[""]) <= {0.0, -1.0} and set(totals["sums"]) <= {0.0, 1.0}
    metrics = rollout_metrics(Collected(tuple(groups[:4]), tuple(groups)), 8, "env", ["sums"])
    assert metrics["blend/sums"] == 0.25 and metrics["blend/own"] == 0.75
    assert metrics["blend_reward/sums"] == pytest.approx(sum(totals["sums"]) / len(totals["sums"])) and metrics["episodes"] == 32
    assert metrics["rewarded"] == len(totals[""]) == 24, "success and reward are of the recipe's own environment, and so is their n"
    assert metrics["reward_mean"] == pytest.approx(sum(totals[""]) / len(totals[""])) == metrics["blend_reward/own"]
    assert metrics["blend_trained/own"] + metrics["blend_trained/sums"] == 1.0
    taught = {"": 0, "sums": 0}
    for group in groups[:4]:
        taught[group.task.environment] += sum(int(t.trainable.sum()) for e in group.episodes for t in e.trajectories)
    assert (metrics["blend_tokens/own"], metrics["blend_tokens/sums"]) == (taught[""], taught["sums"]) and taught["sums"] > 0
    alone = tuple(group for group in groups if not group.task.environment)[:3]
    quiet = rollout_metrics(Collected(alone, alone), 3, "env", ["sums"])
    assert (quiet["blend/own"], quiet["blend_trained/own"], quiet["blend/sums"], quiet["blend_trained/sums"]) == (1.0, 1.0, 0.0, 0.0)
    assert quiet["blend_reward/own"] == quiet["reward_mean"] and "blend_reward/sums" not in quiet


@pytest.mark.parametrize(
    ("blend", "says"),
    [
        ([{**SUMS, "percent": 120.0}], "less than or equal to 100"),
        ([{**SUMS, "percent": 60.0}, {**SUMS, "name": "more", "percent": 60.0}], "sum to 120, more than 100"),
        ([SUMS, SUMS], "two of the environments are called 'sums'"),
        ([{**SUMS, "name": "own"}], "are called 'own'"),
        ([{**SUMS, "environment": "sums"}], "must be|should match|pattern"),
        ([{**SUMS, "percent": 0.00001}], "repeat only after"),
    ],
)
def test_what_cannot_be_blended_is_refused(blend: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RFTPhaseConfig.model_validate({"blend": blend})


def test_a_recipe_brings_its_environments_to_the_workers_and_checks_them(tmp_path: Path) -> None:
    data = {"name": "b", "model": "m", "environment": "burnish/Arithmetic-v0", "rft": {"blend": [SUMS]}}
    run = resolve(config_from_data(data))
    setup = run.worker_setup(tmp_path, {}, 0)
    assert setup.blended == (BlendedEnvironment("sums", "burnish/Arithmetic-v0"),)
    check_components(run)
    wrong = {**SUMS, "environment_args": {"operand": 3}}
    with pytest.raises(ValueError, match=r"rft\.blend\.0\.environment_args\.operand: unknown; did you mean"):
        check_components(resolve(config_from_data({**data, "rft": {"blend": [wrong]}})))
    with pytest.raises(ValueError, match=r"rft\.blend\.0\.environment: environment 'burnish/Nothing-v0'"):
        check_components(resolve(config_from_data({**data, "rft": {"blend": [{**SUMS, "environment": "burnish/Nothing-v0"}]}})))
