"""Where in a run stored episodes belong, and how their files are called after that."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...envs.types import Float32
from .own_files import own_files
from .records import Mode

Split = Literal["train", "heldout"]
PerEpisode = Mapping[str, Sequence[Mapping[str, Float32]]]
"""Of an episode that trained, by its id: what was measured of each of its trajectories, arrays of its length by name."""

_NAME = re.compile(r"(?P<phase>[a-z0-9_-]+)\.(?P<step>\d{6,})\.(?P<split>train|heldout)\.(?P<mode>sampled|greedy)\.parquet")


@dataclass(frozen=True, slots=True)
class Moment:
    """Where in a run episodes belong. Example: `Moment("rft", 12, "train", "sampled").file == "rft.000012.train.sampled.parquet"`."""

    phase: str
    step: int
    split: Split
    mode: Mode

    @property
    def file(self) -> str:
        return f"{self.phase}.{self.step:06}.{self.split}.{self.mode}.parquet"

    @property
    def draft(self) -> str:
        """The file's name until it is whole: whoever reads all of a folder passes over names that begin with a dot."""
        return f".{self.file}.tmp"

    @property
    def transcripts(self) -> str:
        """The file beside the store that holds what was said, until the store has it."""
        return f"{self.file.removesuffix('.parquet')}.jsonl"

    @classmethod
    def of(cls, file: Path) -> Moment | None:
        """What a file's name says, None for a file that is none of ours."""
        said = _NAME.fullmatch(file.name)
        return None if said is None else cls(said["phase"], int(said["step"]), said["split"], said["mode"])  # type: ignore[arg-type]


def drop_drafts(folder: Path) -> None:
    """Remove what a store that was killed left unfinished in its folder."""
    for draft in folder.glob(".*.parquet.tmp"):
        draft.unlink()


def moments(folder: Path) -> Iterator[tuple[Path, Moment]]:
    """The files of the store in a run folder with what they hold, by name. Raises ValueError on one that is not the run's own."""
    for file in own_files(folder.parent, "*.parquet", folder.name):
        moment = Moment.of(file)
        if moment is not None:
            yield file, moment
