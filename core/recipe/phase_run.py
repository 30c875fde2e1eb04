"""The phases of a recipe in order, as everything after it reads them."""

from __future__ import annotations

from dataclasses import dataclass

from burnish.recipe.config import RunConfig
from burnish.trainer.evaluation.config import RetentionConfig
from burnish.trainer.learner.config import CriticConfig, LoRAConfig, OptimizerConfig
from burnish.trainer.phases.common import Phase, PhaseConfig, PhaseKind, phase_optimizer
from burnish.trainer.phases.registry import KINDS
from burnish.trainer.phases.rft import RFTPhaseConfig


@dataclass(frozen=True, slots=True)
class PhaseRun:
    """One phase: its table, what it shares of the optimizer with the others, the adapters that it trains, None for all weights, and whether
    it begins from the merged weights of the phase before, since one of the two has adapters of its own."""

    table: PhaseConfig
    shared: OptimizerConfig
    lora: LoRAConfig | None = None
    merges: bool = False

    @property
    def optimizer(self) -> OptimizerConfig:
        """With the phase's own rate and schedule. Raises ValueError while the rate follows from a model that is not here."""
        return phase_optimizer(self.shared, self.table)

    @property
    def name(self) -> Phase:
        return self.table.name

    @property
    def kind(self) -> PhaseKind:
        return KINDS[self.table.kind]

    @property
    def critic(self) -> CriticConfig | None:
        """The critic that the learner makes for it, if any."""
        return self.table.critic if isinstance(self.table, RFTPhaseConfig) else None

    @property
    def keeps_reference(self) -> bool:
        """Whether what it trains is kept a second time, as it was when the phase began."""
        return self.table.kind == "dpo" or (isinstance(self.table, RFTPhaseConfig) and self.table.objective.kl_coef > 0)

    def held_to(self, retention: RetentionConfig) -> RetentionConfig:
        """What must be left of the run's skills after it: the limits of its own table, and the run's where it has none."""
        return retention.with_limits(self.table.min_retention, self.table.max_lost)


def phase_runs(config: RunConfig) -> tuple[PhaseRun, ...]:
    """The phases of a config. Adapters go on from one phase to the next where both train those of the learner's table."""
    found = list[PhaseRun]()
    for table in config.tables:
        lora, before = table.adapters(config.learner.lora), found[-1] if found else None
        own = before is not None and (table.lora is not None or before.table.lora is not None)
        merges = before is not None and own and (lora is not None or before.lora is not None)
        found.append(PhaseRun(table, config.learner.optimizer, lora, merges))
    return tuple(found)
