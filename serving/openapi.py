"""An OpenAPI description of the service: what `/openapi.json` answers, for clients that are generated and tests that try everything.

What a request may hold is said once, in `serving.requests`; here its fields have their types, which the model's side checks.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import version
from typing import Any, Final

from ..guardrails.bedrock import ApplyRequest
from ..guardrails.policy import Policy
from .feedback.rows import GivenFeedback
from .requests import CHAT_FIELDS, COMPLETION_FIELDS, FORMATS, LEAST_WHOLE, MOST_ANSWERS, MOST_BIASES, MOST_STOPS, MOST_WHOLE

_TEXT: Final = {"type": "string"}
_IDS: Final = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_TRUE: Final = {"type": "boolean"}


def _number(low: float, high: float | None = None) -> dict[str, Any]:
    return {"type": "number", "minimum": low, **({} if high is None else {"maximum": high})}


def _whole(low: int, high: int = MOST_WHOLE) -> dict[str, Any]:
    return {**_number(low, high), "type": "integer"}


_CALL: Final = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "id": _TEXT,
        "type": {"const": "function"},
        "function": {"type": "object", "required": ["name", "arguments"], "properties": {"name": _TEXT, "arguments": _TEXT}},
    },
}
_MESSAGE: Final = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {
            "anyOf": [
                _TEXT,
                {"type": "null"},
                {
                    "type": "array",
                    "items": {"type": "object", "required": ["type", "text"], "properties": {"type": {"const": "text"}, "text": _TEXT}},
                },
            ]
        },
        "name": _TEXT,
        "tool_call_id": _TEXT,
        "tool_calls": {"type": "array", "items": _CALL},
    },
    "additionalProperties": False,
}
_TOOL: Final = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": _TEXT, "description": _TEXT, "parameters": {"type": "object"}, "strict": _TRUE},
        },
    },
}
_NAMED: Final = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {"type": {"const": "function"}, "function": {"type": "object", "required": ["name"], "properties": {"name": _TEXT}}},
}
_FORMAT: Final = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"enum": list(FORMATS)},
        "json_schema": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": _TEXT, "schema": {"type": "object"}, "strict": _TRUE},
        },
    },
}
FIELDS: Final[dict[str, Any]] = {
    "add_generation_prompt": _TRUE,
    "add_special_tokens": _TRUE,
    "continue_final_message": _TRUE,
    "echo": _TRUE,
    "frequency_penalty": _number(-2, 2),
    "ignore_eos": _TRUE,
    "logit_bias": {"type": "object", "additionalProperties": _number(-100, 100), "maxProperties": MOST_BIASES},
    "max_completion_tokens": _whole(1),
    "max_tokens": _whole(0),
    "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
    "min_p": _number(0, 1),
    "min_tokens": _whole(0),
    "model": _TEXT,
    "n": _whole(1, MOST_ANSWERS),
    "presence_penalty": _number(-2, 2),
    "prompt": {"anyOf": [{**_TEXT, "minLength": 1}, {"type": "array", "items": {**_TEXT, "minLength": 1}, "minItems": 1}, _IDS,
                         {"type": "array", "items": _IDS, "minItems": 1}]},
    "repetition_penalty": {"type": "number", "exclusiveMinimum": 0},
    "response_format": _FORMAT,
    "return_token_ids": _TRUE,
    "seed": _whole(LEAST_WHOLE),
    "skip_special_tokens": _TRUE,
    "store": _TRUE,
    "stop": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": MOST_STOPS}]},
    "stop_token_ids": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": MOST_STOPS},
    "stream": _TRUE,
    "stream_options": {"type": "object", "properties": {"include_usage": _TRUE, "continuous_usage_stats": _TRUE}},
    "temperature": _number(0),
    "tool_choice": {"anyOf": [{"enum": ["auto", "none", "required"]}, _NAMED]},
    "tools": {"type": "array", "items": _TOOL},
    "top_k": _whole(-1),
    "top_logprobs": _whole(0),
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "user": _TEXT,
}  # fmt: skip
"""The types of request fields; `logprobs` is a switch in a chat and a count in a completion."""
_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": _TEXT, "type": {"type": ["string", "null"]}, "param": {"type": ["string", "null"]},
                           "code": {"type": ["string", "integer", "null"]}},
        }
    },
}  # fmt: skip
_GUARDRAIL_ERROR: Final = {"type": "object", "required": ["message"], "properties": {"message": _TEXT}}
"""As Bedrock has them; what kind it is stands in a header."""


def description(feedback: bool = False, policy: Policy | None = None) -> dict[str, Any]:
    """The OpenAPI 3.1 description of a service: with the routes of feedback, and with the one that a guardrail policy adds."""
    chat = _asked("One answer of a conversation, several, or a stream", CHAT_FIELDS, ["messages"], {"type": "boolean"})
    completion = _asked("What follows a prompt, or each of several", COMPLETION_FIELDS, ["prompt"], _whole(0))
    models = {"type": "object", "required": ["data"], "properties": {"object": {"const": "list"}, "data": {"type": "array"}}}
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "burnish", "version": version("burnish")},
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}, "schemas": {"Error": _ERROR}},
        "security": [{"key": []}, {}],
        "paths": {
            "/v1/chat/completions": {"post": chat},
            "/v1/completions": {"post": completion},
            "/v1/models": {"get": _told("The models that the key may ask for", "application/json", models)},
            "/metrics": {"get": _told("Counters for Prometheus", "text/plain", _TEXT)},
            "/openapi.json": {"get": _told("This description", "application/json", {"type": "object"})},
            "/health": {"get": _probed("Whether every model has an engine that answers")},
            "/ready": {"get": _probed("Whether the start is over, and an engine answers")},
        },
    }
    if feedback:
        found["paths"] |= _feedback()
    if policy is not None:
        apply = ApplyRequest.model_json_schema(ref_template="#/components/schemas/{model}")
        found["components"]["schemas"] |= {**apply.pop("$defs"), "GuardrailError": _GUARDRAIL_ERROR}
        found["paths"] |= _guardrail(policy, apply)
    return found


def _feedback() -> dict[str, Any]:
    says = {"type": "object", "required": ["id", "object", "conversation"]}
    given = _told("What a client says of an answer", "application/json", says) | _body(GivenFeedback.model_json_schema())
    gone = _told("Forget an answer and all that was said of it", "application/json", {"type": "object", "required": ["id", "deleted"]})
    gone["parameters"] = [_in_path("id", {**_TEXT, "pattern": "^[A-Za-z0-9-]{1,100}$"})]
    return {"/v1/feedback": {"post": given}, "/v1/feedback/{id}": {"delete": gone}}


def _guardrail(policy: Policy, request: dict[str, Any]) -> dict[str, Any]:
    says = {"type": "object", "required": ["action", "outputs", "assessments", "usage"]}
    applied = _told("Bedrock's ApplyGuardrail", "application/json", says, "GuardrailError") | _body(request)
    versions = {"enum": [str(policy.version), "DRAFT"]}
    applied["parameters"] = [_in_path("name", {"enum": [policy.name]}), _in_path("version", versions)]
    return {"/guardrail/{name}/version/{version}/apply": {"post": applied}}


def _in_path(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _asked(summary: str, fields: Collection[str], required: list[str], logprobs: dict[str, Any]) -> dict[str, Any]:
    properties = {name: logprobs if name == "logprobs" else FIELDS[name] for name in sorted(fields)}
    schema = {"type": "object", "required": required, "properties": properties, "additionalProperties": False}
    found = _told(summary, "application/json", {"type": "object", "required": ["id", "choices"]})
    found["responses"]["200"]["content"]["text/event-stream"] = {}
    return found | _body(schema)


def _probed(summary: str) -> dict[str, Any]:
    return {"summary": summary, "security": [], "responses": {"200": {"description": "so it is"}, "503": {"description": "not so"}}}


def _told(summary: str, kind: str, schema: dict[str, Any], error_shape: str = "Error") -> dict[str, Any]:
    shape = {"$ref": f"#/components/schemas/{error_shape}"}
    error = {"description": "why not", "content": {"application/json": {"schema": shape}}}
    answer = {"description": summary, "content": {kind: {"schema": schema}}}
    return {"summary": summary, "responses": {"200": answer, "default": error}}
