"""What a recipe says about the objective of reinforcement. Torch is not imported here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Aggregation = Literal["token", "sequence", "constant"]
"""How the losses of many tokens become one number: see `ObjectiveConfig`."""


class ObjectiveConfig(BaseModel):
    """The `[rft.objective]` table: which episodes were better than others (advantage), and what is minimised for that (loss).

    advantage, loss: a name (`burnish/grpo-v1`, or `grpo` for what burnish brings), or a function of one's own as `module:function` or
    `file.py:function`; advantage_args and loss_args are their options.
    aggregation: the mean over all trained tokens of the batch ("token"), over its sequences of each one's mean ("sequence"), or the sum
    over the number of sequences times `constant_tokens` ("constant"); None is what the loss declares.
    kl_coef: weight of the k3 estimate of KL(policy || reference) that is added to any loss; above 0 the learner keeps a frozen copy of the
    weights as the reference. entropy_coef: weight of the entropy that is taken from it.

    Example: `[rft.objective]` with `advantage = "dr_grpo"` and `loss = "my_team/losses.py:gspo"`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    advantage: str = Field(default="grpo", min_length=1)
    advantage_args: dict[str, Any] = {}
    loss: str = Field(default="ppo_clip", min_length=1)
    loss_args: dict[str, Any] = {}
    aggregation: Aggregation | None = None
    constant_tokens: int | None = Field(default=None, ge=1)
    kl_coef: float = Field(default=0.0, ge=0)
    entropy_coef: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _constant_is_whole(self) -> ObjectiveConfig:
        if (self.aggregation == "constant") != (self.constant_tokens is not None):
            raise ValueError('aggregation = "constant" and constant_tokens need each other: tokens that each sequence counts for')
        return self
