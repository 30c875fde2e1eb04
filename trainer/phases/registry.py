"""The kinds of phase: one entry for each, its file beside this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import Field

from .common import Kind, PhaseKind
from .cpt import CPT, CPTConfig
from .dpo import DPO, DPOConfig
from .midtrain import MIDTRAIN, MidtrainConfig
from .rft import RFT, RFTPhaseConfig
from .sft import SFT, SFTConfig

KINDS: Final[Mapping[Kind, PhaseKind]] = {one.kind: one for one in (CPT, MIDTRAIN, SFT, DPO, RFT)}
"""In the order in which the plain tables of a recipe run."""

AnyPhase = Annotated[CPTConfig | MidtrainConfig | SFTConfig | DPOConfig | RFTPhaseConfig, Field(discriminator="kind")]
"""The table of an entry of `[[phases]]`."""
