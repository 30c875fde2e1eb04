"""What clients ask for, read strictly: a field that would have no effect is an error of the client's.

Only what the application behind (vLLM's) would let pass in silence, or pay too much for, is looked at; it checks the values itself. What a
request asks to be fetched (images, sound, files) is refused: a client does not have this server call out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..envs.types import check_arguments
from ..rpc.payload import utf8
from .admission import Refused
from .pattern_cost import too_costly
from .wire import CHAT, COMPLETIONS, MOST_VALUES, read_json

FORMATS: Final = ("text", "json_object", "json_schema")
LARGEST_SCHEMA: Final = 16_384
MOST_COUNTED: Final = 16
"""Properties that a schema may count: the grammar's size grows with the cube of it."""
MOST_ANSWERS: Final = 128
"""Of one request, as OpenAI has it for `n`."""
MOST_STOPS: Final = 64
"""Texts, and as many tokens, that end an answer: each is looked for at every token of it."""
MOST_BIASES: Final = 1024
"""Of `logit_bias`: all of them are gone through whenever any request begins or ends."""
MOST_TOOLS: Final = 1024
"""Of a chat. What is wrong with each is told by the application behind, which goes through all of them to say it."""
LEAST_WHOLE: Final = -(2**63)
MOST_WHOLE: Final = 2**63 - 1
"""Of any whole number: an engine is sent no larger one, and the request would end as an error of the service."""

_BOTH: Final = frozenset({
    "model", "n", "stream", "stream_options", "user",
    "temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias",
    "max_tokens", "min_tokens", "stop", "stop_token_ids", "ignore_eos", "logprobs", "return_token_ids", "skip_special_tokens", "store",
})  # fmt: skip
CHAT_FIELDS: Final = _BOTH | {
    "messages", "tools", "tool_choice", "response_format", "max_completion_tokens", "top_logprobs", "add_generation_prompt",
    "continue_final_message",
}  # fmt: skip
"""Fields of a chat request that the service honours. `user` only names the caller and changes no answer; `store` says whether it
may be kept."""
COMPLETION_FIELDS: Final = _BOTH | {"prompt", "echo", "add_special_tokens"}
"""Fields of a completion request that the service honours."""


def read_chat_request(body: bytes) -> dict[str, Any]:
    """A chat request. Raises Refused, 400, naming the field where one is wrong."""
    request = _read(body, CHAT_FIELDS)
    check_format(request.get("response_format"))
    tools = request.get("tools")
    if isinstance(tools, list) and len(tools) > MOST_TOOLS:
        raise invalid(f"tools may have {MOST_TOOLS:,} entries, not {len(tools):,}", "tools")
    messages = request.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict) and not _only_text(message.get("content")):
            raise invalid(
                'messages may hold text only: a part of a content reads {"type": "text", "text": …}; nothing is fetched', "messages"
            )
    try:
        check_arguments(messages if isinstance(messages, list) else (), MOST_VALUES, "messages")
    except ValueError as error:
        raise invalid(str(error), "messages") from None
    return request


def read_completion_request(body: bytes) -> dict[str, Any]:
    """A completion request. Raises Refused, 400, naming the field where one is wrong."""
    request = _read(body, COMPLETION_FIELDS)
    prompts = prompts_of(request)
    if not prompts or not (all(isinstance(one, str) and one for one in prompts) or all(map(_is_ids, prompts))):
        raise invalid("prompt must be a text, several, a list of token ids, or several such lists, and none of them empty", "prompt")
    if any(isinstance(one, str) and utf8(one) != one for one in prompts):
        raise invalid("prompt holds half a character (a lone surrogate), which no tokenizer takes", "prompt")
    if answers_of(request) > MOST_ANSWERS:
        raise invalid(f"a request may have {MOST_ANSWERS} answers: n for each prompt", "n")
    return request


READERS: Final[Mapping[str, Callable[[bytes], dict[str, Any]]]] = {CHAT: read_chat_request, COMPLETIONS: read_completion_request}
"""By path."""


