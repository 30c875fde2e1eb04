"""Preference pairs out of a run's stored rollouts: of the attempts at one task, one that earned more beside one that earned less.

The tokens are those that were sampled, never rendered again; what the policy sampled is trained, and what it was asked is not. Where both
answers begin alike, what they share weighs nothing: it is as probable in both.

The attempts at one task in one step of training, rewarded and of one sequence each, are sorted by their total reward, equal ones by their
number. The best is paired with the worst, the second best with the second worst, and so on, `pairs_per_group` times at most, as long as the
better earned more than the worse, by `min_gap` at least.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

from ...rollout.store.moments import moments
from ...rollout.store.own_files import own_file
from ..models.checkpoints import list_checkpoints
from ..models.folder import vocabulary_of
from ..models.manifest import TOKENIZER_FILE, file_sha256
from .sources import Reject
from .supervised import SupervisedExample

EPISODES: Final = "episodes"
TINY: Final = 1e-9
"""Rounding: 0.6 earned 0.4 more than 0.2."""
COLUMNS: Final = ("episode", "task", "sample", "reward", "lengths", "token_ids", "mask", "sampler_logprobs")
STEP_BYTES: Final = 4 << 30
"""What the episodes of one step may take: they are in memory together."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt at a task as it was stored. row: its place in the file, from 1. example: None where it is of several sequences, or none.

    Example: `Attempt("train-17", 0, 1, 0.5, example)`.
    """

    task: str
    sample: int
    row: int
    reward: float | None
    example: SupervisedExample | None


RolloutPair = tuple[Attempt, Attempt]
"""The better attempt and the worse."""


def chosen_pairs(attempts: Sequence[Attempt], min_gap: float, count: int) -> Iterator[RolloutPair]:
    """The pairs of one task, as the head of this file says.

    Example: of rewards 1, 0, 0.5 and 0 with `min_gap` 0.5 and two pairs wanted: 1 beside the last 0, and 0.5 beside the first.
    """
    able = [one for one in attempts if one.reward is not None and one.example is not None and one.example.trainable.any()]
    ranked = sorted(able, key=lambda one: (-(one.reward or 0.0), one.sample))
    for better, worse in zip(ranked[: len(ranked) // 2][:count], reversed(ranked), strict=False):
        gap = (better.reward or 0.0) - (worse.reward or 0.0)
        if gap > TINY and gap >= min_gap - TINY:
            yield better, worse


def rollout_pairs(
    run: Path, model: Path, min_gap: float, count: int, max_tokens: int
) -> Iterator[tuple[tuple[SupervisedExample, SupervisedExample], tuple[str, str]] | Reject | None]:
    """For each task of each step, its pairs with where the better one and the worse stand, a reject for a pair with an answer longer than
    `max_tokens`, and None for a task that gives no pair.

    Raises ValueError when the folder holds no stored rollouts of training, or they are of another tokenizer than the model's, or naming the
    file, the episode and the field of one that the model cannot be trained on.
    """
    check_tokenizer(run, model)
    vocabulary = vocabulary_of(model)
    files = [file for file, moment in moments(run / EPISODES) if (moment.split, moment.mode) == ("train", "sampled")]
    if not files:
        raise ValueError(f"{run} holds no rollouts of training ({EPISODES}/*.train.sampled.parquet); give the folder of a run with [rft]")
    for file in files:
        for _, group in groupby(read_attempts(file, vocabulary), key=lambda one: one.task):
            found = list(chosen_pairs(list(group), min_gap, count))
            if not found:
                yield None
            for better, worse in found:
                assert better.example is not None
                assert worse.example is not None
                longest = max(len(better.example.token_ids), len(worse.example.token_ids))
                if longest > max_tokens:
                    problem = f"an answer with its prompt is {longest} tokens long, more than the {max_tokens} allowed"
                    yield Reject(str(file), better.row, "token_ids", problem)
                else:
                    yield (better.example, worse.example), (f"{file}:{better.row}", f"{file}:{worse.row}")


def read_attempts(file: Path, vocabulary: int) -> list[Attempt]:
    """The attempts of a stored step, those at one task together, for a model of so many tokens; none when its file is gone. Raises
    ValueError naming the file, or the episode and the field that do not fit.
    """
    from ...rollout.store.reading import episode_columns, rows_while_there, stored_sequences

    found = list[Attempt]()
    for number, row in enumerate(rows_while_there(file, episode_columns(*COLUMNS), STEP_BYTES), start=1):
        try:
            reward = row["reward"]
            if reward is not None and not math.isfinite(reward):
                raise ValueError(f"reward: {reward} is no number to compare")
            sequences = stored_sequences(row, vocabulary)
        except ValueError as error:
            raise ValueError(f"{file}: episode {row['episode']!r}: {error}") from None
        example = SupervisedExample(*sequences[0][:2]) if len(sequences) == 1 else None
        found.append(Attempt(row["task"], row["sample"], number, reward, example))
    return sorted(found, key=lambda one: (one.task, one.sample))


def check_tokenizer(run: Path, model: Path) -> None:
    """Raise ValueError unless the run's checkpoints have the model's tokenizer: tokens mean nothing under another one."""
    if not (run / EPISODES).is_dir():
        raise ValueError(f"{run} is not the folder of a run with stored rollouts (it has no {EPISODES}/)")
    records = list_checkpoints(run)
    if not records:
        raise ValueError(f"{run} has no checkpoint that would say which tokenizer its rollouts are of; give a run that has one")
    of_run = own_file(run, str((records[-1].model(run) / TOKENIZER_FILE).relative_to(run)))
    if of_run is None or file_sha256(of_run) != file_sha256(model / TOKENIZER_FILE):
        raise ValueError(f"the rollouts of {run} are of another tokenizer than {model}'s; give a run of the same family of models")
