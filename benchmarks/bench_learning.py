"""Does it really learn? The demo's recipes on several run seeds; the nano model also beside continuing SFT for the wall time RFT took.

`make bench` runs it (about 90 minutes for nano and 55 for SmolLM2 on two cores) and writes `docs/learning.md`, whatever comes out; then
it holds the figures to what the demo promises. Runs stay in `build/learning`: one that was interrupted goes on, one that is complete is
not run again; remove the folder to measure anew after a change of the code. BURNISH_BENCH_SET overrides fields of the recipes
("engine.threads=1 learner.threads=1" suits a machine whose cores have other work); the page names them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from burnish.cli.demo import RECIPES, DemoModel, provide_model
from burnish.recipe.config import RunConfig
from burnish.recipe.load import config_data, load_config
from burnish.recipe.resolve import resolve
from burnish.rollout.store.json_lines import read_json_lines
from burnish.rollout.store.records import Comparison, EvaluationResult, read_evaluations
from burnish.run.folder import RunFolder, create_run, differences, open_run
from burnish.run.pipeline import run
from burnish.run.under_way import Results
from burnish.trainer.evaluation.comparison import compare
from burnish.trainer.models.checkpoints import list_checkpoints
from burnish.trainer.phases.common import Phase

pytestmark = pytest.mark.slow

SEEDS: dict[DemoModel, tuple[int, ...]] = {"nano": (1, 2, 3, 4, 5, 6, 7, 8), "smollm2": (1, 2)}
CONTINUED = (1, 2, 3)  # the nano seeds whose SFT is also continued
RUNS = Path("build/learning")
TABLE = Path("docs/learning.md")
OVERRIDES = os.environ.get("BURNISH_BENCH_SET", "").split()
CURVE_POINTS = 8


@dataclass(frozen=True)
class Learned:
    """One run seed: its folder, its evaluations, and those of SFT continued for as long as RFT took, with the number of its steps."""

    folder: RunFolder
    results: Results
    continued: Results | None = None
    continued_steps: int = 0

    def gain(self) -> Comparison:
        return compare(self.results[("sft", "sampled")], self.results[("rft", "sampled")])

    def lead(self) -> Comparison | None:
        return None if self.continued is None else compare(self.continued[("sft", "sampled")], self.results[("rft", "sampled")])

    def parity(self) -> float:
        return max(row["learner/parity_max"] for row in rows(self.folder, "rft") if "learner/parity_max" in row)

    def minutes(self) -> float:
        """From the first to the last row of the run's metrics, which leaves out the start and the last evaluations."""
        steps = [row for _, row in read_json_lines(self.folder.metrics_file)]
        return float(steps[-1]["time"] - steps[0]["time"]) / 60


def rows(folder: RunFolder, phase: str) -> list[dict[str, float]]:
    return [row for _, row in read_json_lines(folder.metrics_file) if row["phase"] == phase]


def folder_of(model: DemoModel, seed: int) -> Path:
    return RUNS / f"{model}-{seed}"


def continued_folder_of(model: DemoModel, seed: int) -> Path:
    return RUNS / f"{model}-{seed}-continued"


def train(config: RunConfig, recipe: Path, path: Path) -> None:
    """Begin or continue this run, unless it is complete already."""
    if not path.exists():
        create_run(resolve(config), recipe, path)
        run(resolve(config), path)
    elif not open_run(path, resolve(config)).report.is_file():
        run(resolve(config), path, resume=True)


