"""How much of a run's stored episodes stays: which groups of a step are stored, and which steps' files go again.

Evaluations are always stored and always stay. What is left out is left out of the store alone: training, metrics and the books know of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from ...envs.failures import Failure
from ...envs.types import Episode
from .moments import Moment, moments

MB: Final = 1_000_000


class EpisodesConfig(BaseModel):
    """The `[episodes]` table: how much of the episodes of training stays in `episodes/` of the run's folder. Evaluations always do, and
    training, metrics and the ledger are the same. A run may resume with others.

    keep: of how many training steps, the latest; left out, of all. share: of the groups of each training step that is stored, one at
    least; the same ones when the step is taken again, and always each group with an attempt that failed. max_mb: megabytes that the files
    may take together; above it, those of the oldest training steps go first. The latest step stays.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    keep: int | None = Field(default=None, ge=1)
    share: float = Field(default=1.0, gt=0, le=1)
    max_mb: int | None = Field(default=None, ge=1)


ALL: Final = EpisodesConfig()


@dataclass(frozen=True, slots=True)
class Keeping:
    """What a store keeps. seed: the run's. order: of its phases, as they run.

    Example: `Keeping(EpisodesConfig(keep=10), seed=7, order=("sft", "rft")).shrink(run / "episodes")`.
    """

    config: EpisodesConfig = ALL
    seed: int = 0
    order: Sequence[str] = ()

    def chosen(self, moment: Moment, episodes: Sequence[Episode]) -> tuple[Episode, ...]:
        """The episodes of a moment that are stored: all, or whole groups of a training step. Which ones follows from seed, step and tasks,
        in whatever order they finished."""
        if moment.split != "train" or self.config.share == 1:
            return tuple(episodes)
        ranked = sorted({_group(one) for one in episodes}, key=lambda group: self._drawn(moment, group))
        some = set(ranked[: max(1, round(self.config.share * len(ranked)))])
        some |= {_group(one) for one in episodes if isinstance(one.outcome, Failure)}
        return tuple(one for one in episodes if _group(one) in some)

    def _drawn(self, moment: Moment, group: tuple[str, str]) -> bytes:
        said = "\0".join((str(self.seed), moment.phase, str(moment.step), *group))
        return hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()

    def shrink(self, folder: Path) -> str:
        """Remove the files of training steps that are not to stay, the oldest first. What is wrong where the rest is still too large, ""
        where it is not. Whoever has a file open reads it to its end."""
        keep, max_mb = self.config.keep, self.config.max_mb
        if keep is None and max_mb is None:
            return ""
        files = dict(moments(folder))
        sizes = {file: size for file in files if (size := _size(file)) is not None}
        steps = self._steps((file, files[file]) for file in sizes)
        while len(steps) > 1 and ((keep is not None and len(steps) > keep) or _too_large(sizes, max_mb)):
            for file in steps.pop(0):
                file.unlink(missing_ok=True)
                del sizes[file]
        if not _too_large(sizes, max_mb):
            return ""
        left = f"evaluations{' and one training step' if steps else ''}, which stay"
        return f"{folder} takes {sum(sizes.values()) / MB:.1f} MB, more than [episodes] max_mb = {max_mb}: all that is left is {left}"

    def _steps(self, files: Iterable[tuple[Path, Moment]]) -> list[list[Path]]:
        """The files of each training step, the oldest first."""
        place = {name: number for number, name in enumerate(self.order)}
        by_step: dict[tuple[int, str, int], list[Path]] = {}
        for file, moment in files:
            if moment.split == "train":
                by_step.setdefault((place.get(moment.phase, -1), moment.phase, moment.step), []).append(file)
        return [by_step[step] for step in sorted(by_step)]


def _group(episode: Episode) -> tuple[str, str]:
    return episode.task.environment, episode.task.id


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # somebody else made room
        return None


def _too_large(sizes: dict[Path, int], max_mb: int | None) -> bool:
    return max_mb is not None and sum(sizes.values()) > max_mb * MB
