"""Evaluations as logs of Inspect, read back by Inspect's own library."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.unit.test_rollout_episodes import episode, stored

from burnish.cli.main import app
from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Message, Reward, Task, ToolCall
from burnish.rollout.store.moments import Moment

pytestmark = pytest.mark.unit

HOSTILE = "<script>alert(1)</script> ![x](http://127.0.0.1:9/x) \x1b[31mred \u202egnp \ud83d"
GREEDY = Moment("rft", 40, "heldout", "greedy")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "nano-1"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"name": "demo", "model": "nano", "environment": "burnish/Arithmetic-v0"}))
    prompt = (Message("system", "Add."), Message("user", HOSTILE))
    said = (*prompt, Message("assistant", "so", (ToolCall("call_0", "add", {"a": 1, "b": HOSTILE}),)), Message("tool", "3", (), "call_0"))
    task = Task("heldout-1", 7, prompt, {"reference_answer": "3"}, "")
    right = replace(episode(1, 0, Reward(1.5, {"env": 1.0, "brief": 0.25})), task=task, messages=(*said, Message("assistant", HOSTILE)))
    wrong = replace(episode(1, 1, Reward(0.5, {"env": 0.0})), task=task, messages=(*said, Message("assistant", "4")))
    failed = replace(episode(1, 2, Failure(FailureKind.TOOL_ERROR, "add", "unplugged")), task=task, messages=prompt)
    stored(run / "episodes", right, wrong, failed, moment=GREEDY)
    stored(run / "episodes", right, moment=Moment("base", 0, "heldout", "sampled"))
    stored(run / "episodes", right, moment=Moment("rft", 40, "train", "sampled"))
    return run


def test_inspect_reads_the_messages_scores_and_metadata_of_an_evaluation(run: Path, tmp_path: Path) -> None:
    log = pytest.importorskip("inspect_ai.log", reason="inspect-ai is not installed: make trackers")
    from burnish.inspector.inspect_logs import export_evaluations

    paths = export_evaluations(run, tmp_path / "logs")
    assert [path.name for path in paths] == ["base.000000.sampled.eval", "rft.000040.greedy.eval"]
    assert len(log.list_eval_logs(str(tmp_path / "logs"))) == 2
    read = log.read_eval_log(str(paths[1]))
    assert (read.status, read.eval.task, read.eval.model, read.eval.dataset.name) == ("success", "demo", "nano", "burnish/Arithmetic-v0")
    assert read.eval.metadata == {"run": "nano-1", "phase": "rft", "step": 40, "mode": "greedy", "by": "burnish"}
    means = {score.name: score.metrics["mean"].value for score in read.results.scores}
    assert means == {"reward": 1.0, "brief": 0.25, "env": 0.5}
    right, wrong, failed = sorted(read.samples, key=lambda sample: sample.epoch)
    assert [(one.id, one.epoch, one.target) for one in (right, wrong, failed)] == [("heldout-1", i, "a") for i in (1, 2, 3)]
    assert [(message.role, message.text) for message in right.input] == [("system", "Add."), ("user", spelled(HOSTILE))]
    assert [message.role for message in right.messages] == ["system", "user", "assistant", "tool", "assistant"]
    (call,) = right.messages[2].tool_calls
    assert (call.function, call.arguments, right.messages[3].tool_call_id) == ("add", {"a": 1, "b": spelled(HOSTILE)}, "call_0")
    assert right.output.completion == right.messages[-1].text == spelled(HOSTILE)
    assert {name: score.value for name, score in right.scores.items()} == {"reward": 1.5, "env": 1.0, "brief": 0.25}
    assert (right.scores["reward"].answer, right.metadata["metrics"], right.metadata["seed"]) == ("b", {"cost": 1.5}, 7)
    assert right.metadata["task_data"] == {"reference_answer": "3"}
    assert (failed.scores, failed.error.message) == (None, "tool_error")
    with pytest.raises(ValueError, match=r"base\.000000\.sampled\.eval is there already"):
        export_evaluations(run, tmp_path / "logs")


def test_an_evaluation_that_goes_meanwhile_is_passed_over(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from burnish.inspector import inspect_logs

    def write(log: object, path: Path, format: str) -> None:
        (run / "episodes" / GREEDY.file).unlink()

    library = ModuleType("inspect_ai.log")
    library.__dict__["write_eval_log"] = write
    monkeypatch.setitem(sys.modules, "inspect_ai", ModuleType("inspect_ai"))
    monkeypatch.setitem(sys.modules, "inspect_ai.log", library)
    monkeypatch.setattr(inspect_logs, "_log", lambda *_: None)
    assert [path.name for path in inspect_logs.export_evaluations(run, tmp_path / "logs")] == ["base.000000.sampled.eval"]


@contextmanager
def viewer(logs: Path, home: Path) -> Iterator[str]:
    """Inspect's own viewer over a folder of logs, and its address. home: where it keeps what it keeps."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "inspect_ai", "view", "start", "--log-dir", str(logs), "--host", "127.0.0.1", "--port", str(port)]
    env = {**os.environ, "HOME": str(home), "XDG_DATA_HOME": str(home)}
    with (home / "viewer.log").open("w") as said, subprocess.Popen(command, cwd=home, env=env, stdout=said, stderr=said) as running:
        try:
            until = time.monotonic() + 60
            while not listens(port):
                assert running.poll() is None and time.monotonic() < until, (home / "viewer.log").read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            running.kill()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def fetched(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return bytes(answer.read())


def test_inspects_viewer_lists_the_logs_and_shows_them(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai", reason="inspect-ai is not installed: make trackers")
    from burnish.inspector.inspect_logs import export_evaluations

    paths = export_evaluations(run, tmp_path / "logs")
    with viewer(tmp_path / "logs", tmp_path) as address:
        assert b"<html" in fetched(address)
        listed = json.loads(fetched(f"{address}/api/log-files"))["files"]
        names = {Path(one["name"]).name: one["name"] for one in listed}
        assert names.keys() == {path.name for path in paths}
        log = json.loads(fetched(f"{address}/api/logs/{urllib.parse.quote(names['rft.000040.greedy.eval'], safe='')}"))
    assert (log["status"], log["eval"]["task"], log["eval"]["model"]) == ("success", "demo", "nano")
    assert {one["name"]: one["metrics"]["mean"]["value"] for one in log["results"]["scores"]} == {"reward": 1.0, "brief": 0.25, "env": 0.5}
    right, _, failed = sorted(log["samples"], key=lambda sample: sample["epoch"])
    assert right["messages"][-1]["content"] == spelled(HOSTILE) and right["scores"]["reward"]["value"] == 1.5
    assert failed["error"]["message"] == "tool_error"


def spelled(said: str) -> str:
    """Text as UTF-8 holds it."""
    return said.encode("utf-8", "backslashreplace").decode()


def test_without_inspect_the_command_says_what_to_install(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    missing: Any = lambda name: None if name == "inspect_ai" else object()  # noqa: E731
    monkeypatch.setattr("burnish.rpc.extras.find_spec", missing)
    done = CliRunner().invoke(app, ["runs", "export", str(run), str(tmp_path / "logs")])
    assert isinstance(done.exception, ValueError) or done.exit_code == 2
    assert "constraints/trackers.txt '.[inspect]'" in done.output + str(done.exception)
    assert not (tmp_path / "logs").exists()


def test_a_program_reads_which_logs_were_written(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    monkeypatch.setattr("burnish.cli.runs_command.require", lambda *needs: None)
    monkeypatch.setattr("burnish.inspector.inspect_logs.export_evaluations", lambda run, target: [target / "a.eval", target / "b.eval"])
    said = CliRunner().invoke(app, ["runs", "export", str(run), str(tmp_path), "--json"]).output
    assert json.loads(said) == {"schema": 1, "written": [f"{tmp_path}/a.eval", f"{tmp_path}/b.eval"]}