def continue_sft(config: RunConfig, recipe: Path, trained: RunFolder, out: Path) -> None:
    """The same logs and settings, from the SFT checkpoint, for as long as RFT took."""
    assert config.sft is not None
    seconds = sum(row["step_seconds"] for row in rows(trained, "rft"))
    sft = rows(trained, "sft")
    per_step = (sft[-1]["time"] - sft[0]["time"]) / (len(sft) - 1)
    model = next(record for record in list_checkpoints(trained.path) if record.phase == "sft" and record.final).model(trained.path)
    steps = max(1, round(seconds / per_step))
    # the logs are those of the SFT phase: as many examples as it had, seen again
    longer = config.sft.model_copy(update={"steps": steps, "count": config.sft.supervised_rows.examples, "schedule": "constant"})
    continued = config.model_copy(update={"name": "continued-sft", "model": str(model), "cpt": None, "rft": None, "sft": longer})
    train(continued, recipe, out)


def learned(model: DemoModel, seed: int, beside_sft: bool) -> Learned:
    config, path = load_config(RECIPES[model], [f"seed={seed}", *OVERRIDES]), folder_of(model, seed)
    train(config, RECIPES[model], path)
    if beside_sft:
        continue_sft(config, RECIPES[model], RunFolder(path), continued_folder_of(model, seed))
    return read_learned(model, seed)


def read_learned(model: DemoModel, seed: int) -> Learned:
    """What the complete runs of this seed found."""
    trained, more = RunFolder(folder_of(model, seed)), RunFolder(continued_folder_of(model, seed))
    if not more.report.is_file():
        return Learned(trained, evaluations(trained))
    return Learned(trained, evaluations(trained), evaluations(more), len(rows(more, "sft")))


def test_nano_gets_better_by_reinforcement_and_by_more_than_continued_sft() -> None:
    provide_model("nano", Path("models"), Console())
    broken = []
    for seed in SEEDS["nano"]:
        one = learned("nano", seed, beside_sft=seed in CONTINUED)
        write_page()
        sft, rft = one.results[("sft", "sampled")], one.results[("rft", "sampled")]
        broken += [f"seed {seed}: {promise}" for promise, kept in nano_promises(sft, rft, one.gain(), one.lead()).items() if not kept]
    assert not broken, broken


def test_smollm2_gets_better_by_reinforcement() -> None:
    provide_model("smollm2", Path("models"), Console())
    broken = []
    for seed in SEEDS["smollm2"]:
        one = learned("smollm2", seed, beside_sft=False)
        write_page()
        sft, rft = one.results[("sft", "sampled")], one.results[("rft", "sampled")]
        broken += [f"seed {seed}: {promise}" for promise, kept in smollm2_promises(sft, rft, one.gain()).items() if not kept]
    assert not broken, broken


def nano_promises(sft: EvaluationResult, rft: EvaluationResult, gain: Comparison, lead: Comparison | None) -> dict[str, bool]:
    """What the demo promises of one run, and whether it was kept."""
    assert rft.cost is not None and sft.cost is not None and rft.macro_recall is not None and sft.macro_recall is not None
    assert rft.best_constant is not None
    return {
        "SFT starts between 30 and 60 %": 0.3 <= sft.success <= 0.6,
        "RFT adds 20 points": gain.difference >= 0.2,
        "and p < 0.01": gain.p_value < 0.01,
        "macro-recall rises": rft.macro_recall > sft.macro_recall,
        "and ends 15 points above the best constant policy": rft.success >= rft.best_constant.success + 0.15
        and rft.macro_recall >= rft.best_constant.macro_recall + 0.15,
        "inspection cost falls": rft.cost < sft.cost,
        "RFT beats more SFT": lead is None or lead.difference > 0,
    }


def smollm2_promises(sft: EvaluationResult, rft: EvaluationResult, gain: Comparison) -> dict[str, bool]:
    assert rft.macro_recall is not None and sft.macro_recall is not None
    return {
        "RFT adds 10 points": gain.difference >= 0.1,
        "and p < 0.05": gain.p_value < 0.05,
        "macro-recall rises": rft.macro_recall > sft.macro_recall,
    }


# ------------------------------------------------------------------------------------------------------------------- the page


