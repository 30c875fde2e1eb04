"""How much memory a phase's data takes, and how fast a blend gives examples beside what a learner eats, for inputs of several sizes.

    .venv/bin/python benchmarks/bench_data.py 1 100 1000        # MB of input; 5000 takes 25 GB of disk and hours
    .venv/bin/python -m pytest benchmarks/bench_data.py -m slow -s

Each size is laid out in a process of its own, whose line says: seconds of processor time to lay it out, the most memory that it took, and
the tokens a second of processor time that are drawn from the blend. The last line is the learner: packed tokens a second of processor time
in supervised steps of a model of the size of `models/nano`, on one thread.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from burnish.trainer.data.config import Making
from burnish.trainer.data.prepared import lay_out
from burnish.trainer.data.supervised import cpt_examples
from burnish.trainer.learner.config import LearnerConfig
from burnish.trainer.learner.learner import Learner
from burnish.trainer.models.importing import ModelSize, new_model
from burnish.trainer.phases.common import phase_optimizer
from burnish.trainer.phases.cpt import CPTConfig
from burnish.trainer.phases.supervised import supervised_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

TEXTS = ["part 1 bore 2 limit 3"] * 50
LENGTH = 512
DRAWN = 20_000
AT_LEAST = 20.0
"""Times what the learner eats that a blend has to give, or a learner would wait for its data."""
FLAT_MB = 64.0
"""So much more memory than one megabyte of input may take any number of them."""


def write_input(file: Path, megabytes: float) -> None:
    """Rows of about 1 kB."""
    with file.open("w") as out:
        size = number = 0
        while size < megabytes * 1e6:
            text = " ".join(f"part {number + i} bore {(number * i) % 97} limit {i}" for i in range(40))
            size += out.write(json.dumps({"text": text}) + "\n")
            number += 1


def measure(folder: Path, megabytes: float) -> dict[str, float]:
    """Lay one input out and draw from it, in this process."""
    file, model = folder / "input.jsonl", folder / "model"
    write_input(file, megabytes)
    new_model(TEXTS, model, ModelSize(hidden=32, layers=1, heads=1, intermediate=48, vocab_size=300, max_position=LENGTH))
    table = CPTConfig(steps=DRAWN // 32, batch=32, own=(str(file),), blend_ratio=0.7, curated=True)
    started = time.process_time()
    data = lay_out(table.supervised_rows, Making(model, LENGTH, {}), folder / "data")
    laid_out = time.process_time() - started
    started = time.process_time()
    tokens = sum(len(example.token_ids) for step in range(table.steps) for example in data.examples(step))
    seconds = time.process_time() - started
    return {
        "MB": megabytes,
        "rows": data.facts[0].rows,
        "laid out in s": laid_out,
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "drawn tokens/s": tokens / seconds,
    }


def learner_rate(folder: Path, steps: int = 4) -> float:
    """Packed tokens a second of processor time that supervised steps of a nano model compute, the first left out."""
    new_model(TEXTS, folder, ModelSize(max_position=LENGTH))
    table = CPTConfig(steps=steps, batch=8, data="none.jsonl", lr=1e-4)
    learner = Learner(folder, LearnerConfig(threads=1), seed=0)
    learner.begin_phase(phase_optimizer(LearnerConfig().optimizer, table), None)
    examples = cpt_examples([[3 + i % 97 for i in range(LENGTH - 2)]] * table.batch, 1, 2, LENGTH)
    supervised_step(learner, examples, 0)
    started = time.process_time()
    packed = sum(supervised_step(learner, examples, step)["packed_tokens"] for step in range(1, steps))
    return packed / (time.process_time() - started)


def alone(what: str) -> dict[str, float]:
    """`measure` of so many megabytes, or `learner_rate`, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, f"in={what}"], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print("  ".join(f"{name} {value:,.0f}" if value >= 10 else f"{name} {value:.2f}" for name, value in found.items()), flush=True)
    return found


def test_a_blend_gives_twenty_times_what_the_learner_eats() -> None:
    drawn, eaten = alone("10")["drawn tokens/s"], alone("learner")["learner tokens/s"]
    assert drawn >= AT_LEAST * eaten, f"{drawn / eaten:.0f} times"


def test_memory_is_flat_in_the_size_of_the_input() -> None:
    peaks = [alone(size)["peak MB"] for size in ("1", "100", "1000")]
    assert max(peaks) - peaks[0] <= FLAT_MB, peaks


def main() -> None:
    for what in [*sys.argv[1:], *(["learner"] if not sys.argv[1].startswith("in=") else [])]:
        if not what.startswith("in="):
            alone(what)
            continue
        with tempfile.TemporaryDirectory(prefix="burnish-data-") as folder:
            what = what[3:]
            found = {"learner tokens/s": learner_rate(Path(folder) / "nano")} if what == "learner" else measure(Path(folder), float(what))
            print(json.dumps(found))


if __name__ == "__main__":
    main()
