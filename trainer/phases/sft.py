"""Supervised fine-tuning: conversations, of which the assistant's tokens are learned."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .common import PhaseKind
from .examples import lay_out_examples, supervised_plan
from .supervised import SupervisedConfig, supervised_steps


class SFTConfig(SupervisedConfig):
    """The `[sft]` table: supervised fine-tuning on conversations, of which the assistant's tokens are learned."""

    kind: Literal["sft"] = "sft"
    lr: float = Field(default=3e-4, gt=0, le=1)


SFT = PhaseKind("sft", SFTConfig, "sft", supervised_plan, lay_out_examples, supervised_steps)
