"""Preference pairs out of stored rollouts: which attempts stand beside each other, and that their tokens are those that were sampled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.one_step import make_policy

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, Message, Outcome, Reward, Task, Trajectory
from burnish.recipe.load import config_from_data
from burnish.rollout.store import reading
from burnish.rollout.store.episodes import EpisodeStore
from burnish.rollout.store.moments import Moment
from burnish.trainer.data.config import Making
from burnish.trainer.data.pairs import lay_out, survey_pairs
from burnish.trainer.data.rollout_pairs import Attempt, chosen_pairs, rollout_pairs
from burnish.trainer.data.supervised import SupervisedExample
from burnish.trainer.models.checkpoints import save_checkpoint
from burnish.trainer.models.importing import ModelSize, new_model
from burnish.trainer.phases.dpo import DPOConfig

pytestmark = pytest.mark.unit

ANSWER = SupervisedExample(np.array([1, 2, 3], np.int32), np.array([False, True, True]))


def attempts(*rewards: float | None) -> list[Attempt]:
    return [Attempt("t", sample, sample + 1, reward, ANSWER) for sample, reward in enumerate(rewards)]


def samples(rewards: Sequence[float | None], min_gap: float = 0.0, count: int = 1) -> list[tuple[int, int]]:
    return [(better.sample, worse.sample) for better, worse in chosen_pairs(attempts(*rewards), min_gap, count)]


def test_the_best_stands_beside_the_worst_and_equal_ones_go_by_number() -> None:
    assert samples([1, 0, 0.5, 0]) == [(0, 3)] and samples([1, 0, 0.5, 0], 0.5, 2) == [(0, 3), (2, 1)]
    assert samples([0.2, 0.9, 0.9, 0.2, 0.5], count=9) == [(1, 3), (2, 0)], "the one in the middle has nobody"
    assert samples([1, 1, 1]) == [] and samples([1]) == [], "no difference, no preference"
    assert samples([0.6, 0.2], 0.4) == [(0, 1)] and samples([0.6, 0.3], 0.4) == []


def test_attempts_without_a_reward_or_of_several_sequences_take_no_part() -> None:
    assert samples([1, None, 0]) == [(0, 2)]
    several = [Attempt("t", 0, 1, 1.0, None), *attempts(0.5, 0.0)[0:2]]
    assert [(better.reward, worse.reward) for better, worse in chosen_pairs(several, 0.0, 1)] == [(0.5, 0.0)]
    silent = SupervisedExample(np.array([1, 2], np.int32), np.array([False, False]))
    assert list(chosen_pairs([Attempt("t", 0, 1, 1.0, silent), *attempts(0.5)], 0.0, 1)) == []


def episode(task: str, sample: int, outcome: Outcome, answer: int, pieces: int = 1) -> Episode:
    ids, mask = np.array([5, 6, answer, 2], np.int32), np.array([False, False, True, True])
    one = Trajectory(ids, mask, np.where(mask, np.float32(-0.5), np.float32(0)), np.where(mask, 3, -1).astype(np.int32))
    messages = (Message("user", "?"), Message("assistant", str(answer)))
    return Episode(Task(task, 1), sample, (one,) * pieces, messages, outcome)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two steps of training: one task tells its attempts apart, one does not, and one has a failure and an answer in two pieces."""
    folder = tmp_path / "run"
    failed = Failure(FailureKind.ENV_ERROR, "env", "x")
    with EpisodeStore(folder / "episodes", "run") as store:
        told = [episode("train-0", i, Reward(reward), 10 + i) for i, reward in enumerate((0.0, 1.0, 0.5))]
        same = [episode("train-1", i, Reward(1.0), 20 + i) for i in range(3)]
        store.put(Moment("rft", 1, "train", "sampled"), [*reversed(told), *same])
        few = [episode("train-2", 0, failed, 30), episode("train-2", 1, Reward(1.0), 31, pieces=2)]
        more = [episode("train-2", 2, Reward(0.2), 32), episode("train-2", 3, Reward(0.4), 33)]
        store.put(Moment("rft", 2, "train", "sampled"), [*few, *more])
        store.put(Moment("rft", 2, "heldout", "sampled"), [episode("heldout-1", i, Reward(float(i)), 40 + i) for i in range(2)])
    save_checkpoint(folder, "rft", 2, write_model=make_policy, write_trainer_state=lambda place: place.mkdir())
    return folder


def test_a_step_that_goes_while_the_others_are_read_is_passed_over(run: Path, tmp_path: Path) -> None:
    policy = make_policy(tmp_path / "policy")

    def found(going: bool) -> list[str]:
        places = list[str]()
        for pair in rollout_pairs(run, policy, 0.0, 1, 64):
            if going:
                (run / "episodes" / "rft.000002.train.sampled.parquet").unlink(missing_ok=True)
            places.append(pair[1][0].rpartition("/")[2] if isinstance(pair, tuple) else "none")
        return places

    first = ["rft.000001.train.sampled.parquet:2", "none"]
    assert found(False) == [*first, "rft.000002.train.sampled.parquet:4"]
    assert found(True) == first


