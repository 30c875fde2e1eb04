"""Detectors that ask something that runs elsewhere: what they are asked about, how often, and what their verdicts count for."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message
from tests.unit.guard_policy import tables
from tests.unit.test_serving_guarded import Model, ask, client, serving, streamed

from burnish.envs.failures import EpisodeFailure
from burnish.guardrails import readings as readings_module
from burnish.guardrails.asks import MOST_ASKS
from burnish.guardrails.guard import Guard
from burnish.guardrails.policy import DetectorUse, Policy
from burnish.guardrails.readings import MAX_TEXT
from burnish.guardrails.registry import Find, detector
from burnish.guardrails.stream import ASKED_EVERY, StreamGuard
from burnish.guardrails.types import Match
from burnish.rewards.graders import detector as judges
from burnish.rewards.types import Score
from burnish.serving.app import chat_service
from burnish.serving.audit import Audit, Books
from burnish.serving.config import ServingConfig, serving_options
from burnish.serving.front import Front

pytestmark = pytest.mark.unit

NOWHERE = {
    "burnish/judge-v1": {"base_url": "http://127.0.0.1:1/v1", "model": "judge", "retries": 0, "timeout_s": 2.0},
    "burnish/verifier-v1": {"address": "127.0.0.1:1", "deadline_s": 0.2},
}
"""Options of those that ask, of services that are not there."""


@detector("tests/straying-v1", reads=("original",))
def straying(policy: Policy, use: DetectorUse) -> Find:
    def find(text: str) -> Iterator[Match]:
        yield Match(use.name, "weapons", 0, len(text))

    return find


class Asked:
    """What `tests/asking-v1` was asked about, in order, and what it finds: texts that have the word. then: is called at each."""

    def __init__(self) -> None:
        self.texts, self.word = list[str](), "trebuchet"
        self.then: Callable[[], object] = list


ASKED = Asked()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.setattr(f"{__name__}.ASKED", Asked())
    return ASKED


@detector("tests/asking-v1", reads=("original",), whole=True, asks=True)
def asking(policy: Policy, use: DetectorUse) -> Find:
    def find(text: str) -> Iterator[Match]:
        ASKED.texts.append(text)
        ASKED.then()
        if ASKED.word in text:
            yield Match(use.name, use.category, 0, len(text))

    return find


def with_category(use: str, category: dict[str, Any], args: dict[str, Any] | None = None) -> Policy:
    """The policy with one detector more, in a category of its own."""
    data = tables()
    data["categories"]["own"] = {"kind": "own", "action": "refuse", **category}
    return Policy.model_validate(data | {"detectors": [{"use": use, "name": "asked", "category": "own", "args": args or {}}]})


@pytest.mark.parametrize("use", NOWHERE)
def test_who_judges_a_category_is_not_asked_where_nobody_looks_for_it(use: str) -> None:
    """An outage refused what the category has nothing to say about, and each of these requests was paid for."""
    answers = Guard(with_category(use, {"where": ["output"]}, NOWHERE[use]))
    assert answers.check("Hello", "input").action == "allow"
    with pytest.raises(EpisodeFailure):
        answers.check("Hello", "output")
    off = Guard(with_category(use, {"enabled": False}, NOWHERE[use]))
    skipped = Guard(with_category(use, {}, NOWHERE[use]), skip=["own"])
    for guard in (off, skipped):
        assert guard.check("Hello", "input").action == guard.check("Hello", "output", before="Hel").action == "allow"


def test_a_detector_finds_its_own_category_alone() -> None:
    guard = Guard(with_category("tests/straying-v1", {}))
    with pytest.raises(ValueError, match="detector tests/straying-v1 found 'weapons', and 'asked' is of category 'own'"):
        guard.check("Hello", "input")


def test_a_verdict_on_a_whole_text_is_not_asked_for_over_the_seam(asked: Asked) -> None:
    """A harmless answer was blocked for the words of its prompt."""
    guard = Guard(with_category("tests/asking-v1", {"where": ["output"]}))
    assert guard.check("is in the museum.", "output", before="The trebuchet ").action == "allow"
    assert asked.texts == ["is in the museum."], "and it is asked once"
    assert guard.check("and a trebuchet.", "output", before="A bow ").action == "refuse"
    speaking = tables() | {"languages": {"category": "rivals", "spoken": ["en"]}}
    assert Guard(Policy.model_validate(speaking)).check("It is.", "output", before="Расскажите о счетах ").action == "allow"


def test_nothing_is_asked_about_a_text_that_cannot_be_looked_at(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge was paid for four megabytes that were then refused."""
    guard = Guard(with_category("tests/asking-v1", {}))
    with pytest.raises(ValueError, match="too long to be looked at"):
        guard.check("a" * (MAX_TEXT + 1), "input")
    monkeypatch.setattr(readings_module, "MAX_READ", 400)
    with pytest.raises(ValueError, match="too many ways"):
        guard.check("\ufdfa" * 200, "input")
    assert asked.texts == []
    assert guard.check("A trebuchet", "input").action == "refuse" and asked.texts == ["A trebuchet"]


