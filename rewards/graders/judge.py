"""`score_model` and `label_model`: another model judges, over any OpenAI-compatible chat completions API.

What the policy wrote reaches the judge as text inside the grader's own messages, filled in once; nothing in it is looked at by burnish.
A policy can still try to talk a judge round: put its answer between marks, tell the judge so, and keep a grader that it cannot persuade.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...envs.failures import EpisodeFailure, Failure, FailureKind
from ...rpc.security import shown_variable
from ...rpc.urls import check_url, is_here, without_secrets
from ..types import Score, in_full
from .templates import Sample, Template
from .text_similarity import with_threshold
from .types import JudgeMessage, LabelModel, SamplingParams, ScoreModel

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MAX_ANSWER_BYTES = 6 * 2**20
RESULT_KEYS = ("result", "score", "label")
CONNECT_S = 10.0
REASON_KEYS = ("explanation", "reasoning", "reason")
LONGEST_NUMBER = 100
"""Characters of what is read as a number: a judge that goes on for longer has not given one."""
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")
_FENCE = re.compile(r"```[a-zA-Z]*")


@dataclass(frozen=True)
class JudgeSettings:
    """Where judges are and how long they are waited for.

    base_url: of an OpenAI-compatible API, up to and with its version ("http://127.0.0.1:8000/v1"); None: OpenAI's own. api_key_env:
    the environment variable that holds the key; a server of one's own often needs none. timeout_s: seconds of one request. retries:
    further requests after 408, 409, 429, 5xx and lost connections, waiting longer each time. deadline_s: seconds of one judgement with
    all its requests and the wait for its turn. max_concurrent: judgements at work; more wait.

    Example: `JudgeSettings("http://127.0.0.1:8000/v1", timeout_s=30)`.
    """

    base_url: str | None = None
    api_key_env: str | None = None
    timeout_s: float = 60.0
    retries: int = 3
    deadline_s: float = 240.0
    max_concurrent: int = 32

    @property
    def url(self) -> str:
        """Where the client asks; "" for OpenAI's own API."""
        return self.base_url or os.environ.get("OPENAI_BASE_URL", "")

    def api_key(self) -> str:
        """Raises ValueError when a variable is named and not set, when OpenAI's own API would be asked without a key, or when the key would
        travel in the clear."""
        if self.url:
            check_url(self.url, "key" if self.api_key_env else None)
        if self.api_key_env is None:
            if self.base_url is None:
                raise ValueError("a judge needs base_url (an OpenAI-compatible API) or api_key_env (the variable with OpenAI's key)")
            return "none"  # the client insists on one; a server that checks no key takes any
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ValueError(f"api_key_env: the environment variable {shown_variable(self.api_key_env)} is not set")
        return key


