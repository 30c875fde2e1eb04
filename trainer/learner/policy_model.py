"""A causal language model that scores and trains on packed tokens.

Logits are the largest tensors of language-model training. They are made only where a token is asked for, a few rows at a time, and
each slice runs its own backward pass down to the hidden states before the next is made; then one backward pass goes through the body.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ..batch import TokenBatch
from ..objectives.losses import TokenStatistics, token_statistics
from .attention import AttentionLayout, make_layout, ragged_attention, use_packed_attention
from .config import LearnerConfig
from .packing import PackedBatch, microbatches, no_predictions
from .ranks import Ranks, gathered_weight, shard

Head = Callable[[Tensor], Tensor]
"""The output layer: hidden states `[t, E]` to logits `[t, V]`."""

SliceLoss = Callable[[TokenStatistics, Tensor], Tensor]
"""(statistics of t predictions, int64 `[t]` flat index of each) -> what they add to the loss, a scalar."""

RowStatistics = Callable[[Tensor, Tensor, float, bool], TokenStatistics]
"""(output rows `[t, V]`, targets `[t]`, temperature, whether entropies carry a gradient) -> what is known of each target."""

LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings by which an architecture changes its logits after the output layer."""


@dataclass(slots=True)
class TokenScores:
    """What a pass over a batch of N tokens found, on the CPU: logprobs and entropy float32 `[N]`, 0 where not trained, and how many
    tokens went through the body."""

    logprobs: Tensor
    entropy: Tensor
    packed_tokens: int = 0


