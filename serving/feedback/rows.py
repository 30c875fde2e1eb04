"""What is stored of an answer and of feedback on it: a line of JSON each, as docs/feedback.md describes them.

Version 1. A reader refuses rows of a version that it does not know.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from ...rpc.payload import utf8
from ..observed import STRICT, Choice, Prompted, Question

LONGEST_TEXT: Final = 32_768
"""Characters of a correction."""
MOST_VERDICTS: Final = 16

Rating = Literal["up", "down"]
VerdictName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class AnswerRow(BaseModel):
    """An answer that waits for feedback. served_by: the version that gave it. asked, choices: None where nothing of it may be kept."""

    model_config = STRICT

    version: Literal[1] = 1
    time: str
    id: str
    key: str
    model: str
    served_by: str = ""
    asked: Question | Prompted | None = None
    choices: list[Choice] | None = None


class Opinion(BaseModel):
    """What is said of an answer: at least one of these.

    rating: thumbs. correction: what should have been answered. verdicts: by name, whether it passed.
    """

    model_config = STRICT

    rating: Rating | None = None
    correction: Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)] | None = None
    verdicts: Annotated[dict[VerdictName, bool], Field(max_length=MOST_VERDICTS)] = {}

    @field_validator("correction", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            if not value.strip():
                raise ValueError("is empty")
            if utf8(value) != value:
                raise ValueError("is no valid Unicode: it holds half a character")
        return value

    @model_validator(mode="after")
    def _says_something(self) -> Opinion:
        if self.rating is None and self.correction is None and not self.verdicts:
            raise ValueError("feedback has at least one of rating, correction and verdicts")
        return self


class GivenFeedback(Opinion):
    """The body of `POST /v1/feedback`. id: that of the answer. choice: which of several (`n`).

    Example: `GivenFeedback(id="chatcmpl-…", rating="down", correction="Part 17 is scrap.")`.
    """

    id: str = Field(min_length=1, max_length=100)
    choice: int = Field(default=0, ge=0, le=127)


class FeedbackRow(Opinion):
    """Feedback as it is stored, with all that is known of its answer. source: who gave it, a client or a judge.

    asked, answered: None where the conversation may not be kept, or was no longer there. Of a completion, `asked` has the one prompt that
    the choice goes on from.
    """

    version: Literal[1] = 1
    time: str
    id: str
    choice: int = 0
    source: Literal["client", "judge"] = "client"
    key: str
    model: str = ""
    served_by: str = ""
    asked: Question | Prompted | None = None
    answered: Choice | None = None
