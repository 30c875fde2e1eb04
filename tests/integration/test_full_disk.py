"""A disk that is full in the middle of a run: one line that names a file, and the same run once there is room and it is resumed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.test_killed_anywhere import RECIPE, ROOT, what_came_of
from tests.unit.test_recorded_steps import REWARD

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        subprocess.run(["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, check=False).returncode != 0,
        reason="needs the right to mount a small disk",
    ),
]

MOMENTS = {
    "metrics-due:4:0": r"RUN/(metrics|ledger)\.jsonl|RUN/transcripts/\S+",  # at a row, as soon as its file needs another page
    "storing:5:4096": r"RUN/episodes/\S+",
    "model-due:3:65536": r"RUN/checkpoints/\S+/model/model\.safetensors",
    "state-due:3:65536": r"RUN/checkpoints/\S+/trainer/\S+\.safetensors",
}
"""The event at which the disk is full, all but so many bytes, and the file whose line ends the run."""


def test_a_run_that_met_a_full_disk_and_was_resumed_is_the_run_that_did_not(tiny_model: Path, tmp_path: Path) -> None:
    data, recipe, disk, out = tmp_path / "data.jsonl", tmp_path / "full.toml", tmp_path / "disk", tmp_path / "out"
    talk = [{"role": "user", "content": "part 1 bore"}, {"role": "assistant", "content": "pass"}]
    data.write_text("".join(json.dumps({"messages": [{**talk[0], "content": f"part {i} bore"}, talk[1]]}) + "\n" for i in range(5)))
    recipe.write_text(RECIPE.format(model=tiny_model, data=data, reward=REWARD, rollouts="sync"))
    disk.mkdir()
    out.mkdir()
    program = ["-W", "ignore::DeprecationWarning", "-m", "tests.integration.full_disk_run"]
    command = [sys.executable, *program, str(recipe), str(disk), str(out), "whole", *MOMENTS]
    small = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size=48m none "{disk}" && exec "$@"', "sh", *command]
    done = subprocess.run(small, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    rows = {row["moment"]: row for row in map(json.loads, done.stdout.splitlines())}
    whole = what_came_of(out / "whole")
    for moment, file in MOMENTS.items():
        row, run = rows[moment], disk / moment.replace(":", "-")
        said = row["said"].replace(str(run), "RUN")
        assert row["code"] == 1 and re.search(rf"^failed: No space left on device: {file}$", said, re.MULTILINE), f"{moment}: {said}"
        assert "continue it with `burnish run RUN --resume`" in said, said
        assert not re.search("Traceback|fault in burnish", said), said
        assert row["ended"] == 0, f"{moment}: {row['log']}"
        found = what_came_of(out / run.name)
        assert {what: found[what] == value for what, value in whole.items()} == dict.fromkeys(whole, True), f"met at {moment}"
