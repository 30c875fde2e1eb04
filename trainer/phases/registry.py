"""The kinds of phase: one entry for each, its file beside this one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Final

from pydantic import Field

from .common import Kind, PhaseConfig, PhaseKind
from .cpt import CPT, CPTConfig
from .dpo import DPO, DPOConfig
from .midtrain import MIDTRAIN, MidtrainConfig
from .rft import RFT, RFTPhaseConfig
from .sft import SFT, SFTConfig
from .supervised import SupervisedConfig

KINDS: Final[Mapping[Kind, PhaseKind]] = {one.kind: one for one in (CPT, MIDTRAIN, SFT, DPO, RFT)}
"""In the order in which the plain tables of a recipe run."""

AnyPhase = Annotated[CPTConfig | MidtrainConfig | SFTConfig | DPOConfig | RFTPhaseConfig, Field(discriminator="kind")]
"""The table of an entry of `[[phases]]`."""


def tables_of_rows(table: PhaseConfig) -> Iterator[tuple[str, SupervisedConfig]]:
    """What a phase's table says of rows that are learned by cross-entropy, by the name that a recipe has for it."""
    if isinstance(table, SupervisedConfig):
        yield table.name, table
    elif isinstance(table, RFTPhaseConfig) and (replayed := table.replayed) is not None:
        yield f"{table.name}.replay", replayed
