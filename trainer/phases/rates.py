"""The learning rate of reinforcement where a recipe names none: it follows from the model's size and from what of it is trained.

    rate = 1e-4 x 135 M / parameters, at most 1.5e-4 and at least 1e-6; ten times that for adapters

What it rests on, with AdamW and some hundred episodes a step (docs/algorithms.md has the table):

- 3.5 M parameters: 1e-4 and 1.5e-4 learn every recipe here (docs/learning.md). Nothing larger was tried, so nothing larger is the default.
- 135 M (SmolLM2): 1e-4 moved a newcomer's task by 28 points in 20 steps of 8 x 8 where 5e-5 moved it by nothing that could be told from
  noise; 5e-5 is enough for 24 steps of 8 x 6 after SFT.
- 1.5 B: 9e-6, between 1e-6 (Dr. GRPO, arXiv 2503.20783) and 2e-5 (Open-R1's demonstration recipe). 7 B: 1.9e-6, against 1e-6 (GRPO, arXiv
  2402.03300, section 4.2) and 1.5e-6 (Open-R1). 32 B: 1e-6, as DAPO (arXiv 2503.14476, section 4.1).
- Adapters take about ten times the rate of full training, whatever their rank, in reinforcement too (Schulman et al. 2025, LoRA Without
  Regret). No run here checked it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..learner.config import LoRAConfig
from ..models.config_file import parameters_of
from ..models.folder import count_parameters, read_json, weight_files

if TYPE_CHECKING:
    from .rft import RFTPhaseConfig

ANCHOR = 1e-4, 135e6
"""A rate that learns, and the parameters of the model that it does so for."""
LOWEST, HIGHEST = 1e-6, 1.5e-4
ADAPTERS = 10.0
"""The rate of adapters over that of full training."""


def default_rate(parameters: int, lora: LoRAConfig | None = None) -> float:
    """See above; to two significant digits. Example: `default_rate(135_000_000)` is 1e-4, with adapters 1e-3."""
    rate, size = ANCHOR
    full = min(max(rate * size / parameters, LOWEST), HIGHEST)
    return float(f"{full * (ADAPTERS if lora is not None else 1.0):.1e}")


def with_rate(table: RFTPhaseConfig, model: Path, lora: LoRAConfig | None) -> RFTPhaseConfig:
    """The table with its rate written out, by the size of the model in a folder; its own rate counts first."""
    if table.lr is not None:
        return table
    return table.model_copy(update={"lr": default_rate(model_parameters(model), lora)})


def model_parameters(folder: Path) -> int:
    """How many parameters a model has, by its weights, or, without these, by its `config.json`."""
    return count_parameters(folder) if weight_files(folder) else parameters_of(read_json(folder / "config.json"))
