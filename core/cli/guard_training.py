"""What `burnish guard train` does around `burnish.trainer.evaluation.guard_training`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.cli.models import table_lines
from burnish.guardrails.policy import load_policy
from burnish.inspector.text import printable, printable_json
from burnish.trainer.evaluation.guard_training import Trained, of_policy, read_examples, split, to_row, train, write
from burnish.trainer.evaluation.guarded import Rate

RANDOM = "a random part, of another classifier"


def train_command(
    places: Sequence[str], out: Path, policy_file: str, hold_out: Sequence[str], false_positives: float, seed: int, as_json: bool
) -> list[str]:
    """Train, save and say what was measured. With families held out, a second classifier, whose parts are drawn by chance, is measured too.

    Raises ValueError when rows, policy, families or `out` are unfit.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; choose another place or remove it")
    own = of_policy(load_policy(policy_file)) if policy_file else []
    rows = read_examples(places)
    trained = train(split(rows, own, hold_out, seed), false_positives, seed)
    measured = dict(trained.measured)
    if hold_out:
        measured[RANDOM] = train(split(rows, own, (), seed), false_positives, seed).measured["all"]
    parts = trained.parts
    counts = {"learnt": len(parts.learn), "chosen_on": len(parts.choose), "reported_on": len(parts.report), "left_out": parts.left_out}
    report = {**counts, "held_out": list(hold_out), "measured": {name: to_row(rates) for name, rates in measured.items()}}
    digest = write(trained, out, report)
    if as_json:
        row = {"model": str(out), "digest": digest, "threshold": trained.model.card.threshold, "false_positives": false_positives, **report}
        return [printable_json(row)]
    return _lines(trained, measured, hold_out, out, digest)


def _lines(trained: Trained, measured: Mapping[str, tuple[Rate, Rate]], hold_out: Sequence[str], out: Path, digest: str) -> list[str]:
    parts, card = trained.parts, trained.model.card
    of = f"families {', '.join(hold_out)}" if hold_out else "drawn by chance"
    rows: list[tuple[Any, ...]] = [(name, str(recall), str(wrong)) for name, (recall, wrong) in measured.items()]
    said = [
        f"{len(parts.learn):,} rows to learn from, {len(parts.choose):,} to choose the threshold on, "
        f"{len(parts.report):,} to report on ({of})",
        *([f"{parts.left_out:,} left out, which share words in a row with one of those"] if parts.left_out else []),
        f"threshold {card.threshold:.4f}, for {card.false_positives:.3g} of the harmless rows that it was chosen on",
        *table_lines(("of", "recall", "false positives"), rows),
        "in a policy beside it, with a category of the policy's:",
        "[[detectors]]",
        'use = "burnish/classifier-v1"',
        'name = "trained"',
        'category = "CATEGORY"',
        f"args = {{ model = {printable_json(out.name)}, digest = {printable_json(digest)} }}",
    ]
    return [printable(line) for line in said]
