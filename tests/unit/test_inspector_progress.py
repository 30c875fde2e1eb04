"""How far each run of a list came and what it reached, without reading all that it wrote."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.unit.test_inspector_pages import HOSTILE, evaluated

from burnish.inspector.pages import progress
from burnish.inspector.pages.app import pages
from burnish.inspector.pages.progress import LAST_BYTES, RunProgress, progress_of
from burnish.inspector.pages.runs import list_runs
from burnish.rollout.store.json_lines import JsonLines
from burnish.rollout.store.records import EvaluationRecord
from burnish.run.folder import RunFolder

pytestmark = pytest.mark.unit


def made(folder: Path, steps: int = 0, evaluations: Sequence[tuple[str, Sequence[float]]] = ()) -> Path:
    """A run of so many steps with these evaluations: phase, and success of each task."""
    folder.mkdir(parents=True)
    for name in ("config.json", "seeds.json"):
        (folder / name).write_text("{}")
    with JsonLines(folder / "metrics.jsonl") as lines:
        for step in range(1, steps + 1):
            lines.append({"phase": "rft", "step": step, "time": 1.0, "reward_mean": step / 100, "x" * 100: 1.0})
    for step, (phase, success) in enumerate(evaluations):
        RunFolder(folder).log_evaluation(EvaluationRecord(phase=phase, step=step, result=evaluated(*success)))
    return folder


def of(run: Path) -> RunProgress:
    return progress_of(list_runs(run))[run.name]


def test_the_list_of_runs_says_how_far_each_came_and_what_it_reached(tmp_path: Path) -> None:
    made(tmp_path / "done", 40, [("base", (0.0, 0.0, 1.0, 0.0)), ("sft", (1.0, 0.0, 1.0, 0.0)), ("rft", (1.0, 1.0, 1.0, 0.0))])
    made(tmp_path / "begun")
    made(tmp_path / "once", 1, [("rft", (1.0, 0.0))])
    with TestClient(pages(tmp_path)) as client:
        page = client.get("/rollouts").text
    rows = {name: re.sub(r"<[^>]*>|\s+", " ", row) for name, row in re.findall(r'/rollouts/(\w+)">\w+</a>(.*?)</tr>', page, re.DOTALL)}
    shown = {name: " ".join(row.split()[:8]) for name, row in rows.items()}
    assert shown["done"].startswith("rft 40 0.4 25.0 % → 75.0") and "n = 4 " in rows["done"]
    assert shown["once"].startswith("rft 1 0.01 50.0 % n = 2") and shown["begun"].startswith("– – – ")


def test_only_the_end_of_the_metrics_is_read_and_only_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path / "long", 1000, [("rft", (1.0,))])
    assert (run / "metrics.jsonl").stat().st_size > 2 * LAST_BYTES
    content = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(b"no json\n" + content)
    assert (of(run).at, of(run).reward) == (("rft", 1000), 10.0)
    with monkeypatch.context() as patched:
        for name in ("open_file", "read_evaluations"):
            patched.setattr(progress, name, None)
        assert of(run) == RunProgress(("rft", 1000), 10.0, (1.0,), 1)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "rft", "step": 1001, "time": 1.0}\n{"phase": "rft", "st')
    assert (of(run).at, of(run).reward) == (("rft", 1001), None)
    (run / "metrics.jsonl").write_text(json.dumps({"phase": "rft", "step": 1, "time": 1.0, "x" * LAST_BYTES: 1.0}) + "\n")
    assert of(run) == RunProgress(None, None, (1.0,), 1)


def test_what_a_stranger_wrote_is_text_and_costs_the_list_nothing_but_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "good", 2)
    bad = made(tmp_path / "bad")
    (bad / "metrics.jsonl").write_text(json.dumps({"phase": HOSTILE * 9, "step": 2, "time": 1.0, "reward_mean": 1e300}) + "\n")
    (bad / "evaluations.jsonl").write_text('{"<script>": 1}\n')
    made(tmp_path / "linked", 1)
    (tmp_path / "secret").write_text('{"phase": "secret", "step": 1, "time": 1.0}\n')
    (tmp_path / "linked" / "metrics.jsonl").unlink()
    (tmp_path / "linked" / "metrics.jsonl").symlink_to(tmp_path / "secret")
    with TestClient(pages(tmp_path)) as client:
        page = client.get("/rollouts").text
    assert "rft 2" in page and "secret 1" not in page and "leads out of the folder" in page
    assert "&lt;script&gt;alert(1)" in page and not re.search("<script>|<img|[\x1b\u202e\ud800-\udfff]", page)
    assert "evaluations.jsonl:1: " in page and f"{bad}/" not in page
    monkeypatch.setattr(progress, "MOST_BYTES", 10)
    run = made(tmp_path / "large", 3, [("rft", (1.0,))])
    assert of(run).at == ("rft", 3) and "larger than" in of(run).problem


def test_a_list_of_a_thousand_runs_is_read_in_a_moment(tmp_path: Path) -> None:
    first = made(tmp_path / "run-0", 40, [("base", (0.0,) * 100), ("rft", (1.0,) * 100)])
    files = {file.name: file.read_bytes() for file in first.iterdir()}
    for i in range(1, 1000):
        (tmp_path / f"run-{i}").mkdir()
        for name, content in files.items():
            (tmp_path / f"run-{i}" / name).write_bytes(content)
    begun = time.process_time()
    found = progress_of(list_runs(tmp_path))
    took = time.process_time() - begun
    assert len(found) == 1000 and {one.success for one in found.values()} == {(0.0, 1.0)}
    assert took < 5.0, f"{took:.2f} s of processor"
