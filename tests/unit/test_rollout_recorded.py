"""What was said is in a run folder once: in the store, or beside it until the store has it, whatever ends the process in between."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.test_rollout_transcripts import NASTY, episode
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, Outcome, Reward
from burnish.inspector.library import Library
from burnish.inspector.runs import read_run_transcripts
from burnish.inspector.stored import Which, chosen
from burnish.rollout.store.episodes import SCHEMA, EpisodeStore, row_of
from burnish.rollout.store.json_lines import JsonLines
from burnish.rollout.store.moments import Moment
from burnish.rollout.store.transcripts import Transcript, TranscriptWriter, transcript_of

pytestmark = pytest.mark.unit

TRAIN = Moment("rft", 7, "train", "sampled")
TOOLS = ({"type": "function", "function": {"name": "measure", "description": "Übermaß?", "parameters": {"type": "object"}}},)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    home = tmp_path / "run"
    home.mkdir()
    (home / "config.json").write_text("{}")
    return home


def with_tools(outcome: Outcome) -> Episode:
    return replace(episode(outcome, NASTY), tools=TOOLS)


def store_of(run: Path) -> EpisodeStore:
    return EpisodeStore(run / "episodes", run.name, run / "transcripts")


def as_told(of: Episode, moment: Moment, run: str = "run") -> Transcript:
    return transcript_of(of, run=run, phase=moment.phase, step=moment.step, split=moment.split, mode=moment.mode)


def beside(run: Path) -> list[str]:
    return sorted(file.name for file in (run / "transcripts").iterdir())


def test_the_store_holds_the_whole_transcript_and_no_second_copy_stays(run: Path) -> None:
    told = [
        episode(Reward(0.5, {"env": 0.5}, {"cost": (0.25,)}), NASTY),
        episode(Failure(FailureKind.TOOL_TIMEOUT, "gauge", "late")),
        with_tools(Reward(-1.0)),
    ]
    with store_of(run) as store:
        store.put(TRAIN, told)
    assert beside(run) == []
    found = list(read_run_transcripts(run))
    assert [one.schema_version for one in found] == [2, 1, 3]
    assert found == [as_told(one, TRAIN) for one in told], "tools and texts that UTF-8 cannot hold among it"


def test_the_order_is_that_of_the_run(run: Path) -> None:
    with JsonLines(run / "metrics.jsonl") as lines:
        for phase, step in (("sft", 1), ("cpt", 1), ("cpt", 2)):
            lines.append({"phase": phase, "step": step, "time": 1.0})
    order = [
        Moment("base", 0, "heldout", "sampled"), Moment("base", 0, "heldout", "greedy"), Moment("sft", 1, "heldout", "sampled"),
        Moment("cpt", 2, "train", "sampled"), Moment("cpt", 2, "heldout", "sampled"), Moment("rft", 1, "train", "sampled"),
    ]  # fmt: skip
    with store_of(run) as store:
        for moment in reversed(order):
            store.put(moment, [episode(Reward(1.0))])
    assert [Moment(one.phase, one.step, one.split, one.mode) for one in read_run_transcripts(run)] == order


def _cut(run: Path, written: bool) -> None:
    """A run that is killed while the store is at work, before the step's file is there or right after."""
    real = Path.replace

    def replaced(self: Path, target: Any) -> Any:
        if written:
            real(self, target)
        os.kill(os.getpid(), signal.SIGKILL)

    Path.replace = replaced  # type: ignore[method-assign]
    store = store_of(run)
    store.put(TRAIN, [episode(Reward(0.5), NASTY), episode(Reward(0.25))])
    time.sleep(60)


@pytest.mark.parametrize("written", [False, True])
def test_a_run_that_is_killed_while_the_store_writes_loses_nothing_that_was_said(run: Path, written: bool) -> None:
    child = multiprocessing.get_context("fork").Process(target=_cut, args=(run, written))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert beside(run) == [TRAIN.transcripts] and (run / "episodes" / TRAIN.file).exists() == written
    assert [one.reward.total for one in read_run_transcripts(run) if one.reward] == [0.5, 0.25], "and nothing twice"
    said = CliRunner().invoke(app, ["rollouts", str(run), "--order", "best"])
    assert said.exit_code == 0 and said.stdout.count("rft step 7") == 2, said.output


def test_a_program_can_read_the_rollouts_that_are_printed(run: Path) -> None:
    with store_of(run) as store:
        store.put(TRAIN, [episode(Reward(total), NASTY) for total in (0.5, 0.25, 0.75)])
    done = CliRunner().invoke(app, ["rollouts", str(run), "--order", "best", "--limit", "2", "--json"])
    assert done.exit_code == 0 and done.stdout.isascii(), done.output
    best, second = json.loads(done.stdout)
    assert (best["reward"]["total"], second["reward"]["total"], best["phase"], best["step"]) == (0.75, 0.5, "rft", 7)
    assert NASTY in [message["content"] for message in best["messages"]] and Transcript.model_validate(best).to_row() == best
    refused = CliRunner().invoke(app, ["rollouts", str(run), "--json", "--prompt"])
    assert refused.exit_code == 2 and "--prompt has no effect with --json" in refused.stderr


def test_a_moment_that_is_stored_again_replaces_what_was_kept_of_it(run: Path) -> None:
    with store_of(run) as store:
        for total in (0.25, 0.5):
            store.put(TRAIN, [episode(Reward(total))])
    assert beside(run) == [] and [one.reward.total for one in read_run_transcripts(run) if one.reward] == [0.5]


