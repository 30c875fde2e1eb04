"""The fault matrix: every fault at every place of a run under way, one after the other, at moments that a seed draws.

It is one run of `burnish run` with real services, a real Ray, runner and learner; the engine is a script (`fault_plugin.py`). A cell is
kept when the run goes on with fresh weights, or stops with one line that names the culprit and resumes; when its ledger balances, it took
no longer than the recipe's limit of that wait allows, and no process is left of what has stopped.
"""

from __future__ import annotations

import logging
import os
import random
import re
import signal
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from tests.integration.fault_cells import HOLD_S, NODES, Cell, Played, bound_of, other_limits
from tests.integration.fault_nodes import SLOT, TwoNodes
from tests.integration.faults import FOLDER
from tests.integration.started import Started, last_step

from burnish.hosting.process import ServiceProcess
from burnish.inspector.runs import read_run_transcripts
from burnish.rollout.store.json_lines import read_json_lines
from burnish.rollout.store.records import read_ledger
from burnish.rpc.local_ray import start_local_ray

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
log = logging.getLogger(__name__)
RECIPE = """
name = "faults"
model = "{model}"
environment = "burnish/Remote-v0"
environment_args = {{ address = "service:world" }}
environment_weight = 0.0
success = "verdict"
multi_turn_rollouts = true
plugins = ["{plugin}"]

[[rewards]]
verifier = "service:verdicts"
name = "verdict"
deadline_s = 3.0

[services.world]
environment = "{services}:faults/World-v0"
kwargs = {{ tools = "{tools}" }}

[services.verdicts]
verifier = "{services}:verdict"

[rft]
steps = 100_000
groups_per_step = 2
group_size = 4
max_refills = 0
lr = 1e-3
checkpoint_every = 2

[rollout]
max_turns = 3
max_tokens_per_turn = 16
concurrency = 8
describe_tools = false
episode_timeout_s = 30.0
step_timeout_s = 8.0
retries = 1
error_budget = 0.5

[engine]
max_context = 256
request_timeout_s = 10.0

[evaluation]
before = false

[limits]
check_s = 60.0
stall_s = 240.0
answer_s = 60.0
sync_s = 120.0
restart_s = 240.0
learner_s = 120.0

[resources]
ray_address = "{ray}"
{more}
"""


