"""The learner: one policy, one optimizer, and four primitives. Plain torch, in one process or in several that share the policy.

    measured = learner.forward_backward(batch, objective)   # gradients are added up, over as many batches as one likes
    learner.step()                                          # check that everything is finite, clip, step
    learner.score(batch)                                    # log-probabilities without a gradient
    learner.snapshot()                                      # the weights, for engines

A batch is packed into microbatches, and its loss averaged as the objective says over the whole of it. What a pass reports is measured
under the weights before the step.

Over several ranks (`ranks.py`) every rank has a `Learner`, all are called alike, and each is given its own share of a batch that has its
`scale`. What a pass returns is of the rank's share (`shares.merged` puts it together); `step` tells every rank the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...envs.types import Float32, Trajectory
from ...rollout.engine.config import Dtype
from ...rollout.engine.layout import checksum
from ...rollout.transport.adapters import Frozen
from ...rollout.transport.buckets import BUCKET_BYTES, Bucket
from ...rollout.weights import WeightSnapshot, snapshot
from ..batch import TokenBatch, plain_batch
from ..models.manifest import weights_sha256
from ..objectives.losses import LossInputs, TokenStatistics
from ..objectives.measures import Measured
from ..objectives.objective import Objective, whole_loss
from ..objectives.registry import Loss
from .buckets import Memory, in_buckets, tied_names
from .config import CriticConfig, LearnerConfig, LoRAConfig, OptimizerConfig
from .critic import Critic
from .optimizer import learning_rate, load_optimizer_tensors, make_optimizer, optimizer_tensors
from .policy_model import PolicyModel, TokenScores, load_policy_model
from .ranks import Ranks, clip_gradients, gathered, whole
from .shares import check_trainable
from .state import load_tensors, model_tensors, read_state, read_tensors, rng_state, set_rng_state, write_state

WEIGHTS, ADAPTER = "weights", "adapter_model"
"""Files of a saved state: all weights, or the adapters only."""


class Learner:
    """Owns the policy's weights. Not thread-safe; sets this process's torch threads and random seed, and takes subnormal floats as zero.

    `version` counts updates of any kind since the weights were loaded. A phase (`begin_phase`) has an optimizer and a learning rate
    schedule of its own, in which `phase_step` is the place of the next update. ranks: this process among those that hold the policy;
    alone, unless given.
    """

    def __init__(self, model_path: Path, config: LearnerConfig, seed: int, ranks: Ranks | None = None) -> None:
        torch.set_num_threads(config.threads)
        torch.set_flush_denormal(True)
        torch.manual_seed(seed)
        self.config, self.base, self.ranks = config, model_path, ranks or Ranks()
        self.policy: PolicyModel = load_policy_model(model_path, config, self.ranks)
        self.version, self._memory = 0, Memory()
        self.begin_phase(config.optimizer)

    def rebase(self, model_path: Path, lora: LoRAConfig | None) -> None:
        """Begin anew from another model of the same shape, with these adapters or with none; the version and random numbers go on.
        `begin_phase` or `restore` follows. A learner that began so already is left as it is."""
        if (model_path, lora) == (self.base, self.config.lora):
            return
        del self.policy, self.optimizer, self.critic, self.reference  # their memory is what the other model takes
        self.config, self.base = self.config.model_copy(update={"lora": lora}), model_path
        self.policy = load_policy_model(model_path, self.config, self.ranks)
        self.begin_phase(self.optimizer_config)

    def begin_phase(self, optimizer: OptimizerConfig, critic: CriticConfig | None = None) -> None:
        """Start a phase: fresh optimizer state, learning-rate schedule from its beginning, no reference policy yet, and a new critic where
        one is asked for."""
        self.optimizer_config = optimizer
        self.critic: Critic | None = None
        if critic is not None:
            self.critic = Critic(critic, optimizer, self._whole_tensors(), self.policy.model.config, self.config, self.ranks)
        self.optimizer = make_optimizer(self.policy.model, optimizer)
        self.phase_step = 0
        self.reference: dict[str, Tensor] | None = None
        self.discard()

    def forward_backward(self, batch: TokenBatch, objective: Objective) -> Measured:
        """Add the gradient of the objective over the batch to what is there already, until `step` or `discard`.

        With `kl_coef` above 0, or a loss that needs it, the reference is the policy as it was when the phase first asked for one. Raises
        ValueError when there is nothing to train on, or the loss does not give what it must; then nothing of this or earlier passes is
        kept.
        """
        started = time.perf_counter()
        self._check(batch)
        assert batch.scale is not None or self.ranks.size == 1, "the share of a rank needs the scale of the whole batch"
        batch, loss = objective.with_scale(batch), objective.resolved()
        reference = None
        if objective.kl_coef > 0 or loss.reference:
            reference = self._scores(batch, objective.temperature, reference=True).logprobs
        try:
            run = _fused if loss.level == "token" else _whole
            scores, terms, tokens = run(self.policy, batch, objective, loss, reference)
            if self.critic is not None and batch.returns is not None:
                tokens["value_loss"] = self.critic.backward(batch)
        except BaseException:
            self.discard()  # a pass that raised half-way must leave nothing in a later one
            raise
        self._losses.append(terms["loss"])
        seconds = time.perf_counter() - started
        return Measured(scores.logprobs.numpy(), scores.entropy.numpy(), tokens, terms, scores.packed_tokens, seconds)

    def score(self, batch: TokenBatch, temperature: float = 1.0, reference: bool = False) -> Measured:
        """Log-probabilities and entropies of the batch's trained tokens under the current weights, without an update.

        reference: under the phase's reference instead, which is the policy as it is now when there was none. A critic's estimates are in
        `tokens` as "value".
        """
        started = time.perf_counter()
        self._check(batch)
        scores = self._scores(batch, temperature, reference)
        logprobs = scores.logprobs.numpy()
        terms = {"loss": -float(logprobs[batch.mask].sum()) / max(batch.tokens, 1)}
        tokens = {} if self.critic is None or reference else {"value": self.critic.values(batch)}
        return Measured(logprobs, scores.entropy.numpy(), tokens, terms, scores.packed_tokens, time.perf_counter() - started)

    def step(self, scale: float = 1.0, phase_step: int | None = None) -> dict[str, float]:
        """Apply the gradients of the passes since the last step. Returns grad_norm (before clipping), lr, and seconds; with a critic
        critic_grad_norm too.

        scale: of this step's learning rate. AdamW divides the size of gradients out, so a smaller step is one at a smaller rate.
        phase_step: the place of this update in the phase's schedule, from 0; left out, the one after the last. A loop gives it, so that the
        rate falls with its steps, whether all of them made their updates or not. While a critic learns alone, the policy's rate is 0.
        Raises FloatingPointError, before anything is applied, when a loss or the gradient is not finite.
        """
        assert self._losses, "there is nothing to step on: call forward_backward first"
        started = time.perf_counter()
        norm = clip_gradients(self.policy.trained.values(), self.optimizer_config.grad_clip)
        found = {"policy": (self.ranks.sum(sum(self._losses)), norm)}
        if self.critic is not None:
            found["critic"] = self.critic.gradient()
        for whose, (loss, size) in found.items():
            if not (math.isfinite(loss) and math.isfinite(size)):
                self.discard()
                raise FloatingPointError(
                    f"update {self.version + 1} was not applied: loss {loss}, gradient norm {size} of the {whose}; "
                    "lower the learning rate, or look at the log-probabilities of this batch"
                )
        at = self.phase_step if phase_step is None else phase_step
        alone = 0 if self.critic is None else self.critic.config.warmup_updates
        lr = scale * learning_rate(self.optimizer_config, at, first=alone)
        metrics = {"grad_norm": norm, "lr": lr}
        if self.critic is not None:
            metrics["critic_grad_norm"] = found["critic"][1]
            self.critic.step(scale * learning_rate(self.optimizer_config, at) / self.optimizer_config.lr)
        if at >= alone:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.discard()
        self.version += 1
        self.phase_step = at + 1
        return {**metrics, "seconds": time.perf_counter() - started}

    def discard(self) -> None:
        """Forget the gradients of the passes since the last step."""
        self.optimizer.zero_grad(set_to_none=True)
        self._losses: list[float] = []
        if self.critic is not None:
            self.critic.discard()

    def _scores(self, batch: TokenBatch, temperature: float, reference: bool) -> TokenScores:
        if not reference:
            return self.policy.score(batch, temperature)
        self.reference = self.reference or self.policy.trained_copy()
        with self.policy.holding(self.reference):
            return self.policy.score(batch, temperature)

    def logprobs(self, trajectories: Sequence[Trajectory], temperature: float = 1.0) -> list[Float32]:
        """The current policy's log-probability of every trainable token, float32 `[N]` per trajectory, 0 elsewhere."""
        batch = plain_batch([(t.token_ids, t.trainable) for t in trajectories])
        return np.split(self.score(batch, temperature).logprobs, batch.offsets[1:-1])

    def weights(self) -> dict[str, Float32]:
        """Contiguous float32 copies of all weights under their `state_dict` names, tied ones (`lm_head.weight`) under each name; adapters
        are merged into their layers. Of several ranks, all must call it, and the first gets them, the others an empty dict."""
        found = {}
        for name, tensor in self._whole_tensors():
            if self.ranks.first:
                found[name] = np.array(tensor.float().cpu().numpy(), order="C", copy=True)
        return found

    def _whole_tensors(self) -> Iterator[tuple[str, Tensor]]:
        state = self.policy.model.state_dict()
        if self.config.lora is None:
            return ((name, whole(tensor.detach())) for name, tensor in state.items())
        from .lora import merged_tensors  # peft takes seconds to import

        return merged_tensors(state, self.config.lora)

    def snapshot(self) -> WeightSnapshot:
        """The weights of this version with their checksums."""
        return snapshot(self.version, self.weights())

    def buckets(self, dtype: Dtype, limit: int = BUCKET_BYTES) -> Iterator[Bucket]:
        """The weights of this version in an engine's dtype, `limit` bytes at a time; names as in `weights`, tied ones of one tensor.

        The data of a bucket is overwritten when the next is asked for. Of several ranks, all must ask for as many, and the first gets
        them, the others empty ones.
        """
        aliases = tied_names(self.policy.model)
        tied = {alias for others in aliases.values() for alias in others}
        named = (((name, *aliases.get(name, ())), tensor) for name, tensor in self._whole_tensors() if name not in tied)
        return in_buckets(named, dtype, limit, self.ranks.first, self._memory)

    def adapters(self, limit: int = BUCKET_BYTES) -> Iterator[Bucket]:
        """As `buckets`, of the adapters alone, in float32, by the names that engines merge them by. The learner must have some."""
        from .lora import adapter_tensors

        named = (((name,), tensor) for name, tensor in adapter_tensors(self.policy.model.state_dict()))
        return in_buckets(named, "float32", limit, self.ranks.first, self._memory)

    def frozen(self) -> Frozen:
        """What the adapters are of, as engines are told. Of several ranks, all must call it."""
        from .lora import base_tensors

        assert self.config.lora is not None, "only adapters have a base"
        aliases = tied_names(self.policy.model)
        tied = {alias for others in aliases.values() for alias in others}
        base = base_tensors(self.policy.model.state_dict())
        manifest = {name: checksum(tensor.float().cpu().numpy()) for name, tensor in base if name not in tied}
        names = tuple((name, *aliases.get(name, ())) for name in manifest)
        return Frozen(self.config.lora.alpha / self.config.lora.rank, names, manifest)

    def save(self, folder: Path) -> None:
        """Write everything that `restore` needs to go on exactly as if there had been no break. The folder must be new or empty."""
        named = {WEIGHTS: model_tensors(self.policy.model), "optimizer": optimizer_tensors(self.optimizer, self.policy.model)}
        if self.reference is not None:
            named["reference"] = self.reference
        if self.critic is not None:
            named |= self.critic.tensors()
        state: dict[str, Any] = {
            "version": self.version,
            "phase_step": self.phase_step,
            "optimizer": self.optimizer_config.model_dump(),
            "reference": self.reference is not None,
            "critic": None if self.critic is None else self.critic.config.model_dump(),
            "rng": rng_state(self.policy.device),
        }
        texts = {}
        if (lora := self.config.lora) is not None:
            from .lora import adapter_config, to_peft

            del named[WEIGHTS]
            named[ADAPTER] = {to_peft(name): parameter for name, parameter in self.policy.trained.items()}
            state |= {"lora": lora.model_dump(mode="json"), "base": weights_sha256(self.base)}
            texts["adapter_config.json"] = adapter_config(lora)
        tensors = {file: gathered(of_file, self.ranks) for file, of_file in named.items()}
        if self.ranks.first:
            write_state(folder, tensors, state, texts)

    def restore(self, folder: Path) -> None:
        """Take over a state that `save` wrote, with any number of ranks, the phase's optimizer settings included. Every rank reads it.

        Raises ValueError when it does not fit.
        """
        state = read_state(folder)
        model, own = self.policy.model, model_tensors(self.policy.model)
        if (lora := self.config.lora) is not None or state.get("lora"):
            _check_same_adapters(folder, state, lora, self.base)
            from .lora import to_peft

            own = {to_peft(name): parameter.detach() for name, parameter in self.policy.trained.items()}
        weights, moments = read_tensors(folder, WEIGHTS if lora is None else ADAPTER), read_tensors(folder, "optimizer")
        load_tensors(own, weights, folder)
        critic = state.get("critic")
        self.begin_phase(OptimizerConfig(**state["optimizer"]), None if critic is None else CriticConfig(**critic))
        if self.critic is not None:
            self.critic.load(folder)
        load_optimizer_tensors(self.optimizer, model, moments)
        if state["reference"]:
            self.reference = self.policy.trained_copy()
            load_tensors(self.reference, read_tensors(folder, "reference"), folder)
        self.version, self.phase_step = state["version"], state["phase_step"]
        set_rng_state(state["rng"], self.policy.device)

    def _check(self, batch: TokenBatch) -> None:
        ids, known = batch.token_ids, int(self.policy.model.config.vocab_size)
        if len(ids) and not 0 <= ids.min() <= ids.max() < known:
            raise ValueError(f"token ids {ids.min()} to {ids.max()}, but the model's are 0 to {known - 1}: they are of another tokenizer")
        if self.ranks.size == 1:  # a share of a batch may be empty
            check_trainable(batch)


