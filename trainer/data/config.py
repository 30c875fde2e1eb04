"""What a recipe says about where tasks and examples come from, and how they are blended."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from ...envs.named import function_parts
from ...envs.row_files import is_url, suffix_of
from ...envs.rows import suffix_problem
from .blend import share_of, sum_said

CATALOG: Final = "burnish/general-v2"
"""What `curated = true` means."""

OWN: Final = "own"
"""What a phase's own rows are called among the sources of a blend."""

RowsKind = Literal["cpt", "midtrain", "sft"]
"""What rows are read as, called as the phases that learn from them: documents; documents and conversations; conversations."""

MORE_REJECTS: Final = 1000
"""Unfit rows beyond those that may be left out after which nothing more is read: by then it is known what is wrong."""
MAX_SEED: Final = 2**31 - 1


def _check_range(seeds: tuple[int, int]) -> tuple[int, int]:
    if not 0 <= seeds[0] < seeds[1] <= MAX_SEED:
        raise ValueError(f"[{seeds[0]}, {seeds[1]}] must be a range [first, last + 1] with 0 <= first < last + 1 <= {MAX_SEED}")
    return seeds


SeedRange = Annotated[tuple[int, int], AfterValidator(_check_range)]
"""Task seeds as a half-open range `[first, end)`."""

TRAIN_SEEDS: SeedRange = (0, 1_000_000_000)
HELD_OUT_SEEDS: SeedRange = (1_000_000_000, 2_000_000_000)


def readable(place: str, prose: bool = False) -> str:
    """A file of rows, a folder of them or a URL, as it is. Raises ValueError when its suffix is of no known form.

    prose: plain text is one too.
    """
    if not is_url(place) and (os.path.isdir(place) or not suffix_of(place)):
        return place  # the files of a folder are looked at when it is read; a name without a suffix is one, or is not there
    unfit = suffix_problem(place, prose)
    if unfit is not None:
        raise ValueError(unfit)
    return place


class TasksConfig(BaseModel):
    """The `[tasks]` table: tasks out of files instead of seeds.

    The environment gets each row as `options["task"]`, after its prompt was put to the policy; `burnish/SingleTurn-v0` adds nothing to it.
    train: rows `{"messages": […], "reference_answer": …}` (docs/formats.md), in a file, a folder of files or behind a URL.
    held_out: others, of which no row may be in train. max_rejects: how many rows of both together may be unfit; they are left out and
    written to the run's `data/tasks/rejects.jsonl` with the reason, and one more stops the run before it begins.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: str = Field(min_length=1, description="the path of a file of rows")
    held_out: str = Field(min_length=1, description="the path of a file of rows")
    max_rejects: int = Field(default=0, ge=0)

    @field_validator("train", "held_out")
    @classmethod
    def _rows(cls, value: str) -> str:
        return readable(value)


CatalogName = Annotated[str, Field(min_length=1)]
CatalogNames = Annotated[tuple[CatalogName, ...], Field(min_length=1)]
"""Ids or folders of several catalogs."""


class BlendConfig(BaseModel):
    """What share own rows have, and how categories of curated rows share the rest; the long form of `blend_ratio` (docs/blend-data.md).

    own_percent: of all samples, the own rows' share. curated: category = percent of the rest; they sum to 100, and a category that is left
    out has 0. catalog: the id of the catalog that the categories are of, or the folder of one, or a list of these; of two that have a
    category of one name, it is written "ID:CATEGORY".
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    own_percent: float = Field(ge=0, le=100)
    curated: dict[str, float] = Field(min_length=1)
    catalog: CatalogName | CatalogNames = CATALOG

    @property
    def catalogs(self) -> tuple[str, ...]:
        return (self.catalog,) if isinstance(self.catalog, str) else self.catalog

    @field_validator("curated")
    @classmethod
    def _whole(cls, value: dict[str, float]) -> dict[str, float]:
        negative = [name for name, percent in value.items() if percent < 0]
        if negative:
            raise ValueError(f"{negative[0]} is negative; a category has from 0 to 100 percent")
        total = sum(map(share_of, value.values()), Fraction())
        if total != 100:
            thirds = "; three equal ones are 33.34, 33.33 and 33.33" if abs(total - 100) < 1 else ""
            raise ValueError(f"the percentages must sum to 100, not {sum_said(total, 100)}{thirds}")
        return value


