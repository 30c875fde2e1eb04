"""A batch over several ranks: who gets what, and the whole put together again, against hand-made splits."""

import dataclasses

import numpy as np
import pytest

from burnish.envs.types import Float32
from burnish.trainer.batch import TokenBatch, plain_batch
from burnish.trainer.learner.shares import merged, shares
from burnish.trainer.objectives.measures import Measured

pytestmark = pytest.mark.unit


def batch(lengths: list[int], groups: list[int]) -> TokenBatch:
    rows = [(np.arange(n, dtype=np.int32), np.arange(n) > 0) for n in lengths]
    return dataclasses.replace(plain_batch(rows), group=np.array(groups, np.int32))


def floats(values: list[float]) -> Float32:
    return np.array(values, np.float32)


def split(lengths: list[int], groups: list[int], ranks: int) -> list[list[int]]:
    return [part.tolist() for part in shares(batch(lengths, groups), ranks)]


def test_groups_stay_whole_and_the_largest_goes_first() -> None:
    # groups of 3 + 3, 4 and 3 tokens
    assert split([3, 4, 3, 3], [7, 2, 7, 5], 2) == [[0, 2], [1, 3]]


def test_sequences_of_no_group_are_dealt_one_by_one() -> None:
    assert split([5, 2, 2, 2], [-1, -1, -1, -1], 2) == [[0], [1, 2, 3]]


def test_with_fewer_groups_than_ranks_some_get_nothing() -> None:
    assert split([3, 3], [0, 0], 3) == [[0, 1], [], []]


def test_a_share_of_everything_is_the_batch() -> None:
    whole = batch([3, 4, 3], [1, 0, 1])
    assert [part.tolist() for part in shares(whole, 1)] == [[0, 1, 2]]


def test_what_ranks_measured_comes_back_in_order() -> None:
    whole = batch([3, 2, 2], [1, 0, 1])
    parts = shares(whole, 3)
    assert [part.tolist() for part in parts] == [[0, 2], [1], []]
    none = np.zeros(0, np.float32)
    found = merged(
        whole,
        parts,
        [
            Measured(floats([0, 1, 2, 0, 5]), floats([0, 1, 1, 0, 1]), {"ratio": floats([0, 3, 3, 0, 3])}, {"loss": 0.5}, 6, 2.0),
            Measured(floats([0, 4]), floats([0, 2]), {"ratio": floats([0, 9])}, {"loss": 0.25, "kl": 0.1}, 2, 3.0),
            Measured(none, none, {}, {"loss": 0.0}, 0, 1.0),
        ],
    )
    assert found.logprobs.tolist() == [0, 1, 2, 0, 4, 0, 5]
    assert found.entropy.tolist() == [0, 1, 1, 0, 2, 0, 1]
    assert found.tokens["ratio"].tolist() == [0, 3, 3, 0, 9, 0, 3]
    assert (found.terms, found.packed_tokens, found.seconds) == ({"loss": 0.75, "kl": 0.1}, 8, 3.0)