class Judge:
    """Asks judges, at most `max_concurrent` at a time. Belongs to one event loop.

    Raises ValueError as `JudgeSettings.api_key` does.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        import httpx2
        from openai import AsyncOpenAI

        from ...rpc.http_answers import UNPACKED, bounded

        self.settings = settings
        self._slots = asyncio.Semaphore(settings.max_concurrent)
        key = settings.api_key()
        self._secret = key if settings.api_key_env else ""
        timeout = httpx2.Timeout(settings.timeout_s, connect=min(CONNECT_S, settings.timeout_s))
        self._client: AsyncOpenAI = AsyncOpenAI(
            api_key=key,
            base_url=settings.base_url,
            timeout=timeout,
            max_retries=settings.retries,
            # The client of one's own does not follow redirects: episodes with their hidden truth go where the recipe says, nowhere else. A
            # proxy that the environment names is for other machines, and knows nothing of this one's ports.
            http_client=httpx2.AsyncClient(
                timeout=timeout,
                limits=httpx2.Limits(max_connections=settings.max_concurrent),
                trust_env=not is_here(settings.url),
                headers=UNPACKED,
                event_hooks={"response": [bounded(MAX_ANSWER_BYTES)]},
            ),
        )

    async def close(self) -> None:
        """Let go of its connections: for whoever ends the loop that it belongs to."""
        await self._client.close()

    async def score(self, grader: ScoreModel, sample: Sample, item: Mapping[str, Any]) -> Score:
        """The judge's number. Raises EpisodeFailure VERIFIER_INVALID when it gives none or one outside the range, other VERIFIER_* when it
        does not answer, and what filling the templates raises."""
        low, high = grader.range
        rule = f"Answer with one number from {in_full(low)} to {in_full(high)} and nothing else."
        text = await self._ask(grader, sample, item, rule)
        value = read_number(text)
        if value is None:
            raise _failure(FailureKind.VERIFIER_INVALID, grader, f"gave no number: {text!r:.200}")
        if not low <= value <= high:
            raise _failure(
                FailureKind.VERIFIER_INVALID, grader, f"gave {in_full(value)}, outside the range [{in_full(low)}, {in_full(high)}]"
            )
        return Score(value, with_threshold(value, grader.pass_threshold), explanation=read_reason(text))

    async def label(self, grader: LabelModel, sample: Sample, item: Mapping[str, Any]) -> Score:
        """1 for a passing label, else 0; the part `label.<label>` of the one picked is 1. Raises as `score` does."""
        rule = f"Answer with exactly one of these labels and nothing else: {', '.join(grader.labels)}"
        text = await self._ask(grader, sample, item, rule)
        picked = read_label(text, grader.labels)
        if picked is None:
            raise _failure(FailureKind.VERIFIER_INVALID, grader, f"picked none of the labels {list(grader.labels)}: {text!r:.200}")
        parts = {f"label.{label}": float(label == picked) for label in grader.labels}
        return Score(float(picked in grader.passing_labels), parts, explanation=read_reason(text))

    async def _ask(self, grader: ScoreModel | LabelModel, sample: Sample, item: Mapping[str, Any], rule: str) -> str:
        messages = judge_messages(grader.input, sample, item, rule)
        waiting = True
        try:
            async with asyncio.timeout(self.settings.deadline_s), self._slots:
                waiting = False
                return await self._complete(grader, messages)
        except TimeoutError:
            turn = f"; all of it went by waiting for a turn: {self.settings.max_concurrent} are judged at a time" if waiting else ""
            detail = f"no judgement within {self.settings.deadline_s:g} s{turn}"
            raise _failure(FailureKind.VERIFIER_TIMEOUT, grader, detail) from None

    async def _complete(self, grader: ScoreModel | LabelModel, messages: list[dict[str, str]]) -> str:
        import openai

        from ...rpc.http_answers import UnfitAnswer

        try:
            create: Any = self._client.chat.completions.create  # its overloads want message types of their own
            answer = await create(model=grader.model, messages=messages, **sampling(grader.sampling_params))
            text = answer.choices[0].message.content
        except UnfitAnswer as error:
            raise _failure(FailureKind.VERIFIER_INVALID, grader, str(error)) from error
        except openai.APITimeoutError as error:
            detail = f"no answer within {self.settings.timeout_s:g} s"
            raise _failure(FailureKind.VERIFIER_TIMEOUT, grader, detail) from error
        except openai.APIConnectionError as error:
            raise _failure(
                FailureKind.VERIFIER_UNAVAILABLE, grader, f"cannot be reached: {self._shown(str(error.__cause__ or error))}"
            ) from error
        except openai.APIStatusError as error:
            overloaded = error.status_code == 429 or error.status_code >= 500
            kind = FailureKind.VERIFIER_UNAVAILABLE if overloaded else FailureKind.VERIFIER_ERROR
            raise _failure(kind, grader, f"answered {error.status_code}: {self._shown(error.message):.200}") from error
        except (openai.OpenAIError, AttributeError, LookupError, TypeError, ValueError) as error:
            detail = f"its answer is no chat completion: {type(error).__name__}: {error!s:.200}"
            raise _failure(FailureKind.VERIFIER_INVALID, grader, detail) from error
        if not isinstance(text, str):
            raise _failure(FailureKind.VERIFIER_INVALID, grader, "its answer holds no text")
        return self._shown(text)

    def _shown(self, text: str) -> str:
        """What a judge answered, for failures: it may quote the key that it was sent."""
        return without_secrets(text, self._secret)


def judge_messages(messages: Sequence[JudgeMessage], sample: Sample, item: Mapping[str, Any], rule: str) -> list[dict[str, str]]:
    """The chat that a judge gets: the grader's messages filled in, with the rule for its answer at the end of the system message."""
    rows = []
    for message in messages:
        role = "system" if message.role == "developer" else message.role  # servers other than OpenAI's know no developer
        rows.append({"role": role, "content": "\n".join(Template(text).fill(sample, item) for text in message.texts)})
    if rows[0]["role"] == "system":
        rows[0]["content"] += f"\n\n{rule}"
    else:
        rows.insert(0, {"role": "system", "content": rule})
    return rows