class RowsConfig(BaseModel):
    """Where the examples of supervised training come from, and what they are blended with.

    data: rows in a file, a folder of files or behind a URL: `{"text": …}` for cpt, `{"messages": […]}` for sft, both for midtrain
    (docs/formats.md lists the forms), or, where documents are read, text with one per paragraph. own: the same where it is blended, one
    place or several. generate: instead, `module:function` or `file.py:function` called as `function(seed, count, **args)`, giving texts or
    conversations. args: further arguments of that function. count: how many it makes, seen again once all were; left out, as many as are
    seen. max_rejects: how many rows may be unfit; they are left out and written to the run's `data/PHASE/rejects.jsonl` with the
    reason, and one more stops the run before it trains.
    blend_ratio: the share of samples that are own ones, from 0 to 1; the rest is curated (docs/blend-data.md). curated: with it, true for
    burnish's own catalog, or the id or the folder of another, or a list of these; all of their categories then share the rest equally.
    blend_by: whether the shares of a blend are of "samples" or of "tokens" that are learned; left out, of samples.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: str | None = None
    own: tuple[str, ...] = ()
    generate: str | None = None
    args: dict[str, Any] = Field(default={})
    count: int | None = Field(default=None, ge=1)
    max_rejects: int = Field(default=0, ge=0)
    blend_ratio: float | None = Field(default=None, ge=0, le=1)
    curated: bool | str | tuple[CatalogName, ...] = False
    blend_by: Literal["samples", "tokens"] | None = None
    blend: BlendConfig | None = None

    prose: ClassVar[bool] = False
    """Whether plain text is data too."""

    @field_validator("own", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("data")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        return value if value is None else readable(value, cls.prose)

    @field_validator("generate")
    @classmethod
    def _names_a_function(cls, value: str | None) -> str | None:
        if value is not None and function_parts(value) is None:
            raise ValueError(f"{value!r} must read module:function or file.py:function")
        return value

    @field_validator("own")
    @classmethod
    def _all_readable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(readable(place, cls.prose) for place in value)

    @model_validator(mode="after")
    def _one_source(self) -> RowsConfig:
        blended = self.blend_ratio is not None or self.blend is not None
        if [self.data is not None, bool(self.own), self.generate is not None].count(True) != 1:
            places = 'own = "PATH"' if blended else 'data = "PATH"'
            raise ValueError(f'needs exactly one of {places} and generate = "module:function"')
        if self.generate is None:
            idle = [key for key in ("args", "count") if key in self.model_fields_set]
            if idle:
                files = "own" if self.own else "data"
                raise ValueError(f"{' and '.join(idle)} has no effect on {files} = …; it belongs to generate = …")
        self._check_blend()
        return self

    def _check_blend(self) -> None:
        if self.blend_ratio is not None and self.blend is not None:
            raise ValueError("blend_ratio and blend say the same; remove one of them")
        if (self.blend_ratio is None) != (self.curated is False):
            lacks = "curated = true, or the name of a catalog," if self.curated is False else "blend_ratio = 0.7, or another share,"
            raise ValueError(f"needs {lacks} too: the one says how much of a blend is own rows, the other what the rest is")
        if self.curated in ("", ()):
            raise ValueError("curated must be true, or the id or the folder of a catalog, or a list of these")
        blended = self.blend_ratio is not None or self.blend is not None
        if self.blend_by is not None and not blended:
            raise ValueError("blend_by has no effect without a blend; add blend_ratio and curated, or remove it")
        if self.own and not blended:
            raise ValueError("own has no effect without a blend; write data = …, or add blend_ratio and curated")
        if self.data is not None and blended:
            raise ValueError("data is a phase that is not blended; write own = … beside a blend")

    @property
    def shares_of(self) -> Literal["samples", "tokens"]:
        """What the shares of a blend are of."""
        return self.blend_by or "samples"

    @property
    def own_share(self) -> float:
        """Of the samples, from 0 to 1: 1 without a blend."""
        if self.blend is not None:
            return self.blend.own_percent / 100
        return 1.0 if self.blend_ratio is None else self.blend_ratio

    @property
    def catalogs(self) -> tuple[str, ...]:
        """The catalogs that are blended with, by id or folder; none without a blend."""
        if self.blend is not None:
            return self.blend.catalogs
        if isinstance(self.curated, tuple):
            return self.curated
        return () if self.curated is False else (CATALOG if self.curated is True else str(self.curated),)

    @property
    def places(self) -> tuple[str, ...]:
        """Where the own rows lie; empty when they are generated."""
        return self.own if self.data is None else (self.data,)

    @property
    def own_rows(self) -> Mapping[str, tuple[str, ...]]:
        """`places`, by the key that names them."""
        return {"data" if self.data is not None else "own": self.places}


class PairsConfig(BaseModel):
    """Where pairs of answers come from.

    data: rows `{"prompt": …, "chosen": …, "rejected": …}` in a file, a folder of files or behind a URL (docs/formats.md). from_run: the
    folder of an earlier run instead, whose stored rollouts of training give the pairs: of the attempts at one task, the best beside the
    worst (docs/phases.md). min_gap: by how much the better of them must have earned more; 0 asks for any difference. pairs_per_group: how
    many pairs one task gives at most: best and worst, second best and second worst, and so on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: str | None = Field(default=None, min_length=1, description="the path of a file of preference pairs")
    from_run: str | None = Field(default=None, min_length=1, description="the folder of a run")
    min_gap: float = Field(default=0.0, ge=0)
    pairs_per_group: int = Field(default=1, ge=1)

    @field_validator("data")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        return value if value is None else readable(value)

    @model_validator(mode="after")
    def _one_source(self) -> PairsConfig:
        if (self.data is None) == (self.from_run is None):
            raise ValueError("needs exactly one of data (a file of preference pairs) and from_run (a run whose rollouts give them)")
        for key in ("min_gap", "pairs_per_group"):
            if self.from_run is None and key in self.model_fields_set:
                raise ValueError(f"{key} has no effect without from_run: the pairs of data are what they are; remove it")
        return self

    @property
    def source(self) -> str:
        """Where the pairs come from."""
        source = self.data or self.from_run
        assert source is not None
        return source


class BlendedPairs(PairsConfig):
    """Other pairs, which those of a phase are blended with (docs/blend-data.md).

    percent: their share of all pairs; the phase's own have what is left. name: what metrics and the plan call them.
    """

    percent: float = Field(ge=0, le=100)
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")


@dataclass(frozen=True, slots=True)
class SupervisedRows:
    """What a phase learns by cross-entropy.

    called: the table that asks for it, in messages. kind: what the rows are read as. rows: where they come from. batch: examples of a step.
    samples: that all steps see. held_out: rows that are never trained on.

    Example: `SupervisedRows("sft", "sft", RowsConfig(data="talks.jsonl"), batch=32, samples=6_400)`.
    """

    called: str
    kind: RowsKind
    rows: RowsConfig
    batch: int
    samples: int
    held_out: str | None = None

    @property
    def examples(self) -> int:
        """How many texts or conversations to generate."""
        return self.rows.count or self.samples


@dataclass(frozen=True, slots=True)
class Making:
    """What the examples of a phase are made with. model: whose tokenizer and template. seed: of what is generated; order: of shuffling."""

    model: Path
    max_tokens: int
    template_args: Mapping[str, Any]
    seed: int = 0
    order: int = 0
