"""Grader JSON as OpenAI and Azure have it, as strict models: what is unknown, contradictory or cannot be had here is refused at load.

grader = read_grader({"type": "string_check", "name": "exact", "operation": "eq",
                      "input": "{{sample.output_text}}", "reference": "{{item.answer}}"})
"""

from __future__ import annotations

import json
import keyword
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails

from ...envs.pydantic_words import error_lines, few_lines, message_of
from ...envs.registry import did_you_mean, sought_in
from ...rpc.urls import shown_value
from ..types import in_full
from .bounds import least
from .formula import FUNCTIONS, Formula
from .templates import Template

MAX_BYTES = 1_000_000
MAX_GRADERS = 64
STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

METRICS = ("fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l")
NOT_HERE = {
    "meteor": "it needs the WordNet corpus, which does not come with a package; rouge_l and gleu need none",
    "cosine": "it needs an embedding model; rouge_l and gleu need none",
}


def _template(text: str) -> str:
    Template(text)
    return text


Text = Annotated[str, AfterValidator(_template)]
"""A string whose `{{ … }}` are references that can be looked up."""


class TextContent(BaseModel):
    """A text block of a judge's message. Example: `{"type": "input_text", "text": "Is {{sample.output_text}} polite?"}`."""

    model_config = STRICT

    type: Literal["input_text", "output_text", "text"]
    text: Text


class JudgeMessage(BaseModel):
    """One message to a judge. Example: `{"role": "user", "content": "Rate {{sample.output_text}} from 0 to 1."}`."""

    model_config = STRICT

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | TextContent | tuple[TextContent, ...]
    type: Literal["message"] = "message"

    @property
    def texts(self) -> tuple[str, ...]:
        """The templates of the content, in order."""
        if isinstance(self.content, str):
            return (self.content,)
        blocks = (self.content,) if isinstance(self.content, TextContent) else self.content
        return tuple(block.text for block in blocks)


class SamplingParams(BaseModel):
    """How a judge samples; what is left out, its server decides. Example: `{"temperature": 0, "max_completions_tokens": 64}`."""

    model_config = STRICT

    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None
    max_completions_tokens: int | None = Field(default=None, ge=1)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class _Named(BaseModel):
    model_config = STRICT

    name: str = Field(min_length=1, max_length=200)


class StringCheck(_Named):
    """1 when `input` and `reference` compare as `operation` says, else 0. like, ilike: input contains reference; ilike ignores case."""

    type: Literal["string_check"]
    operation: Literal["eq", "ne", "like", "ilike"]
    input: Text
    reference: Text


class TextSimilarity(_Named):
    """How alike `input` and `reference` are, 0 to 1. pass_threshold adds the part `passed`."""

    type: Literal["text_similarity"]
    evaluation_metric: str
    input: Text
    reference: Text
    pass_threshold: float | None = None

    @model_validator(mode="after")
    def _metric_is_here(self) -> TextSimilarity:
        if self.evaluation_metric in NOT_HERE:
            raise ValueError(f"evaluation_metric {self.evaluation_metric!r} cannot be had: {NOT_HERE[self.evaluation_metric]}")
        if self.evaluation_metric not in METRICS:
            raise ValueError(
                f"evaluation_metric {self.evaluation_metric!r} is unknown{did_you_mean(self.evaluation_metric, list(METRICS))}"
            )
        return self


class ScoreModel(_Named):
    """A judge's number within `range`. pass_threshold adds the part `passed`."""

    type: Literal["score_model"]
    model: str = Field(min_length=1)
    input: tuple[JudgeMessage, ...] = Field(min_length=1)
    range: tuple[float, float] = (0.0, 1.0)
    pass_threshold: float | None = None
    sampling_params: SamplingParams = SamplingParams()

    @model_validator(mode="after")
    def _range_is_one(self) -> ScoreModel:
        low, high = self.range
        if not low < high:
            raise ValueError(f"range [{in_full(low)}, {in_full(high)}] must be [lowest, highest]")
        if self.pass_threshold is not None and not low <= self.pass_threshold <= high:
            raise ValueError(f"pass_threshold {in_full(self.pass_threshold)} is outside the range [{in_full(low)}, {in_full(high)}]")
        return self


class LabelModel(_Named):
    """1 when a judge picks one of `passing_labels` out of `labels`, else 0."""

    type: Literal["label_model"]
    model: str = Field(min_length=1)
    input: tuple[JudgeMessage, ...] = Field(min_length=1)
    labels: tuple[str, ...] = Field(min_length=2)
    passing_labels: tuple[str, ...] = Field(min_length=1)
    sampling_params: SamplingParams = SamplingParams()

    @model_validator(mode="after")
    def _labels_are_distinct(self) -> LabelModel:
        folded = [label.strip().casefold() for label in self.labels]
        if "" in folded or len(set(folded)) < len(folded):
            raise ValueError(f"labels {list(self.labels)} must differ by more than case, and none may be empty")
        for label in self.passing_labels:
            if label not in self.labels:
                raise ValueError(f"passing label {label!r} is none of the labels{did_you_mean(label, list(self.labels))}")
        return self