def test_what_cannot_be_written_is_still_kept_beside(run: Path) -> None:
    store = store_of(run)
    (run / "episodes").rmdir()
    store.put(TRAIN, [episode(Reward(0.5))])
    with pytest.raises(OSError, match="episodes"):
        store.close()
    assert [one.reward.total for one in read_run_transcripts(run) if one.reward] == [0.5]


@pytest.mark.parametrize("step", [8, 7])
def test_what_comes_after_a_write_that_failed_is_kept_beside_too(run: Path, step: int) -> None:
    """So is a moment that is put again, by the one that was put last."""
    store = store_of(run)
    (run / "episodes").rmdir()
    store.put(TRAIN, [episode(Reward(0.5))])
    wait(store._waiting)
    with pytest.raises(OSError, match="episodes"):
        store.put(replace(TRAIN, step=step), [episode(Reward(0.75))])
    store.close()
    kept = [(one.step, one.reward.total) for one in read_run_transcripts(run) if one.reward]
    assert kept == ([(7, 0.5), (8, 0.75)] if step == 8 else [(7, 0.75)])


def test_rows_of_a_moment_are_read_one_at_a_time_though_their_file_goes_meanwhile(run: Path) -> None:
    file = run / "transcripts" / TRAIN.transcripts
    with TranscriptWriter(file) as writer:
        for total in (0.25, 0.5):
            writer.write(as_told(episode(Reward(total)), TRAIN))
    with file.open("ab") as more:
        more.write(b"1\n")
    reading = read_run_transcripts(run)
    found = [next(reading)]
    file.unlink()
    found.append(next(reading))
    assert [one.reward.total for one in found if one.reward] == [0.25, 0.5]
    with pytest.raises(ValueError, match=rf"{TRAIN.transcripts}:3: "):
        next(reading)


def test_a_file_that_is_written_while_it_is_read_counts_once(run: Path) -> None:
    """The rows of the second moment go as the first is read."""
    later = Moment("rft", 8, "train", "sampled")
    with (
        TranscriptWriter(run / "transcripts" / TRAIN.transcripts) as first,
        TranscriptWriter(run / "transcripts" / later.transcripts) as second,
    ):
        first.write(as_told(episode(Reward(0.5)), TRAIN))
        second.write(as_told(episode(Reward(0.75)), later))
    reading = read_run_transcripts(run)
    assert next(reading).step == 7
    with store_of(run) as store:
        store.put(later, [episode(Reward(0.75))])
    assert [one.step for one in reading] == [8]


def old_file(run: Path, moment: Moment, *tried: Episode, lacks: tuple[str, ...] = ("tools",)) -> None:
    """A file of an earlier schema."""
    (run / "episodes").mkdir(exist_ok=True)
    rows = [{**row_of(one, moment, run.name), "schema": 2} for one in tried]
    table = pa.Table.from_pylist(rows, SCHEMA)
    pq.write_table(table.drop_columns(list(lacks)), run / "episodes" / moment.file)


def test_a_run_whose_transcripts_are_all_in_one_file_reads_as_it_did(run: Path) -> None:
    """As runs were before their store held everything: the file has what the store lacks, and the store is not looked at."""
    with TranscriptWriter(run / "transcripts" / "episodes.jsonl") as writer:
        writer.write(as_told(with_tools(Reward(0.5)), TRAIN))
    old_file(run, TRAIN, with_tools(Reward(0.5)), lacks=("tools", "env_data"))
    assert list(read_run_transcripts(run)) == [as_told(with_tools(Reward(0.5)), TRAIN)]
    later = Moment("rft", 8, "train", "sampled")
    with store_of(run) as store:
        store.put(later, [episode(Reward(0.75))])
    assert [one.step for one in read_run_transcripts(run)] == [7, 8], "it was resumed since"


def test_a_store_of_the_schema_before_reads_everywhere(run: Path) -> None:
    old_file(run, TRAIN, episode(Reward(0.5)))
    with store_of(run) as store:
        store.put(Moment("rft", 8, "train", "sampled"), [with_tools(Reward(0.75))])
    old, new = read_run_transcripts(run)
    assert (old, new.tools) == (as_told(episode(Reward(0.5)), TRAIN), TOOLS)
    library = Library(run / "episodes")
    assert [library.one("rft", step, "train", "sampled", "train-17/2") is not None for step in (7, 8)] == [True, True]
    assert [one.id for one in chosen(run, Which())] == ["train-17/2"] * 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tools": "{"}, "episode 'train-17/2'"),
        ({"tools": "[1]"}, "tools"),
        ({"failure": "gremlins", "culprit": "x", "detail": "y"}, "kind"),
        ({"reward": None}, "either a reward or a failure"),
        ({"messages": '[{"role":"king"}]'}, "message 0"),
        ({"turns": [None]}, "episode 'train-17/2'"),
        ({"mode": "loud"}, "mode"),
    ],
)
def test_a_row_that_is_no_transcript_is_named_with_its_file(run: Path, changes: dict[str, Any], said: str) -> None:
    (run / "episodes").mkdir()
    row = {**row_of(episode(Reward(0.5)), TRAIN, "run"), **changes}
    pq.write_table(pa.Table.from_pylist([row], SCHEMA), run / "episodes" / TRAIN.file)
    with pytest.raises(ValueError, match=rf"{TRAIN.file}: cannot be read as stored episodes: .*{said}"):
        list(read_run_transcripts(run))
    done = CliRunner().invoke(app, ["rollouts", str(run)])
    assert done.exit_code == 2 and "Traceback" not in done.output
