"""Rollouts beside learning, for real: Ray actors that play while the learner learns, with a scripted engine and with vLLM."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.integration.scripted_runners import ScriptedConfig, WaitingConfig

from burnish.rewards.config import RewardConfig
from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.config import EngineConfig, OnNewWeights
from burnish.rollout.worker import WorkerSetup
from burnish.rpc.local_ray import start_local_ray
from burnish.trainer.objectives.measures import fresh_tokens
from burnish.trainer.phases.rft import RFTPhaseConfig
from burnish.trainer.rllib import RFTConfig

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

PLUGIN = Path(__file__).parent / "digit_reward.py"
P, G = 4, 4


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    import ray

    start_local_ray(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, object_store_memory=200 * 2**20)
    yield
    ray.shutdown()


def setup(model: Path) -> WorkerSetup:
    return WorkerSetup(
        model=model,
        environment="burnish/Arithmetic-v0",
        environment_weight=0.0,
        rewards=(RewardConfig(use="tests/digits-v1"),),
        rollout=RolloutConfig(max_tokens_per_turn=24, concurrency=8),
        engine=EngineConfig(max_context=128, kv_cache_mb=32, max_num_seqs=32),
        plugins=(str(PLUGIN),),
        seed=5,
    )


def built(config: RFTConfig, model: Path, phase: RFTPhaseConfig, runners: int = 1) -> Any:
    config.env_runners(num_env_runners=runners).fault_tolerance(max_num_env_runner_restarts=10)
    return config.rft(worker=setup(model), phase=phase, success="digits").build_algo()


def test_one_step_off_trains_what_was_played_while_the_learner_learned(ray_session: None, tiny_model: Path) -> None:
    phase = RFTPhaseConfig(steps=6, groups_per_step=P, group_size=G, lr=1e-3, rollouts="one_step_off", checkpoint_every=4)
    algo = built(ScriptedConfig(), tiny_model, phase, runners=2)
    try:
        for step in range(1, phase.steps + 1):
            algo.train()
            did = algo.last_step
            sampled_by = {int(v) for group in did.collected.groups for e in group.episodes for v in e.turns[0].policy_version}
            first_after_a_checkpoint = step in (1, 5)
            assert sampled_by == {step - 1 if first_after_a_checkpoint else step - 2}
            assert did.metrics["learner/stale_fraction"] == (0.0 if first_after_a_checkpoint else 1.0)
            under_way = len(algo.loop.progress.open)  # with those that ended untrained, which the next step takes
            assert under_way == 0 if step in (4, 6) else under_way >= P
        assert algo.loop.progress.ledger.trained_count == phase.steps * P * G
    finally:
        algo.stop()


def test_async_takes_weights_in_the_middle_of_answers_and_nothing_gets_too_old(ray_session: None, tiny_model: Path) -> None:
    phase = RFTPhaseConfig(steps=10, groups_per_step=P, group_size=G, lr=1e-3, rollouts="async", max_staleness=2, equal_groups="keep")
    algo = built(WaitingConfig(), tiny_model, phase, runners=2)
    split, oldest = 0, 0
    try:
        for step in range(1, phase.steps + 1):
            algo.train()
            did = algo.last_step
            for group in did.collected.groups:
                versions = [turn.policy_version for episode in group.episodes for turn in episode.turns]
                split += sum(int(one.min()) != int(one.max()) for one in versions)
                oldest = max(oldest, step - 1 - min(int(one.min()) for one in versions))
            assert len(algo.loop.progress.open) == P * min(phase.staleness + 1, phase.steps - step)
        assert split > 0, "no answer saw two policies"
        assert 0 < oldest <= phase.staleness
        books = algo.loop.progress.ledger
        assert (books.trained_count, books.issued, dict(books.dropped)) == (phase.steps * P * G, phase.steps * P * G, {})
        assert algo.loop.account.total["busy/engine_seconds"] > 0
    finally:
        algo.stop()


def test_a_runner_that_dies_while_the_learner_learns_gets_newer_weights_and_its_work_again(ray_session: None, tiny_model: Path) -> None:
    import ray

    phase = RFTPhaseConfig(steps=4, groups_per_step=P, group_size=G, lr=1e-3, rollouts="async", max_staleness=1, equal_groups="keep")
    algo = built(ScriptedConfig(), tiny_model, phase)
    try:
        algo.train()
        (runner,) = algo.fleet.runners.values()
        ray.kill(runner, no_restart=False)
        while algo.loop.progress.step < phase.steps:
            algo.train()
        assert algo.fleet.restarts >= 1 and algo.loop.progress.ledger.trained_count == phase.steps * P * G
    finally:
        algo.stop()


@pytest.mark.slow  # weights come in the middle of an answer only where sampling and learning really share the time: on an idle machine
@pytest.mark.parametrize("on_new_weights", ["recompute", "keep"])
def test_vllm_goes_on_under_new_weights_in_the_middle_of_answers(ray_session: None, tiny_model: Path, on_new_weights: OnNewWeights) -> None:
    """What it says afterwards, the learner says too: at once where the context is computed again, and otherwise from the next turn on."""
    phase = RFTPhaseConfig(steps=8, groups_per_step=P, group_size=G, lr=1e-2, rollouts="async", max_staleness=2, equal_groups="keep")
    worker = setup(tiny_model)
    worker = replace(
        worker,
        rollout=RolloutConfig(max_tokens_per_turn=100, concurrency=16),
        engine=worker.engine.model_copy(update={"on_new_weights": on_new_weights}),
    )
    algo = RFTConfig().rft(worker=worker, phase=phase, success="digits").build_algo()
    split = 0
    try:
        for _ in range(phase.steps):
            algo.train()
            did = algo.last_step
            assert did.batch is not None and did.measured is not None
            version = algo.learner_group.version - 1
            turns = [turn for group in did.collected.groups for episode in group.episodes for turn in episode.turns]
            split += sum(int(one.policy_version.min()) != int(one.policy_version.max()) for one in turns)
            newest = did.batch.mask & (did.batch.policy_version == version)
            if on_new_weights == "keep":
                newest &= fresh_tokens(did.batch, version)
            if newest.any():
                assert np.abs(did.measured.logprobs - did.batch.sampler_logprobs)[newest].max() < 5e-4
            assert did.metrics["learner/staleness_max"] <= 2
        assert split > 0, "no answer saw two policies"
        assert algo.loop.progress.ledger.trained_count == phase.steps * P * G
        assert all(proof.holds for proof in algo.loop.proofs) and len(algo.loop.proofs) == phase.steps
    finally:
        algo.stop()
