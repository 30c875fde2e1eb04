"""What keeping episodes costs a run: `pytest benchmarks/bench_inspection_cost.py -m slow -s`.

Time: the same run over a scripted engine, in this process, with the store and without it, in turns; the medians of what their steps took.
Room: the Parquet files that a run left, beside the token arrays in them, compressed by themselves; this does not depend on the machine.
BURNISH_COST_ROUNDS says how many runs of each there are, BURNISH_COST_STEPS how many steps they take, and BURNISH_COST_RUN names a run
folder of yours to weigh.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmarks.stored_rollouts import write_run
from tests.integration import scripted_run
from tests.unit.stored_run import tiny_model
from tests.unit.test_recorded_steps import REWARD, even_digits

from burnish.inspector.runs import read_run
from burnish.rewards.plugin import REWARDS, reward
from burnish.rollout.store.episodes import MEASURED, EpisodeStore
from burnish.rollout.store.moments import moments
from burnish.run import pipeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROUNDS, STEPS = int(os.environ.get("BURNISH_COST_ROUNDS", "5")), int(os.environ.get("BURNISH_COST_STEPS", "40"))
MOST_TIME, MOST_ROOM = 1.02, 1.2
ARRAYS = ("lengths", "token_ids", "mask", "version", "sampler_logprobs", *MEASURED)
RECIPE = """
name = "cost"
model = "{model}"
environment = "burnish/Arithmetic-v0"
success = "env"
reward_function = "{reward}"
rft = {{ steps = {steps}, groups_per_step = 8, group_size = 8, max_refills = 1, lr = 1e-4, checkpoint_every = {steps} }}
rollout = {{ max_tokens_per_turn = 16 }}
engine = {{ max_context = 128 }}
learner = {{ threads = 1 }}
evaluation = {{ tasks = 2, before = false, after = false }}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import ray

    for name in ("parts_of", "session_over", "dashboard_url", "session_logs"):
        monkeypatch.setattr(pipeline, name, getattr(pipeline, name, None), raising=False)
    monkeypatch.setattr(ray, "get", ray.get)
    scripted_run.local_parts()
    if REWARDS.loaded(REWARD) is None:
        reward(REWARD)(even_digits)
    file = tmp_path / "cost.toml"
    file.write_text(RECIPE.format(model=tiny_model(tmp_path / "model"), reward=REWARD, steps=STEPS))
    return file


def seconds_of(run: Path) -> float:
    """From the end of the first step to the end of the last: what comes before is the start."""
    times = [row.time for row in read_run(run).metrics]
    return times[-1] - times[0]


def test_keeping_episodes_costs_training_at_most_two_percent(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put: Callable[..., None] = EpisodeStore.put

    def nothing(self: EpisodeStore, *given: Any) -> None:
        pass

    took: dict[str, list[float]] = {"off": [], "on": []}
    worked: dict[str, list[float]] = {"off": [], "on": []}
    began = time.monotonic()
    for number in range(ROUNDS):
        for kept in ("off", "on") if number % 2 else ("on", "off"):
            monkeypatch.setattr(EpisodeStore, "put", put if kept == "on" else nothing)
            run = tmp_path / f"{kept}-{number}"
            at = time.process_time()
            scripted_run.play(recipe, run)
            worked[kept].append(time.process_time() - at)
            took[kept].append(seconds_of(run))
            assert bool(list(moments(run / "episodes"))) == (kept == "on")
    on, off = (statistics.median(took[kept]) for kept in ("on", "off"))
    pairs = sorted(one / other for one, other in zip(took["on"], took["off"], strict=True))
    print(f"\n{ROUNDS} runs of {STEPS} steps each way in {time.monotonic() - began:.0f} s: with the store {on:.3f} s, without {off:.3f} s")
    print(f"by the medians {on / off:.3f} times as long, pair by pair {statistics.median(pairs):.3f} ({pairs[0]:.3f} to {pairs[-1]:.3f})")
    cpu = {kept: statistics.median(worked[kept]) for kept in worked}
    print(f"processor time {cpu['on']:.2f} s with it, start and end included, {cpu['off']:.2f} s without")
    assert on / off <= MOST_TIME, "run it on a machine that does nothing else"


def room_of(folder: Path) -> tuple[int, int, int]:
    """Bytes of a store's files, of its token arrays when those of each step are compressed by themselves, and of Parquet files that hold
    these arrays alone."""
    files = arrays = alone = 0
    for file, _ in moments(folder):
        files += file.stat().st_size
        table = pq.read_table(file, columns=list(ARRAYS))
        codec = pa.Codec("zstd")
        for column in table.columns:
            values = column.combine_chunks().flatten()
            arrays += sum(len(codec.compress(buffer)) for buffer in values.buffers()[1:] if buffer is not None)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        alone += sink.getvalue().size
    return files, arrays, alone


@pytest.mark.xfail(strict=True, reason="messages and turns weigh as much as the arrays of short episodes: docs/watch-a-run.md")
def test_a_store_takes_at_most_a_fifth_more_than_its_tokens_compressed(tmp_path: Path) -> None:
    given = os.environ.get("BURNISH_COST_RUN")
    run = Path(given) if given else tmp_path / "made-up"
    if not given:
        write_run(run, 20_000)
    files, arrays, alone = room_of(run / "episodes")
    print(f"\n{run}: {files:,} bytes stored, {files / arrays:.2f} times the token arrays compressed ({arrays:,})")
    print(f"and {files / alone:.2f} times Parquet files of the token arrays alone ({alone:,})")
    assert files / arrays <= MOST_ROOM
