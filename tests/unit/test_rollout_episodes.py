"""The store of episodes and the questions asked of it: what goes in comes out, files appear whole, and a resumed run starts clean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow.parquet as pq
import pytest

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, Message, Outcome, Reward, Task, ToolCall, Trajectory, Turn
from burnish.inspector.library import Library
from burnish.inspector.listing import Wanted
from burnish.rollout.store import episodes as store_of
from burnish.rollout.store.episodes import SCHEMA, EpisodeStore, row_of
from burnish.rollout.store.moments import Moment, moments

pytestmark = pytest.mark.unit

TRAIN = Moment("rft", 3, "train", "sampled")


def episode(number: int, sample: int, outcome: Outcome, said: str = "ok", pieces: int = 1) -> Episode:
    ids, mask = np.arange(4, dtype=np.int32), np.array([0, 0, 1, 1], bool)
    one = Trajectory(ids, mask, np.array([0, 0, -1, -0.5], np.float32), np.array([-1, -1, 7, 8], np.int32))
    turn = Turn(np.array([2, 3], np.int32), np.array([-1, -0.5], np.float32), np.array([7, 8], np.int32), "stop", 0.25, 0.5, 0.5)
    return Episode(
        Task(f"train-{number}", number), sample, (one,) * pieces, (Message("user", "Which?"), Message("assistant", said)), outcome,
        (turn,) * pieces, metrics={"cost": 1.5}, labels={"expected": "a", "predicted": "b"}, engine="rollout-1",
        env_data={"level": (np.int64(1), 2.0)},
    )  # fmt: skip


def stored(folder: Path, *episodes: Episode, moment: Moment = TRAIN, measured: Any = None) -> Library:
    with EpisodeStore(folder, "nano-1") as store:
        store.put(moment, episodes, measured)
    return Library(folder)


def test_an_episode_comes_out_as_it_went_in(tmp_path: Path) -> None:
    rewarded = episode(1, 0, Reward(0.5, {"env": 1.0}, {"cost": (-0.5, 0.0)}, (-0.25, 0.0)), "naïve \ud83d ok", pieces=2)
    per = {name: np.arange(4, dtype=np.float32) for name in ("logprobs", "advantage", "entropy", "ratio")}
    library = stored(tmp_path, rewarded, measured={"train-1/0": [per, per]})
    row = library.one("rft", 3, "train", "sampled", "train-1/0")
    assert row is not None
    assert (row["run"], row["reward"], row["parts"], row["turn_parts"], row["credit"]) == (
        "nano-1", 0.5, {"env": 1.0}, {"cost": [-0.5, 0.0]}, [-0.25, 0.0],
    )  # fmt: skip
    assert [message["content"] for message in row["messages"]] == ["Which?", "naïve \ud83d ok"]
    assert (row["lengths"], row["token_ids"], row["version"]) == ([4, 4], [0, 1, 2, 3] * 2, [-1, -1, 7, 8] * 2)
    assert row["advantages"] == row["logprobs"] == [0, 1, 2, 3] * 2
    assert (row["prompt"], row["environment"], row["task_data"], row["env_data"]) == (0, "", "{}", '{"level":[1,2.0]}')
    assert row["env_rewards"] == [0.5, 0.5]
    assert row["turns"] == [{"tokens": 2, "stop": "stop", "generate_s": 0.25, "env_s": 0.5}] * 2
    assert (row["seconds"], row["oldest_version"], row["newest_version"], row["sampled_tokens"]) == (1.5, 7, 8, 4)
    assert library.one("rft", 3, "train", "sampled", "train-2/0") is None


def test_a_failure_has_no_reward_and_what_did_not_train_no_measurement(tmp_path: Path) -> None:
    failed = episode(1, 0, Failure(FailureKind.TOOL_ERROR, "gauge", "unplugged"))
    row = stored(tmp_path, failed).one("rft", 3, "train", "sampled", "train-1/0")
    assert row is not None
    assert (row["reward"], row["failure"], row["culprit"], row["detail"]) == (None, "tool_error", "gauge", "unplugged")
    assert row["advantages"] is row["logprobs"] is row["ratio"] is row["parts"] is None


def test_every_column_of_the_schema_is_written_and_two_lines_of_pandas_read_it(tmp_path: Path) -> None:
    assert set(row_of(episode(1, 0, Reward(1.0)), TRAIN, "r")) == set(SCHEMA.names)
    stored(tmp_path, episode(1, 0, Reward(1.0)), episode(1, 1, Reward(0.0)))
    stored(tmp_path, episode(2, 0, Reward(0.5)), moment=Moment("rft", 4, "train", "sampled"))
    assert pd.read_parquet(tmp_path).groupby("step")["reward"].mean().to_dict() == {3: 0.5, 4: 0.5}


def test_the_folder_is_read_whole_while_a_file_of_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path, episode(1, 0, Reward(1.0)))
    to_disk, seen = store_of._to_disk, list[list[int]]()

    def read(path: Path) -> None:
        seen.append(pd.read_parquet(tmp_path, columns=["step"])["step"].tolist())
        to_disk(path)

    monkeypatch.setattr(store_of, "_to_disk", read)
    again = Moment("rft", 4, "train", "sampled")
    for _ in range(2):
        stored(tmp_path, episode(2, 0, Reward(0.5)), moment=again)
    assert seen == [[3], [3, 4]]
    (tmp_path / again.draft).write_bytes(b"PAR1 what a kill left")
    assert pd.read_parquet(tmp_path, columns=["step"])["step"].tolist() == [3, 4]


def test_lists_are_narrowed_sorted_and_searched(tmp_path: Path) -> None:
    broken = Failure(FailureKind.ENV_ERROR, "env", "broke")
    library = stored(tmp_path, episode(1, 0, Reward(0.2), 'said "HELLO"\nthere'), episode(1, 1, Reward(0.9)), episode(2, 0, broken))
    stored(tmp_path, episode(5, 0, Reward(1.0)), moment=Moment("rft", 3, "heldout", "greedy"))

    def names(wanted: Wanted) -> list[str]:
        found = library.listed(wanted)
        assert library.count(wanted) == len(found)
        return [row["episode"] for row in found]

    assert names(Wanted({"split": "train"}, order="worst")) == ["train-1/0", "train-1/1", "train-2/0"]
    assert names(Wanted({"split": "train"}, order="best")) == ["train-1/1", "train-1/0", "train-2/0"]
    assert names(Wanted({"mode": "greedy"})) == ["train-5/0"]
    assert names(Wanted(failed=True)) == names(Wanted({"failure": "env_error"})) == ["train-2/0"]
    assert names(Wanted(text='"hello"\nTHERE')) == ["train-1/0"]
    assert names(Wanted(text="100% _")) == []
    for key in ("role", "content", "assistant", '"', "[{"):  # words of the form that messages are stored in, which nobody said
        assert names(Wanted({"split": "heldout"}, text=key)) == [], key
    assert names(Wanted(step=9)) == []
    assert [row["episode"] for row in library.group("rft", 3, "train", "sampled", "train-1")] == ["train-1/0", "train-1/1"]
    assert library.choices()["split"] == ["heldout", "train"]
    assert [row["episode"] for row in library.listed(Wanted({"split": "train"}, order="worst", first=1, most=1))] == ["train-1/1"]


def test_calls_of_tools_and_halves_of_surrogate_pairs_are_searched_too(tmp_path: Path) -> None:
    call = ToolCall("call_0", "Measure", {"feature": "bore"})
    plain, odd = episode(1, 0, Reward(0.2)), episode(1, 1, Reward(0.9), "half \ud83d of one")
    library = stored(tmp_path, replace(plain, messages=(Message("assistant", "so", (call,)),)), odd)
    for said, found in (
        ("measure", ["train-1/0"]),
        ("BORE", ["train-1/0"]),
        ("HALF", ["train-1/1"]),
        ("call_0", []),
        ("\ud83d of", ["train-1/1"]),
    ):
        assert [row["episode"] for row in library.listed(Wanted(text=said))] == found, said


def test_what_is_asked_is_never_part_of_the_question(tmp_path: Path) -> None:
    library = stored(tmp_path, episode(1, 0, Reward(0.2)))
    for said in ("' OR 1=1 --", "? = ?", "'; DROP TABLE episodes", "\ud83d", "%", "\x00"):
        assert library.count(Wanted({"task": said})) == library.count(Wanted(text=said)) == 0
    with pytest.raises(AssertionError):
        library.count(Wanted({"1=1 --": "x"}))


def test_the_mean_advantage_is_over_what_the_policy_sampled(tmp_path: Path) -> None:
    per = {name: np.array([0, 0, 0.5, 1.5], np.float32) for name in ("logprobs", "advantage", "entropy", "ratio")}
    found = stored(tmp_path, episode(1, 0, Reward(1.0)), measured={"train-1/0": [per]}).listed(Wanted())
    assert found[0]["advantage"] == 1.0


def test_what_fails_in_the_background_is_raised_by_the_next_call(tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path / "store", "r")
    (tmp_path / "store").rmdir()
    store.put(TRAIN, [episode(1, 0, Reward(1.0))])
    with pytest.raises(OSError, match="store"):
        store.close()


def test_names_tell_where_files_belong_and_others_are_left_alone(tmp_path: Path) -> None:
    stored(tmp_path, episode(1, 0, Reward(1.0)))
    (tmp_path / "other.parquet").write_text("no")
    assert [moment for _, moment in moments(tmp_path)] == [TRAIN]
    assert Library(tmp_path).count(Wanted()) == 1
    (tmp_path / "rft.000004.train.sampled.parquet").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="is a link that leads out of the folder"):
        list(moments(tmp_path))
    assert Moment.of(Path("sft.1234567.heldout.greedy.parquet")) == Moment("sft", 1234567, "heldout", "greedy")
    assert pq.read_metadata(tmp_path / TRAIN.file).num_rows == 1


def test_an_empty_store_answers_with_nothing(tmp_path: Path) -> None:
    library = Library(tmp_path / "missing")
    assert (library.count(Wanted()), library.listed(Wanted()), library.one("a", 1, "b", "c", "d")) == (0, [], None)
    assert library.choices()["phase"] == []
