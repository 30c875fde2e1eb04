"""Mid-training: documents and conversations in one stream."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from .common import PhaseKind
from .examples import lay_out_examples, supervised_plan
from .supervised import SupervisedConfig, supervised_steps


class MidtrainConfig(SupervisedConfig):
    """The `[midtrain]` table: documents, whose every token is learned, and conversations, of which the assistant's are, in one
    stream."""

    kind: Literal["midtrain"] = "midtrain"
    lr: float = Field(default=5e-4, gt=0, le=1)

    prose: ClassVar[bool] = True


MIDTRAIN = PhaseKind("midtrain", MidtrainConfig, "mid-training", supervised_plan, lay_out_examples, supervised_steps)
