"""What a probe does with the parts of a recipe, without Ray and engines: the one update that it makes, and whose success it asks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tests.unit.one_step import make_policy, played

from burnish.cli.probe import page
from burnish.envs.types import Episode, EpisodeGroup, Reward, Task
from burnish.recipe.load import config_from_data
from burnish.recipe.plan import START_S, PhasePlan
from burnish.recipe.resolve import ResolvedRun, resolve
from burnish.run.probe import Probe, _learned_from, _play, _recipe_seconds, _update
from burnish.session import Session
from burnish.trainer.evaluation.advice import Advice
from burnish.trainer.evaluation.outlook import AskedAgain, Latency, Outlook, PartRange, Share
from burnish.trainer.evaluation.statistics import SuccessWatch
from burnish.trainer.evaluation.step_cost import StepCost, Update
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


def test_the_page_says_what_was_found_a_line_each() -> None:
    seen = Outlook(
        episodes=64, group_size=8, groups=8, sampled=Share(0.25, 0.1, 0.5, 8), greedy=Share(0.5, 0.2, 0.8, 4), best_constant=None,
        failures={"env_timeout": 2}, pass_at={1: 0.25, 8: 0.75}, teaching=0.75, teaching_half=0.5, teaching_own=0.75, teaching_success=0.5,
        all_failed=0.25, all_succeeded=0.0, parts={"env": PartRange(0.0, 0.25, 1.0), "brief": PartRange(1.0, 1.0, 1.0)},
        unreadable={"no answer": 0.125}, truncations={}, latencies={"engine": Latency(0.25, 1.5, 64)},
    )  # fmt: skip
    found = Probe(
        "sums", "models/nano", seen, AskedAgain(8, 0, 1, 0, ("t-1: 0 the first time, 1 the second",)), Update(6, 900, 0.5, 2.0, 0.5, 0.25),
        StepCost(12.0, 8.0, 5.0, 3.0, 0.25), 5400.0, {"learner": 1480, "1 engine": 1190}, {"learner": 1250, "engine": 990},
        (Advice("mend", "answers that cannot be read cost one in eight"), Advice("go", "there is something to learn")), 75.4,
    )  # fmt: skip
    assert list(page(found)) == [
        "sums: what 64 sampled episodes of the start policy models/nano say (75 s)",
        "",
        "success       sampled 25.0% [10%, 50%] of 8 tasks, greedy 50.0% [20%, 80%] of 4 tasks",
        "pass@k        1: 25.0%  8: 75.0%",
        "groups        75% of 8 can teach, 50% differ in success; 25% fail and 0% succeed throughout",
        "reward        env 0 to 1, mean 0.25; brief is always 1",
        "unreadable    no answer in 12.5%",
        "cut short     none",
        "failed        2 env_timeout",
        "asked twice   of 8 episodes played again, 1 verdicts changed, 0 environments differed",
        "latency       engine 250 ms (95 % below 1.5 s)",
        "a step        about 8.2 s: 5.0 s sampling, 3.0 s learning, 250 ms syncing (12 groups sampled, 8.0 trained)",
        "memory        had learner 1.2 GB, engine 1.0 GB; expected learner 1.5 GB, 1 engine 1.2 GB",
        "the recipe    about 90 min to its end",
        "              t-1: 0 the first time, 1 the second",
        "",
        "what it means",
        "  ! answers that cannot be read cost one in eight",
        "  ✓ there is something to learn",
    ]
    idle = replace(found, cost=replace(found.cost, learning_s=None, sync_s=None), recipe_s=None, again=AskedAgain(), update=None)
    said = {line[:14].strip(): line[14:] for line in page(idle)}
    assert said["a step"] == "5.0 s of sampling (12 groups sampled, 8.0 trained); no group taught, so no update was measured"
    assert (said["the recipe"], said["asked twice"]) == ("not known", "no group ended whole, so none was played again")
