"""Continued pre-training: documents, of which every token is learned."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from .common import PhaseKind
from .examples import lay_out_examples, supervised_plan
from .supervised import SupervisedConfig, supervised_steps


class CPTConfig(SupervisedConfig):
    """The `[cpt]` table: continued pre-training on documents, of which every token is learned."""

    kind: Literal["cpt"] = "cpt"
    lr: float = Field(default=1e-3, gt=0, le=1)

    prose: ClassVar[bool] = True


CPT = PhaseKind("cpt", CPTConfig, "mid-training", supervised_plan, lay_out_examples, supervised_steps)