def answers_of(request: Mapping[str, Any]) -> int:
    """How many answers a request is for: `n`, for each of its prompts. Example: `answers_of({"prompt": ["a", "b"], "n": 3}) == 6`."""
    return len(prompts_of(request)) * (request.get("n") or 1)


def prompts_of(request: Mapping[str, Any]) -> list[Any]:
    """The prompts of a completion request, texts or lists of token ids; of a chat request one that is none."""
    prompt = request.get("prompt")
    return prompt if isinstance(prompt, list) and not _is_ids(prompt) else [prompt]


def has_token_ids(request: Mapping[str, Any]) -> bool:
    """Whether a prompt of a completion request is given as token ids."""
    prompt = request.get("prompt")
    return isinstance(prompt, list) and (_is_ids(prompt) or any(isinstance(one, list) for one in prompt))


def check_format(form: Any, param: str = "response_format") -> None:
    """Raise Refused where a `response_format` is none, or would cost more than an answer to make a grammar of. param: where it stands."""
    if form is None:
        return
    if not isinstance(form, dict) or form.get("type") not in FORMATS:
        raise invalid(f"{param} must be an object whose type is one of {', '.join(FORMATS)}", param)
    check_schema(form, param)


def check_schema(schema: Any, param: str) -> None:
    """Raise Refused for a JSON schema of which a grammar would cost more than an answer. param: where it stands."""
    if len(json.dumps(schema)) > LARGEST_SCHEMA:
        raise invalid(f"{param} may have {LARGEST_SCHEMA:,} characters where a grammar is made of them", param)
    if _largest_count(schema) > MOST_COUNTED:
        said = (
            f"a schema may ask for {MOST_COUNTED} properties at most by minProperties or maxProperties: the grammar of more takes minutes"
        )
        raise invalid(said, param)
    costly = too_costly(schema)
    if costly:
        raise invalid(f"{param}: {costly}", param)


def invalid(message: str, param: str | None = None) -> Refused:
    """A request that says what none says."""
    return Refused(400, "invalid", message, param=param)


def _read(body: bytes, fields: frozenset[str]) -> dict[str, Any]:
    """The JSON of a request, and what every kind of it is held to."""
    try:
        request = read_json(body, parse_constant=_no_number, parse_float=_number)
    except ValueError as error:
        raise invalid(f"the request is not valid JSON: {error}") from None
    if not isinstance(request, dict):
        raise invalid("the request must be a JSON object")
    unknown = sorted(key for key in request if key not in fields)
    if unknown:
        name = unknown[0][:100]
        raise invalid(f"this service does not support the parameter {name!r}; it has {', '.join(sorted(fields))}", name)
    for name, value in request.items():
        if isinstance(value, int) and not LEAST_WHOLE <= value <= MOST_WHOLE:
            raise invalid(f"{name} must be from {LEAST_WHOLE} to {MOST_WHOLE}", name)
    for name in ("stream", "store"):
        if not isinstance(request.get(name), bool | None):
            raise invalid(f"{name} must be true or false", name)
    answers = request.get("n")
    if answers is not None and (not isinstance(answers, int) or isinstance(answers, bool) or not 1 <= answers <= MOST_ANSWERS):
        raise invalid(f"n must be a whole number from 1 to {MOST_ANSWERS}", "n")
    for name, most in (("stop", MOST_STOPS), ("stop_token_ids", MOST_STOPS), ("logit_bias", MOST_BIASES)):
        many = request.get(name)
        if isinstance(many, list | dict) and len(many) > most:
            raise invalid(f"{name} may have {most:,} entries, not {len(many):,}: all of them are gone through at every token", name)
    return request


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text[:40])


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in value)


def _largest_count(form: Any) -> float:
    """The largest number that `minProperties` or `maxProperties` has anywhere in a format, 0 where there is none."""
    if isinstance(form, list):
        return max(map(_largest_count, form), default=0)
    if not isinstance(form, dict):
        return 0
    own = [form[name] for name in ("minProperties", "maxProperties") if isinstance(form.get(name), int | float)]
    return max([*own, *map(_largest_count, form.values())], default=0)


def _only_text(content: Any) -> bool:
    if isinstance(content, list):
        return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    return content is None or isinstance(content, str)
