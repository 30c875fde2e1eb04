"""The description of the service, and the service held to it by schemathesis, with a model that says the same to everybody."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Receive, Scope, Send
from tests.unit.guard_policy import policy

from burnish.guardrails.guard import Guard
from burnish.serving.app import ROUTES, chat_service
from burnish.serving.audit import Books
from burnish.serving.config import FeedbackConfig
from burnish.serving.event_stream import event
from burnish.serving.feedback.desk import FeedbackDesk
from burnish.serving.front import Front
from burnish.serving.openapi import FIELDS, description
from burnish.serving.requests import CHAT_FIELDS, COMPLETION_FIELDS
from burnish.serving.wire import COMPLETIONS, answer, path_of, read_body

pytestmark = pytest.mark.unit


def test_every_route_and_every_field_is_described() -> None:
    assert FIELDS.keys() | {"logprobs"} == CHAT_FIELDS | COMPLETION_FIELDS
    described = {path: method.upper() for path, methods in description()["paths"].items() for method in methods}
    assert described == ROUTES
    json.dumps(description())
    assert set(ASKED) - {(path, method.lower()) for path, method in described.items()} == {
        ("/v1/feedback", "post"),
        ("/v1/feedback/{id}", "delete"),
        ("/guardrail/{name}/version/{version}/apply", "post"),
    }


async def model(scope: Scope, receive: Receive, send: Send) -> None:
    """Says yes to everything, as vLLM's application would."""
    if scope["method"] == "GET":
        await answer(send, 200, b"")
        return
    request = json.loads(await read_body(receive))
    said: dict[str, Any] = {"text": "yes"} if path_of(scope) == COMPLETIONS else {"message": {"role": "assistant", "content": "yes"}}
    choice = {"index": 0, "finish_reason": "stop", **said}
    if request.get("stream") and "message" in said:
        choice = {"index": 0, "finish_reason": "stop", "delta": said["message"]}
    row = {"id": "own", "choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    if request.get("stream"):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": event(row) + b"data: [DONE]\n\n"})
    else:
        await answer(send, 200, json.dumps(row).encode())


ASKED = [(path, method) for path, methods in description(True, policy())["paths"].items() for method in methods]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ASGIApp]:
    """One with every route."""
    books = Books()
    desk = FeedbackDesk(FeedbackConfig(folder=str(tmp_path_factory.mktemp("feedback")), conversations=True), books.metrics)
    yield chat_service(model, lambda: ("m",), Front(books=books, desk=desk), Guard(policy()))
    desk.close()


@settings(max_examples=120, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_no_request_that_follows_the_description_or_breaks_it_is_an_error_of_the_service(service: ASGIApp, data: st.DataObject) -> None:
    import schemathesis

    schema = schemathesis.openapi.from_asgi("/openapi.json", service)
    path, method = data.draw(st.sampled_from(ASKED))
    mode = data.draw(st.sampled_from(list(schemathesis.GenerationMode)))
    case = data.draw(schema[path][method].as_strategy(generation_mode=mode))
    found = case.call()
    assert found.status_code < 500, (case.body, found.text)
    case.validate_response(found, checks=[schemathesis.checks.not_a_server_error, schemathesis.checks.response_schema_conformance])
