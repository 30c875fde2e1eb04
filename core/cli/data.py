"""What `burnish data …` does around `burnish.trainer.data`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice, zip_longest
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from burnish.cli.found import Found
from burnish.cli.models import table_lines
from burnish.envs.registry import ID_PATTERN
from burnish.envs.row_files import new_file
from burnish.guardrails.guard import Guard
from burnish.guardrails.policy import load_policy
from burnish.guardrails.scripts import SCRIPTS_OF
from burnish.inspector.blends import recorded_phases
from burnish.inspector.kept import kept_of
from burnish.inspector.runs import check_run, read_object, read_run_transcripts
from burnish.inspector.text import printable
from burnish.rollout.store.own_files import own_files
from burnish.rollout.store.transcripts import Transcript
from burnish.trainer.data.audit import Checked, KeptRows, Use, check, checked_rows, stats
from burnish.trainer.data.curated.catalog import CATALOG_FILE, CATALOGS, Catalog, find_catalog
from burnish.trainer.data.forms import Document
from burnish.trainer.data.overlap import Duplicate, MeasuredRow, contaminated, duplicates
from burnish.trainer.data.sources import Reject, found_curated, holds_texts

if TYPE_CHECKING:
    from burnish.trainer.data.pairs import DrawnPair
    from burnish.trainer.data.prepared import Drawn

POSITION = "replay_position"
"""The metric that says how many demonstrations a phase of reinforcement has learned from, after a step."""
SHOWN = 20
"""Findings that are printed; the others are counted."""
MOST_TRACED = 32 << 20
"""Characters of what is shown of a step, as a table and as JSON: a record of kilobytes may say that a step had any number of rows."""

Traced = tuple[tuple[str, ...], dict[str, Any]]
"""What a step had one of: a row of a table, and the same for a program."""


def check_rows(
    places: Sequence[str], use: Use, rejects: Path | None, policy: str | None = None, out: Path | None = None, label: bool = False
) -> tuple[Found, int]:
    """What every row is, the first unfit ones, and how many are left out. policy: a guardrail policy that rows must keep. out: a new
    file of the rows that are fit, or, with `label`, of all that the policy was asked about. Raises ValueError for a label without both."""
    if label and (policy is None or out is None):
        raise ValueError("--label has no effect without --policy, which says it, and --out, where it goes")
    guard = Guard(load_policy(policy)) if policy is not None else None
    report = check(places, use, rejects, guard, KeptRows(out, label) if out is not None else None)
    if not report.rows and not report.rejected:
        raise ValueError(f"{', '.join(places)}: no row in it; give files that have some")
    lines = [f"{count:,} rows: {form}" for form, count in report.rows.most_common()] or ["no row that can be read"]
    left_out = sum(report.rows.values()) + report.rejected - report.written if label else report.rejected
    if report.rejected:
        lines.append(f"{report.rejected:,} unfit" + (f", all in {rejects}" if rejects is not None else ""))
        if label:
            lines[-1] += f"; {report.rejected - left_out:,} of them are labelled, {left_out:,} left out"
        lines += [f"  {line}" for line in report.problems.lines()]
    data: dict[str, Any] = {"rows": report.rows, "unfit": report.rejected, "left_out": left_out}
    data["rejects"] = None if rejects is None else str(rejects)
    data["problems"] = report.problems.lines()
    if guard is not None:
        broken = ", ".join(f"{count:,} {category}" for category, count in report.broken.most_common()) or "no row"
        lines += [f"broken by {guard.policy.id}: {broken}", f"{report.must_refuse:,} rows ask what may not be answered, and are fit"]
        data |= {"policy": guard.policy.id, "broken": report.broken, "must_refuse": report.must_refuse}
        if guard.policy.grounding is not None:
            roles = ", ".join(guard.policy.grounding.context)
            lines.append(f"{report.grounded:,} rows have messages that answers must follow from ({roles})")
            data["grounded"] = report.grounded
    if out is not None:
        what = "with what the policy says" if label else "that are fit"
        lines.append(f"{report.written:,} rows {what} are in {out}")
        data |= {"written": report.written}
    return Found([printable(line) for line in lines], data), left_out


def row_stats(places: Sequence[str], model: str | None) -> Found:
    """Sizes of the rows of each place, in characters, and in tokens of a model; and which languages they may be in, told by the scripts of
    their letters."""
    tokenizer = _tokenizer(model) if model is not None else None
    rows, spoken, data = list[tuple[str, ...]](), list[tuple[str, ...]](), list[dict[str, Any]]()
    for place in places:
        found = stats(place, tokenizer)
        sizes = {"characters": _spread(found.characters), "tokens": _spread(found.tokens)}
        cells = ("-" if spread is None else ", ".join(f"{size:,.0f}" for size in spread.values()) for spread in sizes.values())
        rows.append((place, f"{found.rows:,}", f"{found.rejected:,}", *cells))
        spoken += [(place, f"{count:,}", *_written(codes)) for codes, count in found.languages.most_common()]
        languages = [{"languages": codes, "rows": count} for codes, count in found.languages.most_common()]
        data.append({"place": place, "rows": found.rows, "unfit": found.rejected, **sizes, "languages": languages})
    lines = table_lines(("place", "rows", "unfit", "characters: all, mean, median, longest", "tokens"), rows)
    if spoken:
        lines += table_lines(("place", "rows", "script", "in one of these languages"), spoken)
    return Found(lines, data)


def _written(codes: tuple[str, ...]) -> tuple[str, str]:
    """The scripts that languages share, and the languages."""
    if not codes:
        return "-", "none whose script is known"
    return " ".join(sorted(SCRIPTS_OF[codes[0]])), ", ".join(codes)


def dedup_rows(places: Sequence[str], near: float | None, out: Path | None) -> Found:
    """Duplicates, and how many there are. out: a new file of the rows that are none, as they are read: unfit rows are in neither."""
    found: list[Duplicate] = []
    kept, unfit = 0, Counter[str]()
    rows = _good(places, unfit)
    with new_file(out) as target:
        for row in duplicates(rows, near):
            if isinstance(row, Duplicate):
                found.append(row)
                continue
            kept += 1
            if target is not None:
                target.write(json.dumps(row.row, ensure_ascii=False) + "\n")
    kinds = Counter(one.kind for one in found)
    lines = [f"{kept:,} rows say something new, {kinds['exact']:,} are exact duplicates" + (f", {kinds['near']:,} near" if near else "")]
    lines += _unfit_line(unfit)
    shown = [f"  {one.where} = {one.of}" if one.kind == "exact" else f"  {one.where} ~ {one.of} ({one.similarity:.2f})" for one in found]
    data = {"new": kept, "exact": kinds["exact"], "near": kinds["near"], "unfit": unfit["rows"], "duplicates": [*map(asdict, found)]}
    return Found([printable(line) for line in [*lines, *_first(shown)]], data)


def contaminated_rows(
    places: Sequence[str], against: Sequence[str], words: int, suites: Sequence[str] = (), recipe: Path | None = None, trust: bool = False
) -> tuple[Found, int]:
    """Evaluation rows that training rows hold, and how many. against: their files. suites, recipe, trust: others (`data_asked`)."""
    unfit, asked, rows = Counter[str](), list[MeasuredRow](), list(against)
    if suites or recipe is not None:
        from burnish.cli import data_asked

        asked += data_asked.of_suites(suites)
        if recipe is not None:
            questions, held_out = data_asked.of_recipe(recipe, trust)
            asked += questions
            rows += held_out
    measured: list[MeasuredRow] = [*_good(rows, unfit), *asked]
    found = contaminated(_good(places, unfit), measured, words)
    lines = [f"{len(found):,} of {len(measured):,} rows of the evaluation stand, in part or whole, in what is trained on"]
    lines += _unfit_line(unfit)
    shown = [f"  {one.where}: {one.share:.0%} of its runs of {words} words are in {one.trained}" for one in found]
    data = {"rows": len(measured), "unfit": unfit["rows"], "found": [*map(asdict, found)]}
    return Found([printable(line) for line in [*lines, *_first(shown)]], data), len(found)


def blends(recipe: Path, overrides: Sequence[str]) -> Found:
    """The blend of each supervised phase of a recipe, and of the demonstrations beside reinforcement, every row read and rendered."""
    from burnish.recipe.load import load_config
    from burnish.recipe.resolve import resolve
    from burnish.trainer.data.config import Making
    from burnish.trainer.data.prepared import survey
    from burnish.trainer.models.finding import find_model

    run, lines, data = resolve(load_config(recipe, overrides)), list[str](), list[dict[str, Any]]()
    making = Making(find_model(run.model, need_weights=False), run.engine.max_context, run.rollout.template_args)
    for wanted in [found for phase in run.phases if (found := phase.table.supervised_rows) is not None]:
        facts = survey(wanted, making)
        rows = [
            (
                one.name,
                f"{float(one.asked):.2%}",
                f"{float(one.share):.2%}",
                f"{one.rows:,}",
                f"{one.rejected:,}",
                f"{one.mean_tokens:.0f}",
                f"{float(one.share) * wanted.samples / one.examples:.2f}" if one.examples else "-",
                one.origin,
            )
            for one in facts
        ]
        by = f"asked, by {wanted.rows.shares_of}"
        lines += [f"[{wanted.called}] {wanted.samples:,} samples"]
        lines += table_lines(("source", by, "of samples", "rows", "left out", "tokens a row", "passes", "from"), rows)
        sources = [{**one.to_row(), "asked": float(one.asked), "share": float(one.share)} for one in facts]
        data.append({"phase": wanted.called, "samples": wanted.samples, "shares_of": wanted.rows.shares_of, "sources": sources})
    return Found(lines or [f"{recipe} has no supervised phase, and no demonstrations beside reinforcement"], data)


def trace(run: Path, step: int, phase: str | None) -> Found:
    """The rows of a step. Raises ValueError when the run has no such step."""
    home = check_run(run)
    blended, paired = ([file.parent.name for file in own_files(home, f"*/{name}.json", "data")] for name in ("blend", "pairs"))
    steps = _steps_taken(home)
    chosen = phase or next((name for name in reversed(list(steps)) if steps[name] >= step), None)
    if chosen is None or steps.get(chosen, 0) < step:
        taken = ", ".join(f"{name} took {count}" for name, count in steps.items()) or "it took none"
        raise ValueError(f"{run} has no step {step}{f' of {phase}' if phase else ''}: {taken}")
    shown = _replayed(home, chosen, step)
    if shown is not None:
        rollouts, rows = _rollouts_of_step(home, chosen, step), _rows_of_step(home / "data" / chosen, f"{chosen} replay", step, shown)
        return Found([*rollouts.lines, *rows.lines], {**rollouts.data, "rows": rows.data["rows"]})
    if chosen in blended:
        return _rows_of_step(home / "data" / chosen, chosen, step)
    if chosen in paired:
        return _pairs_of_step(home / "data" / chosen, step)
    kinds = {name: kind for name, kind, _ in recorded_phases(read_object(home, "config.json"))}
    if kinds.get(chosen, "rft") != "rft":
        raise ValueError(f"{home / 'data' / chosen} holds no data of the phase (neither blend.json nor pairs.json)")
    return _rollouts_of_step(home, chosen, step)


def catalogs(name: str | None, show: int) -> Found:
    """All catalogs, or one with its cards."""
    if name is None:
        listed = [{"id": row.id, "source": row.source} for row in CATALOGS.list()]
        return Found(table_lines(("id", "from"), [(row["id"], row["source"]) for row in listed]), listed)
    catalog = find_catalog(name, check=ID_PATTERN.match(name) is not None)
    lines, sets = [catalog.id], dict[str, dict[str, Any]]()
    for category, one in catalog.sets.items():
        digest, rows = one.digest, list(_shown_rows(catalog, category, show))
        kind = f"file {one.file.name}" if one.file is not None else "made as it is asked for"
        held = "texts" if holds_texts(catalog, category) else "conversations"
        lines += [f"  {category}: {one.about}", f"    {held}, {kind}, licence {one.licence}, sha256 {digest}"]
        if one.sha256 != digest:
            said = f"{CATALOG_FILE} says {one.sha256 or 'no sha256'}"
            lines.append(f'    {said}; write sha256 = "{digest}" below [sets.{category}], under a new version if it was published')
        lines += [f"    {json.dumps(row, ensure_ascii=False)}" for row in rows]
        sets[category] = {"about": one.about, "file": one.file.name if one.file is not None else None, "licence": one.licence}
        sets[category] |= {"holds": held, "sha256": digest, "declared_sha256": one.sha256, "rows": rows}
    return Found([printable(line) for line in lines], {"id": catalog.id, "sets": sets})


def _shown_rows(catalog: Catalog, category: str, count: int) -> Iterator[str | list[dict[str, Any]]]:
    for row in islice(found_curated(catalog, category, 0, count, "cpt"), count):
        if not isinstance(row, Reject):
            yield row.text if isinstance(row, Document) else [message.to_dict() for message in row.messages]


def _good(places: Sequence[str], unfit: Counter[str]) -> Iterator[Checked]:
    return _counting_unfit(checked_rows(places), unfit)


def _counting_unfit(rows: Iterable[Checked | Reject], unfit: Counter[str]) -> Iterator[Checked]:
    for row in rows:
        if isinstance(row, Reject):
            unfit["rows"] += 1
        else:
            yield row


def _unfit_line(unfit: Counter[str]) -> list[str]:
    return [f"{unfit['rows']:,} unfit rows were not looked at: burnish data check says which"] if unfit["rows"] else []


def _first(lines: Sequence[str]) -> list[str]:
    more = [f"  … and {len(lines) - SHOWN:,} more"] if len(lines) > SHOWN else []
    return [*lines[:SHOWN], *more]


def _spread(sizes: Sequence[int]) -> dict[str, float] | None:
    return {"all": sum(sizes), "mean": mean(sizes), "median": median(sizes), "longest": max(sizes)} if sizes else None


def _tokenizer(model: str) -> Any:
    from burnish.rollout.tokenizer import load_tokenizer
    from burnish.trainer.models.finding import find_model

    return load_tokenizer(find_model(model, need_weights=False))


def _steps_taken(home: Path) -> dict[str, int]:
    from burnish.inspector.runs import read_metrics

    steps: dict[str, int] = {}
    for row in read_metrics(home / "metrics.jsonl"):
        steps[row.phase] = max(steps.get(row.phase, 0), row.step)
    return steps


def _replayed(home: Path, phase: str, step: int) -> range | None:
    """The positions of the demonstrations that a step learned beside its episodes, None where it learned none by its table."""
    from burnish.inspector.runs import read_metrics

    rows = [row for row in read_metrics(home / "metrics.jsonl") if row.phase == phase and POSITION in row.values]
    at = {row.step: row.values[POSITION] for row in rows}
    if step not in at:
        return None
    first, end = at.get(step - 1, 0.0), at[step]
    if not 0 <= first <= end <= 2**53:
        raise ValueError(f"{home / 'metrics.jsonl'}: {POSITION} goes from {first:g} to {end:g} in {phase} step {step}, which no run does")
    return range(int(first), int(end))


def _rows_of_step(folder: Path, phase: str, step: int, positions: range | None = None) -> Found:
    from burnish.trainer.data.prepared import PreparedData

    data = PreparedData(folder)
    try:
        drawn = data.drawn(step - 1) if positions is None else data.drawn_at(positions)
        traced = _traced(f"{phase} step {step}", (_row_drawn(one) for one in drawn))
    finally:
        data.close()
    rows, found = [row for row, _ in traced], {"phase": folder.name, "step": step, "rows": [one for _, one in traced]}
    if not rows:
        return Found([f"{phase} step {step}: none"], found)
    head = f"{phase} step {step}: positions {rows[0][0]} to {rows[-1][0]} of the blend"
    return Found([head, *table_lines(("position", "source", "pass", "row", "example"), rows)], found)


def _row_drawn(one: Drawn) -> Traced:
    return (str(one.position), one.source, str(one.epoch + 1), one.where, str(one.example)), asdict(one)


def _pairs_of_step(folder: Path, step: int) -> Found:
    from burnish.trainer.data.pairs import PairData

    data = PairData(folder)
    try:
        traced = _traced(f"{folder.name} step {step}", (_pair_drawn(one) for one in data.drawn(step - 1)))
    finally:
        data.close()
    rows = [row for row, _ in traced]
    lines = [f"{folder.name} step {step}: {len(rows)} pairs", *table_lines(("position", "source", "pass", "pair", "from"), rows)]
    return Found(lines, {"phase": folder.name, "step": step, "pairs": [one for _, one in traced]})


def _pair_drawn(one: DrawnPair) -> Traced:
    where = one.better if one.better == one.worse else f"{one.better} over {one.worse}"
    return (str(one.position), one.source, str(one.epoch + 1), str(one.pair), where), asdict(one)


def _traced(what: str, found: Iterable[Traced]) -> list[Traced]:
    """All that a step had. Raises ValueError when that would take more than `MOST_TRACED`."""
    traced, widths, size = list[Traced](), list[int](), 0
    for row, one in found:
        traced.append((row, one))
        widths = [max(sizes) for sizes in zip_longest(widths, map(len, row), fillvalue=0)]
        size += len(json.dumps(one))
        if max(size, len(traced) * sum(widths)) > MOST_TRACED:
            raise ValueError(
                f"{what}: its first {len(traced):,} rows take more than {MOST_TRACED} characters; so much is not shown of a step"
            )
    return traced


def _rollouts_of_step(home: Path, phase: str, step: int) -> Found:
    """Tasks in the order of their places in the stream, with each rollout's reward and its parts, or why it has none."""
    of_step = (one for one in read_run_transcripts(home) if (one.phase, one.step, one.split) == (phase, step, "train"))
    traced = _traced(f"{phase} step {step}", map(_rollout, of_step))
    traced.sort(key=lambda found: (_place(found[1]["task"]), found[1]["task"], found[1]["sample"]))
    rows, data, why = [row for row, _ in traced], [one for _, one in traced], kept_of(home).why_none(phase, step)
    lines = [
        f"{phase} step {step}: {len(rows)} rollouts{f' ({why})' if why else ''}",
        *table_lines(("task", "seed", "sample", "reward", "parts"), rows),
    ]
    return Found(lines, {"phase": phase, "step": step, "rollouts": data, "none_because": why or None})


def _rollout(one: Transcript) -> Traced:
    """A rollout without what was said in it."""
    reward = {} if one.reward is None else {"reward": one.reward.total, "parts": one.reward.parts}
    failure = {} if one.failure is None else {"failure": {"kind": one.failure.kind, "culprit": one.failure.culprit}}
    if one.reward is None:
        total, said = "-", f"{one.failure.kind} ({one.failure.culprit})" if one.failure is not None else "-"
    else:
        total, said = f"{one.reward.total:g}", ", ".join(f"{name} {value:g}" for name, value in one.reward.parts.items())
    row = (one.task, str(one.seed), str(one.sample), total, said)
    return row, {"episode": one.episode, "task": one.task, "seed": one.seed, "sample": one.sample, **reward, **failure}


def _place(task: str) -> int:
    """The position that a task's id begins with: `train-17:order-03` was the 17th of its stream."""
    number = task.removeprefix("train-").partition(":")[0]
    return int(number) if number.isdecimal() and len(number) <= 18 else -1