def _check_same_adapters(folder: Path, state: Mapping[str, Any], lora: LoRAConfig | None, base: Path) -> None:
    """Raise ValueError unless the adapters in `folder` are of this form, and of this base."""
    mine = None if lora is None else lora.model_dump(mode="json")
    if state.get("lora") != mine:
        raise ValueError(f"{folder} was saved with learner.lora = {state.get('lora')}, and this learner has {mine}; use the same")
    if state["base"] != weights_sha256(base):
        raise ValueError(f"{folder} holds adapters of another model than {base}; give the model that they were trained on")


Pass = tuple[TokenScores, dict[str, float], dict[str, Float32]]
"""What a pass found, its terms as they were minimised, and the loss's own values per token."""


def _fused(policy: PolicyModel, batch: TokenBatch, objective: Objective, loss: Loss, reference: Tensor | None) -> Pass:
    """One pass: each slice of logits runs its own backward pass."""
    found = _Found(batch)

    def of_slice(statistics: TokenStatistics, index: Tensor) -> Tensor:
        return found.add(objective, loss, _inputs(statistics, batch, index, reference), index)

    scores = policy.accumulate(batch, of_slice, objective.temperature, loss.entropy or objective.entropy_coef > 0)
    return scores, found.terms, found.tokens


def _whole(policy: PolicyModel, batch: TokenBatch, objective: Objective, loss: Loss, reference: Tensor | None) -> Pass:
    """Two passes: score everything, let the loss say how it depends on each log-probability, then run that gradient through slices.

    The sum of `gradient x logprob` over slices has the gradient of the loss, for any loss, at the price of one more forward pass.
    """
    entropy_grad = loss.entropy or objective.entropy_coef > 0
    scored, found = policy.score(batch, objective.temperature), _Found(batch)
    at = torch.from_numpy(np.flatnonzero(batch.mask))
    leaves = TokenStatistics(scored.logprobs[at].requires_grad_(), scored.entropy[at].requires_grad_(entropy_grad))
    if len(at):
        found.add(objective, loss, _inputs(leaves, batch, at, reference), at).backward()
    slope, entropy_slope = torch.zeros(len(batch.mask)), torch.zeros(len(batch.mask))
    for into, leaf in ((slope, leaves.logprobs), (entropy_slope, leaves.entropy)):
        if leaf.grad is not None:
            into[at] = leaf.grad

    def of_slice(statistics: TokenStatistics, index: Tensor) -> Tensor:
        value = (slope[index].to(statistics.logprobs.device) * statistics.logprobs).sum()
        return value + (entropy_slope[index].to(value.device) * statistics.entropy).sum() if entropy_grad else value

    scores = policy.accumulate(batch, of_slice, objective.temperature, entropy_grad)
    scores.packed_tokens += scored.packed_tokens
    return scores, found.terms, found.tokens


