"""Commands of burnish under way in processes of their own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from burnish.rollout.store.json_lines import read_json_lines

WAIT_S = 400.0


class Started:
    """A command of burnish under way, its output in a file."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as out:
            command = [sys.executable, "-m", "burnish.cli.main", *arguments]
            self.process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def until(self, what: Callable[[], bool], wanted: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not what():
            assert self.process.poll() is None, f"ended before {wanted}: {self.said[-3000:]}"
            assert time.monotonic() < deadline, f"no {wanted} in {WAIT_S} s: {self.said[-3000:]}"
            time.sleep(0.05)

    def until_said(self, text: str) -> None:
        self.until(lambda: text in self.said, repr(text))

    def end(self, number: int) -> tuple[int, list[str]]:
        """The exit code after a signal, and the processes that were left behind."""
        children = self.children
        self.process.send_signal(number)
        code = self.process.wait(WAIT_S)
        _, alive = psutil.wait_procs(children, timeout=120)
        return code, [" ".join(process.cmdline())[:120] for process in alive if process.is_running()]


def last_step(run: Path) -> int:
    file = run / "metrics.jsonl"
    return max((int(row["step"]) for _, row in read_json_lines(file)), default=0) if file.is_file() else 0
