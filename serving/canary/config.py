"""What a deployment file says of a canary's judge."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...envs.pydantic_words import first_error
from ...rewards.config import RewardConfig
from ...rpc.address import SERVICE


class JudgeTable(BaseModel):
    """`[models.NAME.versions.VERSION.judge]`: who judges the answers of a canary and of the version that it is compared with.

    use, args, verifier, verifier_id: as a recipe's `[[rewards]]` has them. plugins: Python files that register `use`. timeout_s: how long a
    verdict may take. passes_at: the value from which an answer has passed. share: of answers that are judged. error: the chance that a
    canary is rolled back which is no worse, however long it is judged. outages: judgements in a row that may fail before no more are asked
    for. name: of its verdicts.

    Example: `JudgeTable(use="my-team/right-v1", plugins=("right.py",))`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    use: str | None = None
    verifier: str | None = None
    verifier_id: str | None = None
    args: dict[str, Any] = {}
    plugins: tuple[str, ...] = ()
    timeout_s: float = Field(default=60.0, gt=0, le=3600)
    passes_at: float = 0.5
    share: float = Field(default=1.0, gt=0, le=1)
    error: float = Field(default=0.05, gt=0, le=0.5)
    outages: int = Field(default=20, ge=1)
    name: str = Field(default="judge", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")

    @model_validator(mode="after")
    def _names_one(self) -> JudgeTable:
        if (self.use is None) == (self.verifier is None):
            raise ValueError('needs exactly one of use = "namespace/name-v1" (a reward) and verifier = "host:port" (one that runs)')
        if self.verifier is not None and self.verifier.startswith(SERVICE):
            raise ValueError('verifier: services are of recipes; give the "host:port" of one that runs')
        if self.plugins and self.use is None:
            raise ValueError("plugins has no effect without use: what they bring are rewards")
        try:
            _ = self.reward
        except ValidationError as error:
            raise ValueError(first_error(error)) from None
        return self

    @property
    def reward(self) -> RewardConfig:
        """As a recipe would name it."""
        return RewardConfig(
            use=self.use,
            verifier=self.verifier,
            verifier_id=self.verifier_id,
            args=self.args,
            name=self.name,
            deadline_s=self.timeout_s if self.verifier is not None else None,
        )
