"""What a recipe says about where tasks and examples come from, and how they are blended."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ...envs.row_files import is_url, suffix_of
from ...envs.rows import suffix_problem

CATALOG: Final = "burnish/general-v1"
"""What `curated = true` means."""

OWN: Final = "own"
"""What a phase's own rows are called among the sources of a blend."""


def readable(place: str, prose: bool = False) -> str:
    """A file of rows, a folder of them or a URL, as it is. Raises ValueError when its suffix is of no known form.

    prose: plain text is one too.
    """
    if not is_url(place) and (Path(place).is_dir() or not suffix_of(place)):
        return place  # the files of a folder are looked at when it is read; a name without a suffix is one, or is not there
    unfit = suffix_problem(place, prose)
    if unfit is not None:
        raise ValueError(unfit)
    return place


class TasksConfig(BaseModel):
    """The `[tasks]` table: tasks out of files instead of seeds.

    The environment gets each row as `options["task"]`, after its prompt was put to the policy; `burnish/SingleTurn-v0` adds nothing to it.
    train: rows `{"messages": […], "reference_answer": …}` (docs/formats.md), in a file, a folder of files or behind a URL.
    held_out: others, of which no row may be in train.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: str = Field(min_length=1, description="the path of a file of rows")
    held_out: str = Field(min_length=1, description="the path of a file of rows")

    @field_validator("train", "held_out")
    @classmethod
    def _rows(cls, value: str) -> str:
        return readable(value)


class BlendConfig(BaseModel):
    """What share own rows have, and how categories of curated rows share the rest; the long form of `blend_ratio` (docs/blend-data.md).

    own_percent: of all samples, the own rows' share. curated: category = percent of the rest; they sum to 100, and a category that is left
    out has 0. catalog: the id of the catalog that the categories are of, or the folder of one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    own_percent: float = Field(ge=0, le=100)
    curated: dict[str, float] = Field(min_length=1)
    catalog: str = Field(default=CATALOG, min_length=1)

    @field_validator("curated")
    @classmethod
    def _whole(cls, value: dict[str, float]) -> dict[str, float]:
        negative = [name for name, percent in value.items() if percent < 0]
        if negative:
            raise ValueError(f"{negative[0]} is negative; a category has from 0 to 100 percent")
        if not math.isclose(sum(value.values()), 100, rel_tol=0, abs_tol=1e-9):
            raise ValueError(f"the percentages must sum to 100, not {sum(value.values()):g}")
        return value
