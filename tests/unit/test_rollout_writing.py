"""What a library raises that cannot write a file: the system's error, with the file's name."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from burnish.rollout.writing import write_text, writing

pytestmark = pytest.mark.unit

ROWS = np.random.default_rng(0).random(20_000)
WRITERS: list[Callable[[Path], None]] = [
    lambda file: save_file({"a": ROWS}, file),
    lambda file: pq.write_table(pa.table({"a": ROWS}), file),
]


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may have more than 64 KiB, as on a disk that is full after so many."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("write", WRITERS, ids=["safetensors", "parquet"])
def test_a_file_that_does_not_fit_is_named(write: Callable[[Path], None], tmp_path: Path, small_files: None) -> None:
    file = tmp_path / "rows"
    with pytest.raises(OSError, match="File too large") as caught, writing(file):
        write(file)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(file))


def test_text_that_a_full_disk_does_not_take_is_named() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(Path("/dev/full"), "{}")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    for error in (ValueError("a"), FileNotFoundError(errno.ENOENT, "No such file or directory", "b"), OSError("c")):
        with pytest.raises(type(error)) as caught, writing(tmp_path / "rows"):
            raise error
        assert caught.value is error