def write_page() -> None:
    """Everything that is measured by now, of both models."""
    complete = {model: [seed for seed in seeds if RunFolder(folder_of(model, seed)).report.is_file()] for model, seeds in SEEDS.items()}
    parts = [part(model, [(seed, read_learned(model, seed)) for seed in seeds]) for model, seeds in complete.items() if seeds]
    text = f"""# What the demo's policies learn

`benchmarks/bench_learning.py` wrote this page, as `make bench` runs it. Each phase is measured on the same held-out parts, which no phase
trains on. Success is the gRPC verifier's verdict (right label and right reason). Sampled is at temperature 1, greedy at 0. "Best constant"
is the success of the best policy that always says the same. Gains are paired over the held-out parts (exact sign test, one-sided p).

{chr(10).join(parts)}"""
    TABLE.write_text(text, encoding="utf-8")


def evaluations(folder: RunFolder) -> Results:
    return {(record.phase, record.result.mode): record.result for record in read_evaluations(folder.evaluations_file)}


def part(model: DemoModel, found: Sequence[tuple[int, Learned]]) -> str:
    table, gains, curves, changed = [], [], [], set()
    for seed, one in found:
        recipe = config_data(load_config(RECIPES[model], [f"seed={seed}"]))
        changed |= {str(change) for change in differences(recipe, dict(one.folder.recipe().record))}
        phases: list[Phase] = [phase for phase in ("cpt", "sft", "rft") if (phase, "sampled") in one.results]
        table += [line(seed, phase, one.results, phase) for phase in phases]
        if one.continued is not None:
            table.append(line(seed, f"sft for {one.continued_steps} more steps", one.continued, "sft"))
        gain = one.gain()
        gains.append(f"| {seed} | RFT over its SFT start | {compared(gain)} | {one.parity():.1e} | {one.minutes():.0f} |")
        if (lead := one.lead()) is not None:
            gains.append(f"| {seed} | RFT over SFT continued for the same wall time | {compared(lead)} | | |")
        curves.append(curve(seed, rows(one.folder, "rft")))
    beside = f"Run with {', '.join(sorted(changed))}.\n\n" if changed else ""
    return f"""## {RECIPES[model]}

{beside}| seed | after | success, sampled | greedy | macro-recall | recall pass / rework / scrap | best constant | cost | turns |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(table)}

| seed | sampled success | difference | p | parts | largest sync difference | minutes of training |
|---|---|---|---|---|---|---|
{chr(10).join(gains)}

Success of the training rollouts over the steps of RFT (mean of each eighth):

| seed |{"|".join(f" {i + 1}/{CURVE_POINTS} " for i in range(CURVE_POINTS))}|
|---|{"---|" * CURVE_POINTS}
{chr(10).join(curves)}
"""


def line(seed: int, name: str, results: Results, phase: Phase) -> str:
    sampled, greedy = results[(phase, "sampled")], results.get((phase, "greedy"))
    best = sampled.best_constant
    assert best is not None and sampled.macro_recall is not None
    recalls = " / ".join(f"{sampled.recall[label]:.0%}" for label in ("pass", "rework", "scrap"))
    return (
        f"| {seed} | {name} | {sampled.success:.1%} | {'' if greedy is None else f'{greedy.success:.1%}'} | {sampled.macro_recall:.1%} "
        f"| {recalls} | {best.success:.1%} | {sampled.cost:.2f} | {sampled.turns:.2f} |"
    )


def compared(difference: Comparison) -> str:
    low, high = difference.low, difference.high
    return f"{difference.difference:+.1%} [{low:+.1%}, {high:+.1%}] | {difference.significance} | {difference.n}"


def curve(seed: int, steps: Sequence[dict[str, float]]) -> str:
    pieces = [steps[len(steps) * i // CURVE_POINTS : len(steps) * (i + 1) // CURVE_POINTS] for i in range(CURVE_POINTS)]
    means = [sum(row["success"] for row in piece) / len(piece) for piece in pieces if piece]
    return f"| {seed} |{'|'.join(f' {mean:.0%} ' for mean in means)}|"
