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

    train, held_out: files of rows (`.jsonl` or another form that `envs.rows` reads), each
    `{"messages": […], "reference_answer": …}`. No row of held_out may be in train.
    The environment gets each as `options["task"]`, after its prompt was put to the policy; `burnish/SingleTurn-v0` adds nothing to it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: str = Field(min_length=1, description="the path of a file of rows")
    held_out: str = Field(min_length=1, description="the path of a file of rows")

    @field_validator("train", "held_out")
    @classmethod
    def _rows(cls, value: str) -> str:
        return readable(value)
