"""The RLlib config: what it is told is what it does. No Ray session is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.weights import PARITY_BOUNDS
from burnish.rollout.worker import WorkerSetup
from burnish.trainer.learner.config import LearnerConfig, OptimizerConfig
from burnish.trainer.learner.group import LearnerLimits
from burnish.trainer.phases.common import phase_optimizer
from burnish.trainer.phases.rft import RFTPhaseConfig

pytestmark = pytest.mark.integration

WORKER = WorkerSetup(Path("nowhere"), "burnish/Arithmetic-v0", rollout=RolloutConfig(temperature=0.7))


def test_what_a_second_call_leaves_out_keeps_the_value_it_had() -> None:
    from burnish.trainer.rllib import RFTConfig

    phase = RFTPhaseConfig(steps=7, lr=3e-4)
    config = RFTConfig().rft(worker=WORKER, phase=phase, success="verdict", learner_limits=LearnerLimits(5.0)).rft(train_seeds=(0, 9))
    assert (config.worker_setup, config.rft_phase, config.success_part, config.learner_limits.call_s) == (WORKER, phase, "verdict", 5.0)
    assert config.train_seeds == (0, 9)
    assert config.rft(tasks=None).task_files is None


def test_rate_and_temperature_are_those_of_phase_and_rollout() -> None:
    from burnish.trainer.rllib import RFTConfig

    phase = RFTPhaseConfig(steps=7, lr=3e-4, warmup_steps=2, schedule="cosine")
    config = RFTConfig().rft(worker=WORKER, phase=phase)
    assert config.loop_settings().limits.temperature == 0.7
    optimizer = phase_optimizer(OptimizerConfig(weight_decay=0.1), phase)
    assert (optimizer.lr, optimizer.warmup_steps, optimizer.schedule, optimizer.total_steps) == (3e-4, 2, "cosine", 7)
    assert optimizer.weight_decay == 0.1


def test_a_rate_that_the_phase_would_override_is_refused(tiny_model: Path) -> None:
    from burnish.trainer.rllib import RFTConfig

    worker = WorkerSetup(tiny_model, "burnish/Arithmetic-v0")
    config = RFTConfig().rft(worker=worker, learner=LearnerConfig(optimizer=OptimizerConfig(lr=1e-2)))
    with pytest.raises(ValueError, match=r"learner\.optimizer\.lr has no effect: it is the phase's; set RFTPhaseConfig\(lr=…\)"):
        config.validate()


def test_the_bound_of_the_proof_is_that_of_the_coarser_side() -> None:
    from burnish.trainer.rllib import RFTConfig

    fine = RFTConfig().rft(worker=WORKER)
    rough = RFTConfig().rft(worker=WorkerSetup(Path("x"), "a/B-v0", engine=EngineConfig(dtype="bfloat16")))
    assert fine.parity == PARITY_BOUNDS["float32"] and rough.parity == PARITY_BOUNDS["bfloat16"]


@pytest.mark.parametrize(
    ("change", "name", "instead"),
    [
        (lambda config: config.training(lr=1.0), "lr", "RFTPhaseConfig(lr=…)"),
        (lambda config: config.training(grad_clip=9.0), "grad_clip", "OptimizerConfig(grad_clip=…)"),
        (lambda config: config.training(train_batch_size=77), "train_batch_size", "groups_per_step"),
        (lambda config: config.training(gamma=0.3), "gamma", "what is trained"),
        (lambda config: config.environment("CartPole-v1"), "env", "WorkerSetup(model, environment)"),
        (lambda config: config.debugging(seed=7), "seed", "WorkerSetup(model, environment, seed=…)"),
        (lambda config: config.env_runners(num_envs_per_env_runner=8), "num_envs_per_env_runner", "what is trained"),
        (lambda config: config.env_runners(rollout_fragment_length=10), "rollout_fragment_length", "what is trained"),
        (lambda config: config.evaluation(evaluation_interval=1), "evaluation_interval", "what is trained"),
    ],
)
def test_what_rllib_offers_and_nothing_here_reads_is_refused(
    tiny_model: Path, change: Callable[[Any], Any], name: str, instead: str
) -> None:
    from burnish.trainer.rllib import RFTConfig

    config = RFTConfig().rft(worker=WorkerSetup(tiny_model, "burnish/Arithmetic-v0"))
    config.validate()
    config.validate()  # RLlib's own changes to it are no ones of the user
    with pytest.raises(ValueError, match=f"^{name} has no effect on RFTConfig") as raised:
        change(config).validate()
    assert instead in str(raised.value)


def test_a_config_that_went_through_its_state_is_taken_as_building_does_it(tiny_model: Path) -> None:
    from burnish.trainer.rllib import RFTConfig

    config = RFTConfig().rft(worker=WorkerSetup(tiny_model, "burnish/Arithmetic-v0"))
    again = RFTConfig.from_state(config.get_state())
    again.validate()
    with pytest.raises(ValueError, match=r"^grad_clip has no effect on RFTConfig"):
        again.training(grad_clip=1.0).validate()


def test_what_rllib_does_here_is_taken(tiny_model: Path) -> None:
    from burnish.trainer.rllib import RFTConfig

    config = RFTConfig().rft(worker=WorkerSetup(tiny_model, "burnish/Arithmetic-v0"))
    config.env_runners(num_env_runners=2, num_gpus_per_env_runner=0.5).learners(num_learners=2, num_gpus_per_learner=1)
    config.fault_tolerance(max_num_env_runner_restarts=7).resources(placement_strategy="SPREAD").validate()
    assert (config.num_env_runners, config.num_learners, config.max_num_env_runner_restarts) == (2, 2, 7)
