"""The transcripts of a run folder, from wherever in it they are: the store of episodes, and rows of JSON beside it.

`episodes/` holds everything. `transcripts/` holds a file for each moment whose Parquet file was not on the disk yet when the run was cut,
and all episodes of a run that has no store, in files of other names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...envs.pydantic_words import first_error
from .json_lines import read_json_lines
from .moments import Moment, moments
from .own_files import own_file, own_files
from .reading import episode_columns, rows_while_there, stored_value
from .transcripts import StoredFailure, StoredReward, StoredTurn, Transcript, read_transcripts

COLUMNS = (
    "run", "phase", "step", "split", "mode", "episode", "task", "seed", "sample", "messages", "tools", "reward", "parts", "turn_parts",
    "failure", "culprit", "detail", "truncation", "labels", "metrics", "turns", "oldest_version", "newest_version", "sampled_tokens",
    "context_tokens",
)  # fmt: skip


def recorded_transcripts(run: Path) -> Iterator[Transcript]:
    """The transcripts of a run folder, one at a time, in the order in which its phases took their steps.

    A moment is read once: rows of a file that holds many moments count before the store, and the store before a file of one moment. The
    weights' versions of a turn that comes from the store are those of its episode.

    A file of the store that goes meanwhile is passed over. Raises ValueError naming the file that cannot be read, or file and line.
    """
    beside = own_files(run, "*.jsonl", "transcripts")
    waiting = {moment: file for file in beside if (moment := Moment.of(file.with_suffix(".parquet"))) is not None}
    told = set[Moment]()
    for file in beside:
        if file not in waiting.values():
            for transcript in read_transcripts(file):
                told.add(Moment(transcript.phase, transcript.step, transcript.split, transcript.mode))
                yield transcript
    stored = {moment: file for file, moment in moments(run / "episodes") if moment not in told}  # after `waiting`: what it lacks is here
    for moment in in_order(run, {*stored, *waiting} - told):
        if moment in stored:
            yield from _of_store(stored[moment])
        else:
            yield from _of_rows(waiting[moment], run / "episodes" / moment.file)


def in_order(run: Path, found: Iterable[Moment]) -> list[Moment]:
    """Moments as the run came to them: its phases in the order in which they took steps, those that took none after them by name; of a step
    the training before the evaluation, and sampled before greedy. Raises ValueError, with file and line, when the run's metrics cannot be
    read."""
    place = {name: number for number, name in enumerate(phases_in_order(run))}

    def order(moment: Moment) -> tuple[int, str, int, bool, bool]:
        return place.get(moment.phase, len(place)), moment.phase, moment.step, moment.split == "heldout", moment.mode == "greedy"

    return sorted(found, key=order)


def phases_in_order(run: Path) -> tuple[str, ...]:
    """The phases in the order in which they took steps; the first evaluation comes before them. Raises ValueError as `in_order` does."""
    file = own_file(run, "metrics.jsonl")
    if file is None:
        return ("base",)
    written = file.stat()
    return _phases(file, written.st_size, written.st_mtime_ns)


@lru_cache(maxsize=64)
def _phases(file: Path, size: int, changed: int) -> tuple[str, ...]:
    return tuple(dict.fromkeys(["base", *(str(row.get("phase")) for _, row in read_json_lines(file))]))


def _of_rows(file: Path, written: Path) -> Iterator[Transcript]:
    """The rows of one moment; of the store, where these were written since. A file that is open is read to its end, though it be removed
    meanwhile."""
    rows = read_transcripts(file)
    try:
        first = next(rows, None)
    except FileNotFoundError:
        yield from _of_store(written)
        return
    if first is not None:
        yield first
        yield from rows


def _of_store(file: Path) -> Iterator[Transcript]:
    for row in rows_while_there(file, episode_columns(*COLUMNS)):
        try:
            yield _transcript(row)
        except ValidationError as error:
            raise ValueError(f"{file}: cannot be read as stored episodes: episode {row['episode']!r:.80}: {first_error(error)}") from error
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{file}: cannot be read as stored episodes: episode {row['episode']!r:.80}: {error}") from error


def _transcript(row: Mapping[str, Any]) -> Transcript:
    tools, per_turn = (stored_value(row[name]) if row[name] is not None else None for name in ("tools", "turn_parts"))
    versions = {"oldest_version": row["oldest_version"], "newest_version": row["newest_version"]}
    turns = (
        StoredTurn(tokens=turn["tokens"], stop_reason=turn["stop"], generate_s=turn["generate_s"], env_s=turn["env_s"], **versions)
        for turn in row["turns"]
    )
    reward = StoredReward(total=row["reward"], parts=row["parts"] or {}, turns=per_turn) if row["reward"] is not None else None
    failed = row["failure"] is not None
    failure = StoredFailure(kind=row["failure"], culprit=row["culprit"] or "", detail=row["detail"] or "") if failed else None
    same = ("run", "phase", "step", "split", "mode", "episode", "task", "seed", "sample", "truncation", "labels", "metrics")
    return Transcript(
        schema=3 if tools else 2 if per_turn else 1,
        messages=stored_value(row["messages"]),
        tools=tools,
        reward=reward,
        failure=failure,
        turns=tuple(turns),
        trainable_tokens=row["sampled_tokens"],
        context_tokens=row["context_tokens"],
        **{name: row[name] for name in same},
    )