class Matrix:
    """One run that suffers, and is resumed where it stops. start: starts a command of burnish in a process of its own. nodes: those it
    runs on, None for a single one of its own."""

    def __init__(self, model: Path, folder: Path, start: Callable[..., Started], seed: int = 0, nodes: TwoNodes | None = None) -> None:
        self.run, self.faults, self._start = folder / "run", Path(os.environ[FOLDER]), start
        self.random, self.nodes = random.Random(seed), nodes
        services = HERE / "fault_services.py"
        self.tools = ServiceProcess("tools", str(services), folder / "tools.log")
        self.tools.port = int(self.tools.start().rpartition(":")[2])
        self.recipe = folder / "faults.toml"
        names = {
            "model": model,
            "ray": nodes.address if nodes else started_ray(),
            "more": f"engine_resources = {{ {SLOT} = 1 }}" if nodes else "",
            "plugin": HERE / "fault_plugin.py",
            "services": services,
            "tools": self.tools.address,
        }
        self.recipe.write_text(text := RECIPE.format(**names))
        self.limits = tomllib.loads(text)
        self.now = self._resumed(start("run", str(self.recipe), "--run-dir", str(self.run)))

    def play(self, cell: Cell) -> Played:
        """Bring a fault on at a random moment of a step, and see what becomes of the run."""
        time.sleep(self.random.uniform(0.0, 2.0))
        before, began, processes = last_step(self.run), time.monotonic(), self._processes()
        with self._suffering(cell):
            gone = self._until(lambda: last_step(self.run) > before + 2, cell)
        seconds, wrong = time.monotonic() - began, list[str]()
        goes_on = not gone and last_step(self.run) > before + 2
        if goes_on:
            how = "goes on" + (f": {told}" if (told := self._told()) else "")
        else:
            if not gone:
                wrong.append(f"neither goes on nor stops within {bound_of(cell, self.limits):g} s")
                self.now.process.kill()
            code = self.now.process.wait(60)
            line = next((line for line in self.now.said.splitlines() if line.startswith(("failed: ", "error: "))), "")
            how = f"stops with {code}: {line.replace(str(self.run), 'RUN')}" if line else f"is gone ({code})"
            if cell.name != "driver killed":
                wrong += [] if re.search(cell.culprit, line) else [f"the line does not name the culprit: {self.now.said[-300:]}"]
                wrong += [] if f"continue it with `burnish run {self.run} --resume`" in self.now.said else ["it does not say how to resume"]
                wrong += ["Traceback"] if "Traceback" in self.now.said else []
            _, alive = psutil.wait_procs(processes, timeout=120)
            left = [" ".join(one.cmdline())[:80] for one in alive if one.is_running()]
            wrong += [f"left behind: {', '.join(left)}"] if left else []
            if self.nodes and cell.name == "node lost":
                self.nodes.add()
            self.now = self._resumed(self._start("run", str(self.run), "--resume"))
            how += "; resumed"
        return Played(cell, how, seconds, (*wrong, *other_limits(cell, how, self.limits), *self._books()))

    def finish(self) -> None:
        """End the run. Raises AssertionError when a task was skipped or repeated."""
        code, left = self.now.end(signal.SIGTERM)
        assert (code, left) == (143, []), (code, left)
        steps = [int(row["step"]) for _, row in read_json_lines(self.run / "metrics.jsonl")]
        assert steps == list(range(1, len(steps) + 1))
        issued = [(step, f"train-{2 * (step - 1) + i}", sample) for step in steps for i in range(2) for sample in range(4)]
        stored = [(one.step, one.task, one.sample) for one in read_run_transcripts(self.run) if one.split == "train"]
        assert sorted(stored) == sorted(issued), "a task was skipped or repeated"

    def close(self) -> None:
        """End what is not the run's own."""
        self.tools.stop()
        ray.shutdown()

    def _processes(self) -> list[psutil.Process]:
        """Those of the run: its services, and the actors that it has on the cluster."""
        here = psutil.Process().children(recursive=True)
        actors = [one for one in here if titled("ray::rollout", "ray::llmenvrunner", "ray::learner")(one)]
        return [*self.now.children, *actors]

    def _resumed(self, started: Started) -> Started:
        at = last_step(self.run)
        started.until(lambda: last_step(self.run) > at, "first step")
        self._seen = len(started.said)
        return started

    def _told(self) -> str:
        """What the run said since it was last asked."""
        lines, self._seen = self.now.said[self._seen :].splitlines(), len(self.now.said)
        told = [line for line in lines if re.search("started once more|episodes of step|failed|is gone", line)]
        return re.sub(r"\s+", " ", told[0])[:160] if told else ""

    def _until(self, on: Callable[[], bool], cell: Cell) -> bool:
        """Whether the run ended before it went on."""
        deadline = time.monotonic() + bound_of(cell, self.limits)
        while self.now.process.poll() is None and time.monotonic() < deadline:
            if on() and not (self.faults / cell.place).exists():
                return False
            time.sleep(0.2)
        return self.now.process.poll() is not None

    @contextmanager
    def _suffering(self, cell: Cell) -> Iterator[None]:
        """The fault, until it is over: at once for what is dead, when the run is done with it for what hangs, after a while otherwise."""
        if self.nodes and cell.place == "node":
            self.nodes.lose(MARKS["runner"])
            yield
            return
        over = threading.Event()
        helper = threading.Thread(target=self._bring_on, args=(cell, over), daemon=True)
        helper.start()
        try:
            yield
        finally:
            over.set()
            helper.join(60)
            with suppress(FileNotFoundError):
                (self.faults / cell.place).unlink()

    def _bring_on(self, cell: Cell, over: threading.Event) -> None:
        in_code = cell.place in ("engine", "disk") or cell.fault == "raises" or (cell.fault == "slow" and cell.place in SERVICES)
        if in_code:
            draft = self.faults / f".{cell.place}"
            draft.write_text(cell.fault)
            draft.replace(self.faults / cell.place)
            if cell.name not in ("engine killed", "engine stopped", "disk full"):
                over.wait(HOLD_S)
                with suppress(FileNotFoundError):
                    (self.faults / cell.place).unlink()
            return
        victim = self._process(cell.place)
        with suppress(psutil.NoSuchProcess):
            if cell.fault == "killed":
                victim.kill()
                if cell.place == "tool":  # whoever runs it starts it again
                    self.tools.stop()
                    self.tools.start()
            elif cell.fault == "stopped":
                victim.suspend()
                if cell.place in ("driver", "tool"):  # a machine that slept, or an operator who lets it go on
                    over.wait(HOLD_S)
                    victim.resume()
            else:
                slowed(victim, over)

    def _process(self, place: str) -> psutil.Process:
        if place == "driver":
            return psutil.Process(self.now.process.pid)
        if place == "tool":
            return psutil.Process(self.tools.pid)
        while True:  # what is being brought back is not there for a moment
            found = [one for one in self._processes() if MARKS[place](one)]
            if len(found) == 1:
                return found[0]
            time.sleep(0.2)

    def _books(self) -> Iterator[str]:
        """What is wrong with the last rows that the run wrote."""
        ledger = read_ledger(self.run / "ledger.jsonl")
        yield from (f"the ledger misses {row.missing} in step {row.step}" for row in ledger if row.missing)
        row: dict[str, Any] = [row for _, row in read_json_lines(self.run / "metrics.jsonl")][-1]
        used = row.get("learner/weight_version", 0.0) - row.get("learner/updates", 0.0)
        played = [one for one in read_run_transcripts(self.run) if one.split == "train"]
        yield from (f"{one.task}/{one.sample} of step {one.step} was cut short and rewarded" for one in played if one.truncation == "time")
        sampled = [one for one in played if one.step == row["step"]]
        versions = {version for one in sampled for turn in one.turns for version in (turn.oldest_version, turn.newest_version)}
        if "learner/weight_version" in row and versions - {used}:
            yield f"step {row['step']} was sampled with weights {sorted(versions)}, not {used:g}"


