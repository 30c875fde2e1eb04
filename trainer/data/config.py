"""What a recipe says about where tasks and examples come from."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ...envs.rows import suffix_problem


def readable(path: str, prose: bool = False) -> str:
    """The path of a file of rows, as it is. Raises ValueError when its suffix is of no known form; prose: plain text is one too."""
    unfit = suffix_problem(path, prose)
    if unfit is not None:
        raise ValueError(unfit)
    return path


class TasksConfig(BaseModel):
    """The `[tasks]` table: tasks out of files instead of seeds.

    The environment gets each row as `options["task"]`, after its prompt was put to the policy; `burnish/SingleTurn-v0` adds nothing to it.
    train: a file of rows `{"messages": […], "reference_answer": …}` (docs/formats.md). held_out: another one, of which no row may be in
    train.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: str = Field(min_length=1, description="the path of a file of rows")
    held_out: str = Field(min_length=1, description="the path of a file of rows")

    @field_validator("train", "held_out")
    @classmethod
    def _rows(cls, value: str) -> str:
        return readable(value)