def test_a_phase_learns_from_the_rollouts_of_a_run_token_by_token(run: Path, tmp_path: Path) -> None:
    making = Making(make_policy(tmp_path / "policy"), 128, {})
    data = lay_out(DPOConfig(steps=1, batch=2, from_run=str(run)), making, tmp_path / "data")
    (facts,) = data.facts
    assert (facts.pairs, facts.without, facts.tokens) == (2, 1, 16)
    found = {tuple(int(example.token_ids[2]) for example in pair) for pair in data.pairs(0)}
    assert found == {(11, 10), (33, 32)}, "held-out tasks are not learned from"
    files = [run / "episodes" / f"rft.00000{step}.train.sampled.parquet" for step in (1, 2)]
    drawn = {(one.better, one.worse) for one in data.drawn(0)}
    assert drawn == {(f"{files[0]}:2", f"{files[0]}:3"), (f"{files[1]}:4", f"{files[1]}:3")}, "rows of the files, from 1"
    (better, _), *_ = data.pairs(0)
    assert better.trainable.tolist() == [False, False, True, True]
    (wide,) = survey_pairs(DPOConfig(steps=1, batch=2, from_run=str(run), min_gap=0.5), making)
    assert (wide.pairs, wide.without) == (1, 2)
    with pytest.raises(ValueError, match="gives no pair"):
        survey_pairs(DPOConfig(steps=1, from_run=str(run), min_gap=1.5), making)
    short = Making(making.model, 3, {})
    with pytest.raises(ValueError, match=r"rft.000001.train.sampled.parquet:\d: .* 4 tokens long, more than the 3 allowed"):
        survey_pairs(DPOConfig(steps=1, from_run=str(run)), short)


def test_rollouts_of_another_tokenizer_or_of_none_are_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    new_model(["something else altogether"] * 9, other, ModelSize(hidden=32, layers=1, heads=1, intermediate=48, vocab_size=280))
    table = DPOConfig(steps=1, from_run=str(run))
    with pytest.raises(ValueError, match="of another tokenizer"):
        survey_pairs(table, Making(other, 128, {}))
    policy = Making(make_policy(tmp_path / "policy"), 128, {})
    with pytest.raises(ValueError, match="is not the folder of a run"):
        survey_pairs(DPOConfig(steps=1, from_run=str(tmp_path)), policy)
    (run / "episodes" / "rft.000001.train.sampled.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"train.sampled.parquet: cannot be read as stored episodes"):
        survey_pairs(table, policy)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("token_ids", [5, 6, 2**30, 2], "token_ids: 2 to 1073741824, but the model's tokens are 0 to"),
        ("token_ids", [5, 6, -1, 2], "token_ids: -1 to 6"),
        ("token_ids", [5, 6, None, 2], "token_ids: one of them is null"),
        ("token_ids", [5, 6], "token_ids: 2 values, but lengths says 4"),
        ("lengths", [2**31 - 1], "token_ids: 4 values, but lengths says 2147483647"),
        ("lengths", [-4, 8], "lengths: a sequence has at least one token"),
        ("mask", [True, False, True, True], "mask: the first token"),
        ("reward", float("nan"), "reward: nan is no number to compare"),
    ],
)
def test_stored_tokens_that_no_model_of_this_size_knows_are_refused(run: Path, tmp_path: Path, column: str, value: Any, said: str) -> None:
    file = run / "episodes" / "rft.000001.train.sampled.parquet"
    rows = pq.read_table(file)
    values = rows[column].to_pylist()
    values[4] = value
    place = rows.schema.get_field_index(column)
    pq.write_table(rows.set_column(place, rows.schema.field(place), pa.array(values, rows.schema.field(place).type)), file)
    with pytest.raises(ValueError, match=re.escape(f"train.sampled.parquet: episode 'train-1/1': {said}")):
        survey_pairs(DPOConfig(steps=1, from_run=str(run)), Making(make_policy(tmp_path / "policy"), 128, {}))


def test_a_small_file_of_rollouts_that_claims_much_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hundred thousand times the same token in each of six rows: a few kilobytes on disk."""
    monkeypatch.setattr(reading, "BATCH_BYTES", 4 << 20)
    file = run / "episodes" / "rft.000001.train.sampled.parquet"
    rows = pq.read_table(file)
    count, each = len(rows), 300_000
    ids = pa.ListArray.from_arrays(pa.array([each * i for i in range(count + 1)], pa.int32()), pa.array(np.zeros(count * each, np.int32)))
    pq.write_table(rows.set_column(rows.schema.get_field_index("token_ids"), rows.schema.field("token_ids"), ids), file, compression="zstd")
    assert file.stat().st_size < 1 << 16
    with pytest.raises(ValueError, match=r"of its rows take \d+ bytes, more than 4194304"):
        survey_pairs(DPOConfig(steps=1, from_run=str(run)), Making(make_policy(tmp_path / "policy"), 128, {}))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"steps": 1}, "exactly one of data"),
        ({"steps": 1, "data": "a.jsonl", "from_run": "runs/a"}, "exactly one of data"),
        ({"steps": 1, "data": "a.jsonl", "min_gap": 0.5}, "min_gap has no effect without from_run"),
        ({"steps": 1, "from_run": "runs/gone"}, "dpo.from_run: runs/gone is not there"),
        ({"steps": 1, "from_run": "x", "blend": [{"data": "b.jsonl", "percent": 5, "name": "b"}]}, r"dpo\.blend\.0\.data: b\.jsonl is not"),
    ],
)
def test_what_a_table_may_not_say(table: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config_from_data({"name": "x", "model": "nano", "environment": "burnish/Arithmetic-v0", "dpo": table})