def test_a_guard_without_asking_asks_nothing_and_finds_what_it_finds_itself(asked: Asked) -> None:
    guard = Guard(with_category("tests/asking-v1", {"where": ["output"]}))
    here = guard.without_asking()
    assert here.check("a trebuchet", "output").action == "allow" and not asked.texts and not here.asks("output")
    assert here.check("nerve gas", "output").blocked
    assert guard.asks("output") and guard.check("a trebuchet", "output").blocked and asked.texts == ["a trebuchet"]


def test_what_asks_gets_each_text_once() -> None:
    with pytest.raises(ValueError, match=r"asks something elsewhere, so it gets each text once: give it reads=\('original',\)"):
        detector("tests/greedy-v1", asks=True)


@pytest.mark.parametrize("at", [None, 0, 700, 3990])
def test_a_stream_asks_every_few_hundred_characters_and_nothing_goes_out_unasked(asked: Asked, at: int | None) -> None:
    """Each 24 characters were a request: 667 for an answer of 16,000."""
    text = "A sentence that is fine. " * 160
    text = text if at is None else f"{text[:at]} a trebuchet {text[at:]}"
    guard = Guard(with_category("tests/asking-v1", {"where": ["output"]}))
    stream, out = StreamGuard(guard), ""
    for i in range(0, len(text), 5):
        piece = stream.feed(text[i : i + 5])
        assert not piece or asked.texts[-1].endswith(text[len(out) : i + 5]), "what goes out was asked about with all that was written"
        out += piece
    out += stream.end()
    assert stream.decision is not None
    assert stream.decision.action == guard.check(text, "output").action == ("allow" if at is None else "refuse")
    assert out == text if at is None else (text.startswith(out) and len(out) <= at)
    assert len(asked.texts) - 1 <= len(text) // ASKED_EVERY + 1


def test_a_stream_is_looked_at_as_before_where_those_that_ask_judge_what_is_asked() -> None:
    stream = StreamGuard(Guard(with_category("tests/asking-v1", {"where": ["input"]})))
    assert stream.feed("A whole sentence. And") == "A whole sentence. "


