"""Whole runs over a scripted engine on a disk that is full from a moment on, and resumed once there is room.

    python -m tests.integration.full_disk_run RECIPE.toml DISK OUT MOMENT …      a MOMENT is EVENT:N:LEFT, or "whole"

For each moment, `burnish run` into DISK/MOMENT is left LEFT bytes of the disk when EVENT happens for the N-th time. What it says when it
ends is printed, as a line of JSON, with the exit code of its resumption; the run is copied to OUT.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tests.integration import scripted_run
from tests.integration.scripted_run import LocalLearner, folder_of, in_a_fork, prepare, watched

from burnish.cli.main import app
from burnish.inspector.runs import read_run_transcripts
from burnish.rollout.store.json_lines import read_json_lines
from burnish.run.folder import RunFolder
from burnish.session import Session
from burnish.trainer.models.checkpoints import latest, list_checkpoints
from burnish.trainer.models.folder import check_model_folder

FILLER = "filler"


def fill(disk: Path, left: int) -> None:
    """Take all of the disk but so many bytes."""
    room = os.statvfs(disk)
    with (disk / FILLER).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_frsize - left))


def command(*arguments: str, log: Path) -> None:
    """`burnish …` in this process; ends it with its exit code."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 2)
    with redirect_stdout(io.StringIO()):
        os._exit(app(list(arguments), standalone_mode=False) or 0)


def check_whole(run: Path) -> None:
    """Raise unless all that a reader finds of a run can be read."""
    for file in (run / "episodes").glob("*.parquet"):
        pq.read_table(file)
    for name in ("metrics.jsonl", "ledger.jsonl", "evaluations.jsonl"):
        if (run / name).is_file():
            list(read_json_lines(run / name))
    list(read_run_transcripts(run))
    for record in list_checkpoints(run):
        check_model_folder(record.model(run))
    latest(run)


def main() -> None:
    recipe, disk, out = map(Path, sys.argv[1:4])
    prepare()
    watched(RunFolder, "log_metrics", "metrics-due", before=True)
    watched(Session, "save_model", "model-due", before=True)
    watched(LocalLearner, "save", "state-due", before=True)
    for moment in sys.argv[4:]:
        run, log = disk / folder_of(moment), out / f"{folder_of(moment)}.log"
        said: dict[str, Any] = {}
        run_it: tuple[str, ...] = ("run", str(recipe), "--run-dir", str(run))
        if moment != "whole":
            name, count, left = moment.split(":")
            scripted_run.killed_at, scripted_run.strikes = (name, int(count)), [partial(fill, disk, int(left))]
            said = {"code": in_a_fork(partial(command, *run_it, log=log)), "said": log.read_text()}
            scripted_run.killed_at = ("", 0)
            assert (disk / FILLER).is_file(), f"{moment} never happened"
            (disk / FILLER).unlink()
            check_whole(run)
            run_it = ("run", str(run), "--resume")
        again = in_a_fork(partial(command, *run_it, log=log))
        print(json.dumps({"moment": moment, **said, "ended": again, "log": log.read_text()[-3000:]}), flush=True)
        shutil.copytree(run, out / run.name)
        shutil.rmtree(run)


if __name__ == "__main__":
    main()
