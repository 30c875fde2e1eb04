"""The postings of an index's words: what was packed is marked again, in both forms, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from burnish.inspector import postings
from burnish.inspector.postings import PART, WordsPart, mark, pack

pytestmark = pytest.mark.unit


def part(folder: Path, held: list[list[int]], episodes: int) -> tuple[WordsPart, np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, held)])
    said, sizes = pack(np.array([place for one in held for place in one], np.int64), offsets, episodes)
    made = WordsPart(str(folder / "words-0.parquet"), 0, episodes)
    made.postings.write_bytes(said)
    return made, np.cumsum(sizes) - sizes, sizes


def marked(made: WordsPart, starts: np.ndarray, sizes: np.ndarray) -> list[int]:
    marks = np.zeros(made.episodes, np.bool_)
    mark(marks, made, starts, sizes)
    return [int(place) for place in np.flatnonzero(marks)]


def test_rare_words_take_two_bytes_an_episode_and_frequent_ones_a_bit(tmp_path: Path) -> None:
    made, _, sizes = part(tmp_path, [[5], [0, 7], [1, 2, 3], list(range(33))], 33)
    assert sizes.tolist() == [2, 4, 6, 6]  # 33 bits are 3 numbers of 16
    assert made.postings.read_bytes().hex() == "0500" + "00000700" + "700000000000" + "ffffffff8000"


@pytest.mark.parametrize("block", [postings._READ, 1])
def test_what_was_packed_is_marked_for_one_word_and_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(postings, "_READ", block)
    rng = np.random.default_rng(0)
    held = [sorted(rng.choice(500, size=int(many), replace=False).tolist()) for many in rng.integers(1, 90, 200)]
    made, starts, sizes = part(tmp_path, held, 500)
    assert 50 < (sizes == 64).sum() < 150
    assert [marked(made, starts[i : i + 1], sizes[i : i + 1]) for i in range(200)] == held
    chosen = rng.permutation(200)[:20]
    assert marked(made, starts[chosen], sizes[chosen]) == sorted({place for i in chosen for place in held[i]})
    assert marked(made, starts[:0], sizes[:0]) == []


def test_a_place_may_be_the_last_of_the_largest_part(tmp_path: Path) -> None:
    made, starts, sizes = part(tmp_path, [[0, PART - 1]], PART)
    assert marked(made, starts, sizes) == [0, PART - 1]


@pytest.mark.parametrize(
    ("start", "size"),
    [(0, 4), (2, 2), (-2, 2), (0, 0), (0, -2), (0, 1), (1, 2), (0, 8), (1 << 40, 2)],
    ids=["place", "beyond", "before", "nothing", "negative", "half", "odd", "large", "far"],
)
def test_stretches_that_the_file_does_not_hold_are_refused(tmp_path: Path, start: int, size: int) -> None:
    made = WordsPart(str(tmp_path / "words-0.parquet"), 0, 50)
    made.postings.write_bytes(b"\x05\x00" if (start, size) != (0, 4) else b"\x05\x00\x32\x00")
    with pytest.raises(ValueError, match=r"words-0\.postings does not hold what its words say; delete"):
        marked(made, np.array([start]), np.array([size]))
