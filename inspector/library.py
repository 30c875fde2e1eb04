"""The stored episodes of a run, asked with SQL: lists that are filtered, sorted and searched, and single episodes with their tokens."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ..rewards.rubric import SECONDS
from ..rollout.store.episodes import MEASURED, SCHEMA, text
from ..rollout.store.intervals import mean_interval
from ..rollout.store.moments import Moment, Split, moments
from ..rollout.store.own_files import own_file
from ..rollout.store.reading import check_row, check_store, check_tokens, stored_value
from ..rollout.store.recorded import phases_in_order
from ..rollout.store.records import Mode
from .anew import anew
from .database import PARQUET, Database, named
from .hits import is_short
from .index import CALLED, KINDS, LONGEST_NAME, MOST_KINDS, NARROWED, ROOM, SAID, SUMMARY, WORDS, IndexSegment, coverage, only, said_bytes
from .listing import DEEPEST, ORDERS, PLACE, Hits, ListPart, Wanted, conditions, of_part
from .postings import WordsPart, mark
from .vocabulary import word_files

LONGEST_S = 1e9
"""Seconds; what says it took longer did not."""
LARGEST_REWARD = 1e100
"""Of larger ones no deviation can be told: a float does not hold their squares."""
TOLD = f"abs(reward) <= {LARGEST_REWARD}"
"""Of an episode: that it has a reward, neither null nor NaN, and one that means are made of."""
MOST_WORDS = 16
"""Words that can be searched for at once."""
MOST_ATTEMPTS = 4096
"""Of a task at one moment that are shown: a file of some kilobytes may hold any number of them."""
MOST_TOKENS = 20_000
"""Of an episode that is shown: a file of some kilobytes may hold millions, and each of them would be a piece of a page."""
PER_TOKEN = ("token_ids", "mask", "version", "sampler_logprobs", *MEASURED)
"""Columns with a value for each token."""
HITS_AT_ONCE = 1 << 18
"""Words of an index that fit a search and are in memory together: a file of some kilobytes may hold any number of them."""
READ_AT_ONCE = 32 << 20
"""Bytes of conversations that are read for one list, about, where only a line of each is shown."""


class Library:
    """The episodes in one folder. Every question is answered by the files that are there now: by the index as far as it covers them
    (`index.build_segment`), by the store itself beyond. db: shared with other libraries; by default one of its own. beyond: bytes of files
    beyond the index that lists and counts are made of, the latest; None for all of them, which takes seconds for a hundred thousand.

    Every question raises ValueError when a file cannot be read, or the database's limits do not allow it.

    Example: `Library(run / "episodes").listed(Wanted(text="scrap"))`.
    """

    def __init__(self, folder: Path, db: Database | None = None, beyond: int | None = None) -> None:
        self.folder, self._db, self._beyond = folder, db or Database(), beyond

    def count(self, wanted: Wanted) -> int:
        """How many there are of those, `first` and `most` aside."""
        return self.page(replace(wanted, most=0))[0]

    def listed(self, wanted: Wanted) -> list[dict[str, Any]]:
        """Episodes without their messages and tokens: the columns of `index.SUMMARY`, and `part` where one is wanted."""
        return self.page(wanted)[1]

    @anew
    def page(self, wanted: Wanted) -> tuple[int, list[dict[str, Any]]]:
        """How many there are, and those that are wanted of them.

        Raises ValueError, beside what every question raises, for what is further down than `DEEPEST`.
        """
        last = wanted.first + wanted.most
        if last > DEEPEST:
            raise ValueError(f"a list goes down to its episode {DEEPEST:,}; narrow it")
        counts = [(part, self._count(part)) for part in self._parts(wanted)]
        total, parts = sum(count for _, count in counts), [part for part, count in counts if count]
        if not total or not wanted.most:
            return total, []
        order, phases = ORDERS[wanted.order], self._phases()
        most, first = (wanted.most, wanted.first) if len(parts) == 1 else (last, 0)
        tops = [self._top(part, order, phases, most, first) for part in parts]
        rows = " UNION ALL ".join(f"SELECT * FROM ({question})" for question, _ in tops)
        values = [value for _, inserted in tops for value in inserted]
        question = f"SELECT * FROM ({rows}) ORDER BY {order} LIMIT ? OFFSET ?"
        return total, _checked(self._db.ask(question, [*values, phases, wanted.most, wanted.first - first]))

    @anew
    def choices(self) -> dict[str, list[Any]]:
        """The values there are of what can be chosen: phase, step, split, mode, and of `index.KINDS`."""
        covered = coverage(self.folder)
        rest = _store_files(covered.beyond(self._beyond))
        found: dict[str, set[Any]] = {name: {getattr(one, name) for one in covered.moments} for name in ("phase", "step", "split", "mode")}
        found |= {name: {kind for segment in covered.segments for kind in segment.kinds[name]} for name in KINDS}
        for name in KINDS:
            of_it = "unnest(map_keys(parts))" if name == "part" else name
            offered = f"WHERE length(value) BETWEEN 1 AND {LONGEST_NAME} LIMIT {MOST_KINDS}"
            question = f"SELECT DISTINCT value FROM (SELECT {of_it} AS value FROM {_STORE}) {offered}"
            beyond = self._db.ask(question, [named(rest)]) if rest else []
            found[name] = {*sorted(found[name] | {row["value"] for row in beyond})[:MOST_KINDS]}
        return {name: sorted(values) for name, values in found.items()}

    @anew
    def one(self, phase: str, step: int, split: str, mode: str, episode: str) -> dict[str, Any] | None:
        """The whole of an episode, or None: every column, `messages` and `turn_parts` read, of its tokens the first `MOST_TOKENS`.
        `stored_tokens` is how many there are."""
        file = self._file(phase, step, split, mode)
        found = self._db.ask(_ONE, [named([file]), text(episode)]) if file else []
        if not found:
            return None
        row = found[0]
        check_row(row)
        _cut_tokens(row)
        check_tokens(row)
        return {**row, "messages": _read(row, "messages", list, dict), "turn_parts": _read(row, "turn_parts", dict, list)}

    @anew
    def group(self, phase: str, step: int, split: str, mode: str, task: str) -> list[dict[str, Any]]:
        """The episodes of one task at one moment, in the order of their samples, the first `MOST_ATTEMPTS`; with the
        parts of their rewards, and what is said of failures."""
        file = self._file(phase, step, split, mode)
        question = f"SELECT {SUMMARY}, parts, detail FROM {_STORE} WHERE task = ? ORDER BY sample LIMIT {MOST_ATTEMPTS}"
        return _checked(self._db.ask(question, [named([file]), text(task)])) if file else []

    def conversations(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]] | None]:
        """The messages of each of some rows of a list, one after the other; None for those in files beyond the first `READ_AT_ONCE`, and
        for those that would take more together."""
        by_number = {row["number"]: row for row in self._messages(rows)}
        for number in range(len(rows)):
            there = by_number.pop(number, None)
            yield _read(there, "messages", list, dict) if there else None

    @anew
    def _messages(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages of some rows of a list, as they are stored, each with the `number` of its row."""
        files = dict[Path, None]()
        for row in rows:
            file = self._file(row["phase"], row["step"], row["split"], row["mode"])
            if file is not None:
                files[file] = None
        before = accumulate((said_bytes([file]) for file in files), initial=0)
        chosen = [str(file) for file, size in zip(files, before, strict=False) if size < READ_AT_ONCE]
        places = [[row[name] for row in rows] for name in PLACE]
        return self._db.ask(_MESSAGES, [named(chosen), [*range(len(rows))], *places, READ_AT_ONCE]) if chosen else []

    @anew
    def rewards(self, phase: str) -> list[tuple[int, float, float, float]]:
        """The reward of each training step, as (step, mean, low, high): the mean over its tasks, with that mean's 95 % interval. Tasks of
        environments that are blended with the recipe's own are not in it, as they are not in the metric `reward_mean`.

        The attempts at one task are one observation: they are alike.
        """
        parts = self._parts(Wanted({"phase": phase, "split": "train"}))
        if not parts:
            return []
        chosen = [part.selected("step, task, reward, environment") for part in parts]
        told = f"environment = '' AND {TOLD}"
        rewarded = " UNION ALL ".join(question for question, _ in chosen)
        each = f"SELECT step, task, avg(reward) AS worth FROM ({rewarded}) WHERE {told} GROUP BY step, task"
        question = f"SELECT step, avg(worth) AS mean, stddev_samp(worth) AS spread, count(*) AS n FROM ({each}) GROUP BY step ORDER BY step"
        rows = self._db.ask(question, [value for _, values in chosen for value in values])
        return [(row["step"], row["mean"], *mean_interval(row["mean"], row["spread"] or 0.0, row["n"])) for row in rows]

    @anew
    def seconds(self, phase: str, split: Split) -> list[dict[str, Any]]:
        """How long the episodes of a phase took in the engine and the environment, and the scorers that judged them: `scorer`, "" for the
        episodes themselves, how many there are of them as `n`, and the seconds of which a half took no more (`p50`), of which 95 % did
        (`p95`), and `most`. The scorers with most verdicts, `MOST_KINDS` of them.
        """
        files = _store_files([str(file) for file, moment in moments(self.folder) if (moment.phase, moment.split) == (phase, split)])
        return self._db.ask(_SECONDS, [named(files), named(files)]) if files else []

    def totals(self, moment: Moment) -> dict[str, Any]:
        """Of all episodes of a moment: how many `episodes`, their mean `reward`, None where none has one, and how many `failed`."""
        question = f"SELECT count(*) AS episodes, avg(reward) FILTER ({TOLD}) AS reward, count(failure) AS failed FROM {{stored}}"
        found = self.asked(moment, question)
        return found[0] if found else {"episodes": 0, "reward": None, "failed": 0}

    def task_rewards(self, moment: Moment) -> list[tuple[str, float | None, int]]:
        """Of each task of a moment, its mean reward, None where no attempt has one, and how many attempts have."""
        means = f"avg(reward) FILTER ({TOLD}) AS mean, count(reward) FILTER ({TOLD}) AS n"
        rows = self.asked(moment, f"SELECT task, {means} FROM {{stored}} GROUP BY task")
        return [(row["task"], row["mean"], row["n"]) for row in rows]

    @anew
    def asked(self, moment: Moment, question: str, *values: Any) -> list[dict[str, Any]]:
        """What the database answers to a question in which `{stored}` stands, once and before the values, for the episodes of a moment;
        nothing when there are none."""
        file = self._file(moment.phase, moment.step, moment.split, moment.mode)
        return self._db.ask(question.replace("{stored}", _STORE), [named([file]), *values]) if file else []

    @anew
    def said(self, moment: Moment, tasks: Sequence[str], most: int) -> list[tuple[str, str]] | None:
        """What the policy said in rewarded episodes of some tasks at a moment, (task, text) of each, at most so many; None where the
        moment's conversations take more than `READ_AT_ONCE`."""
        file = self._file(moment.phase, moment.step, moment.split, moment.mode)
        if file and said_bytes([file]) > READ_AT_ONCE:
            return None
        chosen = f"WHERE task IN (SELECT unnest(?)) AND {TOLD} ORDER BY task, sample LIMIT ?"
        rows = _checked(self.asked(moment, f"SELECT task, episode, prompt, messages FROM {{stored}} {chosen}", list(tasks), most))
        return [(row["task"], _spoken(row)) for row in rows]

    def _file(self, phase: str, step: int, split: str, mode: str) -> Path | None:
        """The file of a moment, if the names make one."""
        asked = Moment(phase, step, cast(Split, split), cast(Mode, mode))
        file = self.folder / asked.file if Moment.of(Path(asked.file)) == asked else None
        if file is None or own_file(self.folder.parent, f"{self.folder.name}/{file.name}") is None:
            return None
        check_store(file)
        return file

    def _phases(self) -> list[str]:
        """The phases of the store, as the run came to them."""
        there = {moment.phase for moment in coverage(self.folder).moments}
        took_steps = [phase for phase in phases_in_order(self.folder.parent) if phase in there]
        return [*took_steps, *sorted(there.difference(took_steps))]

    def _parts(self, wanted: Wanted) -> list[ListPart]:
        """The wanted episodes, as far as the index covers the store and beyond."""
        covered = coverage(self.folder)
        rest, indexed = _store_files(covered.beyond(self._beyond)), [segment.rows_file for segment in covered.segments]
        assert wanted.part or not of_part(wanted.order, wanted.between), "the part is not named"
        asked, values = conditions(wanted)
        part, given = (", map_extract_value(parts, ?) AS part", [text(wanted.part)]) if wanted.part else ("", list[Any]())
        index = f"(SELECT *{part} FROM {_INDEX})" if part else _INDEX
        store = f"(SELECT *{part}, {CALLED} AS called FROM {_STORE})" if part or wanted.tool else _STORE
        words = self.words(wanted.text) if wanted.text else []
        if wanted.text and not words:
            return []
        gone = [one for segment in covered.segments for one in segment.gone]
        there = [_THERE] * len(gone)
        lost = [number for one in gone for number in one]
        parts = list[ListPart]()
        if indexed and words:
            hits = self._hits(words, covered.segments)
            if hits.count:
                every = hits.count == sum(segment.episodes for segment in covered.segments)
                alone = None if asked or gone else hits.count
                said = [] if every else [_HIT]
                found = [*values, *lost, *([] if every else [hits.bits, hits.offsets, hits.lowest])]
                parts.append(ListPart(index, [*given, named(indexed)], [*asked, *there, *said], found, "", covered.segments, alone))
        elif indexed:
            parts.append(ListPart(index, [*given, named(indexed)], [*asked, *there], [*values, *lost], "", covered.segments))
        if rest:
            said = [_SAYS_ALONE if is_short(word) else _SAYS for word in words]
            found = [*values, *(word for word in words for _ in range(2))]
            parts.append(ListPart(store, [*given, named(rest)], [*asked, *said], found, SUMMARY + (", part" if part else "")))
        return parts

    def _hits(self, words: list[str], segments: Sequence[IndexSegment]) -> Hits:
        """The episodes in an index that hold all of some words."""
        parts = [part for segment in segments for part in segment.words]
        begins = dict(zip((part.first for part in parts), accumulate((part.episodes for part in parts), initial=0), strict=False))
        held = np.ones(sum(part.episodes for part in parts), np.bool_)
        files = named(word_files(self.folder, segments))
        for word in words:
            fits = _FITS_ALONE if is_short(word) else _FITS
            marks = np.zeros(held.size, np.bool_)
            for found in self._db.batches(f"SELECT first, start, size FROM {_INDEX} WHERE {fits}", [files, word], HITS_AT_ONCE):
                _mark_hits(marks, found, parts, begins)
            held &= marks
        return Hits.of(held, segments)

    def _top(self, part: ListPart, order: str, phases: list[str], most: int, first: int) -> tuple[str, list[Any]]:
        """A question for so many episodes of a part in an order, from number `first` on, with its values. Of the index, only those are read
        whole, out of no segment but theirs."""
        if part.listed:
            return part.ordered(part.listed, order, phases, most, first)
        numbers = [row["id"] for row in self._db.ask(*part.ordered("id", order, phases, most, first)) if row["id"] is not None]
        within = {number // ROOM for number in numbers}
        theirs = [segment.rows_file for segment in part.segments if segment.number in within] or [part.segments[0].rows_file]
        left_out = ", ".join(("id", *NARROWED))
        question = f"SELECT * EXCLUDE ({left_out}) FROM {part.table} WHERE id IN (SELECT unnest(?))"
        return question, [*part.given[:-1], named(theirs), numbers]

    def _count(self, part: ListPart) -> int:
        if part.count is not None:
            return part.count
        question, values = part.selected("count(*) AS n")
        return int(self._db.ask(question, values)[0]["n"])

    def words(self, said: str) -> list[str]:
        """The words of a text, taken apart as what was said is, the longest first."""
        as_stored = text(json.dumps(said, ensure_ascii=False)[1:-1])
        (row,) = self._db.ask(
            f"SELECT list_distinct(regexp_extract_all({SAID}, {WORDS})) AS words FROM (SELECT ? AS messages)", [as_stored]
        )
        if len(row["words"]) > MOST_WORDS:
            raise ValueError(f"text: {MOST_WORDS} words can be searched for at once, not {len(row['words'])}")
        return sorted(row["words"], key=lambda word: (-len(word), word))


def _mark_hits(marks: npt.NDArray[np.bool_], found: Any, parts: Sequence[WordsPart], begins: Mapping[int, int]) -> None:
    """Mark the episodes that some words stand in. found: a batch of their `first`, `start` and `size`. begins: by a part's first episode,
    where its marks begin."""
    first, start, size = (np.asarray(found.column(name), np.int64) for name in ("first", "start", "size"))
    order = np.argsort(first, kind="stable")
    edges = np.searchsorted(first, [[part.first, part.first + 1] for part in parts], sorter=order)
    for part, (low, high) in zip(parts, edges.tolist(), strict=True):
        if low < high:
            chosen = order[low:high]
            mark(marks[begins[part.first] :][: part.episodes], part, start[chosen], size[chosen])


def _store_files(files: list[str]) -> list[str]:
    for file in files:
        check_store(Path(file))
    return files


def _checked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for row in rows:
        check_row(row)
    return rows


def _read(row: Mapping[str, Any], name: str, kind: type, inner: type) -> Any:
    """A column of JSON. Raises ValueError when it holds none, or something else."""
    try:
        value = stored_value(row[name]) if row[name] is not None else kind()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the stored episodes cannot be read: episode {row['episode']!r:.80}: {name}: {error}") from None
    items: list[Any] = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    fits = isinstance(value, kind) and all(isinstance(one, inner) for one in items)
    if not fits or (inner is list and not all(map(_is_number, chain.from_iterable(items)))):
        raise ValueError(f"the stored episodes cannot be read: episode {row['episode']!r:.80}: {name} is not what is stored there")
    return value


def _spoken(row: Mapping[str, Any]) -> str:
    """What the policy said after the prompt, a line per message."""
    said = [
        message.get("content")
        for message in _read(row, "messages", list, dict)[max(0, row["prompt"]) :]
        if message.get("role") == "assistant"
    ]
    return "\n".join(text for text in said if isinstance(text, str))


def _is_number(value: Any) -> bool:
    """Whether a value of JSON is a number, and one that a float holds."""
    return type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)


