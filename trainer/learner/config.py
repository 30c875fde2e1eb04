"""What a user may say about learning. Torch is not imported here."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

NOT_TRUSTED = (
    "resources.learners: they are on more than one node, where torch.distributed asks nobody who it is and encrypts nothing; write "
    "resources.trusted_network = true if the nodes alone reach each other there, or let one node hold them all"
)
"""Why learners do not start apart from each other."""
NOT_HERE = (
    "resources.shared_folder: where it is false, learners are on the node that burnish run is started on, which alone has the folder, and "
    "that node does not have what resources.learners and learner_gpus ask for; start the run on one that has, or share the folder"
)
"""Why learners do not start on a node without the files."""
UnitInterval = Annotated[float, Field(ge=0.0, lt=1.0)]


class OptimizerConfig(BaseModel):
    """AdamW (Loshchilov and Hutter, 2019) and its learning rate, for one phase of training.

    lr: the peak. warmup_steps: updates over which the rate rises linearly from lr / warmup_steps. schedule: "constant", or
    "cosine" down to `min_lr_ratio * lr` at `total_steps` updates of the phase. total_steps: of the phase, for "cosine". min_lr_ratio: of
    the last rate to the peak, for "cosine". betas: decay of the two moments. eps: added to the root of the second. weight_decay: of
    matrices, not of norms or biases, decoupled from the gradient. grad_clip: largest global L2 norm of the gradient.

    Example: `OptimizerConfig(lr=1e-4, warmup_steps=10)`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    lr: float = Field(default=1e-5, gt=0)
    betas: tuple[UnitInterval, UnitInterval] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    total_steps: int | None = Field(default=None, gt=0)
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _schedule_is_whole(self) -> OptimizerConfig:
        if self.schedule == "cosine":
            if self.total_steps is None:
                raise ValueError('schedule "cosine" needs total_steps: the number of updates over which the rate falls')
            if self.total_steps <= self.warmup_steps:
                raise ValueError(f"total_steps ({self.total_steps}) must be greater than warmup_steps ({self.warmup_steps})")
        elif self.total_steps is not None or self.min_lr_ratio > 0:
            raise ValueError('total_steps and min_lr_ratio have no effect with schedule "constant"; remove them or choose "cosine"')
        return self


class CriticConfig(BaseModel):
    """The `[rft.critic]` table: a model that learns what episodes earn, for the advantages that need one (`gae`).

    lr: its peak learning rate, which falls as the phase's does; left out, the phase's own. lam: of the returns it learns (1: what was
    earned from a token on; lower mixes in what it expects of the tokens that follow). clip: where a step makes several updates, how far an
    estimate moves within it before its gradient ends; 0 for no end, left out, 0.2. warmup_updates: updates at the beginning of the phase in
    which it learns alone, and the policy stays; a warm-up of the policy's rate follows them.

    Example: `[rft.critic]` with `lr = 1e-5` and `warmup_updates = 20`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    lr: float | None = Field(default=None, gt=0, le=1)
    lam: float = Field(default=1.0, ge=0, le=1)
    clip: float | None = Field(default=None, ge=0)
    warmup_updates: int = Field(default=0, ge=0)


LoRATarget = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA_TARGETS: tuple[LoRATarget, ...] = get_args(LoRATarget)


class LoRAConfig(BaseModel):
    """The `[learner.lora]` table: low-rank adapters (Hu et al. 2021, arXiv 2106.09685) are trained, and the model itself stays as it is.

    A layer W becomes `W + (alpha / rank) B A` with A `[rank, in]` and B `[out, rank]`. There is no dropout: ratios compare the distribution
    that was sampled. Adapters usually want a learning rate about ten times that of full training.

    rank: rows of A, and columns of B. alpha: over rank, what B A is multiplied with. targets: the linear layers of each decoder layer that
    get an adapter; left out, all of them.

    Example: `LoRAConfig(rank=8, alpha=16, targets=("q_proj", "v_proj"))`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    targets: tuple[LoRATarget, ...] = Field(default=LORA_TARGETS, min_length=1)

    @field_validator("targets", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value  # a table of reinforcement is read before it is checked


class LearnerConfig(BaseModel):
    """How updates are computed.

    microbatch_tokens: packed tokens per forward and backward pass; bounds the memory of activations and changes no result (a
    single longer sequence makes a microbatch of its own). logit_rows: rows of vocabulary-sized logits alive at a time. threads: CPU
    threads of this process. device: where it computes; in a recipe it follows from the platform. dtype: what matrix products compute in;
    weights and optimizer state are always float32. activation_checkpointing: recompute layers in the backward pass, for less memory and
    about a third more time. lora: adapters that are trained instead of the whole model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    optimizer: OptimizerConfig = OptimizerConfig()
    microbatch_tokens: int = Field(default=4096, gt=0)
    logit_rows: int = Field(default=512, gt=0)
    threads: int = Field(default=2, gt=0)
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    dtype: Literal["float32", "bfloat16"] = "float32"
    activation_checkpointing: bool = False
    lora: LoRAConfig | None = None
