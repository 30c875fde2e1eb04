"""Setups that cannot work end in one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from burnish.rewards.config import RewardConfig
from burnish.rollout.worker import RolloutWorker, WorkerSetup

pytestmark = pytest.mark.integration


def test_an_unknown_reward_is_named_before_any_engine_starts(tiny_model: Path) -> None:
    setup = WorkerSetup(tiny_model, "burnish/Arithmetic-v0", rewards=(RewardConfig(use="burnish/inspection-kost-v1"),))
    with pytest.raises(ValueError, match="did you mean 'burnish/inspection-cost-v1'"):
        RolloutWorker(setup, "rollout-1")


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    from burnish.trainer.rllib import RFTConfig

    with pytest.raises(ValueError, match=str(tmp_path)):
        RFTConfig().rft(worker=WorkerSetup(tmp_path, "burnish/Arithmetic-v0")).validate()