SERVICES = ("environment", "tool", "verifier")


def started_ray() -> str:
    """The address of a Ray that the run and all its resumptions use."""
    started = start_local_ray(
        num_cpus=4, object_store_memory=128 << 20, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    return str(started.address_info["address"])


def titled(*beginnings: str) -> Callable[[psutil.Process], bool]:
    def is_one(one: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return bool(one.cmdline()) and one.cmdline()[0].lower().startswith(beginnings)
        return False

    return is_one


MARKS: Mapping[str, Callable[[psutil.Process], bool]] = {
    "runner": titled("ray::rollout", "ray::llmenvrunner"),
    "learner": titled("ray::learner"),
    "environment": lambda one: any(part.endswith(":faults/World-v0") for part in one.cmdline()),
    "verifier": lambda one: any(part.endswith("fault_services.py:verdict") for part in one.cmdline()),
}
"""Which process of the run is at a place."""


def slowed(victim: psutil.Process, over: threading.Event) -> None:
    """Let a process run a tenth of the time."""
    until = time.monotonic() + HOLD_S
    while time.monotonic() < until and not over.is_set():
        victim.suspend()
        time.sleep(0.18)
        victim.resume()
        time.sleep(0.02)


def play_all(
    model: Path,
    folder: Path,
    start: Callable[..., Started],
    cells: Sequence[Cell],
    seed: int,
    environment: pytest.MonkeyPatch,
    report: Callable[[Sequence[Played]], object] = lambda _: None,
) -> list[Played]:
    """Play the cells in random order. report: told after each. Raises AssertionError at the end when the run as a whole is not whole."""
    faults = folder / "faults"
    faults.mkdir()
    environment.setenv(FOLDER, str(faults))
    environment.setenv("PYTHONPATH", str(ROOT))
    environment.setenv("RAY_worker_niceness", "0")
    with ExitStack() as stack:
        nodes = stack.enter_context(closing(TwoNodes())) if any(cell in NODES for cell in cells) else None
        matrix, played = Matrix(model, folder, start, seed, nodes), list[Played]()
        stack.callback(matrix.close)
        for cell in random.Random(seed).sample(list(cells), len(cells)):
            played.append(matrix.play(cell))
            log.info("%s: %s, %.0f s %s", cell.name, played[-1].how, played[-1].seconds, played[-1].wrong)
            report(played)
        matrix.finish()
    return played
