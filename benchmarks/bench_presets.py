"""Does every algorithm learn? Each preset from the demo's SFT checkpoints of three run seeds, with the same rollouts, steps and rate.

`python -m benchmarks.bench_presets [SEED …]` makes the runs that are missing (a few minutes each on two cores), `make bench` too; both
write docs/presets.md and docs/presets.svg. Runs stay in `build/presets` and one that was interrupted goes on, as in `bench_learning.py`,
whose runs these start from. BURNISH_BENCH_SET overrides fields of the recipe there and here.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from benchmarks.bench_learning import OVERRIDES, Learned, evaluations, learned, read_learned, rows, train
from benchmarks.bench_learning import folder_of as demo_folder
from markupsafe import Markup
from rich.console import Console

from burnish.cli.demo import RECIPES, provide_model
from burnish.inspector.charts import Series, overlay_chart
from burnish.recipe.load import load_config
from burnish.run.folder import RunFolder
from burnish.trainer.evaluation.comparison import compare
from burnish.trainer.models.checkpoints import list_checkpoints
from burnish.trainer.objectives.presets import PRESETS, Algorithm

pytestmark = pytest.mark.slow

SEEDS = (1, 4, 5)  # any three of the demo's
STEPS = 24
RUNS = Path("build/presets")
PAGE, CHART = Path("docs/presets.md"), Path("docs/presets.svg")
WINDOW = 4  # steps that a point of the chart is the mean of
COLOURS = ("#0b6e75", "#b4540a", "#6d4bb3", "#2f7d32", "#b3255f", "#5c6670", "#1f5fbf", "#9a7d00")


def folder_of(algorithm: Algorithm, seed: int) -> Path:
    return RUNS / f"{algorithm}-{seed}"


def demo_run(seed: int) -> Learned:
    """The demo's own run of this seed, made when it is not complete."""
    done = RunFolder(demo_folder("nano", seed)).report.is_file()
    return read_learned("nano", seed) if done else learned("nano", seed, beside_sft=False)


def trained(algorithm: Algorithm, seed: int) -> RunFolder:
    """The run of this preset, made or completed. It starts where the demo's own RFT of this seed started."""
    start = demo_run(seed).folder.path
    model = next(record for record in list_checkpoints(start) if record.phase == "sft" and record.final).model(start)
    preset = PRESETS[algorithm]
    asked = [f"rft.algorithm={algorithm}", f"rft.objective.advantage={preset.advantage}", f"rft.steps={STEPS}", f"seed={seed}", *OVERRIDES]
    config = load_config(RECIPES["nano"], asked).model_copy(update={"name": algorithm, "model": str(model), "cpt": None, "sft": None})
    train(config, RECIPES["nano"], folder_of(algorithm, seed))
    return RunFolder(folder_of(algorithm, seed))


def complete() -> dict[Algorithm, list[int]]:
    """The seeds of each preset whose runs are there from beginning to end."""
    return {name: [seed for seed in SEEDS if RunFolder(folder_of(name, seed)).report.is_file()] for name in PRESETS}


def test_every_preset_learns() -> None:
    provide_model("nano", Path("models"), Console())
    for seed in SEEDS:
        for name in PRESETS:
            trained(name, seed)
            write_page()
    assert {name: least_gain(name) > 0 for name in PRESETS} == dict.fromkeys(PRESETS, True)


def success(algorithm: Algorithm, seed: int) -> float:
    return evaluations(RunFolder(folder_of(algorithm, seed)))[("rft", "sampled")].success


def gain(algorithm: Algorithm, seed: int) -> float:
    """Sampled success on the held-out parts after RFT, less that of the start on the same parts."""
    start = demo_run(seed).results[("sft", "sampled")]
    return compare(start, evaluations(RunFolder(folder_of(algorithm, seed)))[("rft", "sampled")]).difference


def least_gain(algorithm: Algorithm) -> float:
    return min(gain(algorithm, seed) for seed in SEEDS)


# ------------------------------------------------------------------------------------------------------------------- the page


