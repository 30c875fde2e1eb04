"""The cells of the fault matrix, and the page that says what became of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HOLD_S = 8.0
"""Seconds that a fault lasts which somebody or something ends: an overload, an error, a machine that paused."""


@dataclass(frozen=True)
class Cell:
    """A fault at a place. culprit: what the line must say where the run stops."""

    place: str
    fault: str
    culprit: str

    @property
    def name(self) -> str:
        return f"{self.place} {self.fault}"


FAULTS = ("killed", "stopped", "raises", "slow")
CULPRITS: Mapping[str, str] = {
    "engine": r"engine_|rollout-1|engine was told to raise",
    "runner": r"rollout-1|runner was told to raise",
    "environment": r"env_\w+|burnish/Remote-v0|faults/World-v0",
    "tool": r"tool_\w+|env_\w+",
    "verifier": r"verifier_\w+: .*verdict|verdict@",
    "learner": r"learner",
    "driver": r"driver was told to raise",
}
CELLS: Sequence[Cell] = (
    *(Cell(place, fault, culprit) for place, culprit in CULPRITS.items() for fault in FAULTS),
    Cell("disk", "full", r"No space left on device: .*\.jsonl"),
)
NODES: Sequence[Cell] = (Cell("node", "lost", r"rollout-1 .*\(its node \S+ \(\S+, \w+\) is gone\)"),)
"""Of a run over two nodes of Ray."""
REST_S = 300.0
"""Seconds of a cell beside the wait that the recipe bounds: what is brought back, and two steps more, on a busy machine."""
WAITS: Mapping[str, tuple[int, str]] = {
    "engine stopped": (1, "engine.request_timeout_s"),
    "runner stopped": (1, "limits.answer_s"),
    "environment killed": (2, "rollout.step_timeout_s"),
    "environment stopped": (2, "rollout.step_timeout_s"),
    "verifier stopped": (2, "rewards.0.deadline_s"),
    "learner stopped": (1, "limits.learner_s"),
    "node lost": (1, "limits.restart_s"),
}
"""What the run waits for that does not answer, by the cell's name: how often, and the recipe's limit of each time."""


def limit_of(cell: Cell, recipe: Mapping[str, Any]) -> float:
    """Seconds that the recipe lets the run wait once for what suffers; 0 where it is told at once."""
    found: Any = recipe
    if cell.name not in WAITS:
        return 0.0
    for key in WAITS[cell.name][1].split("."):
        found = found[int(key)] if isinstance(found, list) else found[key]
    return float(found)


def bound_of(cell: Cell, recipe: Mapping[str, Any]) -> float:
    """Seconds in which a cell is over."""
    return WAITS.get(cell.name, (0, ""))[0] * limit_of(cell, recipe) + REST_S


def other_limits(cell: Cell, said: str, recipe: Mapping[str, Any]) -> list[str]:
    """What a run said of a wait for what suffers that is another than the recipe's limit.

    Example: "no answer within 9 s", where `rollout.step_timeout_s` is 8.
    """
    limit = limit_of(cell, recipe)
    return [] if not limit else [f"waited {one} s, not {limit:g}" for one in re.findall(r"within ([\d.]+) s", said) if float(one) != limit]


SUMMARY = ("engine killed", "runner killed", "verifier raises")
"""What is played whenever the tests run, in about a minute of a machine at rest: an engine and a process that are brought back, and a
service without which the run stops, and is resumed."""


@dataclass(frozen=True)
class Played:
    """What a cell came to. how: in a few words; wrong: what should not be, nothing where it is kept."""

    cell: Cell
    how: str
    seconds: float
    wrong: tuple[str, ...] = ()

    @property
    def row(self) -> str:
        said = "; ".join(self.wrong).replace("|", "\\|")
        return f"| {self.cell.place} | {self.cell.fault} | {self.how.replace('|', chr(92) + '|')} | {said or 'yes'} |"


def page(played: Sequence[Played], asked: Sequence[Cell], seed: int, before: str = "") -> str:
    """The page. asked: the cells that are being played, of which `played` are done. before: the page so far, which keeps the rows of all
    others.

    Example: `page([], CELLS, 0)` says of every cell that it was not played.
    """
    done = {one.cell.name: one.row for one in played}
    for cell in [*CELLS, *NODES]:
        blank = f"| {cell.place} | {cell.fault} | not played | |"
        known = [] if cell in asked else re.findall(f"^{re.escape(blank.removesuffix('not played | |'))}.*$", before, re.MULTILINE)
        done.setdefault(cell.name, known[0] if known else blank)
    rows = [done[cell.name] for cell in [*CELLS, *NODES]]
    longest = max([0.0, *map(float, re.findall(r"the longest took\s(\d+) s", before)), *(one.seconds for one in played)])
    kept = sum(row.endswith("| yes |") for row in rows)
    head = HEAD.format(kept=kept, cells=len(rows), seed=seed, longest=longest, hold=HOLD_S, rest=REST_S, summary=", ".join(SUMMARY))
    return head + "\n".join(rows) + "\n"


HEAD = """# Faults

What a run does when a part of it fails. Written by `make faults`, which plays every cell in one run under way, in random order and at
random moments (seed {seed}), and resumes the run where it stops; node is a second run. {kept} of {cells} cells are kept; the longest took
{longest:.0f} s.

A cell is kept when the run goes on with fresh weights, or stops with one line that names the culprit and can be resumed; when it does so
within the limit that its recipe has for that wait and {rest:g} s for all that follows; when the ledger balances, and no process is left of
what stopped. At the end, no task was skipped or repeated. Limits of their own have engine stopped (`engine.request_timeout_s`), runner
stopped (`limits.answer_s`), environment killed and stopped (`rollout.step_timeout_s`, tried twice), verifier stopped (its `deadline_s`,
twice), learner stopped (`limits.learner_s`) and node lost (`limits.restart_s`); a line that says how long was waited must say that limit.
`make test` plays three of them by the same code: {summary}.

- **killed**: `kill -9`. **stopped**: `SIGSTOP`; tools and driver go on after a while, the others stay as they are. **raises**: every call
  raises for a while; in runner, learner and driver one does. **slow**: ten times as slow for a while. A while is {hold:g} s.
- Services, Ray, runner and learner are real processes. The engine is a script within the runner's process: a killed one answers as
  vLLM's engines do once their process is gone, a stopped one not at all.
- Environment and verifier are services that the run starts, and has no second one of: without them it stops. The tools are a service that
  runs already, and whoever runs it starts it again.
- The runner's node is one of two nodes of Ray on one machine; the other has the learner and `burnish run`. All its processes are killed
  at once by `kill -9`. **lost**: no other with room for the runner joins until the run has stopped.
- The full disk is an error that is raised in the place of the next row. Disks that are really full, in the middle of a checkpoint, of a
  file of episodes and of a row, are met in `tests/integration/test_full_disk.py`: a line names the file, and the run that is resumed once
  there is room is the one that had room.
- An engine whose process lives and that answers no more is told from a slow one by the tokens that it samples for all requests together:
  none for `engine.request_timeout_s`, and the episodes under way fail (engine_timeout), its process is replaced, and groups that failed
  whole are played again. Where an episode's time ends first, it waits until it is known which it is.

| place | fault | the run | kept |
|---|---|---|---|
"""
