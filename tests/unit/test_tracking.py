"""Trackers: they get what a run measures, stop it only before it begins, and TensorBoard's files hold the numbers."""

from __future__ import annotations

import json
import re
import struct
import threading
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.stored_run import recipe, tiny_model
from tests.unit.test_inspector import evaluation

from burnish.envs.registry import load_plugin
from burnish.envs.types import Episode, Reward, Task
from burnish.recipe.components import check_components
from burnish.recipe.load import config_from_data
from burnish.recipe.tracking import TRACKERS, TrackedRun, TrackingConfig, tracker
from burnish.rollout.store.moments import Moment
from burnish.rollout.store.records import AlarmRow, EvaluationRecord, RollBackRow
from burnish.run import pipeline, tracking
from burnish.run.folder import RunFolder, create_run
from burnish.run.tensorboard import TensorBoard
from burnish.run.tracking import Trackers, tracked

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
ALARM = AlarmRow(phase="rft", step=2, guard="parting", action="warn", text="kl 0.4")
heard: list[Any] = []
gate = threading.Event()


@tracker("tracking-test/heard-v1")
class Heard:
    """Keeps what it hears. fails: raises at this step; starts: raises at once; hangs: until `gate` opens."""

    def __init__(self, run: TrackedRun, *, starts: bool = True, fails: int = 0, hangs: bool = False) -> None:
        if not starts:
            raise ConnectionError("nobody listens\nthere")
        self.fails, self.hangs = fails, hangs
        heard.append(("start", run.name, run.resumed))

    def metrics(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        if self.hangs:
            gate.wait(60)
        if step == self.fails:
            raise OSError("no room")
        heard.append((phase, step, dict(values)))

    def evaluation(self, record: EvaluationRecord) -> None:
        heard.append(("evaluation", record.result.success))

    def alarm(self, row: AlarmRow) -> None:
        heard.append(("alarm", row.text))

    def close(self) -> None:
        heard.append("closed")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    heard.clear()
    gate.clear()
    yield
    gate.set()


@contextmanager
def followed(tmp_path: Path, said: list[str], wait_s: float = 60.0, **args: Any) -> Iterator[RunFolder]:
    config = TrackingConfig(use=("tracking-test/heard-v1",), args={"tracking-test/heard-v1": args})
    with tracked(config, TrackedRun("r", tmp_path, {}, False), said.append, wait_s) as trackers:
        yield RunFolder(tmp_path, trackers)


def test_a_tracker_hears_every_row_in_order(tmp_path: Path) -> None:
    said: list[str] = []
    with followed(tmp_path, said) as folder:
        folder.log_metrics("rft", 1, {"reward_mean": 0.5, "count": 3})
        folder.log_alarm(ALARM)
        folder.log_evaluation(evaluation("rft", 0.75))
    rows = [("rft", 1, {"reward_mean": 0.5, "count": 3.0}), ("alarm", "kl 0.4"), ("evaluation", 0.75)]
    assert heard == [("start", "r", False), *rows, "closed"] and said == []
    assert json.loads(folder.metrics_file.read_text())["reward_mean"] == 0.5


@tracker("tracking-test/listens-v1")
class Listens(Heard):
    """Takes conversations too. fails: at this step."""

    def __init__(self, run: TrackedRun, *, traces: int, fails: int = 0) -> None:
        super().__init__(run, fails=fails)
        self.traces = traces

    def episodes(self, at: Moment, episodes: Sequence[Episode]) -> None:
        self.metrics(f"{at.phase} {at.split}", at.step, {one.id: one.sample for one in episodes})


def episodes(run: TrackedRun, *steps: int, said: list[str], **args: Any) -> None:
    attempts = [Episode(Task("t", 1), sample, (), (), Reward(1.0)) for sample in range(4)]
    config = TrackingConfig(use=("tracking-test/heard-v1", "tracking-test/listens-v1"), args={"tracking-test/listens-v1": args})
    with tracked(config, run, said.append) as trackers:
        for step in steps:
            trackers.episodes(Moment("rft", step, "train", "sampled"), attempts)
        trackers.episodes(Moment("rft", 9, "heldout", "greedy"), [])


def test_one_that_takes_conversations_gets_the_first_of_each_step(tmp_path: Path) -> None:
    """As many as it wants, whatever there are; a tracker that takes none hears nothing."""
    run, said = TrackedRun("r", tmp_path, {}, False), list[str]()
    episodes(run, 1, 2, said=said, traces=2)
    two = {"t/0": 0, "t/1": 1}
    assert [one for one in heard if one[0] == "rft train"] == [("rft train", 1, two), ("rft train", 2, two)] and said == []
    assert len(heard) == 6
    heard.clear()
    episodes(run, 1, 2, said=said, traces=0)
    assert len(heard) == 4 and said == []


def test_conversations_that_it_cannot_take_stop_no_run(tmp_path: Path) -> None:
    said: list[str] = []
    episodes(TrackedRun("r", tmp_path, {}, False), 1, 2, 3, said=said, traces=1, fails=2)
    assert ("rft train", 1, {"t/0": 0}) in heard and len(said) == 1 and "listens-v1 failed: OSError: no room" in said[0]


@pytest.mark.parametrize("traces", [-1, "2", True, None])
def test_how_many_it_takes_is_a_number_before_the_run_begins(tmp_path: Path, traces: Any) -> None:
    with pytest.raises(ValueError, match=r"listens-v1 cannot start: .*traces'?:? must be an? (number of episodes|integer)"):
        episodes(TrackedRun("r", tmp_path, {}, False), 1, said=[], traces=traces)


def test_the_pipeline_hands_every_stored_episode_on(tmp_path: Path) -> None:
    told: list[Any] = []
    store, trackers = (SimpleNamespace(**{name: lambda *what: told.append(what[:2])}) for name in ("put", "episodes"))
    run = SimpleNamespace(store=store, folder=RunFolder(tmp_path, cast(Any, trackers)))
    pipeline._keep(cast(Any, run), "sft", 3, [], "heldout", "greedy")
    assert told == [(Moment("sft", 3, "heldout", "greedy"), [])] * 2


def test_one_that_cannot_start_stops_the_run_in_one_line(tmp_path: Path) -> None:
    said = "^tracking: tracking-test/heard-v1 cannot start: ConnectionError: nobody listens there; put it right"
    with pytest.raises(ValueError, match=said), followed(tmp_path, [], starts=False):
        raise AssertionError("the run began")


def test_one_that_fails_later_is_warned_of_once_and_left_behind(tmp_path: Path) -> None:
    said: list[str] = []
    with followed(tmp_path, said, fails=2) as folder:
        for step in (1, 2, 3):
            folder.log_metrics("rft", step, {})
    assert heard == [("start", "r", False), ("rft", 1, {})]
    assert said == [
        "tracker tracking-test/heard-v1 failed: OSError: no room; it gets nothing more of this run, whose folder has everything"
    ]
    assert len(folder.metrics_file.read_text().splitlines()) == 3


def test_one_that_hangs_holds_up_neither_the_run_nor_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "WAITING", 4)
    said: list[str] = []
    with followed(tmp_path, said, 0.5, hangs=True) as folder:
        for step in range(20):
            folder.log_metrics("rft", step, {})
    assert len(said) == 1 and "is 4 steps behind" in said[0]
    with followed(tmp_path, said, 0.5, hangs=True) as folder:
        folder.log_metrics("rft", 21, {})
    assert "did not end within 0.5 s" in said[1]


