"""What a recipe says about rollouts: limits of an episode, how many run at once, and what a failure leads to."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..envs.failures import FailureKind

FailureAction = Literal["mask", "drop", "stop"]
"""What happens to an episode that failed after all retries: "mask" keeps it out of the loss and trains on the rest of its group,
"drop" drops the whole group, "stop" ends the run."""


class RolloutConfig(BaseModel):
    """The `[rollout]` table.

    max_turns: assistant messages per episode; a recipe with `multi_turn_rollouts = true` defaults to 8.
    max_tokens_per_turn: tokens of one assistant message. temperature: of sampling in training and in sampled evaluation.
    describe_tools: put the tools' JSON schemas into the prompt; false when the environment's own messages explain them.
    template_args: further variables of the model's chat template (`{ enable_thinking = false }`), in training and in serving alike.
    concurrency: episodes in flight per env runner. episode_timeout_s: seconds that the policy may take in one episode, in all its turns
    together; the episode is then cut short and rewarded as it is (truncation "time"), once the engine is seen to sample on: one that
    hangs is a failure (`engine.request_timeout_s`). Seconds in which it gets new weights do not count. The environment's calls together,
    and the episode's judgement, may each take as long again, and are failures beyond it. step_timeout_s: seconds of one `reset` or `step`,
    and of `close`, which gets at least one and whose failure is logged.

    What follows a failure of the infrastructure, never of the policy, is said by the keys from retries on. retries: how often an episode,
    or the scoring of one, is tried again; not where the engine hangs, which is replaced instead. failure_action: what happens then:
    "mask" keeps the episode out of the loss and trains on the rest of its group, "drop" drops the whole group, "stop" ends the run.
    on_failure: the same by failure kind (`{ verifier_unavailable = "stop" }`). error_budget: share of the episodes of the last
    four steps, or of as many as hold 64 episodes, that may fail before the run stops.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_turns: int = Field(default=1, ge=1)
    max_tokens_per_turn: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    describe_tools: bool = True
    template_args: dict[str, Any] = {}
    concurrency: int = Field(default=64, ge=1)
    episode_timeout_s: float = Field(default=300.0, gt=0)
    step_timeout_s: float = Field(default=30.0, gt=0)
    retries: int = Field(default=2, ge=0)
    failure_action: FailureAction = "mask"
    on_failure: dict[FailureKind, FailureAction] = {}
    error_budget: float = Field(default=0.1, ge=0, le=1)

    @property
    def sampled_tokens(self) -> int:
        """The most tokens that the policy may sample in one episode."""
        return self.max_turns * self.max_tokens_per_turn

    def action_for(self, kind: FailureKind) -> FailureAction:
        """What a failure of `kind` leads to once its retries are spent."""
        return self.on_failure.get(kind, self.failure_action)
