"""Two plug-ins as a user writes them, a loss and an advantage, trained over the scripted engine by one line of a recipe each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.one_step import made_the_better_more_likely, make_policy, played

from burnish.recipe.load import load_config
from burnish.recipe.resolve import resolve
from burnish.trainer.batch import TokenBatch
from burnish.trainer.objectives.objective import Objective
from burnish.trainer.phases.rft import RFTPhaseConfig

pytestmark = pytest.mark.unit

GSPO = """
\"\"\"Group sequence policy optimization, from its paper.\"\"\"

import torch

from burnish.trainer.objectives.losses import LossInputs, LossOutputs, per_sequence
from burnish.trainer.objectives.registry import loss


@loss("our-team/gspo-v1", level="sequence", aggregation="sequence")
def gspo(inputs: LossInputs, *, clip_low: float = 3e-4, clip_high: float = 4e-4) -> LossOutputs:
    ratio = per_sequence(inputs.logprobs - inputs.old_logprobs, inputs.trajectory).exp()
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high)
    value = torch.minimum(ratio * inputs.advantages, bounded * inputs.advantages)
    return LossOutputs({"policy": -value}, {"ratio": ratio.detach()})
"""

SHORT_WINS = """
\"\"\"Of two answers that are equally good, the shorter one is better.\"\"\"

import numpy as np

from burnish.trainer.batch import GroupBatch
from burnish.trainer.objectives.registry import advantage


@advantage("our-team/short-wins-v1")
def short_wins(batch: GroupBatch, *, per_token: float = 0.01) -> np.ndarray:
    lengths = batch.sums(batch.tokens.mask)
    worth = batch.rewards - per_token * lengths
    return batch.per_token(worth - batch.group_means(worth))
"""

RECIPE = """
name = "own"
model = "nano"
environment = "burnish/Arithmetic-v0"

[rft]
groups_per_step = 4
group_size = 4
lr = 3e-4
minibatches = 2

[rft.objective]
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("models") / "recorded")


def phase_of(folder: Path, line: str) -> RFTPhaseConfig:
    """The `[rft]` table of a recipe that has this line."""
    (folder / "recipe.toml").write_text(RECIPE + line)
    phase = resolve(load_config(folder / "recipe.toml")).rft
    assert phase is not None
    return phase


@pytest.mark.parametrize("plugin", [GSPO, SHORT_WINS])
def test_a_plugin_is_short(plugin: str) -> None:
    assert len(plugin.strip().splitlines()) <= 40


def test_a_loss_of_ones_own_trains_by_a_line_and_is_what_burnish_brings(policy: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(GSPO)
    loop, step = played(policy, phase_of(tmp_path, f'loss = "{tmp_path}/own.py:gspo"'))
    assert made_the_better_more_likely(loop, step)
    assert step.metrics["learner/ratio"] == pytest.approx(1.0, abs=0.1)
    assert step.batch is not None
    ours, brought = (gradients(loop.learner, step.batch, objective) for objective in (loop.objective, Objective("gspo")))
    for name, slope in ours.items():
        torch.testing.assert_close(slope, brought[name], atol=1e-6, rtol=1e-3, msg=name)
    assert max(float(slope.abs().max()) for slope in ours.values()) > 1e-3


def gradients(learner: Any, batch: TokenBatch, objective: Objective) -> dict[str, torch.Tensor]:
    learner.forward_backward(batch, replace(objective, correction="none"))
    found = {name: parameter.grad.clone() for name, parameter in learner.policy.model.named_parameters()}
    learner.discard()
    return found


def test_an_advantage_of_ones_own_trains_by_a_line(policy: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SHORT_WINS)
    loop, step = played(policy, phase_of(tmp_path, f'advantage = "{tmp_path}/own.py:short_wins"'))
    assert made_the_better_more_likely(loop, step)
    plain, other = played(policy, phase_of(tmp_path, 'advantage = "dr_grpo"'))
    assert step.batch is not None and other.batch is not None
    assert step.batch.tokens == other.batch.tokens and not np.array_equal(step.batch.advantages, other.batch.advantages)
    assert plain.learner.version == loop.learner.version == 2
