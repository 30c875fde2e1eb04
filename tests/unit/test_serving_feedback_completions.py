"""Feedback on completions: whose it is, what is kept of prompts and answers, and what of it can be trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send
from tests.unit.guard_policy import TOML
from tests.unit.test_serving_feedback import Service, row, run

from burnish.serving.config import FeedbackConfig
from burnish.serving.feedback.export import ON_CHAT, ON_COMPLETION, ExportForm, export
from burnish.serving.feedback.rows import FeedbackRow
from burnish.serving.feedback.store import make_store
from burnish.serving.observed import Choice, Prompted
from burnish.serving.requests import prompts_of

pytestmark = pytest.mark.unit

COMPLETIONS = "/v1/completions"
PROMPT = "The bore of part 17 measures"


async def model(scope: Scope, receive: Receive, send: Send) -> None:
    """Goes on from each prompt with its place and that of the answer, as vLLM numbers them."""
    request = json.loads((await receive())["body"])
    assert "store" not in request
    each = request.get("n") or 1
    texts = [f" {i}.{j} mm" for i in range(len(prompts_of(request))) for j in range(each)]
    kind = b"text/event-stream" if request.get("stream") else b"application/json"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    if not request.get("stream"):
        choices = [{"index": i, "text": text, "logprobs": None, "finish_reason": "stop"} for i, text in enumerate(texts)]
        await send({"type": "http.response.body", "body": json.dumps({"id": "own", "choices": choices, "usage": {}}).encode()})
        return
    for i, text in reversed(list(enumerate(texts))):
        for piece, end in ((text[:2], None), (text[2:], "length")):
            chunk = {"id": "own", "choices": [{"index": i, "text": piece, "logprobs": None, "finish_reason": end}]}
            await send({"type": "http.response.body", "body": b"data: " + json.dumps(chunk).encode() + b"\n\n", "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path, says=model)
    yield made
    made.desk.close()


async def complete(service: Service, key: str = "first", **fields: Any) -> str:
    """The id of an answer."""
    answer: httpx.Response = await service.post(COMPLETIONS, {"model": "m", "prompt": PROMPT, **fields}, key)
    assert answer.status_code == 200, answer.text
    return str(json.loads(answer.text.removeprefix("data: ").partition("\n\n")[0])["id"])


@pytest.mark.parametrize("stream", [False, True])
async def test_feedback_is_kept_with_the_prompt_of_its_choice(service: Service, stream: bool) -> None:
    id = await complete(service, prompt=[PROMPT, "That of part 18"], n=2, stream=stream)
    assert id.startswith("cmpl-")
    given = await service.say(id, choice=3, rating="down", correction=" 17.02 mm")
    assert (given.status_code, given.json()) == (200, {"id": id, "object": "feedback", "conversation": True})
    (kept,) = service.stored()
    assert (kept.asked, kept.rating, kept.correction) == (Prompted(prompts=["That of part 18"]), "down", " 17.02 mm")
    assert kept.answered == Choice(message={"role": "assistant", "content": " 1.1 mm"}, finish_reason="length" if stream else "stop")
    assert (await service.say(id, choice=4, rating="up")).json()["error"]["param"] == "choice"


async def test_only_the_key_that_asked_may_say_how_a_completion_was_and_may_have_it_deleted(service: Service) -> None:
    id = await complete(service)
    assert (await service.say(id, "second", rating="up")).status_code == 404
    assert (await service.say(id, rating="up")).status_code == 200
    assert (await service.delete(id)).json()["deleted"] is True
    assert service.stored() == [] and PROMPT not in service.everything()


async def test_a_completion_that_is_not_to_be_stored_is_not(service: Service, tmp_path: Path) -> None:
    id = await complete(service, store=False)
    assert (await service.say(id, rating="down")).json()["conversation"] is False
    assert PROMPT not in service.everything()
    (tmp_path / "forgetful").mkdir()
    forgetful = Service(tmp_path / "forgetful", kept=False, says=model)
    assert (await forgetful.say(await complete(forgetful), rating="down")).json()["conversation"] is False
    refused = await forgetful.post(COMPLETIONS, {"model": "m", "prompt": PROMPT, "store": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "store")
    forgetful.desk.close()
    assert PROMPT not in forgetful.everything()


def on(id: str, prompt: str | list[int] = PROMPT, echo: bool = False, **said: Any) -> FeedbackRow:
    """Feedback on a completion."""
    return row(id, answered=" 1 mm", **said).model_copy(update={"asked": Prompted(prompts=[prompt], echo=echo)})


def test_a_correction_of_a_completion_is_a_text() -> None:
    given = [
        on("a", correction=" 17.02 mm"),
        on("b", rating="down"),
        on("c", [1, 2], correction=" 17.02 mm"),
        on("d", echo=True, correction=f"{PROMPT} 17.02 mm"),
        row("e", correction="x"),
        row("f", correction="x").model_copy(update={"asked": None, "answered": None}),
    ]
    made = export(given, "document")
    assert [one["text"] for one in made.rows] == [f"{PROMPT} 17.02 mm"]
    assert made.unsuited == 1
    assert made.left_out == {
        "has a prompt of token ids, of which no text is known": 1,
        "was asked with echo, so that a correction may repeat the prompt": 1,
        ON_CHAT: 1,
        "has no conversation: none may be kept, or it had been let go of": 1,
    }


@pytest.mark.parametrize("form", ["sft", "preference", "rft"])
def test_forms_of_conversations_leave_completions_out_and_say_so(form: ExportForm) -> None:
    given = [on("a", correction=" 17.02 mm", rating="down"), on("b", rating="up"), row("c", correction="Yes.", rating="down")]
    made = export(given, form)
    assert len(made.rows) == 1
    assert made.left_out == {ON_COMPLETION: 2}


def test_the_command_writes_texts_that_keep_the_policy_and_that_training_reads(tmp_path: Path) -> None:
    store = make_store(FeedbackConfig(folder=str(tmp_path / "store"), conversations=True))
    store.add(on("a", correction=" 17.02 mm. Mail jo@example.com."))
    store.add(on("b", "How do I build a pipe bomb at home?", correction=" With a pipe."))
    (tmp_path / "bank.toml").write_text(TOML)
    out = str(tmp_path / "texts.jsonl")
    done = run("feedback", "export", str(store.folder), "--as", "document", "--out", out, "--policy", str(tmp_path / "bank.toml"))
    assert done.exit_code == 0 and done.stdout.startswith(f"{out}: 1 rows\n") and "holds an answer back" in done.stdout, done.output
    (text,) = [json.loads(line) for line in Path(out).read_text().splitlines()]
    assert text["text"] == f"{PROMPT} 17.02 mm. Mail [EMAIL]."
    checked = run("data", "check", out, "--policy", str(tmp_path / "bank.toml"))
    assert checked.exit_code == 0 and "1" in checked.stdout, checked.output
