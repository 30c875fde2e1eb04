"""How much memory a phase's data takes, and how fast a blend gives examples, for inputs of several sizes; each in a process of its own.

    .venv/bin/python benchmarks/bench_data.py 1 100 1000        # MB of input

Prints a line for each size: seconds to lay it out, the most memory that took above an input of a few rows, and examples a second drawn from
the blend, with the packed tokens in them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from burnish.trainer.data.config import Making
from burnish.trainer.data.prepared import lay_out
from burnish.trainer.models.importing import ModelSize, new_model
from burnish.trainer.phases.cpt import CPTConfig

DRAWN = 20_000


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
    new_model(
        ["part 1 bore 2 limit 3"] * 50, model, ModelSize(hidden=32, layers=1, heads=1, intermediate=48, vocab_size=300, max_position=512)
    )
    table = CPTConfig(steps=DRAWN // 32, batch=32, own=(str(file),), blend_ratio=0.7, curated=True)
    started = time.perf_counter()
    data = lay_out(table.supervised_rows, Making(model, 512, {}), folder / "data")
    laid_out = time.perf_counter() - started
    started = time.perf_counter()
    tokens = sum(len(example.token_ids) for step in range(table.steps) for example in data.examples(step))
    seconds = time.perf_counter() - started
    count = table.steps * table.batch
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {
        "MB": megabytes,
        "rows": data.facts[0].rows,
        "seconds": laid_out,
        "peak_MB": peak,
        "examples/s": count / seconds,
        "tokens/s": tokens / seconds,
    }


def main() -> None:
    for size in sys.argv[1:]:
        if size.startswith("in="):
            with tempfile.TemporaryDirectory(prefix="burnish-data-") as folder:
                print(json.dumps(measure(Path(folder), float(size[3:]))))
            continue
        done = subprocess.run([sys.executable, __file__, f"in={size}"], capture_output=True, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        print("  ".join(f"{name} {value:,.0f}" if value >= 10 else f"{name} {value:.2f}" for name, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
