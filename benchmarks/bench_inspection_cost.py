"""What keeping episodes costs a run: `pytest benchmarks/bench_inspection_cost.py -m slow -s`.

Time: the same run over a scripted engine, in this process, with the store and without it, in turns; the medians of what their steps took.
Such a step is over in a tenth of a second, so the difference is held against what an episode takes in the demo, sampling and learning.
Room: the Parquet files that a run left, beside the token arrays in them, compressed by themselves; this does not depend on the machine.
BURNISH_COST_ROUNDS says how many runs of each there are, BURNISH_COST_STEPS how many steps they take. `python -m
benchmarks.bench_inspection_cost RUN …` weighs runs of yours.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmarks.stored_rollouts import LONG, SHORT, Shape, write_run
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
MOST_TIME, MOST_ROOM = 0.02, 1.2
EPISODES = 64
"""Of a step of the recipe below."""
DEMO_EPISODE_S = 4.1 / 210
"""Seconds of `make demo` for an episode: of a step on two idle cores, and the episodes of one."""
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
    each = (on - off) / (STEPS - 1) / EPISODES
    print(f"{each * 1e3:.2f} ms for an episode, {each / DEMO_EPISODE_S:.1%} of what one takes in the demo")
    assert each / DEMO_EPISODE_S <= MOST_TIME, "run it on a machine that does nothing else"


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


SHAPES = {
    "short": (SHORT, 20_480, 1.45),  # where messages, and what describes an episode, weigh much beside few tokens
    "long": (LONG, 2_048, MOST_ROOM),
    "long prompts": (Shape(tokens=4096, first=256, sampled=1024, words=3072), 1_024, 1.3),
}
"""What is weighed: how many rollouts of which shape, and the most that they may take beside their token arrays."""


@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_store_takes_beside_its_tokens_compressed(tmp_path: Path, shape: str) -> None:
    each, rollouts, most = SHAPES[shape]
    run = tmp_path / "made-up"
    write_run(run, rollouts, shape=each)
    assert weigh(f"{rollouts:,} {shape}", run) <= most


def weigh(name: str, run: Path) -> float:
    """How many times its token arrays a run's store is, printed too."""
    files, arrays, alone = room_of(run / "episodes")
    print(f"\n{name}: {files:,} bytes stored, {files / arrays:.2f} times the token arrays compressed ({arrays:,})")
    print(f"and {files / alone:.2f} times Parquet files of the token arrays alone ({alone:,})")
    return files / arrays


if __name__ == "__main__":
    for one in sys.argv[1:]:
        weigh(one, Path(one))
