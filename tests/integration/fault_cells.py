"""The cells of the fault matrix, and the page that says what became of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    head = HEAD.format(kept=kept, cells=len(rows), seed=seed, longest=longest, hold=HOLD_S, summary=", ".join(SUMMARY))
    return head + "\n".join(rows) + "\n"


HEAD = """# Faults

What a run does when a part of it fails. Written by `make faults`, which plays every cell in one run under way, in random order and at
random moments (seed {seed}), and resumes the run where it stops; node is a second run. {kept} of {cells} cells are kept; the longest took
{longest:.0f} s.

A cell is kept when the run goes on with fresh weights, or stops with one line that names the culprit and can be resumed; when the ledger
balances, nothing waited longer than its limit, and no process is left of what stopped. At the end, no task was skipped or repeated.
`make test` plays three of them by the same code: {summary}.

- **killed**: `kill -9`. **stopped**: `SIGSTOP`; tools and driver go on after a while, the others stay as they are. **raises**: every call
  raises for a while; in runner, learner and driver one does. **slow**: ten times as slow for a while. A while is {hold:g} s.
- Services, Ray, runner and learner are real processes. The engine is a script within the runner's process: a killed one answers as
  vLLM's engines do once their process is gone, a stopped one not at all.
- Environment and verifier are services that the run starts, and has no second one of: without them it stops. The tools are a service that
  runs already, and whoever runs it starts it again.
- The runner's node is one of two nodes of Ray on one machine; the other has the learner and `burnish run`. All its processes are killed
  at once by `kill -9`. **lost**: no other with room for the runner joins until the run has stopped.
- The full disk is the operating system's error at the next row that is written.
- An engine whose process lives and that answers no more is told from a slow one by the tokens that it samples for all requests together:
  none for `engine.request_timeout_s`, and the episodes under way fail (engine_timeout), its process is replaced, and groups that failed
  whole are played again. Where an episode's time ends first, it waits until it is known which it is.

| place | fault | the run | kept |
|---|---|---|---|
"""
