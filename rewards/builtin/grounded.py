"""`burnish/grounded-v1` and `burnish/citations-v1`: whether an answer follows from its context, and cites what supports it.

[[rewards]]
use = "burnish/grounded-v1"
args = { context = "document" }     # a field of the task's data; or messages = ["tool"], what stands before the answer
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...guardrails.citations import Statement, cited_statements
from ...guardrails.factuality import abstains, grounding
from ...guardrails.policy import ContextRole
from ..plugin import reward
from ..types import RewardInput, Score


class ContextOptions(BaseModel):
    """Options of `burnish/grounded-v1` and `burnish/citations-v1`.

    context: a field of the task's data that holds the context, a text or a list of texts; null where there is none. messages: or roles
    whose messages before the answer are the context. abstained: what it is worth to say that one does not know.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    context: str | None = Field(default=None, min_length=1)
    messages: tuple[ContextRole, ...] | None = Field(default=None, min_length=1)
    abstained: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _says_where(self) -> ContextOptions:
        if (self.context is None) == (self.messages is None):
            raise ValueError('say where the context is, by one of context = "FIELD", of the task\'s data, and messages = ["tool"]')
        return self

    def passages(self, episode: RewardInput) -> list[str]:
        """The texts of the context, in order. Raises ValueError where the data has no such field, or what is no text in it."""
        if self.messages is not None:
            return [message.text for message in episode.messages[:-1] if message.role in self.messages and message.text]
        assert self.context is not None, "one of the two is given"
        if self.context not in episode.data:
            raise ValueError(f"the task's data has no field {self.context!r}; see args.context")
        found: Any = episode.data[self.context]
        texts = [] if found is None else [found] if isinstance(found, str) else found
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{self.context!r} of the task's data must be a text or a list of texts, and is {repr(found)[:100]}")
        return list(texts)


@reward("burnish/grounded-v1")
def grounded(episode: RewardInput, *, options: ContextOptions) -> Score:
    """The share of the answer's claims that its context supports, by words and numbers. An answer that claims nothing is worth 0, or
    `abstained` where it says that it does not know.

    Parts: `claims`, `supported`, how many there are; `abstained`.
    """
    context, answer = "\n".join(options.passages(episode)), episode.answer or ""
    claims = grounding(answer, context).claims
    against = next((answer[claim.start : claim.end].strip() for claim in claims if not claim.supported), "")
    supported = sum(claim.supported for claim in claims)
    said = f"not in the context: {against!r}" if against else ""
    return _score(answer, options, {"claims": len(claims), "supported": supported}, said)


@reward("burnish/citations-v1")
def citations(episode: RewardInput, *, options: ContextOptions) -> Score:
    """The share of the answer's claims that cite, by `[n]` or in quotation marks, what is in the context and supports them. The context's
    texts, or messages, count from 1. An answer that claims nothing is worth 0, or `abstained` where it says that it does not know.

    Parts: `claims`, `supported`, how many there are; `uncited`, claims without a citation; `unknown`, citations of what is not there;
    `misquoted`, quotes that do not stand where they are said to; `abstained`.
    """
    answer = episode.answer or ""
    claims = cited_statements(answer, options.passages(episode))
    parts = {
        "claims": len(claims),
        "supported": sum(claim.holds for claim in claims),
        "uncited": sum(not claim.cited for claim in claims),
        "unknown": sum(len(claim.unknown) for claim in claims),
        "misquoted": sum(len(claim.misquoted) for claim in claims),
    }
    return _score(answer, options, parts, next((_objection(claim) for claim in claims if not claim.holds), ""))


def _score(answer: str, options: ContextOptions, parts: dict[str, int], explanation: str) -> Score:
    abstained = parts["claims"] == 0 and abstains(answer)
    value = parts["supported"] / parts["claims"] if parts["claims"] else options.abstained if abstained else 0.0
    return Score(value, {name: float(count) for name, count in parts.items()} | {"abstained": float(abstained)}, explanation=explanation)


def _objection(claim: Statement) -> str:
    if claim.unknown:
        return f"there is no passage {claim.unknown[0]}: {claim.text!r}"
    if claim.misquoted:
        return f"not what the passage says: {claim.misquoted[0]!r}"
    return f"{'not what is cited' if claim.cited else 'cites nothing'}: {claim.text!r}"
