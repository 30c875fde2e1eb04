"""A trial of `burnish tune`: one run of the recipe in a process and a run folder of its own, followed by the rows that it writes.

Nothing here knows of Ray: `tuning.py` puts a trial into Ray Tune's frame.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from burnish.inspector.runs import read_metrics

PROGRAM: tuple[str, ...] = (sys.executable, "-P", "-m", "burnish.cli.trial")
"""What a trial is run by."""
OWN_ENV = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTHONPATH")
"""Variables, beside `RAY_…`, that Ray sets in what it starts."""
WINDOW = 3
"""Rows that a score is the mean of, at most: the last ones."""
LOOK_S = 0.2
"""Seconds between two looks at a run's rows."""
END_S = 120.0
"""Seconds that a run may take to end after it was asked to, before it is killed."""


class TrialFailed(RuntimeError):
    """A trial's run ended by itself, and not well."""


@dataclass(frozen=True, slots=True)
class TrialPlan:
    """What every trial does. recipe: its file. arguments: of `burnish run`, beside the trial's own overrides. folder: where run folders go.
    phase, metric: whose rows are followed. cwd: where relative paths begin. program: what runs the command. env: the values that `OWN_ENV`
    has in the process that started the search, where Ray did not touch them.

    Example: `TrialPlan("recipe.toml", (), "runs/sums-tune", "rft", "success", "/work", PROGRAM)`.
    """

    recipe: str
    arguments: tuple[str, ...]
    folder: str
    phase: str
    metric: str
    cwd: str
    program: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrialProgress:
    """Where a trial is: the last step that had the metric, its value, and the mean of the last `WINDOW` values. ended: the run has come to
    its end."""

    step: int
    value: float
    score: float
    ended: bool = False


class Trial:
    """A run under way. Example: `trial = Trial(plan, 1, ["rft.lr=1e-5"]); trial.next(60.0); trial.end()`."""

    def __init__(self, plan: TrialPlan, number: int, overrides: Sequence[str]) -> None:
        self.plan, self.number = plan, number
        self.run_dir = Path(plan.folder) / f"trial-{number}"
        self.log = Path(plan.folder) / f"trial-{number}.log"
        self._seen: TrialProgress | None = None
        sets = [argument for override in overrides for argument in ("--set", override)]
        command = [*plan.program, str(os.getpid()), "run", plan.recipe, *plan.arguments, *sets, "--run-dir", str(self.run_dir)]
        env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_") and key not in OWN_ENV}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            fcntl.flock(log, fcntl.LOCK_SH)  # held by whatever has the run's output, until all of it has ended
            self._process = subprocess.Popen(
                command, cwd=plan.cwd, env={**env, **plan.env}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def next(self, wait_s: float) -> TrialProgress | None:
        """Wait for the next step, or for the end of the run; None when neither comes within `wait_s` seconds.

        Raises TrialFailed with the last line of its log when the run ended otherwise than well, or never had the metric.
        """
        deadline = time.monotonic() + wait_s
        while True:
            ended = self._process.poll() is not None  # before the rows are read, so that none is missed
            new = self._look()
            if new is not None:
                self._seen = new
                return new
            if ended:
                return self._at_the_end()
            if time.monotonic() > deadline:
                return None
            time.sleep(LOOK_S)

    def end(self) -> None:
        """End the run as Ctrl-C does, if it is under way; it is killed where that takes longer than `END_S`."""
        if self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(END_S)

    def _look(self) -> TrialProgress | None:
        """The first step after the last one seen that has the metric."""
        file, after = self.run_dir / "metrics.jsonl", self._seen.step if self._seen is not None else 0
        rows = [row for row in read_metrics(file) if row.phase == self.plan.phase] if file.is_file() else []
        values = [(row.step, float(row.values[self.plan.metric])) for row in rows if self.plan.metric in row.values]
        for at, (step, value) in enumerate(values):
            if step > after:
                return TrialProgress(step, value, fmean(one for _, one in values[max(0, at + 1 - WINDOW) : at + 1]))
        return None

    def _at_the_end(self) -> TrialProgress:
        said = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        last = next((line for line in said if line.startswith(("error: ", "failed: "))), said[-1] if said else "it said nothing")
        if self._process.returncode != 0:
            raise TrialFailed(f"{last} (exit code {self._process.returncode}, {self.log})")
        if self._seen is None:
            rows = read_metrics(self.run_dir / "metrics.jsonl") if (self.run_dir / "metrics.jsonl").is_file() else []
            known = sorted({name for row in rows if row.phase == self.plan.phase for name in row.values})
            raise TrialFailed(f"no step of {self.plan.phase} has a metric {self.plan.metric!r}; it has {', '.join(known) or 'none'}")
        return TrialProgress(self._seen.step, self._seen.value, self._seen.score, ended=True)


def wait_until_ended(logs: Iterable[Path], wait_s: float) -> list[Path]:
    """Wait until nothing of the runs with these logs is left. Returns the logs of those that still live after `wait_s` seconds."""
    deadline, left = time.monotonic() + wait_s, [log for log in logs if log.is_file()]
    while True:
        left = [log for log in left if not _is_let_go(log)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(LOOK_S)


def _is_let_go(log: Path) -> bool:
    with log.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
