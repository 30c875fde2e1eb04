"""Episodes as traces of MLflow: the spans and their lengths, what is written of hostile text, and a store that keeps none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, Message, Reward, Task, ToolCall, Turn
from burnish.recipe.tracking import TrackedRun, TrackingConfig
from burnish.rollout.store.moments import Moment
from burnish.run.mlflow_store import MLflow
from burnish.run.mlflow_traces import LONGEST_SAID, MOST_TURNS, held, log_episode, pieces_of
from burnish.run.tracking import tracked

pytestmark = pytest.mark.unit

HOSTILE = "<script>../\x1b[31m\u202e \ud83d"
DATA = "data:text/html;base64,PHNjcmlwdD4="
AT = Moment("rft", 12, "train", "sampled")


def turn(generate_s: float, env_s: float = 0.0) -> Turn:
    return Turn(np.array([1], np.int32), np.array([-0.1], np.float32), np.array([0], np.int32), "stop", generate_s, env_s)


MEASURED = Episode(
    Task("t", 1),
    0,
    (),
    (
        Message("assistant", "of the prompt"),
        Message("user", HOSTILE),
        Message("assistant", "", (ToolCall("c1", "measure", {"what": HOSTILE}),)),
        Message("tool", DATA, tool_call_id="c1"),
        Message("assistant", "pass"),
    ),
    Reward(0.5, {"env": 0.5}),
    (turn(0.25, 0.5), turn(0.125)),
    labels={"expected": "pass"},
)
BROKE = Episode(Task("t", 1), 1, (), (Message("user", "q"),), Failure(FailureKind.ENV_ERROR, "env", "it broke"))


class Client:
    """In the place of MLflow's: what it was told, as JSON can hold it. keeps: whether a trace can be read again."""

    def __init__(self, keeps: bool = True) -> None:
        self.told, self._keeps = list[tuple[str, Any]](), keeps

    def start_trace(self, name: str, **told: Any) -> Any:
        return self._note("trace", {"name": name, **told})

    def start_span(self, name: str, trace_id: str, parent_id: str, **told: Any) -> Any:
        assert (trace_id, parent_id) == ("tr-1", "span-1")
        return self._note("span", {"name": name, **told})

    def end_span(self, trace_id: str, span_id: str, **told: Any) -> None:
        assert (trace_id, span_id) == ("tr-1", f"span-{len(self.told)}")
        self.told[-1][1].update(told)

    def end_trace(self, trace_id: str, **told: Any) -> None:
        assert trace_id == "tr-1"
        self.told[0][1].update(told)

    def get_trace(self, trace_id: str) -> None:
        if not self._keeps:
            raise LookupError(f"no trace {trace_id}")

    def _note(self, kind: str, told: Any) -> Any:
        self.told.append((kind, json.loads(json.dumps(told, ensure_ascii=False).encode())))
        return SimpleNamespace(trace_id="tr-1", span_id=f"span-{len(self.told)}")


def test_a_trace_has_a_span_for_what_was_said_and_one_for_the_answer() -> None:
    client = Client()
    log_episode(client, "4", "run-1", AT, MEASURED)
    (_, root), *spans = client.told
    assert (root["name"], root["run_id"], root["experiment_id"], root["status"]) == ("rft 12: t/0", "run-1", "4", "OK")
    assert [one["role"] for one in root["inputs"]["messages"]] == ["assistant", "user"], "what the policy said comes last"
    assert root["outputs"] == {"reward": 0.5, "parts": {"env": 0.5}, "labels": {"expected": "pass"}}
    assert root["tags"]["burnish.step"] == "12" and root["tags"]["burnish.episode"] == "t/0"
    took = [(one["name"], one["span_type"], one["end_time_ns"] - one["start_time_ns"]) for _, one in spans]
    assert took == [("turn 1", "CHAT_MODEL", 250_000_000), ("answer 1", "TOOL", 500_000_000), ("turn 2", "CHAT_MODEL", 125_000_000)]
    assert (spans[0][1]["start_time_ns"], spans[-1][1]["end_time_ns"]) == (root["start_time_ns"], root["end_time_ns"])
    assert spans[1][1]["outputs"]["messages"] == [{"role": "tool", "content": DATA, "tool_call_id": "c1"}]
    assert root["inputs"]["messages"][1]["content"] == HOSTILE.replace("\ud83d", "\\ud83d"), "half a character is no UTF-8"


def test_an_episode_that_failed_says_of_what() -> None:
    client = Client()
    log_episode(client, "4", "run-1", AT, BROKE)
    ((_, root),) = client.told
    assert root["status"] == "ERROR" and root["outputs"] == {"failure": "env_error", "culprit": "env", "detail": "it broke"}
    assert [one["content"] for one in root["inputs"]["messages"]] == ["q"]


def test_what_is_written_of_an_episode_has_bounds() -> None:
    said = held({"a": ["x" * 10_000_000], "b": float("nan"), "c": 1.5})
    assert said == {"a": ["x" * LONGEST_SAID + " …"], "b": "nan", "c": 1.5}
    turns = 3 * MOST_TURNS
    talk = tuple(Message("assistant" if i % 2 else "user", str(i)) for i in range(2 * turns))
    pieces = pieces_of(Episode(Task("t", 1), 0, (), talk, Reward(1.0), (turn(1.0),) * turns))[1]
    assert len(pieces) == 2 * MOST_TURNS


def test_a_trace_that_was_not_kept_is_told() -> None:
    """MLflow itself warns in its log, and goes on."""
    with pytest.raises(LookupError, match="no trace tr-1"):
        log_episode(Client(keeps=False), "4", "run-1", AT, MEASURED)


@pytest.mark.parametrize("traces", [-1, True, "2", 1.5])
def test_traces_is_a_number_of_episodes(traces: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="traces must be a number of episodes, 0 for none, not"):
        MLflow(TrackedRun("r", tmp_path, {}, False), traces=traces)


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    found = pytest.importorskip("mlflow", reason="MLflow is not installed: make trackers")
    before = dict(os.environ)
    yield found
    found.set_tracking_uri(None)
    for name in os.environ.keys() - before.keys():
        monkeypatch.delenv(name)


def test_mlflow_holds_the_first_episodes_of_a_step(mlflow: Any, tmp_path: Path) -> None:
    said: list[str] = []
    folder = tmp_path / "runs" / "nano-1"
    folder.mkdir(parents=True)
    config = TrackingConfig(use=("burnish/mlflow-v1",), args={"burnish/mlflow-v1": {"traces": 2}})
    with tracked(config, TrackedRun("nano-1", folder, {}, False), said.append) as trackers:
        trackers.episodes(AT, [MEASURED, BROKE, MEASURED])
    assert said == []
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("burnish").experiment_id
    (run,) = client.search_runs([experiment])
    traces = {one.info.tags["burnish.episode"]: one for one in client.search_traces(locations=[experiment], run_id=run.info.run_id)}
    assert {id: (one.info.state.value, len(one.data.spans)) for id, one in traces.items()} == {"t/0": ("OK", 4), "t/1": ("ERROR", 1)}
    by_name = {span.name: span for span in traces["t/0"].data.spans}
    assert by_name["answer 1"].outputs["messages"][0]["content"] == DATA, "text stays text"
    assert by_name["answer 1"].end_time_ns - by_name["answer 1"].start_time_ns == 500_000_000
    assert not list(tmp_path.rglob("attachments"))
