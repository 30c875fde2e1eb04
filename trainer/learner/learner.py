"""The learner: one policy, one optimizer, updates from episode groups or from supervised examples. Plain torch, one process.

An update packs the batch into microbatches, accumulates gradients of one loss averaged over all trainable tokens of the batch, checks
that everything is finite, clips and steps. What an update reports is measured under the weights before the step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...envs.types import Bool, EpisodeGroup, Float32, Int32, Trajectory
from ...rollout.weights import PARITY_BOUND, SyncProofError
from ..data.supervised import SupervisedExample
from ..objectives.losses import TokenStatistics, cross_entropy
from ..objectives.policy_update import PolicySample, policy_loss, policy_metrics, policy_samples, policy_tokens, prove_parity
from .config import LearnerConfig, OptimizerConfig
from .optimizer import learning_rate, load_optimizer_tensors, make_optimizer, optimizer_tensors
from .policy_model import FlatBatch, PolicyModel, Scores, load_policy_model
from .state import load_model_tensors, model_tensors, read_state, read_tensors, rng_state, set_rng_state, write_state


class Learner:
    """Owns the policy's weights. Not thread-safe; sets this process's torch threads and random seed.

    `version` counts updates of any kind since the weights were loaded. A phase (`begin_phase`) has an optimizer and a learning rate
    schedule of its own.
    """

    def __init__(self, model_path: Path, config: LearnerConfig, seed: int) -> None:
        torch.set_num_threads(config.threads)
        torch.set_flush_denormal(True)
        torch.manual_seed(seed)
        self.config = config
        self.policy: PolicyModel = load_policy_model(model_path, config)
        self.version = 0
        self.begin_phase(config.optimizer)

    def begin_phase(self, optimizer: OptimizerConfig) -> None:
        """Start a phase: fresh optimizer state, learning-rate schedule from its beginning, no reference policy yet."""
        self.optimizer_config = optimizer
        self.optimizer = make_optimizer(self.policy.model, optimizer)
        self.phase_step = 0
        self.reference: PolicyModel | None = None

    def update_policy(
        self, groups: Sequence[EpisodeGroup], engines: Mapping[str, str] | None = None, parity_bound: float = PARITY_BOUND
    ) -> dict[str, float]:
        """One optimizer step on the clipped policy gradient; the engine's log-probabilities are the old policy's.

        `engines` maps episode ids to the engine that sampled them. With it, every engine must prove before the step that it sampled with
        this learner's weights: same version, log-probabilities within `parity_bound`; `parity_max/<engine>` says how close.
        With `kl_coef` above 0 the reference is the policy as it was before the phase's first policy update.

        Returns loss, entropy (nats per token), grad_norm (before clipping), lr, tokens (trainable), packed_tokens (computed), seconds,
        and of the trainable tokens: parity_max and parity_mean, |learner - engine| log-probability; mismatch_kl, k3 of the
        same; clip_fraction; stale_fraction, sampled by another version than `version`; reference_kl where there is one.

        Raises SyncProofError naming the engine whose proof fails, ValueError when there is nothing to train on, FloatingPointError
        (before stepping) when loss or gradient are not finite.
        """
        started = time.perf_counter()
        loss_config = self.config.policy_loss
        samples = policy_samples(groups, loss_config.advantage)
        batch = _flat([(s.trajectory.token_ids, s.trajectory.trainable) for s in samples], "these groups")
        device = self.policy.device
        reference = None
        if loss_config.kl_coef > 0:
            self.reference = self.reference or self.policy.frozen_copy()
            reference = self.reference.score(batch, loss_config.temperature).logprobs
        tokens = policy_tokens(samples, reference)

        def loss(statistics: TokenStatistics, index: Tensor) -> Tensor:
            return policy_loss(statistics, tokens.at(index, device), loss_config)

        self.optimizer.zero_grad(set_to_none=True)  # an update that raised half-way must leave nothing in this one
        scores = self.policy.accumulate(batch, loss, loss_config.temperature, entropy_grad=loss_config.entropy_coef > 0)
        at = batch.mask.nonzero().squeeze(-1)
        metrics = policy_metrics(scores.logprobs[at], tokens.at(at, torch.device("cpu")), loss_config)
        if engines is not None:
            metrics |= self._prove(scores.logprobs, samples, engines, parity_bound)
        versions = np.concatenate([s.trajectory.policy_version[s.trajectory.trainable] for s in samples])
        metrics["stale_fraction"] = float((versions != self.version).mean())
        return metrics | self._step(scores, batch, started)

    def update_supervised(self, batch: Sequence[SupervisedExample]) -> dict[str, float]:
        """One optimizer step on cross-entropy, averaged over the trainable tokens of the batch.

        Returns loss, entropy, grad_norm, lr, tokens, packed_tokens and seconds; raises as `update_policy` does.
        """
        started = time.perf_counter()
        flat = _flat([(example.token_ids, example.trainable) for example in batch], "this batch")
        self.optimizer.zero_grad(set_to_none=True)  # an update that raised half-way must leave nothing in this one
        scores = self.policy.accumulate(flat, lambda statistics, index: cross_entropy(statistics.logprobs))
        return self._step(scores, flat, started)

    def supervised_loss(self, batch: Sequence[SupervisedExample]) -> float:
        """Mean cross-entropy over the batch's trainable tokens, without an update."""
        flat = _flat([(example.token_ids, example.trainable) for example in batch], "this batch")
        return -float(self.policy.score(flat, 1.0).logprobs[flat.mask].mean())

    def logprobs(self, trajectories: Sequence[Trajectory]) -> list[Float32]:
        """The current policy's log-probability of every trainable token, float32 `[N]` per trajectory, 0 elsewhere."""
        flat = _flat([(t.token_ids, t.trainable) for t in trajectories], "these trajectories")
        scored: Float32 = self.policy.score(flat, self.config.policy_loss.temperature).logprobs.numpy()
        return np.split(scored, flat.offsets[1:-1])

    def weights(self) -> dict[str, Float32]:
        """Contiguous float32 copies of all weights under their `state_dict` names, tied ones (`lm_head.weight`) under each name."""
        state = self.policy.model.state_dict()
        return {name: np.array(tensor.detach().float().cpu().numpy(), order="C", copy=True) for name, tensor in state.items()}

    def save(self, folder: Path) -> None:
        """Write everything that `restore` needs to go on exactly as if there had been no break. The folder must be new or empty."""
        model = self.policy.model
        tensors = {"weights": model_tensors(model), "optimizer": optimizer_tensors(self.optimizer, model)}
        if self.reference is not None:
            tensors["reference"] = model_tensors(self.reference.model)
        state: dict[str, Any] = {
            "version": self.version,
            "phase_step": self.phase_step,
            "optimizer": self.optimizer_config.model_dump(),
            "reference": self.reference is not None,
            "rng": rng_state(self.policy.device),
        }
        write_state(folder, tensors, state)

    def restore(self, folder: Path) -> None:
        """Take over a state that `save` wrote, the phase's optimizer settings included. Raises ValueError when it does not fit."""
        state = read_state(folder)
        model = self.policy.model
        weights, moments = read_tensors(folder, "weights"), read_tensors(folder, "optimizer")
        load_model_tensors(model, weights, folder)
        self.begin_phase(OptimizerConfig(**state["optimizer"]))
        load_optimizer_tensors(self.optimizer, model, moments)
        if state["reference"]:
            self.reference = self.policy.frozen_copy()
            load_model_tensors(self.reference.model, read_tensors(folder, "reference"), folder)
        self.version, self.phase_step = state["version"], state["phase_step"]
        set_rng_state(state["rng"], self.policy.device)

    def _prove(self, logprobs: Tensor, samples: Sequence[PolicySample], engines: Mapping[str, str], bound: float) -> dict[str, float]:
        try:
            proofs = prove_parity(logprobs, samples, engines, self.version, bound)
        except SyncProofError:
            self.optimizer.zero_grad(set_to_none=True)  # nothing of this batch may reach a later step
            raise
        return {f"parity_max/{proof.engine}": proof.max_difference for proof in proofs}

    def _step(self, scores: Scores, batch: FlatBatch, started: float) -> dict[str, float]:
        """Check, clip, step; the metrics that every update has."""
        trained = [parameter for parameter in self.policy.model.parameters() if parameter.requires_grad]
        norm = float(torch.nn.utils.clip_grad_norm_(trained, self.optimizer_config.grad_clip))
        if not (math.isfinite(scores.loss) and math.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise FloatingPointError(
                f"update {self.version + 1} was not applied: loss {scores.loss}, gradient norm {norm}; "
                "lower the learning rate, or look at the log-probabilities of this batch"
            )
        lr = learning_rate(self.optimizer_config, self.phase_step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.version += 1
        self.phase_step += 1
        return {
            "loss": scores.loss,
            "entropy": float(scores.entropy[batch.mask].mean()),
            "grad_norm": norm,
            "lr": lr,
            "tokens": float(batch.tokens),
            "packed_tokens": float(scores.packed_tokens),
            "seconds": time.perf_counter() - started,
        }


def _flat(sequences: Sequence[tuple[Int32, Bool]], what: str) -> FlatBatch:
    batch = FlatBatch([token_ids for token_ids, _ in sequences], [trainable for _, trainable in sequences])
    if batch.tokens == 0:
        raise ValueError(f"{what} hold no trainable token; nothing can be learned from them")
    return batch
