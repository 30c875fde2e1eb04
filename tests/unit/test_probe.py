"""What a probe does with the parts of a recipe, without Ray and engines: the one update that it makes, and whose success it asks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tests.unit.one_step import make_policy, played

from burnish.envs.types import Episode, EpisodeGroup, Reward, Task
from burnish.recipe.load import config_from_data
from burnish.recipe.plan import START_S, PhasePlan
from burnish.recipe.resolve import ResolvedRun, resolve
from burnish.run.probe import _learned_from, _play, _recipe_seconds, _update
from burnish.session import Session
from burnish.trainer.evaluation.statistics import SuccessWatch
from burnish.trainer.evaluation.step_cost import Update
from burnish.trainer.loop import PolicyLoop
from burnish.trainer.phases.rft import RFTPhaseConfig

pytestmark = pytest.mark.unit


def recipe(**rft: Any) -> ResolvedRun:
    return resolve(config_from_data({"name": "p", "model": "m", "environment": "burnish/Arithmetic-v0", "rft": rft}))


def session(run: ResolvedRun, **parts: Any) -> Session:
    return Session(run, Path("m"), {}, SimpleNamespace(**parts))


@pytest.mark.parametrize("asked", [{"algorithm": "ppo"}, {"algorithm": "ppo", "critic": {"warmup_updates": 3}}, {"algorithm": "grpo"}])
def test_a_probe_makes_the_update_that_the_recipe_would(asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = recipe(**asked, lr=1e-3, groups_per_step=2, group_size=4, minibatches=1)
    table = run.rft
    assert table is not None
    loop, step = played(make_policy(tmp_path / "policy"), table)
    monkeypatch.setattr(PolicyLoop, "sync", lambda self: [])
    learner: Any = loop.learner
    probed, before, weights = session(run, loop=loop, learner_group=learner), learner.version, learner.weights()
    update = _update(probed, table, [_learned_from(probed, group) for group in step.collected.sampled])
    assert update is not None and (update.groups, learner.version) == (len(step.collected.groups), before + 1)
    assert any(not np.array_equal(tensor, weights[name]) for name, tensor in learner.weights().items()), "all that a step does was timed"
    assert update.tokens > 0 and min(update.score_s, update.pass_s, update.step_s) > 0


class Played:
    """A fleet whose episodes have the reward parts of their environment; `submitted` counts what was asked of it."""

    def __init__(self) -> None:
        self.submitted, self.finished = 0, list[EpisodeGroup]()

    def submit(self, tasks: Sequence[Task], group_size: int, temperature: float) -> None:
        self.submitted += len(tasks)
        for task in tasks:
            reward = Reward(1.0, {"env": 1.0, **({} if task.environment else {"verdict": 0.5})})
            episodes = tuple(Episode(task, sample, (), (), reward, engine="e") for sample in range(group_size))
            self.finished.append(EpisodeGroup(task, episodes))

    def poll(self) -> list[EpisodeGroup]:
        found, self.finished = self.finished, []
        return found

    def stop(self) -> None: ...


def play(others: int, tasks: int = 8) -> tuple[Any, Played]:
    """A probe whose first `others` tasks are of a blended environment, which has no such part as the recipe calls success."""
    run = resolve(
        config_from_data(
            {
                "name": "p", "model": "m", "environment": "burnish/Arithmetic-v0", "success": "verdict",
                "rewards": [{"use": "burnish/length-v0", "name": "verdict"}],
                "rft": {"group_size": 8},
            }
        )
    )  # fmt: skip
    table = run.rft
    assert isinstance(table, RFTPhaseConfig)

    def stream(position: int, count: int) -> list[Task]:
        return [Task(f"train-{n}", n, environment="sums" if n < others else "") for n in range(position, position + count)]

    fleet = Played()
    probed = session(run, loop=SimpleNamespace(stream=stream), fleet=fleet)
    return _play(probed, table, 8 * tasks, Console(file=io.StringIO())), fleet


def test_a_probe_asks_success_of_the_recipes_own_environment_alone() -> None:
    found, _ = play(others=SuccessWatch.LOOKED_AT // 8)
    assert [group.task.environment for group in found.groups] == ["sums"] * 4 + [""] * 4


def test_a_probe_that_would_play_nothing_of_its_own_environment_says_so_first() -> None:
    with pytest.raises(ValueError, match=r"none of the first 8 tasks is of the recipe's own environment.*raise --episodes"):
        play(others=100)


def test_a_probe_counts_all_that_a_plan_has() -> None:
    """Two phases of reinforcement at the measured pace, the second with a time of its own; a supervised one and retention as planned."""
    run = resolve(
        config_from_data(
            {
                "name": "p", "model": "m", "environment": "burnish/Arithmetic-v0",
                "phases": [
                    {"kind": "rft", "steps": 10, "groups_per_step": 2, "group_size": 4},
                    {"kind": "rft", "name": "late", "steps": 10, "groups_per_step": 2, "group_size": 4, "max_minutes": 0.25},
                ],
            }
        )
    )  # fmt: skip
    update = Update(2, 100, 0.0, 1.0, 0.0, 0.5)  # a step is 8 episodes and this: 3.5 s

    def plan(retention_s: float | None) -> Any:
        planned = [
            PhasePlan("sft", "", 0, 0, 100.0), PhasePlan("rft", "", 0, 0, 9e9, 80), PhasePlan("late", "", 0, 0, 9e9, 80, limit_s=15.0),
            PhasePlan("held out", "", 0, 0, 9e9, 8),
            PhasePlan("evaluation", "", 0, 0, 9e9, 112), PhasePlan("retention", "", 0, 0, retention_s),
        ]  # fmt: skip
        return SimpleNamespace(run=run, phases=planned)

    assert _recipe_seconds(plan(70.0), 1.0, 4.0, update) == START_S + 100 + 10 * 3.5 + 15 + 120 / 4 + 70
    assert _recipe_seconds(plan(None), 1.0, 4.0, update) is None and _recipe_seconds(plan(70.0), 1.0, 4.0, None) is None
