"""What the pipeline says and keeps of the episodes of a step: that some failed, in the step in which it happens, and what ended early."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, EpisodeGroup, Message, Outcome, Reward, Task
from burnish.run import pipeline
from burnish.trainer.phases.common import PhaseStep

pytestmark = pytest.mark.unit

SILENT = SimpleNamespace(show=lambda *_: None)

DOWN = Failure(FailureKind.VERIFIER_UNAVAILABLE, "verdict@h:1", "connection refused")
OUTCOMES: list[list[Outcome]] = [[Reward(1.0), Reward(0.0)], [DOWN, Reward(1.0)], [Reward(1.0), Reward(1.0)]]


def episodes(*outcomes: Outcome) -> list[Episode]:
    return [Episode(Task(f"t{i}", i), 0, (), (Message("user", "?"),), outcome) for i, outcome in enumerate(outcomes)]


def test_a_step_whose_episodes_an_outage_masked_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps, of which the second met an outage: one line, between the two of the bar."""

    def steps(*_: Any) -> Iterator[PhaseStep]:
        for step, outcomes in enumerate(OUTCOMES, 1):
            yield PhaseStep(step, {}, "reward 0.50", episodes=episodes(*outcomes))

    table = SimpleNamespace(steps=3, checkpoint_every=10, max_minutes=None, max_tokens=None, best_by=None)
    phase: Any = SimpleNamespace(name="rft", table=table, kind=SimpleNamespace(steps=steps))
    for name in ("_begin", "_end", "_keep", "_checkpoint", "heed"):
        monkeypatch.setattr(pipeline, name, lambda *args, **kwargs: None)
    monkeypatch.setattr(pipeline, "_parts", lambda *_: SimpleNamespace(done=[]))
    folder = SimpleNamespace(suites=tmp_path / "suites", log_metrics=lambda *_: None, path=tmp_path)
    screen = io.StringIO()
    run: Any = SimpleNamespace(
        session=SimpleNamespace(loop=SimpleNamespace(on_group=None), algo=SILENT), results={}, folder=folder, data={},
        console=Console(file=screen, width=200),
    )  # fmt: skip
    assert pipeline._train(run, phase, 0) == 3
    said = [line for line in screen.getvalue().splitlines() if "teach nothing" in line]
    assert said == [
        "step 2: 1 of 2 episodes failed and teach nothing: 1 verifier_unavailable; "
        "the last one: verifier_unavailable in verdict@h:1: connection refused"
    ]


def test_what_finished_while_the_learner_learned_is_kept_when_the_next_step_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Task 1 finishes in the first step, after what that step took, and task 2 in the second, which fails."""
    kept = list[tuple[int, list[str]]]()
    groups = [EpisodeGroup(one.task, (one,)) for one in episodes(*[Reward(1.0)] * 3)]

    def steps(*_: Any) -> Iterator[PhaseStep]:
        for group in groups[:2]:
            run.session.loop.on_group(group)
        yield PhaseStep(1, {}, "reward 0.50", episodes=groups[0].episodes)
        run.session.loop.on_group(groups[2])
        raise InterruptedError

    for name in ("_begin", "heed"):
        monkeypatch.setattr(pipeline, name, lambda *args, **kwargs: None)
    monkeypatch.setattr(pipeline, "_keep", lambda run, phase, step, found, *more: kept.append((step, [one.id for one in found])))
    monkeypatch.setattr(pipeline, "_parts", lambda *_: SimpleNamespace(done=[]))
    table = SimpleNamespace(steps=3, checkpoint_every=10, max_minutes=None, max_tokens=None, best_by=None)
    phase: Any = SimpleNamespace(name="rft", table=table, kind=SimpleNamespace(steps=steps))
    folder = SimpleNamespace(suites=tmp_path / "suites", log_metrics=lambda *_: None, path=tmp_path)
    run: Any = SimpleNamespace(
        session=SimpleNamespace(loop=SimpleNamespace(on_group=None), algo=SILENT), results={}, folder=folder, data={},
        console=Console(file=io.StringIO()), recipe=SimpleNamespace(phase=lambda name: phase),
        store=SimpleNamespace(put=lambda at, found, **_: kept.append((at.step, [one.id for one in found]))),
    )  # fmt: skip
    with pytest.raises(InterruptedError):
        pipeline._train(run, phase, 0)
    assert kept == [(1, ["t0/0"]), (2, ["t1/0", "t2/0"])]