def test_one_that_does_not_start_in_time_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Heard, "__init__", lambda self, run: gate.wait(60) and None)
    config, run = TrackingConfig(use=("tracking-test/heard-v1",)), TrackedRun("r", tmp_path, {}, False)
    with pytest.raises(ValueError, match=r"did not start within 0\.1 s"), tracked(config, run, print, 0.1):
        raise AssertionError("the run began")


def test_the_pipeline_tells_the_recipes_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = recipe(tiny_model(tmp_path / "tiny"), "burnish/Arithmetic-v0", tracking={"use": ["tracking-test/heard-v1"]})

    def goes(recipe: Any, folder: RunFolder, resume: bool, console: Any, plan: Any) -> dict[Any, Any]:
        folder.log_metrics("rft", 1, {"success": 1.0})
        return {}

    monkeypatch.setattr(pipeline, "_run", goes)
    pipeline.run(run, create_run(run, run_dir=tmp_path / "run").path)
    assert heard == [("start", "run", False), ("rft", 1, {"success": 1.0}), "closed"]


def test_what_the_table_says_must_make_sense(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny")
    for table, said in (
        ({"use": ["tracking-test/herd-v1"]}, "tracking.use: tracker 'tracking-test/herd-v1' is unknown; did you mean"),
        (
            {"use": ["tracking-test/heard-v1"], "args": {"tracking-test/heard-v1": {"hang": 1}}},
            "has no option 'hang'; did you mean 'hangs'",
        ),
        ({"use": ["tracking-test/heard-v1"], "args": {"tracking-test/heard-v1": {"fails": "x"}}}, "'fails': must be an integer, not 'x'"),
        ({"args": {"tracking-test/heard-v1": {}}}, "has no effect without 'tracking-test/heard-v1' in tracking.use"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            check_components(recipe(model, "burnish/Arithmetic-v0", tracking=table))


def events(folder: Path) -> list[Any]:
    """Every event of every file in a folder; TFRecord's framing: length, checksum, the event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.glob("events.*"), key=lambda file: file.name):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    values = [(event.step, value) for event in events(folder) for value in event.summary.value]
    return {(value.tag, step): value.simple_value for step, value in values if not value.tensor.dtype}


def test_tensorboard_holds_metrics_evaluations_alarms_and_the_config(tmp_path: Path) -> None:
    told = TrackedRun("r", tmp_path, {"name": "demo"}, False)
    board = TensorBoard(told)
    board.metrics("rft", 1, {"reward_mean": 0.5, "learner/entropy": 1.5})
    board.metrics("rft", 2, {"reward_mean": 0.75})
    board.evaluation(evaluation("rft", 0.5, step=2))
    board.alarm(ALARM)
    board.close()
    found = scalars(tmp_path / "tensorboard" / "rft")
    assert (found["reward_mean", 1], found["learner/entropy", 1], found["reward_mean", 2]) == (0.5, 1.5, 0.75)
    assert (found["heldout/sampled/success", 2], found["heldout/sampled/part/cost", 2]) == (0.5, -0.25)
    texts = b"".join(event.SerializeToString() for event in events(tmp_path / "tensorboard" / "rft"))
    assert b"warn: kl 0.4" in texts
    assert b'"name": "demo"' in b"".join(event.SerializeToString() for event in events(tmp_path / "tensorboard"))
    again = TensorBoard(replace(told, resumed=True))
    again.metrics("rft", 2, {"reward_mean": 0.25})
    again.close()
    starts = [event.step for event in events(tmp_path / "tensorboard" / "rft") if event.HasField("session_log")]
    assert starts == [2]  # what TensorBoard shows of step 2 and later is what came after this


def test_tensorboard_keeps_the_metrics_of_a_step_whose_evaluation_comes_after_a_resume(tmp_path: Path) -> None:
    told = TrackedRun("r", tmp_path, {}, False)
    board = TensorBoard(told)
    board.metrics("rft", 2, {"reward_mean": 0.75})
    board.close()
    again = TensorBoard(replace(told, resumed=True))
    again.evaluation(evaluation("rft", 0.5, step=2))
    again.close()
    starts = [event.step for event in events(tmp_path / "tensorboard" / "rft") if event.HasField("session_log")]
    assert starts == [3]  # step 2 stays


def test_tensorboard_purges_what_a_run_takes_back_and_keeps_why_it_went_back(tmp_path: Path) -> None:
    board = TensorBoard(TrackedRun("r", tmp_path, {}, False))
    for step in (1, 2, 3):
        board.metrics("rft", step, {"reward_mean": 0.75})
    board.alarm(ALARM.model_copy(update={"step": 3, "action": "roll_back", "text": "it drifts"}))
    for step in (2, 3):
        board.metrics("rft", step, {"reward_mean": 0.25})
    board.close()
    folder = tmp_path / "tensorboard" / "rft"
    before, after = sorted(folder.glob("events.*"), key=lambda file: file.name[-2:])
    assert [event.step for event in events(folder) if event.HasField("session_log")] == [2]
    assert b"it drifts" in before.read_bytes() and b"it drifts" in after.read_bytes(), "what stood before step 2 is all that is shown of it"


@pytest.mark.parametrize("first", ["metrics", "evaluation"])
def test_tensorboard_keeps_why_a_run_went_back_that_was_resumed_since(tmp_path: Path, first: str) -> None:
    told, folder = TrackedRun("r", tmp_path, {}, False), RunFolder(tmp_path)
    board = TensorBoard(told)
    for step in (1, 2, 3):
        board.metrics("rft", step, {"reward_mean": 0.75})
    for row in (
        ALARM.model_copy(update={"step": 3, "text": "it only warns"}),
        ALARM.model_copy(update={"step": 3, "action": "roll_back", "text": "it drifts"}),
    ):
        folder.log_alarm(row)
        board.alarm(row)
    folder.log_roll_back(RollBackRow(phase="rft", step=3, guards=(ALARM.guard,), position=9))
    board.close()
    again = TensorBoard(replace(told, resumed=True))
    folder.rewind(["rft"], "rft", 1)
    if first == "evaluation":
        again.evaluation(evaluation("rft", 0.5, step=1))
    again.metrics("rft", 2, {"reward_mean": 0.25})
    again.close()
    files = sorted((tmp_path / "tensorboard" / "rft").glob("events.*"), key=lambda file: file.name[-2:])
    assert [event.step for event in events(tmp_path / "tensorboard" / "rft") if event.HasField("session_log")] == [2]
    shown = files[-1].read_bytes()
    assert shown.count(b"roll_back: it drifts") == 1 and b"it only warns" not in shown


def test_tensorboard_writes_where_it_is_told(tmp_path: Path) -> None:
    board = TRACKERS.get("burnish/tensorboard-v1")(TrackedRun("r", tmp_path, {}, False), folder=str(tmp_path / "boards"))
    board.metrics("sft", 1, {"loss": 2.0})
    board.close()
    assert scalars(tmp_path / "boards" / "r" / "sft") == {("loss", 1): 2.0}


def blocks(language: str) -> list[str]:
    page = (ROOT / "docs" / "watch-a-run.md").read_text()
    return [text for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) if kind == language]


def test_the_table_and_the_tracker_of_the_page_work(tmp_path: Path) -> None:
    (table,) = (text for text in blocks("toml") if "[tracking]" in text)
    essential = {"name": "page", "model": "nano", "environment": "burnish/Arithmetic-v0"}
    config = config_from_data({**essential, **tomllib.loads(table)})
    assert config.tracking.use == ("burnish/tensorboard-v1",)
    (tmp_path / "lines.py").write_text(next(text for text in blocks("python") if "@tracker" in text))
    load_plugin(tmp_path / "lines.py")
    out = tmp_path / "lines.jsonl"
    own = TrackingConfig(use=("my-team/lines-v1",), args={"my-team/lines-v1": {"file": str(out)}})
    with tracked(own, TrackedRun("r", tmp_path, {}, False), print) as trackers:
        trackers.metrics("rft", 1, {"reward_mean": 0.5})
        trackers.evaluation(evaluation("rft", 0.75))
        trackers.alarm(ALARM)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == [{"at": "rft 1", "reward": 0.5}, {"at": "after rft", "success": 0.75}, {"at": "rft 2", "alarm": "kl 0.4"}]


def test_a_run_without_trackers_has_none(tmp_path: Path) -> None:
    RunFolder(tmp_path).log_metrics("rft", 1, {})
    assert RunFolder(tmp_path) == RunFolder(tmp_path, Trackers())
