"""`burnish/openai-grader-v1`: grader JSON as OpenAI and Azure have it, as a reward.

[[rewards]]
use = "burnish/openai-grader-v1"
args = { file = "grader.json", base_url = "http://127.0.0.1:8000/v1" }
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from ...envs.failures import EpisodeFailure, Failure, FailureKind
from ...rpc.payload import plain_json
from ..calling.per_loop import PerLoop
from ..plugin import reward
from ..types import RewardInput, Score
from .formula import FormulaError
from .judge import Judge, JudgeSettings
from .multi import asks_a_judge, grade, require_packages
from .templates import MissingReference, Sample, parse_path, walk
from .types import AnyGrader, load_grader, read_grader, refers_to

ID = "burnish/openai-grader-v1"
TIMEOUT_S = 900.0
"""More than any `deadline_s`, which is what ends a judgement."""
MAX_CONCURRENT = 1024

_judges: PerLoop[Judge] = PerLoop()


class GraderOptions(BaseModel):
    """Options of `burnish/openai-grader-v1`.

    file: path of the grader JSON, or grader: the JSON itself. item: further names of the item, each a path into the task's data (`{answer =
    "reference_answer.final"}`). policy: path of a guardrail policy, of which `{{item.policy}}` is the text. base_url: of the judges'
    OpenAI-compatible API; without it, OpenAI's own. api_key_env: the environment variable with the key. timeout_s: seconds of one request
    to a judge. retries: further requests when it is overloaded or lost. deadline_s: seconds of one judgement. max_concurrent: requests in
    flight, in each process that scores.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    file: str | None = None
    grader: dict[str, Any] | None = None
    item: dict[str, str] = {}
    policy: str | None = Field(default=None, min_length=1)
    base_url: str | None = Field(default=None, pattern=r"^https?://\S+$")
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    timeout_s: float = Field(default=60.0, gt=0, le=600)
    retries: int = Field(default=3, ge=0, le=10)
    deadline_s: float = Field(default=240.0, gt=0, lt=TIMEOUT_S)
    max_concurrent: int = Field(default=32, ge=1, le=MAX_CONCURRENT)

    _loaded: AnyGrader = PrivateAttr()
    _paths: dict[str, tuple[str | int, ...]] = PrivateAttr()
    _policy: str | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _can_grade(self) -> GraderOptions:
        if (self.file is None) == (self.grader is None):
            raise ValueError("needs exactly one of file (a path) and grader (the JSON itself)")
        self._loaded = load_grader(Path(self.file)) if self.file is not None else read_grader(self.grader or {})
        self._paths = {name: parse_path(path) for name, path in self.item.items()}
        if self.policy is not None:
            self._policy = self._policy_text(self.policy)
        require_packages(self._loaded)
        if asks_a_judge(self._loaded):
            self.settings.api_key()
        else:
            idle = self.model_fields_set & {"base_url", "api_key_env", "timeout_s", "retries", "deadline_s", "max_concurrent"}
            if idle:
                raise ValueError(f"{', '.join(sorted(idle))}: no effect, this grader asks no judge; remove it")
        return self

    def _policy_text(self, file: str) -> str:
        from ...guardrails.policy import load_policy

        if "policy" in self.item:
            raise ValueError("item.policy: policy brings an item of that name; call the other one something else")
        if not refers_to(self._loaded, ("item", "policy")):
            raise ValueError("policy: no effect, this grader never refers to {{item.policy}}; remove it, or show it to the judge")
        return load_policy(file, to_run=False).text

    @property
    def loaded(self) -> AnyGrader:
        """The grader, read and checked."""
        return self._loaded

    @property
    def settings(self) -> JudgeSettings:
        """How judges are asked."""
        return JudgeSettings(self.base_url, self.api_key_env, self.timeout_s, self.retries, self.deadline_s, self.max_concurrent)

    def item_of(self, episode: RewardInput) -> dict[str, Any]:
        """What `{{item.…}}` refers to: the task's data, `messages` up to the answer, and the names that `item` adds.

        Raises MissingReference when a path of `item` leads nowhere, PayloadError when the data is not plain JSON.
        """
        data = plain_json(episode.data)
        asked = episode.messages if episode.answer is None else episode.messages[:-1]
        base = {"messages": [message.to_dict() for message in asked], **data}
        added = {}
        for name, path in self._paths.items():
            try:
                added[name] = walk(data, path)
            except LookupError as error:
                raise MissingReference(f"item.{name} = {self.item[name]!r}: {error.args[0]}; the task's data lacks it") from None
        if self._policy is not None:
            added["policy"] = self._policy
        return {**base, **added}


@reward(ID, timeout_s=TIMEOUT_S, max_concurrent=MAX_CONCURRENT)
async def openai_grader(episode: RewardInput, *, options: GraderOptions) -> Score:
    """Grade with OpenAI grader JSON: string_check, text_similarity, score_model, label_model, multi.

    An episode that was cut short before the policy answered, or whose answer is blank, is worth what an unreadable answer is, the grader's
    least: to say nothing differs from any reference, and holds nothing that a judge could mind.
    Raises EpisodeFailure: VERIFIER_* when a judge does not judge, REWARD_INVALID when a formula has no value; and ValueError when the
    task's data lacks what the grader refers to.
    """
    sample = Sample(episode.answer if episode.answer and episode.answer.strip() else None)
    judge = _judges.get(options.settings, lambda: Judge(options.settings)) if asks_a_judge(options.loaded) else None
    try:
        return await grade(options.loaded, sample, options.item_of(episode), judge)
    except EpisodeFailure as error:
        raise EpisodeFailure(replace(error.failure, detail=f"task {episode.task.id}: {error.failure.detail}")) from error
    except FormulaError as error:
        raise EpisodeFailure(Failure(FailureKind.REWARD_INVALID, ID, f"task {episode.task.id}: {error}")) from error
