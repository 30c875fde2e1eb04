"""The critic: what an episode can still be expected to earn at each sampled token, for advantages that compare with that.

A model of its own beside the policy, as PPO has it (Schulman et al. 2017, arXiv 1707.06347; for language models Ouyang et al. 2022, arXiv
2203.02155): the policy's body as it was when the phase began, with one number in place of the vocabulary. That number is 0 at first, so
the first advantages are those of no baseline at all. It is trained whole, also where the policy has adapters.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from ...envs.types import Float32
from ..batch import TokenBatch
from ..objectives.losses import TokenStatistics
from .config import CriticConfig, LearnerConfig, OptimizerConfig
from .optimizer import load_optimizer_tensors, make_optimizer, optimizer_tensors
from .policy_model import PolicyModel
from .ranks import Ranks, clip_gradients
from .state import load_tensors, model_tensors, read_tensors

WEIGHTS, OPTIMIZER = "critic", "critic_optimizer"
"""Files of a saved state."""


class Critic:
    """A value model and its optimizer. The primitives are the policy's: `values`, `backward`, `step`, `discard`.

    weights: all of the policy's, by name, whole on every rank. shape: the policy's Hugging Face config.
    """

    def __init__(
        self,
        config: CriticConfig,
        optimizer: OptimizerConfig,
        weights: Iterable[tuple[str, Tensor]],
        shape: PretrainedConfig,
        learner: LearnerConfig,
        ranks: Ranks,
    ) -> None:
        self.config = config
        self.model = PolicyModel(_value_model(weights, shape), learner.model_copy(update={"lora": None}), ranks, value_statistics)
        self._grad_clip = optimizer.grad_clip
        self.optimizer = make_optimizer(self.model.model, optimizer)
        self.peak = config.lr if config.lr is not None else optimizer.lr
        self._ranks = ranks
        self.discard()

    def values(self, batch: TokenBatch) -> Float32:
        """What the rest of the episode is expected to earn just before each trained token is chosen, float32 `[N]`, 0 elsewhere."""
        found: Float32 = self.model.score(batch, 1.0).logprobs.numpy()
        return found

    def backward(self, batch: TokenBatch) -> Float32:
        """Add the gradient of `value_loss` over the batch, which has its scale; the loss of each token, float32 `[N]`."""
        assert batch.values is not None and batch.returns is not None and batch.scale is not None
        rows = [torch.from_numpy(array) for array in (batch.values, batch.returns, batch.scale)]
        losses = np.zeros(len(batch.mask), np.float32)

        def of_slice(statistics: TokenStatistics, index: Tensor) -> Tensor:
            before, returns, scale = (row[index].to(statistics.logprobs.device) for row in rows)
            loss = value_loss(statistics.logprobs, before, returns, self.config.clip or None)
            losses[index.numpy()] = loss.detach().cpu().numpy()
            return (loss * scale).sum()

        self.model.accumulate(batch, of_slice)
        self._loss += float((losses * batch.scale).sum())
        return losses

    def gradient(self) -> tuple[float, float]:
        """The loss since the last step, and the norm of its gradient, which is clipped now: of all ranks, on every rank."""
        return self._ranks.sum(self._loss), clip_gradients(self.model.trained.values(), self._grad_clip)

    def step(self, share: float) -> None:
        """Apply the gradients at this share of the peak rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak * share
        self.optimizer.step()
        self.discard()

    def discard(self) -> None:
        """Forget the gradients since the last step."""
        self.optimizer.zero_grad(set_to_none=True)
        self._loss = 0.0

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What `load` needs, by the name of its file."""
        return {WEIGHTS: model_tensors(self.model.model), OPTIMIZER: optimizer_tensors(self.optimizer, self.model.model)}

    def load(self, folder: Path) -> None:
        """Take over what `tensors` gave. Raises ValueError when it is missing or of another model."""
        load_tensors(model_tensors(self.model.model), read_tensors(folder, WEIGHTS), folder)
        load_optimizer_tensors(self.optimizer, self.model.model, read_tensors(folder, OPTIMIZER))


def value_statistics(rows: Tensor, targets: Tensor, temperature: float = 1.0, entropy_grad: bool = False) -> TokenStatistics:
    """Rows `[T, 1]` of a value model as `[T]` values, where a policy has log-probabilities."""
    values = rows.float().squeeze(-1)
    return TokenStatistics(values, torch.zeros_like(values))


def value_loss(values: Tensor, before: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Half the squared error, per token `[n]`; with a clip the larger of that and of the value's held within `clip` of what it was before.

    The form of OpenAI's baselines (ppo2): an estimate that has moved by `clip` towards its return in one step moves no further.
    """
    error = (values - returns).square()
    if clip is not None:
        held = before + (values - before).clamp(-clip, clip)
        error = torch.maximum(error, (held - returns).square())
    return 0.5 * error


def _value_model(weights: Iterable[tuple[str, Tensor]], shape: PretrainedConfig) -> Any:
    """The policy's body under a linear layer that gives one number, which is 0."""
    config = deepcopy(shape)
    config.tie_word_embeddings = False
    with torch.random.fork_rng():  # its random weights are replaced, and must cost no draw
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    head = nn.Linear(model.get_output_embeddings().in_features, 1, bias=False)
    nn.init.zeros_(head.weight)
    old = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    model.set_output_embeddings(head)
    own = model.state_dict()
    given = {name: tensor for name, tensor in weights if not name.startswith(f"{old}.")}
    load_tensors({name: tensor for name, tensor in own.items() if not name.startswith(f"{old}.")}, given, Path("the policy"))
    return model
