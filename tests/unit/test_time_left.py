"""How long a run will still take, by what an evaluation has seen: hand-computed, with a clock of the test's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from tests.unit.paper_model import write_paper_model

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, Outcome, Reward, Task, Trajectory
from burnish.recipe.load import config_from_data
from burnish.recipe.plan import Done, Plan, make_plan
from burnish.recipe.resolve import resolve
from burnish.run import time_left
from burnish.run.time_left import phases_left, seen_pace, time_left_line
from burnish.session import Session

pytestmark = pytest.mark.unit

PARAMETERS = 420
SCORE_S = 2.0


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("part one two\n\npart one two three four")
    recipe: dict[str, Any] = {
        "name": "p",
        "model": str(write_paper_model(tmp_path / "models" / "tiny")),
        "environment": "burnish/Arithmetic-v0",
        "cpt": {"steps": 10, "batch": 5, "data": "text.txt"},
        "rft": {"steps": 3, "groups_per_step": 4, "group_size": 2},
        "rollout": {"max_tokens_per_turn": 50},
        "engine": {"max_context": 300},
        "evaluation": {"tasks": 7},
    }
    return make_plan(resolve(config_from_data(recipe)))


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    """A learner that takes `SCORE_S` for every pass, by a clock that nothing else moves."""
    clock = SimpleNamespace(now=0.0)

    def score(batch: Any, temperature: float) -> None:
        clock.now += SCORE_S

    monkeypatch.setattr(time_left, "time", SimpleNamespace(monotonic=lambda: clock.now))
    recipe = SimpleNamespace(rollout=SimpleNamespace(temperature=1.0))
    return cast(Session, SimpleNamespace(score=score, recipe=recipe))


def episode(number: int, sampled: int, others: int, outcome: Outcome | None = None) -> Episode:
    mask = np.arange(others + sampled) >= others
    tokens = Trajectory(
        np.arange(len(mask), dtype=np.int32), mask, np.zeros(len(mask), np.float32), np.where(mask, 0, -1).astype(np.int32)
    )  # fmt: skip
    return Episode(Task(f"t{number}", number), 0, (tokens,), (), outcome or Reward(1.0))


def test_what_an_evaluation_saw_is_a_pace(plan: Plan, session: Session) -> None:
    """Two episodes of 10 and 20 sampled tokens among 30 and 50, in 5 s; of the failed one nothing is known."""
    failed = episode(3, 50, 50, Failure(FailureKind.ENV_ERROR, "env", "broken"))
    pace = seen_pace(plan, session, [episode(1, 10, 20), episode(2, 20, 30), failed], 5.0)
    assert pace is not None
    assert pace.tokens_per_second == 30 / 5
    assert pace.learner_flops == 2 * PARAMETERS * 80 / SCORE_S
    assert (pace.sampled_share, pace.context_share) == (15 / 50, 40 / 100)
    assert seen_pace(plan, session, [failed], 5.0) is None


def test_what_is_left_after_each_phase(plan: Plan) -> None:
    """Of six evaluations, in two modes: five after the first of the base, three after the first after cpt, none that matters at the end."""
    cpt, rft, evaluation = plan.phases
    assert phases_left(plan, "base")[:2] == [cpt, rft]
    assert phases_left(plan, "base")[2].amount == evaluation.amount.part(5 / 6)
    assert phases_left(plan, "cpt")[0] == rft
    assert phases_left(plan, "cpt")[1].amount == evaluation.amount.part(3 / 6)
    assert phases_left(plan, "rft") == []
    resumed = make_plan(plan.run, done=Done("cpt", 10, measured=frozenset({"sampled"})))
    tokens = 7 * 50  # of one evaluation
    assert phases_left(resumed, "cpt")[1].amount.sampled_tokens == pytest.approx(3 * tokens)


def test_of_measurements_in_the_course_of_phases_those_of_the_later_ones_are_left(plan: Plan) -> None:
    """Two before the last phase's three are of an earlier one."""
    phases = [{"kind": "rft", "steps": 10}, {"kind": "rft", "name": "late", "steps": 12}]
    asked = {"name": "p", "model": plan.run.model, "environment": "burnish/Arithmetic-v0", "phases": phases}
    planned = make_plan(resolve(config_from_data({**asked, "evaluation": {"tasks": 7, "every": 5}})))
    first, late, between, _ = planned.phases
    assert (first.name, late.name, between.episodes) == ("rft", "late", 5 * 7)
    assert phases_left(planned, "base")[2].amount == between.amount
    assert phases_left(planned, "rft")[1].amount == between.amount.part(3 / 5)


def test_the_line_says_how_long_and_of_what(plan: Plan, session: Session) -> None:
    line = time_left_line(plan, session, "cpt", [episode(1, 10, 20), episode(2, 20, 30)], 5.0)
    # rft: 3 x 4 x 2 episodes of 15 tokens at 6/s, and 40 tokens each of 8 x 420 operations at 33,600/s; 3 x 7 episodes of evaluation.
    rft, evaluated = 24 * 15 / 6 + 24 * 40 * 8 * 420 / 33_600, 21 * 15 / 6
    assert line is not None
    assert line.startswith(f"about {(rft + evaluated) / 60:.0f} min left (rft {rft / 60:.0f} min, evaluation {evaluated:.0f} s): ")
    assert "sampled 15 tokens each, 6 tokens/s" in line
    assert time_left_line(plan, session, "rft", [episode(1, 10, 20)], 5.0) is None