class _Found:
    """Adds up what a loss gives, slice by slice."""

    def __init__(self, batch: TokenBatch) -> None:
        assert batch.scale is not None
        self._scale = torch.from_numpy(batch.scale)
        self._size = len(batch.mask)
        self.terms: dict[str, float] = {"loss": 0.0}
        self.tokens: dict[str, Float32] = {}

    def add(self, objective: Objective, loss: Loss, inputs: LossInputs, index: Tensor) -> Tensor:
        """The scalar that the slice adds to the loss."""
        outputs = whole_loss(loss, objective, inputs)
        scale = self._scale[index].to(inputs.logprobs.device)
        sums = {name: (values * scale).sum() for name, values in outputs.terms.items()}
        total = sum(sums.values(), start=inputs.logprobs.new_zeros(()))
        if not total.requires_grad:
            raise ValueError(f"loss {loss.id!r} does not depend on logprobs, so it has no gradient; is something detached?")
        for name, value in {"loss": total, **sums}.items():
            self.terms[name] = self.terms.get(name, 0.0) + float(value.detach())
        for name, values in outputs.metrics.items():
            self.tokens.setdefault(name, np.zeros(self._size, np.float32))[index.numpy()] = values.detach().float().cpu().numpy()
        return total


def _inputs(statistics: TokenStatistics, batch: TokenBatch, index: Tensor, reference: Tensor | None) -> LossInputs:
    """What the loss sees of the tokens at `index`, on the device of the statistics."""
    at, device = index.numpy(), statistics.logprobs.device
    sequence = batch.sequence[at]

    def there(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return LossInputs(
        logprobs=statistics.logprobs,
        entropy=statistics.entropy,
        old_logprobs=there(batch.old_logprobs[at]),
        sampler_logprobs=there(batch.sampler_logprobs[at]),
        reference_logprobs=None if reference is None else reference[index].to(device),
        advantages=there(batch.advantages[at]),
        weights=there(batch.weights[at]),
        mask=there(batch.mask[at]),
        turn=there(batch.turn[at]),
        trajectory=there(sequence),
        group=there(batch.group[sequence]),
        policy_version=there(batch.policy_version[at]),
    )