class PolicyModel:
    """A Hugging Face causal language model with packed passes. Dropout is off: ratios compare the distribution that was sampled.

    statistics: what is made of a row of its output layer: log-probability and entropy, unless it is another kind of model.
    With several ranks each holds a slice of the weights; they must call the same methods in the same order, each with its own sequences.
    """

    def __init__(
        self, model: PreTrainedModel, config: LearnerConfig, ranks: Ranks | None = None, statistics: RowStatistics = token_statistics
    ) -> None:
        changed = [name for name in LOGIT_CHANGES if getattr(model.config, name, None) not in {None, 1.0}]
        if changed:
            raise ValueError(f"{type(model).__name__} sets {changed[0]}, which the learner does not compute; train a model without it")
        use_packed_attention(model)
        self.ranks, self._of_rows = ranks or Ranks(), statistics
        self.device = torch.device(config.device)
        if config.lora is not None:
            from .lora import add_adapters  # peft takes seconds to import

            add_adapters(model, config.lora)
        if self.ranks.size > 1:
            shard(model, self.ranks, self.device)
        self.model = model.to(config.device).eval()
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self.ragged = ragged_attention(self.device, self.dtype, _head_dim(model.config))
        self.microbatch_tokens, self.logit_rows = config.microbatch_tokens, config.logit_rows
        if config.activation_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            for module in model.modules():
                if isinstance(module, GradientCheckpointingLayer):
                    module.training = True  # what transformers asks for; its children stay in eval mode

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, tied ones once: all of them, or those of the adapters."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def trained_copy(self) -> dict[str, Tensor]:
        """What is trained as it is now: all that tells this policy from a later one."""
        return {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    @contextmanager
    def holding(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the context this is the policy that `trained_copy` gave `tensors` of, which hold the other's values meanwhile."""
        self._exchange(tensors)
        try:
            yield
        finally:
            self._exchange(tensors)

    @torch.no_grad()
    def _exchange(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.trained.items():
            own = parameter.detach().clone()
            parameter.copy_(tensors[name])
            tensors[name].copy_(own)

    def score(self, batch: TokenBatch, temperature: float) -> TokenScores:
        """Log-probabilities and entropies of the batch's trainable tokens, without gradients."""
        scores = _no_scores(batch)
        with torch.no_grad(), self._head() as head:
            for packed, hidden in self._bodies(batch, scores):
                for rows, index, targets in self._slices(batch, packed, hidden):
                    self._record(scores, index, self._statistics(head, rows, targets, temperature, entropy_grad=False))
        return scores

    def accumulate(self, batch: TokenBatch, loss: SliceLoss, temperature: float = 1.0, entropy_grad: bool = False) -> TokenScores:
        """Add the gradient of the sum of `loss` over all slices of trainable tokens to the parameters' `grad`."""
        scores = _no_scores(batch)
        with self._head() as head:
            for packed, hidden in self._bodies(batch, scores):
                grads = [hidden.new_zeros(0, hidden.shape[1])]
                for rows, index, targets in self._slices(batch, packed, hidden.detach()):
                    leaf = rows.requires_grad_()
                    statistics = self._statistics(head, leaf, targets, temperature, entropy_grad)
                    loss(statistics, index).backward()
                    assert leaf.grad is not None
                    grads.append(leaf.grad)
                    self._record(scores, index, statistics)
                at = torch.from_numpy(packed.hidden_index).to(self.device)
                hidden.backward(torch.zeros_like(hidden).index_add_(0, at, torch.cat(grads)))
        return scores

    def _bodies(self, batch: TokenBatch, scores: TokenScores) -> Iterator[tuple[PackedBatch, Tensor]]:
        """Hidden states `[N, E]` of each microbatch, as many on every rank: those that run out compute one that asks for nothing."""
        body = self.model.base_model
        own = list(microbatches(batch.sequences, batch.masks, self.microbatch_tokens))
        for packed in [*own, *[no_predictions()] * (self.ranks.most(len(own)) - len(own))]:
            layout: AttentionLayout = make_layout(packed.segments, self.device, self.dtype, self.ragged)
            ids, positions = (torch.from_numpy(array)[None].to(self.device) for array in (packed.token_ids, packed.position_ids))
            with self._autocast():
                out = body(input_ids=ids, position_ids=positions, use_cache=False, packed_layout=layout)
            scores.packed_tokens += len(packed.token_ids) if len(packed.targets) else 0
            yield packed, out.last_hidden_state[0]

    def _slices(self, batch: TokenBatch, packed: PackedBatch, hidden: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(hidden states `[t, E]`, flat index `[t]`, targets `[t]`) of at most `logit_rows` predictions at a time."""
        at, targets = (torch.from_numpy(array).to(self.device) for array in (packed.hidden_index, packed.targets))
        pieces = (torch.split(tensor, self.logit_rows) for tensor in (at, _flat_index(batch, packed), targets))
        for at_piece, index, target in zip(*pieces, strict=True):
            yield hidden.index_select(0, at_piece), index, target

    def _head(self) -> AbstractContextManager[Head]:
        return gathered_weight(self.model.get_output_embeddings())

    def _statistics(self, head: Head, rows: Tensor, targets: Tensor, temperature: float, entropy_grad: bool) -> TokenStatistics:
        with self._autocast():
            logits = head(rows)
        return self._of_rows(logits, targets, temperature, entropy_grad)

    def _record(self, scores: TokenScores, index: Tensor, statistics: TokenStatistics) -> None:
        scores.logprobs[index] = statistics.logprobs.detach().cpu()
        scores.entropy[index] = statistics.entropy.detach().cpu()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)


def _no_scores(batch: TokenBatch) -> TokenScores:
    return TokenScores(torch.zeros(len(batch.mask)), torch.zeros(len(batch.mask)))


def _head_dim(config: PretrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _flat_index(batch: TokenBatch, packed: PackedBatch) -> Tensor:
    """Where each prediction of a microbatch lies in the batch, int64 `[T]`."""
    return torch.from_numpy(batch.offsets[packed.sequence] + packed.target_position)


def load_policy_model(path: Path, config: LearnerConfig, ranks: Ranks | None = None) -> PolicyModel:
    """Load a Hugging Face model folder in float32. Every rank loads the whole of it, and then keeps its slice.

    Raises ValueError when the folder holds no model, or one whose weights are incomplete or left over.
    """
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} is not a model folder (config.json is missing); `burnish models list` shows those there are")
    model, info = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True, local_files_only=True, trust_remote_code=False
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            names = ", ".join(sorted(map(str, info[kind]))[:3])
            raise ValueError(f"the weights in {path} do not fit its config.json: {kind.replace('_', ' ')} {names}")
    return PolicyModel(model, config, ranks)