def sampling(params: SamplingParams) -> dict[str, Any]:
    """The parameters that the grader sets, as the API calls them."""
    given = params.model_dump(exclude_none=True)
    if "max_completions_tokens" in given:
        given["max_completion_tokens"] = given.pop("max_completions_tokens")
    return given


def read_number(text: str) -> float | None:
    """The number that a judge gave, bare or as `{"result": 0.5}`; None when it gave none.

    Example: `read_number('{"result": 0.5, "steps": []}')` is 0.5; `read_number("about 0.5")` is None.
    """
    value = _result(text)
    if isinstance(value, str):
        said = value.strip()
        value = float(said) if len(said) <= LONGEST_NUMBER and _NUMBER.fullmatch(said) else None
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def read_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that a judge picked, bare or as `{"result": "good"}`, ignoring case, quotes and a full stop; None when it is none."""
    value = _result(text)
    said = str(value).strip().strip("\"'`.").strip().casefold() if isinstance(value, str | int | float) else None
    return next((label for label in labels if said in (label.casefold(), label.strip().casefold())), None)


def read_reason(text: str) -> str:
    """Why a judge answered as it did, as far as it says: under one of `REASON_KEYS` beside its result, in OpenAI's `steps` there, or before
    its answer as `<think>…</think>`; else "".

    Example: `read_reason('{"result": 0.5, "reason": "half of it is right"}')` is "half of it is right".
    """
    thought, answer = text.rpartition("</think>")[0].strip().removeprefix("<think>").strip(), _answer(text)
    if isinstance(answer, dict):
        given = [answer[key] for key in REASON_KEYS if isinstance(answer.get(key), str) and answer[key].strip()]
        steps = answer.get("steps")
        given += ["\n".join(_step(step) for step in steps if isinstance(step, dict))] if isinstance(steps, list) else []
        return next((one.strip() for one in given if one.strip()), thought)
    return thought


def _step(step: Mapping[str, Any]) -> str:
    return ": ".join(step[key] for key in ("description", "conclusion") if isinstance(step.get(key), str))


def _result(text: str) -> Any:
    """What a judge's answer comes down to: the value of its JSON object's result, or its text without reasoning and fences."""
    answer = _answer(text)
    if not isinstance(answer, dict):
        return answer
    found = [answer[key] for key in RESULT_KEYS if key in answer]
    return found[0] if len(found) == 1 else None


def _answer(text: str) -> Any:
    """A judge's answer without reasoning and fences: a JSON object, other text, or None where it begins an object and is none."""
    said = text.rpartition("</think>")[2].strip()
    begins = _FENCE.match(said)
    if begins and said.endswith("```") and len(said) >= begins.end() + 3:
        said = said[begins.end() : -3].strip()
    if not said.startswith("{"):
        return said
    try:
        return json.loads(said)
    except (ValueError, RecursionError):
        return None


def _failure(kind: FailureKind, grader: ScoreModel | LabelModel, detail: str) -> EpisodeFailure:
    return EpisodeFailure(Failure(kind, f"{grader.name} ({grader.model})", detail))