def test_a_judge_has_one_client_for_all_texts_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each text cost a client of its own, 19 ms of a processor."""
    made, together = list[object](), threading.Barrier(4)

    class Fake:
        def __init__(self, settings: object) -> None:
            made.append(settings)

        async def label(self, grader: object, sample: Any, item: object) -> Score:
            await asyncio.to_thread(together.wait, 30)  # all four are asked about at a time
            return Score(float("trebuchet" in sample.output_text))

    monkeypatch.setattr(judges, "Judge", Fake)
    guard = Guard(with_category("burnish/judge-v1", {}, {"base_url": "http://127.0.0.1:2/v1", "model": "one-client"}))
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(lambda text: guard.check(text, "input").action, ["Hello", "A trebuchet", "A bow", "A bridge"])
        assert list(found) == ["allow", "refuse", "allow", "allow"]
    assert len(made) == 1


async def test_a_slow_judge_holds_up_nothing_but_those_who_wait_for_it(asked: Asked) -> None:
    """Its texts had all threads of the loop, in which large requests are read and routes are followed."""
    over = threading.Event()
    asked.then = lambda: over.wait(30)
    loop = asyncio.get_running_loop()
    threads = ThreadPoolExecutor(1)
    loop.set_default_executor(threads)
    waiting = asyncio.ensure_future(ask(Guard(with_category("tests/asking-v1", {})), Model("Fine."), "Hello"))
    while not asked.texts:
        await asyncio.sleep(0.01)
    assert await asyncio.wait_for(asyncio.to_thread(int, "7"), 20) == 7
    over.set()
    assert (await waiting).status_code == 200


@pytest.mark.parametrize("hangs_up_at", [1, 2])
async def test_whoever_hangs_up_is_not_judged_for_any_more(asked: Asked, hangs_up_at: int) -> None:
    """All choices were judged, and paid for, whether or not anybody waited for them."""
    gone, loop, model = asyncio.Event(), asyncio.get_running_loop(), Model("One.", "Two.", "Three.")
    released = threading.Event()

    def then() -> None:
        if len(asked.texts) == hangs_up_at:
            loop.call_soon_threadsafe(gone.set)
            released.wait(30)

    asked.then = then
    service = serving(model, Guard(with_category("tests/asking-v1", {})))
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}][hangs_up_at - 1 :]
    body = json.dumps({"model": "m", "messages": messages, "n": 3}).encode()
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    sent = list[Message]()

    async def receive() -> Message:
        if pending:
            return pending.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    path = "/v1/chat/completions"
    scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")]}
    await asyncio.wait_for(service(scope, receive, send), 20)
    released.set()
    await asyncio.sleep(0.2)
    assert len(asked.texts) == hangs_up_at and sent[0]["status"] == 499


async def test_a_service_and_its_streams_decide_as_a_judge_does(asked: Asked) -> None:
    guard = Guard(with_category("tests/asking-v1", {"where": ["output"]}))
    for text in ("Fine.", "A sentence. " * 100, "A sentence. " * 100 + "A trebuchet."):
        reply = guard.check(text, "output").reply
        assert (await ask(guard, Model(text), "Hello")).json()["choices"][0]["message"]["content"] == reply
        said = streamed(await ask(guard, Model(text), "Hello", stream=True))[0][0]
        assert said == reply or (said.endswith(reply) and "trebuchet" not in said)


async def answered(guard: Guard, most: int, audit: Path, *answers: str, **fields: Any) -> tuple[str, list[Any]]:
    """The body of an answer of a service that asks so often at most, and the findings of its decisions, each by place and reading."""
    service = chat_service(Model(*answers), lambda: ("m",), Front(books=Books(Audit(audit))), guard, judge_calls=most)
    row = {"model": "m", "messages": [{"role": "user", "content": "Tell me"}], "n": len(answers), **fields}
    answer = await client(service).post("/v1/chat/completions", json=row)
    assert answer.status_code == 200
    decisions = json.loads(audit.read_text().splitlines()[-1])["decisions"]
    return answer.text, [(one["where"], found["rule"], found["reading"]) for one in decisions for found in one["findings"]]


async def test_a_request_asks_a_judge_so_often_at_most_and_what_it_is_not_asked_about_counts_as_found(asked: Asked, tmp_path: Path) -> None:
    """Each of 128 answers was a call, and each 400 characters of them in a stream."""
    guard = Guard(with_category("tests/asking-v1", {"message": "Not this."}))
    whole, found = await answered(guard, 3, tmp_path / "whole", *(f"Answer {i}." for i in range(5)))
    assert asked.texts == ["Tell me", "Answer 0.", "Answer 1."]
    choices = json.loads(whole)["choices"]
    assert [one["message"]["content"] for one in choices] == ["Answer 0.", "Answer 1.", "Not this.", "Not this.", "Not this."]
    assert [one["finish_reason"] for one in choices] == ["stop", "stop", *["content_filter"] * 3]
    assert found == [("output", "asked", "not asked")] * 3


async def test_all_answers_of_a_stream_have_their_calls_together(asked: Asked, tmp_path: Path) -> None:
    guard = Guard(with_category("tests/asking-v1", {"message": "Not this."}))
    body, found = await answered(guard, 4, tmp_path / "stream", *["Something is said here. " * 60] * 3, stream=True)
    assert len(asked.texts) == 4, "of what is asked, and of the first answer"
    assert body.count("Not this.") == 3 and found == [("output", "asked", "not asked")] * 3
    asked.texts.clear()
    body, found = await answered(guard, 100, tmp_path / "stream", *["Something is said here. " * 60] * 3, stream=True)
    assert 4 < len(asked.texts) < 20 and "Not this." not in body and found == []


async def test_a_judge_of_inputs_alone_is_not_asked_more_than_it_may(asked: Asked, tmp_path: Path) -> None:
    guard = Guard(with_category("tests/asking-v1", {"message": "Not this.", "where": ["input"], "action": "redirect"}))
    rows = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Tell me"}]
    body, found = await answered(guard, 1, tmp_path / "log", "Yes.", messages=rows)
    assert asked.texts == ["Tell me"] and found == [("input", "asked", "not asked")] and "Not this." in body


def test_how_often_is_an_option_of_who_serves_with_a_policy() -> None:
    assert ServingConfig().max_judge_calls == MOST_ASKS == 256
    with pytest.raises(ValueError, match="max_judge_calls has no effect without policy"):
        serving_options(ServingConfig(), max_judge_calls=3)
    assert serving_options(ServingConfig(), max_judge_calls=3, policy="p.toml").max_judge_calls == 3
    with pytest.raises(ValueError, match="max_judge_calls"):
        serving_options(ServingConfig(), max_judge_calls=0, policy="p.toml")
