"""What was measured of a model by a policy, bound to both: its weights by their digest, the policy and the prompts by theirs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...envs.pydantic_words import first_error
from ...rollout.store.records import Comparison
from ..models.manifest import Digest
from .comparison import paired_test
from .guarded import GuardRates, JudgedPrompt, Rate, grouped

RECORD: Final = "guardrail.json"
LARGEST: Final = 64 * 2**20
"""Bytes of a record."""
OF_ANSWERS: Final = ("attack_success", "refusal", "over_refusal")
"""What is measured of a model's answers, rather than of the filter alone."""
Share = Annotated[float, Field(ge=0, le=1)]


class MeasuredRate(BaseModel):
    """A share of n rows, with its exact 95 % interval."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    value: Share
    n: int = Field(ge=1)
    low: Share
    high: Share

    def __str__(self) -> str:
        return str(Rate(round(self.value * self.n), self.n, self.low, self.high))


class MeasuredModel(BaseModel):
    """A model under a policy. failed: prompts that it gave no answer to because something around it failed; they count nowhere.

    measured: by group ("all", a category, "family NAME") the measures of `GuardRates`, without those of no row.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    weights_sha256: Digest
    failed: int = Field(ge=0)
    measured: dict[str, dict[str, MeasuredRate]]

    @staticmethod
    def of(name: str, weights_sha256: str, failed: int, measured: dict[str, GuardRates]) -> MeasuredModel:
        rows = {group: {key: MeasuredRate(**row) for key, row in found.to_row().items()} for group, found in measured.items()}
        return MeasuredModel(name=name, weights_sha256=weights_sha256, failed=failed, measured=rows)


class GuardRecord(BaseModel):
    """A `guardrail.json`. policy: its id. base: the model that the other is compared with; differences: model minus base, by group and
    measure, over prompts that both answered."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    policy: str
    policy_sha256: Digest
    prompts_sha256: Digest
    max_tokens: int = Field(ge=1)
    model: MeasuredModel
    base: MeasuredModel | None = None
    differences: dict[str, dict[str, Comparison]] = {}


def read_record(file: Path) -> GuardRecord:
    """The record in a file, or in the folder that `burnish guard evaluate --out` wrote. Raises ValueError when there is none."""
    file = file / RECORD if file.is_dir() else file
    try:
        with file.open("rb") as stream:
            said = stream.read(LARGEST + 1)
    except OSError as error:
        raise ValueError(
            f"{file}: {error.strerror or error}; `burnish guard evaluate POLICY PROMPTS --model … --out DIR` writes it"
        ) from None
    if len(said) > LARGEST:
        raise ValueError(f"{file} is larger than {LARGEST // 2**20} MB")
    try:
        return GuardRecord.model_validate_json(said)
    except ValidationError as error:
        raise ValueError(f"{file}: is no record of `burnish guard evaluate`: {first_error(error, GuardRecord)}") from None


def differences(before: Sequence[JudgedPrompt], after: Sequence[JudgedPrompt]) -> dict[str, dict[str, Comparison]]:
    """What became of each measure `OF_ANSWERS`, after minus before, by the exact test over rows that both answered, in the same order. A
    measure of fewer than two rows is left out."""
    old, new = ([row.outcomes for row in rows] for rows in (before, after))
    found: dict[str, dict[str, Comparison]] = {}
    for group, places in grouped(after).items():
        for measured in OF_ANSWERS:
            both = [(old[place][measured], new[place][measured]) for place in places if measured in old[place] and measured in new[place]]
            if len(both) > 1:
                was, became = ([float(pair[side]) for pair in both] for side in (0, 1))
                found.setdefault(group, {})[measured] = paired_test(was, became)
    return found