class Python(_Named):
    """Refused: running it safely needs a sandbox."""

    type: Literal["python"]
    source: str
    image_tag: str | None = None

    @model_validator(mode="after")
    def _not_yet(self) -> Python:
        raise ValueError(
            "a python grader comes with the sandbox, which this version has not; until then write it as a reward plug-in (@reward), "
            "which runs with your own rights"
        )


SingleGrader = Annotated[StringCheck | TextSimilarity | ScoreModel | LabelModel | Python, Field(discriminator="type")]


class Multi(_Named):
    """Several graders, and the formula that makes one number of theirs. An answer that is not the JSON that one of them reads earns the
    least that the formula can be worth."""

    type: Literal["multi"]
    graders: dict[str, SingleGrader] = Field(min_length=1, max_length=MAX_GRADERS)
    calculate_output: str

    @model_validator(mode="after")
    def _formula_fits(self) -> Multi:
        for key in self.graders:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key) or keyword.iskeyword(key) or key in FUNCTIONS:
                raise ValueError(f"grader key {key!r} cannot be used in a formula; use letters, digits and _, and no function's name")
        unbounded = not math.isfinite(self.least)
        if unbounded and any(Template(text).reads_json for grader in self.graders.values() for text in _templates(grader)):
            raise ValueError(
                f"calculate_output {self.calculate_output!r} has no least value, which an answer that is not JSON is worth; bound what may "
                "divide by 0, or be the logarithm of it, with max(…)"
            )
        return self

    @property
    def least(self) -> float:
        """The least that the formula can be worth (see `bounds`); what an answer that is not the JSON its graders read earns."""
        ranges = {key: grader.range if isinstance(grader, ScoreModel) else (0.0, 1.0) for key, grader in self.graders.items()}
        return least(Formula(self.calculate_output, self.graders), ranges)


def refers_to(grader: AnyGrader, place: tuple[str, ...]) -> bool:
    """Whether a grader refers to a place or to something in it. Example: `refers_to(grader, ("item", "policy"))`."""
    single = grader.graders.values() if isinstance(grader, Multi) else (grader,)
    return any(Template(text).refers_to(place) for one in single for text in _templates(one))


def _templates(grader: SingleGrader) -> Iterator[str]:
    if isinstance(grader, ScoreModel | LabelModel):
        yield from (text for message in grader.input for text in message.texts)
    elif not isinstance(grader, Python):
        yield from (grader.input, grader.reference)


Grader = Annotated[StringCheck | TextSimilarity | ScoreModel | LabelModel | Python | Multi, Field(discriminator="type")]
AnyGrader = StringCheck | TextSimilarity | ScoreModel | LabelModel | Multi
_ADAPTER: TypeAdapter[Any] = TypeAdapter(Grader)


def read_grader(data: Mapping[str, Any], source: str = "grader") -> AnyGrader:
    """The grader that this JSON describes. Raises ValueError, a line per problem: `source: field: what is wrong`."""
    try:
        text = json.dumps(data, allow_nan=False)
        grader: AnyGrader = _ADAPTER.validate_json(text)
    except ValidationError as error:
        raise ValueError(few_lines(f"{source}: {line}" for line in error_lines(error, _problem))) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not JSON: {error}") from None
    return grader


def load_grader(file: Path) -> AnyGrader:
    """The grader in a file, bare or under a key `grader`. Raises ValueError naming the file and what is wrong with it."""
    if not os.path.isfile(file):
        raise ValueError(f"{file}: there is no such file{sought_in(file)}")
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file}: {file.stat().st_size} bytes; a grader has at most {MAX_BYTES}")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{file}: must hold a JSON object, not {type(data).__name__}")
    inner = data["grader"] if set(data) == {"grader"} else data
    if not isinstance(inner, dict):
        raise ValueError(f"{file}: grader: must be a JSON object, not {type(inner).__name__}")
    return read_grader(inner, str(file))


def _problem(detail: ErrorDetails) -> str:
    where = ".".join(str(part) for part in detail["loc"] if part not in _TAGS)
    message = message_of(detail)
    if detail["type"] not in ("value_error", "missing", "union_tag_not_found"):
        message += f" (got {shown_value(detail['input'], *detail['loc'])})"
    return f"{where}: {message}" if where else message


_TAGS = ("string_check", "text_similarity", "score_model", "label_model", "python", "multi")
"""Parts of an error's place that name the member of a union, not a field."""