def _cut_tokens(row: dict[str, Any]) -> None:
    """Leave of an episode's trajectories what of them was read. Raises ValueError naming the column that has not as many tokens as they."""
    counts, lengths, room = row.pop("counts"), row["lengths"], MOST_TOKENS
    for name, count in zip(PER_TOKEN, counts, strict=True):
        if count is not None and count != row["stored_tokens"]:
            raise ValueError(f"the stored episodes cannot be read: episode {row['episode']!r:.80}: {name} is not as long as lengths says")
    if row["stored_tokens"] <= MOST_TOKENS or not all(type(length) is int and length > 0 for length in lengths):
        return
    row["lengths"] = []
    for length in lengths:
        if room > 0:
            row["lengths"].append(min(length, room))
            room -= length


_STORE, _INDEX = f"{PARQUET}, union_by_name=true)", f"{PARQUET})"
_ONE = (
    f"SELECT * REPLACE ({', '.join(f'list_slice({name}, 1, {MOST_TOKENS}) AS {name}' for name in ('lengths', *PER_TOKEN))}), "
    f"coalesce(list_sum(lengths), 0)::BIGINT AS stored_tokens, [{', '.join(f'len({name})' for name in PER_TOKEN)}] AS counts "
    f"FROM (SELECT {only(*SCHEMA.names)} FROM {_STORE}) WHERE episode = ? LIMIT 1"
)
_TOOK = (
    f"SELECT '' AS scorer, seconds AS took FROM {_STORE} UNION ALL SELECT left(one.key, -{len(SECONDS)}), one.value "
    f"FROM (SELECT unnest(map_entries(metrics)) AS one FROM {_STORE}) WHERE ends_with(one.key, '{SECONDS}')"
)
_SECONDS = (
    "SELECT scorer, count(*) AS n, quantile_cont(took, 0.5) AS p50, quantile_cont(took, 0.95) AS p95, max(took) AS most "
    f"FROM ({_TOOK}) WHERE took BETWEEN 0 AND {LONGEST_S} GROUP BY scorer ORDER BY scorer != '', n DESC, scorer LIMIT {MOST_KINDS}"
)
_WANTED = ", ".join(f"unnest(?) AS {name}" for name in ("number", *PLACE))
_MESSAGES = (
    "SELECT number, episode, messages FROM (SELECT DISTINCT ON (number) number, episode, messages "
    f"FROM (SELECT {', '.join(PLACE)}, messages FROM {_STORE}) JOIN (SELECT {_WANTED}) USING ({', '.join(PLACE)})) "
    "QUALIFY sum(strlen(messages)) OVER (ORDER BY number ROWS UNBOUNDED PRECEDING) <= ? ORDER BY number"
)
"""The messages of rows with a number each, the first of them: one text may stand in a file any number of times."""
_HIT = f"get_bit(?::BLOB::BIT, ((?::BIGINT[])[(id >> {ROOM.bit_length() - 1}) - ? + 1] + (id & {ROOM - 1}))::INTEGER) = 1"
_THERE = "id NOT BETWEEN ? AND ?"
_FITS, _FITS_ALONE = "contains(word, ?)", "word = ?"
# Only what may hold a word is freed of its form.
_SAYS = f"CASE WHEN contains(lower(messages), ?) THEN contains({SAID}, ?) ELSE false END"
_SAYS_ALONE = f"CASE WHEN contains(lower(messages), ?) THEN list_contains(regexp_extract_all({SAID}, {WORDS}), ?) ELSE false END"
