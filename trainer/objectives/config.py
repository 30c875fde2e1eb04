"""What a recipe says about the objective of reinforcement. Torch is not imported here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Aggregation = Literal["token", "sequence", "constant"]
"""How the losses of many tokens become one number: see `ObjectiveConfig`."""
KL = Literal["k1", "k2", "k3"]
"""Which estimate of KL(policy || reference) a token gives: see `losses.KL_ESTIMATES`."""
Correction = Literal["none", "truncate", "mask", "sequence_mask"]
"""What is made of pi_old / pi_sampler, the ratio by which engine and learner differ on a token: see `losses.correction_weights`."""
BANDS: dict[str, tuple[float | None, float]] = {"truncate": (None, 2.0), "mask": (0.5, 5.0), "sequence_mask": (0.99, 1.01)}
"""Where each correction begins to act unless the recipe says otherwise."""

OVERLONG_BUFFER = 5
"""The buffer is this part of the length unless the recipe says otherwise: DAPO's 4,096 of 20,480 tokens."""


class OverlongConfig(BaseModel):
    """The `[rft.objective.overlong]` table: what becomes of episodes that ran long.

    action: "none"; "penalty" takes up to `penalty` from the reward of an episode that sampled more than `tokens - buffer` tokens, in
    proportion to how many, and all of it at `tokens`; "mask" keeps those that a limit cut short out of the step, and out of its baselines.
    tokens: at which all of the penalty is taken; left out, the most that an episode may sample, `rollout.max_turns x
    rollout.max_tokens_per_turn`. buffer: tokens before that over which it grows; left out, a fifth of them. penalty: what is taken at
    most; left out, 1.

    Example: `overlong = { action = "penalty", tokens = 512, buffer = 128 }`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    action: Literal["none", "penalty", "mask"] = "none"
    tokens: int | None = Field(default=None, ge=1)
    buffer: int | None = Field(default=None, ge=1)
    penalty: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _effective(self) -> OverlongConfig:
        given = [name for name in ("tokens", "buffer", "penalty") if getattr(self, name) is not None]
        if given and self.action != "penalty":
            raise ValueError(f'{given[0]} has no effect with action = "{self.action}"; it belongs to action = "penalty"')
        if self.tokens is not None and self.buffer is not None and self.buffer >= self.tokens:
            raise ValueError(f"buffer = {self.buffer} must be less than tokens = {self.tokens}")
        return self

    def within(self, limit: int) -> OverlongConfig:
        """With every number written out. limit: the most tokens that an episode may sample. Raises ValueError when they do not fit it."""
        if self.action != "penalty":
            return self
        tokens = self.tokens or limit
        if tokens > limit:
            raise ValueError(f"rft.objective.overlong.tokens: {tokens} is never reached, the rollout's limits allow {limit}; lower it")
        buffer = self.buffer or max(1, tokens // OVERLONG_BUFFER)
        if buffer >= tokens > 1:
            raise ValueError(f"rft.objective.overlong.buffer: {buffer} must be less than tokens, which are {tokens}; lower it")
        return OverlongConfig(action=self.action, tokens=tokens, buffer=buffer, penalty=self.penalty or 1.0)


class ObjectiveConfig(BaseModel):
    """The `[rft.objective]` table: which episodes were better than others (advantage), and what is minimised for that (loss).

    advantage: a name (`burnish/grpo-v1`, or `grpo` for what burnish brings), or a function of one's own as `module:function` or
    `file.py:function`. loss: likewise. advantage_args: options of the advantage. loss_args: options of the loss.
    aggregation: the mean over all trained tokens of the batch ("token"), over its sequences of each one's mean ("sequence"), or the sum
    over the number of sequences times `constant_tokens` ("constant"); left out, it is what the loss declares. constant_tokens: tokens that
    each sequence counts for, with "constant"; left out, the most that an episode may sample.
    kl_coef: weight of KL(policy || reference); above 0 the learner keeps a frozen copy of the weights as the reference. kl: its estimate
    per token, k3 when left out. kl_in: whether it is added to the "loss", which it is when left out, or taken from the "reward", where
    advantages see it.
    entropy_coef: weight of the entropy that is taken from the loss.
    correction: for engines whose probabilities are not the learner's: every token's loss is weighted with pi_old / pi_sampler, cut at
    correction_high ("truncate"), or set to 0 where it lies outside correction_low and correction_high ("mask"); or sequences are left out
    whose mean ratio lies outside ("sequence_mask"). Left out, it is "truncate" where a step makes several updates, and "none" otherwise.
    correction_low: left out, 0.5 for "mask" and 0.99 for "sequence_mask". correction_high: left out, 2 for "truncate", 5 for "mask" and
    1.01 for "sequence_mask".
    overlong: what becomes of episodes that ran long.

    Example: `[rft.objective]` with `advantage = "dr_grpo"` and `loss = "my_team/losses.py:gspo"`. docs/algorithms.md has every formula.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    advantage: str = Field(default="grpo", min_length=1)
    advantage_args: dict[str, Any] = {}
    loss: str = Field(default="ppo_clip", min_length=1)
    loss_args: dict[str, Any] = {}
    aggregation: Aggregation | None = None
    constant_tokens: int | None = Field(default=None, ge=1)
    kl_coef: float = Field(default=0.0, ge=0)
    kl: KL | None = None
    kl_in: Literal["loss", "reward"] | None = None
    entropy_coef: float = Field(default=0.0, ge=0)
    correction: Correction | None = None
    correction_low: float | None = Field(default=None, gt=0, le=1)
    correction_high: float | None = Field(default=None, ge=1)
    overlong: OverlongConfig = OverlongConfig()

    @model_validator(mode="after")
    def _effective(self) -> ObjectiveConfig:
        """An option that cannot have an effect is refused."""
        if self.constant_tokens is not None and self.aggregation != "constant":
            raise ValueError('constant_tokens has no effect without aggregation = "constant"; remove it or add that')
        idle = [name for name in ("kl", "kl_in") if getattr(self, name) is not None]
        if idle and self.kl_coef == 0:
            raise ValueError(f"{idle[0]} has no effect with kl_coef = 0; raise kl_coef or remove it")
        if self.kl == "k1" and self.kl_in != "reward":
            raise ValueError('kl = "k1" in the loss has a gradient of zero on average; write kl_in = "reward", or kl = "k2" or "k3"')
        low, high = BANDS.get(self.correction or "none", (None, None))
        for name, default in (("correction_low", low), ("correction_high", high)):
            if getattr(self, name) is not None and default is None:
                raise ValueError(f'{name} has no effect with correction = "{self.correction or "none"}"; remove it')
        return self

    @property
    def band(self) -> tuple[float, float]:
        """Between which ratios the correction does nothing; the lower bound of "truncate" is 0."""
        low, high = BANDS.get(self.correction or "none", (None, float("inf")))
        return self.correction_low or low or 0.0, self.correction_high or high

    def within(self, limit: int) -> ObjectiveConfig:
        """With the numbers written out that follow from `limit`, the most tokens that an episode may sample.

        Raises ValueError when `overlong` does not fit it.
        """
        changes: dict[str, Any] = {"overlong": self.overlong.within(limit)}
        if self.aggregation == "constant" and self.constant_tokens is None:
            changes["constant_tokens"] = limit
        return self.model_copy(update=changes)
