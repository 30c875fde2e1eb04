"""A whole run over a scripted engine, in this process and without Ray, with something that happens after its third step of reinforcement:
a guard finds something, or the learner is lost.

    python -m tests.integration.guarded_run RECIPE.toml FOLDER once|always|lost

Whenever a phase begins, it says with what: `begins PHASE at VERSION: DIGEST`, the digest being that of all weights.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from tests.integration import scripted_run

from burnish.recipe.phase_run import PhaseRun
from burnish.run import pipeline
from burnish.run.under_way import Run
from burnish.trainer.learner.group import LearnerLost
from burnish.trainer.watch import guards

happened: list[int] = []


def planted(seen: guards.PhaseHistory, limits: guards.GuardsConfig) -> str | None:
    how = sys.argv[3]
    if len(seen.rows) != 3 or (happened and how != "always"):
        return None
    happened.append(3)
    if how == "lost":
        raise LearnerLost("the learner died: planted")
    return "planted"


def said(run: Run, phase: PhaseRun, first: int) -> None:
    begin(run, phase, first)
    if first == 0:
        snapshot = run.session.learner.snapshot()
        digest = hashlib.sha256()
        for name in sorted(snapshot.tensors):
            digest.update(name.encode() + snapshot.tensors[name].tobytes())
        print(f"begins {phase.name} at {snapshot.version}: {digest.hexdigest()}", flush=True)


def main() -> None:
    scripted_run.prepare()
    guards.RULES = {"drift": planted}
    scripted_run.instead(_begin=said)
    scripted_run.play(Path(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    begin = pipeline._begin
    main()
