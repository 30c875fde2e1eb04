"""What of a run's episodes stays: a share of the groups, the latest steps, and no more than so many megabytes; evaluations always."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, Message, Outcome, Reward, Task
from burnish.recipe.load import config_from_data
from burnish.recipe.resolve import resolve
from burnish.rollout.store.episodes import EpisodeStore
from burnish.rollout.store.keeping import EpisodesConfig, Keeping
from burnish.rollout.store.moments import Moment, moments
from burnish.rollout.store.transcripts import read_transcripts
from burnish.run import pipeline
from burnish.run.folder import create_run

pytestmark = pytest.mark.unit

BROKEN = Failure(FailureKind.TOOL_ERROR, "gauge", "unplugged")
EVALUATED = Moment("rft", 1, "heldout", "greedy")
WHAT = {"name": "kept", "model": "nano", "environment": "burnish/Arithmetic-v0", "seed": 7}


def step(number: int, phase: str = "rft") -> Moment:
    return Moment(phase, number, "train", "sampled")


def attempts(count: int, of_each: int = 2, outcome: Outcome | None = None, said: str = "ok") -> list[Episode]:
    chat = (Message("user", "Which?"), Message("assistant", said))
    return [Episode(Task(f"train-{i}", i), j, (), chat, outcome or Reward(1.0)) for i in range(count) for j in range(of_each)]


def noise(letters: int) -> str:
    """Text that takes about its length on the disk."""
    return np.random.default_rng(letters).bytes(letters // 2).hex()


def names(episodes: Sequence[Episode]) -> list[str]:
    return [one.id for one in episodes]


def there(folder: Path) -> set[Moment]:
    return {moment for _, moment in moments(folder)}


def rows(folder: Path, moment: Moment) -> list[str]:
    return list(pq.read_table(folder / moment.file, columns=["episode"]).column(0).to_pylist())


def test_by_default_all_of_it_stays(tmp_path: Path) -> None:
    with EpisodeStore(tmp_path, "r") as store:
        for number in range(1, 6):
            store.put(step(number), attempts(3))
    assert there(tmp_path) == {step(number) for number in range(1, 6)} and len(rows(tmp_path, step(5))) == 6


def test_a_share_is_of_whole_groups_and_the_same_whenever_the_step_is_taken() -> None:
    keeping, played = Keeping(EpisodesConfig(share=0.25), seed=7), attempts(16)
    found = keeping.chosen(step(3), played)
    assert len(found) == 8 and names(found) == [f"{one.task.id}/{j}" for one in found[::2] for j in (0, 1)]
    assert sorted(names(keeping.chosen(step(3), played[::-1]))) == sorted(names(found))
    others = (keeping.chosen(step(4), played), Keeping(EpisodesConfig(share=0.25), seed=8).chosen(step(3), played))
    assert all(set(names(other)) != set(names(found)) for other in others)
    assert len(Keeping(EpisodesConfig(share=0.01)).chosen(step(3), played)) == 2, "one group at least"
    assert keeping.chosen(EVALUATED, played) == tuple(played)


def test_a_group_with_a_failure_is_always_stored() -> None:
    played = attempts(16)
    played[9] = attempts(16, outcome=BROKEN)[9]
    for number in range(8):
        found = names(Keeping(EpisodesConfig(share=0.1)).chosen(step(number), played))
        assert {"train-4/0", "train-4/1"} <= set(found) and len(found) <= 6


def test_every_group_is_drawn_as_often_as_the_share_says() -> None:
    keeping, played, steps = Keeping(EpisodesConfig(share=0.25)), attempts(8, 1), 400
    times = dict.fromkeys(names(played), 0)
    for number in range(steps):
        for name in names(keeping.chosen(step(number), played)):
            times[name] += 1
    assert sum(times.values()) == steps * 2 and all(70 < count < 130 for count in times.values()), times


def test_transcripts_that_wait_are_of_what_is_stored_and_a_broken_step_is_stored_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, write = threading.Event(), EpisodeStore._write

    def held(*given: object) -> None:
        assert goes_on.wait(30)
        write(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(EpisodeStore, "_write", held)
    keeping = Keeping(EpisodesConfig(share=0.25), seed=7)
    wanted = names(keeping.chosen(step(1), attempts(8)))
    with EpisodeStore(tmp_path / "episodes", "r", tmp_path / "transcripts", keeping) as store:
        store.put(step(1), attempts(8))
        store.put(step(2), attempts(8), whole=True)
        assert [one.episode for one in read_transcripts(tmp_path / "transcripts" / step(1).transcripts)] == wanted
        goes_on.set()
    assert rows(tmp_path / "episodes", step(1)) == wanted and len(rows(tmp_path / "episodes", step(2))) == 16
    assert list((tmp_path / "transcripts").iterdir()) == []


def test_the_latest_steps_are_kept_in_the_order_of_the_phases_and_every_evaluation(tmp_path: Path) -> None:
    with EpisodeStore(tmp_path, "r", keeping=Keeping(EpisodesConfig(keep=2), order=("zeal", "rft"))) as store:
        store.put(EVALUATED, attempts(1))
        for moment in (step(8, "zeal"), step(9, "zeal"), step(1)):
            store.put(moment, attempts(1))
        store.flush()
        assert there(tmp_path) == {EVALUATED, step(9, "zeal"), step(1)}
        store.put(step(2), attempts(1))
    assert there(tmp_path) == {EVALUATED, step(1), step(2)}


def test_a_reader_with_a_file_open_reads_it_to_its_end(tmp_path: Path) -> None:
    with EpisodeStore(tmp_path, "r", keeping=Keeping(EpisodesConfig(keep=1))) as store:
        store.put(step(1), attempts(3))
        store.flush()
        with pq.ParquetFile(tmp_path / step(1).file) as opened:
            store.put(step(2), attempts(1))
            store.flush()
            assert there(tmp_path) == {step(2)} and opened.read(columns=["episode"]).num_rows == 6


def test_a_file_that_somebody_else_removes_meanwhile_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 3):
        with EpisodeStore(tmp_path, "r") as store:
            store.put(step(number), attempts(1))
    found = list(moments(tmp_path))
    (tmp_path / step(2).file).unlink()
    monkeypatch.setattr("burnish.rollout.store.keeping.moments", lambda _: found)
    assert Keeping(EpisodesConfig(keep=1, max_mb=1)).shrink(tmp_path) == "" and there(tmp_path) == {step(3)}


def test_above_its_megabytes_the_oldest_steps_go_first_and_what_stays_is_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    with EpisodeStore(tmp_path, "r", keeping=Keeping(EpisodesConfig(max_mb=1)), say=said.append) as store:
        for number in range(1, 5):
            store.put(step(number), attempts(1, 1, said=noise(700_000)))  # 0.35 MB each, of which zstd makes no less
        store.flush()
        assert there(tmp_path) == {step(3), step(4)} and said == []
        for number in (1, 2):
            store.put(Moment("rft", number, "heldout", "greedy"), attempts(1, 1, said=noise(1_200_000)))
    assert there(tmp_path) == {step(4), EVALUATED, Moment("rft", 2, "heldout", "greedy")}
    (line,) = said
    assert line.endswith("MB, more than [episodes] max_mb = 1: all that is left is evaluations and one training step, which stay")


def test_a_run_keeps_what_its_recipe_says() -> None:
    run = resolve(config_from_data({**WHAT, "episodes": {"keep": 3, "share": 0.5, "max_mb": 100}}))
    assert run.keeping == Keeping(EpisodesConfig(keep=3, share=0.5, max_mb=100), 7, ("rft",))
    assert resolve(config_from_data(WHAT)).keeping.config == EpisodesConfig()
    assert run.record["episodes"] == {"keep": 3, "share": 0.5, "max_mb": 100}


@pytest.mark.parametrize("wrong", [{"keep": 0}, {"share": 0.0}, {"share": 1.5}, {"max_mb": 0}])
def test_bounds_that_keep_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"episodes.{next(iter(wrong))}"):
        config_from_data({**WHAT, "episodes": wrong})


def test_bounds_without_reinforcement_are_refused() -> None:
    sft = {"steps": 3, "lr": 1e-4, "generate": "a.b:c", "count": 9, "batch": 3}
    with pytest.raises(ValueError, match=r"episodes\.keep: has no effect without \[rft\]"):
        resolve(config_from_data({**WHAT, "sft": sft, "episodes": {"keep": 3}}))


def test_a_run_hands_its_store_what_the_recipe_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    no_rft = SimpleNamespace(phase=lambda name: SimpleNamespace(table=None))  # of which no books are kept
    monkeypatch.setattr(pipeline, "session_over", lambda *_: nullcontext(SimpleNamespace(files=None, recipe=no_rft)))
    monkeypatch.setattr(pipeline, "say", lambda _, line: said.append(line))
    recipe = resolve(config_from_data({**WHAT, "episodes": {"keep": 2, "share": 0.25, "max_mb": 1}}))
    folder = create_run(recipe, run_dir=tmp_path / "run")
    with pipeline._started(recipe, folder, {}, Console()) as run:
        for number in (1, 2, 3):
            pipeline._keep(run, "rft", number, attempts(8), "train", "sampled")
        run.store.flush()
        assert there(folder.episodes) == {step(2), step(3)} and len(rows(folder.episodes, step(3))) == 4
        pipeline._keep(run, "rft", 3, attempts(1, 1, said=noise(2_500_000)), "heldout", "greedy")
        with pytest.raises(RuntimeError, match="broke"), pipeline._kept_when_it_fails(run, "rft", 4, attempts(8), "train", "sampled"):
            raise RuntimeError("broke")
    assert there(folder.episodes) == {step(4), Moment("rft", 3, "heldout", "greedy")}
    assert len(rows(folder.episodes, step(4))) == 16, "what a step that was broken off had played shows why"
    assert list(folder.transcripts.iterdir()) == []
    assert len(said) == 1 and "more than [episodes] max_mb = 1" in said[0]
