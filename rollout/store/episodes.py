"""Episodes as Parquet: everything that was said, earned, sampled and measured, a row per episode and a file per step.

    import pandas as pd
    episodes = pd.read_parquet("runs/NAME/episodes")     # the whole run; one file of it works too

Files appear whole, so a run can be read while it goes on. A step's file is written on a thread of its own, beside the training; until it is
on the disk, what was said lies in `transcripts/` as rows of JSON, so that a run that is cut loses none of it. Arrays per token hold all
trajectories of an episode end to end; `lengths` says where one ends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...envs.failures import Failure
from ...envs.types import Episode, Float32
from ..writing import writing
from .keeping import Keeping
from .moments import Moment, PerEpisode
from .transcripts import TranscriptWriter, transcript_of

SCHEMA_VERSION = 4

_NUMBERS, _FLOATS, _WORDS = pa.map_(pa.string(), pa.float64()), pa.list_(pa.float32()), pa.map_(pa.string(), pa.string())
_TURN = pa.struct([("tokens", pa.int32()), ("stop", pa.string()), ("generate_s", pa.float64()), ("env_s", pa.float64())])
SCHEMA = pa.schema(
    [
        ("schema", pa.int16()),
        ("run", pa.string()),
        ("phase", pa.string()),
        ("step", pa.int32()),
        ("split", pa.string()),  # "train", or "heldout" for an evaluation
        ("mode", pa.string()),  # "sampled" or "greedy"
        ("episode", pa.string()),  # task id and sample, "train-17/0"
        ("task", pa.string()),
        ("environment", pa.string()),  # which of a blend's plays the task; "" the recipe's own
        ("prompt", pa.int32()),  # how many of the first messages are the task's own
        ("task_data", pa.string()),  # JSON, as Python writes it: what the task brought for environment and rewards
        ("env_data", pa.string()),  # JSON: what the environment put into info["data"]; for rewards, it is laid over the task's
        ("seed", pa.int64()),
        ("sample", pa.int32()),
        ("engine", pa.string()),
        ("actor", pa.string()),  # Ray's id of the actor that played it; "" outside of Ray
        ("node", pa.string()),  # Ray's id of the node that this was on; "" outside of Ray
        ("reward", pa.float64()),  # the total; null when the episode failed
        ("parts", _NUMBERS),  # unweighted
        ("turn_parts", pa.string()),  # JSON: part -> its value for each turn, where turns were judged
        ("credit", pa.list_(pa.float64())),  # what each turn earned of the total
        ("failure", pa.string()),  # its kind; null when the episode was rewarded
        ("culprit", pa.string()),
        ("detail", pa.string()),
        ("truncation", pa.string()),  # the limit it ran into, if any
        ("labels", _WORDS),
        ("metrics", _NUMBERS),
        ("messages", pa.string()),  # JSON: OpenAI chat messages
        ("tools", pa.string()),  # JSON: OpenAI function schemas that the prompt describes; null when it describes none
        ("turns", pa.list_(_TURN)),
        ("env_rewards", pa.list_(pa.float64())),  # what the environment gave in its answer to each turn
        ("seconds", pa.float64()),  # in the engine and in the environment
        ("oldest_version", pa.int32()),  # of the weights that sampled it
        ("newest_version", pa.int32()),
        ("sampled_tokens", pa.int32()),
        ("context_tokens", pa.int32()),
        ("lengths", pa.list_(pa.int32())),  # tokens of each trajectory
        ("token_ids", pa.list_(pa.int32())),
        ("mask", pa.list_(pa.bool_())),  # tokens that the policy sampled
        ("version", pa.list_(pa.int32())),  # of the weights, -1 outside the mask
        ("sampler_logprobs", _FLOATS),  # 0 outside the mask, as are those below
        ("logprobs", _FLOATS),  # of the learner before the step; null when the episode did not train, as are those below
        ("advantages", _FLOATS),
        ("entropy", _FLOATS),
        ("ratio", _FLOATS),
    ]
)
"""What every file holds; `docs/episodes.md` has it as a table. Version 2 added environment, prompt, task_data, env_data and env_rewards,
version 3 tools, version 4 actor and node; a later one may add columns."""

MEASURED = {"logprobs": "logprobs", "advantages": "advantage", "entropy": "entropy", "ratio": "ratio"}
"""Columns of what was measured, and how `trainer.objectives.measures.per_trajectory` calls them."""


def _leaves(path: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """The columns that Parquet makes of one, by its names for them."""
    if pa.types.is_map(kind):
        yield from _leaves(f"{path}.key_value.key", kind.key_type)
        yield from _leaves(f"{path}.key_value.value", kind.item_type)
    elif pa.types.is_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    elif pa.types.is_struct(kind):
        for child in kind:
            yield from _leaves(f"{path}.{child.name}", child.type)
    else:
        yield path, kind


_COLUMNS = {path: kind for field in SCHEMA for path, kind in _leaves(field.name, field.type)}
_SPLIT = [path for path, kind in _COLUMNS.items() if pa.types.is_floating(kind) and path.partition(".")[0] != "advantages"]
WRITTEN: Mapping[str, Any] = {
    "compression": "zstd",
    "compression_level": 3,
    # Floats seldom repeat, but for advantages; byte by byte, their exponents compress well. So do plain ids and masks.
    "use_byte_stream_split": _SPLIT,
    "use_dictionary": [path for path in _COLUMNS if path not in _SPLIT and path.partition(".")[0] not in ("token_ids", "mask")],
    "write_statistics": [name for name in SCHEMA.names if name in _COLUMNS],  # nobody asks for a range of tokens
}
"""How files are written, for `pyarrow.parquet.write_table`."""


ALL_OF_THEM = Keeping()


class EpisodeStore:
    """Writes a run's episodes into a folder, a file per moment, on one thread in the background.

    Close it: that waits, and raises what failed. At most `WAITING` files wait to be written; then `put` waits too, so that a slow disk
    does not fill the memory.

    transcripts: a folder that holds the transcripts of each file that waits, so that a process that is killed loses none; None for episodes
    that can be made again. keeping: what is stored of each moment, and stays; all of it by default. say: is told once, on the store's
    thread, that what stays takes more room than it may.

    Example: `with EpisodeStore(run / "episodes", "nano") as store: store.put(Moment("rft", 1, "train", "sampled"), episodes)`.
    """

    WAITING = 4

    def __init__(
        self,
        folder: Path,
        run: str,
        transcripts: Path | None = None,
        keeping: Keeping = ALL_OF_THEM,
        say: Callable[[str], None] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._run, self._transcripts = folder, run, transcripts
        self._keeping, self._say = keeping, say
        self._thread = ThreadPoolExecutor(1, "episode-store")
        self._waiting: list[Future[None]] = []

    def put(self, moment: Moment, episodes: Sequence[Episode], measured: PerEpisode | None = None, whole: bool = False) -> None:
        """Write these episodes, those that are kept, in place of what the moment had. Once this returns, their transcripts stay whatever
        happens. whole: all of them, since nothing else tells why their step was broken off.

        Raises what an earlier write raised, which it does once these are kept, and ValueError when a metric is not finite.
        """
        episodes = episodes if whole else self._keeping.chosen(moment, episodes)
        kept = self._keep(moment, episodes) if episodes else None
        while self._waiting and (len(self._waiting) >= self.WAITING or self._waiting[0].done()):
            self._waiting.pop(0).result()
        if episodes:
            self._waiting.append(self._thread.submit(self._write, moment, tuple(episodes), dict(measured or {}), kept))

    def flush(self) -> None:
        """Wait until everything is on the disk. Raises what failed."""
        while self._waiting:
            self._waiting.pop(0).result()

    def close(self) -> None:
        """Write what waits, then end the thread. Raises what failed."""
        try:
            self.flush()
        finally:
            self._thread.shutdown()

    def __enter__(self) -> EpisodeStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep(self, moment: Moment, episodes: Sequence[Episode]) -> Path | None:
        """The file with their transcripts, None when none are kept."""
        if self._transcripts is None:
            return None
        file = self._transcripts / moment.transcripts
        if file.exists():
            wait(self._waiting)  # an earlier write of this moment would take it away; what failed is for `put` to raise
            file.unlink(missing_ok=True)
        with TranscriptWriter(file) as writer:
            for one in episodes:
                row = transcript_of(one, run=self._run, phase=moment.phase, step=moment.step, split=moment.split, mode=moment.mode)
                writer.write(row)
        return file

    def _write(self, moment: Moment, episodes: tuple[Episode, ...], measured: PerEpisode, kept: Path | None) -> None:
        rows = [row_of(episode, moment, self._run, measured.get(episode.id)) for episode in episodes]
        draft = self._folder / moment.draft
        with writing(draft):
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), draft, **WRITTEN)
        _to_disk(draft)
        draft.replace(self._folder / moment.file)
        if kept is not None:
            _to_disk(self._folder)
            kept.unlink(missing_ok=True)
        problem = self._keeping.shrink(self._folder)
        if problem and self._say is not None:
            self._say(problem)
            self._say = None


def _to_disk(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def row_of(episode: Episode, moment: Moment, run: str, measured: Sequence[Mapping[str, Float32]] | None = None) -> dict[str, Any]:
    """An episode as a row of `SCHEMA`."""
    reward, failed = episode.reward, episode.outcome if isinstance(episode.outcome, Failure) else None
    whole: dict[str, list[Any]] = {
        "token_ids": [t.token_ids for t in episode.trajectories],
        "mask": [t.trainable for t in episode.trajectories],
        "version": [t.policy_version for t in episode.trajectories],
        "sampler_logprobs": [t.logprobs for t in episode.trajectories],
    }
    versions = np.concatenate([np.zeros(0, np.int32), *(turn.policy_version for turn in episode.turns)])
    row: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "run": run,
        "phase": moment.phase,
        "step": moment.step,
        "split": moment.split,
        "mode": moment.mode,
        "episode": text(episode.id),
        "task": text(episode.task.id),
        "environment": episode.task.environment,
        "prompt": len(episode.task.prompt),
        "task_data": _data(episode.task.data),
        "env_data": _data(episode.env_data),
        "seed": episode.task.seed,
        "sample": episode.sample,
        "engine": episode.engine,
        "actor": text(episode.actor),
        "node": text(episode.node),
        "reward": reward.total if reward else None,
        "parts": [(text(name), float(value)) for name, value in reward.parts.items()] if reward else None,
        "turn_parts": _json({name: [*map(float, values)] for name, values in reward.turns.items()}) if reward and reward.turns else None,
        "credit": list(map(float, reward.credit)) if reward and reward.credit else None,
        "failure": failed.kind.value if failed else None,
        "culprit": text(failed.culprit) if failed else None,
        "detail": text(failed.detail) if failed else None,
        "truncation": episode.truncation,
        "labels": [(text(name), text(value)) for name, value in episode.labels.items()],
        "metrics": [(text(name), float(value)) for name, value in episode.metrics.items()],
        "messages": _json([message.to_dict() for message in episode.messages]),
        "tools": _json([dict(tool) for tool in episode.tools]) if episode.tools else None,
        "turns": [
            {"tokens": len(turn.token_ids), "stop": turn.stop_reason, "generate_s": turn.generate_s, "env_s": turn.env_s}
            for turn in episode.turns
        ],
        "env_rewards": [turn.env_reward for turn in episode.turns],
        "seconds": float(sum(turn.generate_s + turn.env_s for turn in episode.turns)),
        "oldest_version": int(versions.min()) if len(versions) else -1,
        "newest_version": int(versions.max()) if len(versions) else -1,
        "sampled_tokens": sum(int(t.trainable.sum()) for t in episode.trajectories),
        "context_tokens": sum(len(t) for t in episode.trajectories),
        "lengths": [len(t) for t in episode.trajectories],
    }
    row |= {name: np.concatenate(arrays) if arrays else [] for name, arrays in whole.items()}
    for column, name in MEASURED.items():
        there = measured is not None and all(name in of_one for of_one in measured)
        row[column] = np.concatenate([of_one[name] for of_one in measured]) if there and measured else None
    return row


def text(said: str) -> str:
    """Text that UTF-8 can hold: half of a surrogate pair, which a model may write, is spelled out. Example: "\\ud83d" as six characters."""
    return said if said.isascii() else said.encode("utf-8", "backslashreplace").decode("utf-8")


def _data(value: Mapping[str, Any]) -> str:
    """What a file or an environment gave, as JSON with Python's NaN and Infinity; what JSON has no word for is written as its `str`."""
    return text(json.dumps(plain(value), ensure_ascii=False, separators=(",", ":")))


def plain(value: Any) -> Any:
    """Data as JSON can hold it. Example: `plain({1: np.int64(2)}) == {"1": 2}`."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _json(value: Any) -> str:
    return text(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
