"""Does it really learn? The demo's recipe on three run seeds, beside continuing SFT for the wall time that RFT took.

`make bench` runs it (about 45 minutes on two cores) and writes `docs/learning.md`, whatever comes out; then it holds the figures to what
the demo promises. BURNISH_BENCH_SET overrides fields of the recipe ("engine.threads=1 learner.threads=1" suits a machine whose cores
have other work); the page names them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from burnish.config import RunConfig, load_config
from burnish.demo import provide_model
from burnish.pipeline import Results, run
from burnish.rollout.records import Comparison, EvaluationResult
from burnish.runs import create_run
from burnish.trainer.checkpoints import list_checkpoints
from burnish.trainer.phase_config import Phase
from burnish.trainer.statistics import compare

pytestmark = pytest.mark.slow

SEEDS = (1, 2, 3)
RECIPE = Path("recipes/nano-inspection.toml")
TABLE = Path("docs/learning.md")
OVERRIDES = os.environ.get("BURNISH_BENCH_SET", "").split()


def rows(folder: Path, phase: str) -> list[dict[str, float]]:
    return [row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if row["phase"] == phase]


def train(config: RunConfig, folder: Path) -> Results:
    create_run(config, RECIPE, folder)
    return run(config, folder)


def continue_sft(config: RunConfig, trained: Path, out: Path) -> tuple[Results, int]:
    """The same logs and settings, from the SFT checkpoint, for as long as RFT took."""
    assert config.sft is not None
    seconds = sum(row["step_seconds"] for row in rows(trained, "rft"))
    sft = rows(trained, "sft")
    per_step = (sft[-1]["time"] - sft[0]["time"]) / (len(sft) - 1)
    model = next(record for record in list_checkpoints(trained) if record.phase == "sft" and record.final).model(trained)
    steps = max(1, round(seconds / per_step))
    # the logs are those of the SFT phase: as many examples as it had, seen again
    longer = config.sft.model_copy(update={"steps": steps, "count": config.sft.examples, "schedule": "constant"})
    continued = config.model_copy(update={"name": "continued-sft", "model": str(model), "cpt": None, "rft": None, "sft": longer})
    return train(continued, out), steps


def line(seed: int, name: str, results: Results, phase: Phase) -> str:
    sampled, greedy = results[(phase, "sampled")], results[(phase, "greedy")]
    best = sampled.best_constant
    assert best is not None and sampled.macro_recall is not None and greedy.macro_recall is not None
    recalls = " / ".join(f"{sampled.recall[label]:.0%}" for label in ("pass", "rework", "scrap"))
    return (
        f"| {seed} | {name} | {sampled.success:.1%} | {greedy.success:.1%} | {sampled.macro_recall:.1%} | {recalls} | {best.success:.1%} "
        f"| {sampled.cost:.2f} | {sampled.turns:.2f} |"
    )


def test_rft_beats_its_sft_start_and_continued_sft(tmp_path: Path) -> None:
    provide_model("nano", Path("models"), Console())
    table, gains, broken = [], [], []
    phases: tuple[Phase, ...] = ("cpt", "sft", "rft")
    for seed in SEEDS:
        config = load_config(RECIPE, [f"seed={seed}", *OVERRIDES])
        trained = tmp_path / f"seed-{seed}"
        results = train(config, trained)
        continued, steps = continue_sft(config, trained, tmp_path / f"continued-{seed}")
        sft, rft, more = results[("sft", "sampled")], results[("rft", "sampled")], continued[("sft", "sampled")]
        table += [line(seed, phase, results, phase) for phase in phases]
        table.append(line(seed, f"sft for {steps} more steps", continued, "sft"))
        gain, lead = compare(sft, rft), compare(more, rft)
        parity = max(row["learner/parity_max"] for row in rows(trained, "rft") if "learner/parity_max" in row)
        gains.append(
            f"| {seed} | {gain.difference:+.1%} [{gain.low:+.1%}, {gain.high:+.1%}] | {gain.p_value:.4f} | {gain.n} "
            f"| {lead.difference:+.1%} [{lead.low:+.1%}, {lead.high:+.1%}] | {lead.p_value:.4f} | {parity:.1e} |"
        )
        write_table(table, gains)
        broken += [f"seed {seed}: {promise}" for promise, kept in promises(sft, rft, gain, lead).items() if not kept]
    assert not broken, broken


def promises(sft: EvaluationResult, rft: EvaluationResult, gain: Comparison, lead: Comparison) -> dict[str, bool]:
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
        "RFT beats more SFT": lead.difference > 0,
    }


def write_table(table: list[str], gains: list[str]) -> None:
    tasks = load_config(RECIPE).evaluation.tasks
    changed = f" with {', '.join(OVERRIDES)}" if OVERRIDES else ""
    text = f"""# What the demo's policy learns

`make bench` wrote this page: `{RECIPE}`{changed} on run seeds {", ".join(map(str, SEEDS))}.
Each phase is measured on the same {tasks} held-out parts, which no phase trains on. Success is the gRPC verifier's verdict (right label and
right reason). Sampled is at temperature 1, greedy at 0. "Best constant" is the success of the best policy that always says the same.

| seed | after | success, sampled | greedy | macro-recall | recall pass / rework / scrap | best constant | cost | turns |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(table)}

Paired over the held-out parts (10,000 bootstrap resamples, one-sided p), sampled success:

| seed | RFT over its SFT start | p | parts | RFT over continued SFT for the same wall time | p | largest sync difference |
|---|---|---|---|---|---|---|
{chr(10).join(gains)}
"""
    TABLE.write_text(text, encoding="utf-8")