def write_page() -> None:
    """The table and the chart of the presets that have all their seeds; nothing before there is one."""
    found = {name: [success(name, seed) for seed in SEEDS] for name, seeds in complete().items() if len(seeds) == len(SEEDS)}
    if not found:
        return
    order = sorted(found, key=lambda name: -statistics.fmean(found[name]))
    starts = [demo_run(seed).results[("sft", "sampled")].success for seed in SEEDS]
    CHART.write_text(chart({name: mean_curve(name) for name in order}), encoding="utf-8")
    PAGE.write_text(
        f"""# The algorithms side by side

`python -m benchmarks.bench_presets` writes this page. Every preset of `rft.algorithm` starts from the demo's SFT checkpoints of run seeds
{", ".join(map(str, SEEDS))} (recipes/nano-inspection.toml) and has the same budget: {STEPS} steps of 24 groups of 8 episodes, the recipe's
rate, everything else as [algorithms.md](algorithms.md) writes the preset out. A preset with four updates in a step moves further at the
same rate than one with a single update. None was tuned here, but for the updates of `cispo`: with four, seed 1 fell from 49.5 % to 34 %.
Success is sampled, at temperature 1, on 200 held-out parts; the three starts have {", ".join(f"{one:.1%}" for one in starts)}.

| algorithm | success after RFT, seeds {" / ".join(map(str, SEEDS))} | mean | least gain | largest gain |
|---|---|---|---|---|
{chr(10).join(line(name, found[name]) for name in order)}

{verdict(order, found)}

![Success of the training rollouts over the steps, the mean of the seeds, for each algorithm](presets.svg)

Success of the training rollouts over the steps, the mean of the three seeds and of the {WINDOW} steps before each point.
""",
        encoding="utf-8",
    )


def line(name: Algorithm, values: Sequence[float]) -> str:
    gains = [gain(name, seed) for seed in SEEDS]
    shown = " / ".join(f"{value:.1%}" for value in values)
    return f"| `{name}` | {shown} | {statistics.fmean(values):.1%} | {min(gains):+.1%} | {max(gains):+.1%} |"


def verdict(order: Sequence[Algorithm], found: Mapping[Algorithm, Sequence[float]]) -> str:
    """Which was best and by how much: over its follower, seed by seed, since both started from the same weights."""
    if len(order) < 2:
        return ""
    leads = [a - b for a, b in zip(found[order[0]], found[order[1]], strict=True)]
    return (
        f"Best by its mean is `{order[0]}`, {statistics.fmean(leads):+.1%} over `{order[1]}`; seed by seed "
        f"{' / '.join(f'{lead:+.1%}' for lead in leads)}. Three seeds of 200 parts tell apart what differs by about ten points, not less."
    )


def mean_curve(name: Algorithm) -> list[float]:
    """Success of the training rollouts by step, the mean over the seeds."""
    curves = [[row["success"] for row in rows(RunFolder(folder_of(name, seed)), "rft")] for seed in SEEDS]
    return [statistics.fmean(values) for values in zip(*curves, strict=False)]


def chart(curves: Mapping[Algorithm, Sequence[float]]) -> str:
    """One drawing with a line for each algorithm, and their names beside it; it needs no other file."""
    smooth = {name: [statistics.fmean(curve[max(0, i + 1 - WINDOW) : i + 1]) for i in range(len(curve))] for name, curve in curves.items()}
    lines = [Series(name, tuple((i + 1, value, value, value) for i, value in enumerate(curve))) for name, curve in smooth.items()]
    style = "text{font:9px sans-serif;fill:#555}.end{text-anchor:end}.grid{stroke:#ddd;stroke-width:.6}.line{fill:none;stroke-width:1.6}"
    style += "".join(f".s{i}.line{{stroke:{colour}}}.s{i}.name{{fill:{colour}}}" for i, colour in enumerate(COLOURS))
    names = Markup("").join(
        Markup('<text class="name s{}" x="350" y="{}">{}</text>').format(i, 18 + 14 * i, name) for i, name in enumerate(curves)
    )
    inner = str(overlay_chart("success", lines, "step")).replace("<svg ", '<svg x="0" y="0" width="340" height="150" ', 1)
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 430 150" width="860" height="300">'
    return f'{head}<rect width="430" height="150" fill="#fff"/><style>{style}</style>{inner}{names}</svg>\n'


if __name__ == "__main__":
    provide_model("nano", Path("models"), Console())
    for one in map(int, sys.argv[1:] or map(str, SEEDS)):
        for each in PRESETS:
            print("PRESET", each, one, evaluations(trained(each, one))[("rft", "sampled")].success, flush=True)
    write_page()
