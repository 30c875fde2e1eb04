"""Feedback on served answers: who may give it, what is kept of it and for how long, and what data it becomes."""

from __future__ import annotations

import json
import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import ASGIApp, Receive, Scope, Send
from tests.unit.guard_policy import TOML, policy
from typer.testing import CliRunner, Result

from burnish.cli.main import app
from burnish.guardrails.guard import Guard
from burnish.serving import give_feedback
from burnish.serving.admission import RequestAdmission
from burnish.serving.app import chat_service
from burnish.serving.audit import Books
from burnish.serving.config import FeedbackConfig
from burnish.serving.feedback import desk
from burnish.serving.feedback.desk import FeedbackDesk
from burnish.serving.feedback.export import export
from burnish.serving.feedback.ids import AnswerIds
from burnish.serving.feedback.rows import AnswerRow, FeedbackRow, GivenFeedback
from burnish.serving.feedback.segments import PARTS, Segments
from burnish.serving.feedback.store import FeedbackStore, make_store, open_store
from burnish.serving.front import Front
from burnish.serving.give_feedback import read_feedback
from burnish.serving.key_files import new_key
from burnish.serving.keys import Filed, Route
from burnish.serving.observed import Choice, Question
from burnish.trainer.data.config import Making
from burnish.trainer.data.pairs import survey_pairs
from burnish.trainer.data.prepared import survey
from burnish.trainer.data.task_files import read_task_rows
from burnish.trainer.models.importing import ModelSize, new_model
from burnish.trainer.phases.dpo import DPOConfig
from burnish.trainer.phases.sft import SFTConfig

pytestmark = pytest.mark.unit

CHAT, FEEDBACK = "/v1/chat/completions", "/v1/feedback"
QUESTION = [{"role": "user", "content": "Is part 17 within its limit?"}]
DAY_S, HOUR_S = 86_400.0, 3_600.0


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard(policy())


def run(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


class Clock:
    """Seconds since 1970 that only the test moves."""

    def __init__(self) -> None:
        self.now = 1_767_225_600.0  # 2026-01-01

    def __call__(self) -> float:
        return self.now


async def model(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers "yes" and, of several, "no"; with tools, with a call. It refuses what vLLM would not know."""
    request = json.loads((await receive())["body"])
    assert "store" not in request
    texts = ["yes", "no"][: request.get("n") or 1]
    kind = b"text/event-stream" if request.get("stream") else b"application/json"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    if not request.get("stream"):
        choices = [
            {"index": i, "message": {"role": "assistant", "content": text, "refusal": None}, "finish_reason": "stop"}
            for i, text in enumerate(texts)
        ]
        await send({"type": "http.response.body", "body": json.dumps({"id": "own", "choices": choices, "usage": {}}).encode()})
        return
    for i, text in enumerate(texts):
        for letter in text:
            chunk = {"id": "own", "choices": [{"index": i, "delta": {"content": letter}, "finish_reason": None}]}
            await send({"type": "http.response.body", "body": b"data: " + json.dumps(chunk).encode() + b"\n\n", "more_body": True})
        chunk = {"id": "own", "choices": [{"index": i, "delta": {}, "finish_reason": "stop"}]}
        await send({"type": "http.response.body", "body": b"data: " + json.dumps(chunk).encode() + b"\n\n", "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


class Service:
    """A service of model m with two keys that may give feedback, and one that may not. kept: without it, no conversation is. says: what
    answers in the model's place."""

    def __init__(self, folder: Path, kept: bool = True, says: ASGIApp = model) -> None:
        self.model = says
        self.clock, self.folder = Clock(), folder / "feedback"
        routes: tuple[Route, ...] = ("chat", "completions", "models", "feedback")
        self.keys = {name: new_key(folder / "keys.toml", name, routes=routes) for name in ("first", "second")}
        self.keys["asks"] = new_key(folder / "keys.toml", "asks")
        self.keyring, self.config = Filed(folder / "keys.toml"), FeedbackConfig(folder=str(self.folder), conversations=kept)
        self.start()

    def start(self) -> None:
        self.books = Books()
        self.desk = FeedbackDesk(self.config, self.books.metrics, self.clock)
        front = Front(RequestAdmission(self.keyring), self.books, self.desk)
        self.app = chat_service(self.model, lambda: ("m",), front)
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://service")

    async def post(self, path: str, body: dict[str, Any], key: str = "first") -> httpx.Response:
        return await self._client.post(path, json=body, headers={"authorization": f"Bearer {self.keys[key]}"})

    async def ask(self, key: str = "first", **fields: Any) -> str:
        """The id of an answer."""
        answer = await self.post(CHAT, {"model": "m", "messages": QUESTION, **fields}, key)
        assert answer.status_code == 200, answer.text
        first = answer.text.removeprefix("data: ").partition("\n\n")[0] if fields.get("stream") else answer.text
        return str(json.loads(first)["id"])

    async def say(self, id: str, key: str = "first", **said: Any) -> httpx.Response:
        return await self.post(FEEDBACK, {"id": id, **said}, key)

    async def delete(self, id: str, key: str = "first") -> httpx.Response:
        return await self._client.delete(f"{FEEDBACK}/{id}", headers={"authorization": f"Bearer {self.keys[key]}"})

    def stored(self) -> list[FeedbackRow]:
        return list(open_store(self.folder, self.clock).feedback())

    def everything(self) -> str:
        """All that lies on the disk, the keys aside."""
        return "\n".join(file.read_text() for file in sorted(self.folder.rglob("*.jsonl")))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    made.desk.close()


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path, kept=False)
    yield made
    made.desk.close()


# ---------------------------------------------------------------------------------------------------------------- who, and what


@pytest.mark.parametrize("stream", [False, True])
async def test_feedback_is_kept_with_the_conversation_and_where_it_came_from(service: Service, stream: bool) -> None:
    id = await service.ask(stream=stream, n=2)
    given = await service.say(id, choice=1, rating="down", correction="It is not.", verdicts={"right": False})
    assert (given.status_code, given.json()) == (200, {"id": id, "object": "feedback", "conversation": True})
    (row,) = service.stored()
    assert (row.id, row.choice, row.key, row.model, row.source) == (id, 1, "first", "m", "client")
    assert (row.rating, row.correction, row.verdicts) == ("down", "It is not.", {"right": False})
    assert row.asked == Question(messages=QUESTION)
    assert row.answered == Choice(message={"role": "assistant", "content": "no"}, finish_reason="stop")
    page = service.books.metrics.page().decode()
    assert 'burnish_feedback_total{key="first",kind="correction"} 1.0' in page and "burnish_answers_unkept_total{" not in page


async def test_the_official_client_says_it_as_the_page_has_it(service: Service) -> None:
    transport: Any = httpx2.ASGITransport(service.app)
    http = httpx2.AsyncClient(transport=transport)
    client = openai.AsyncOpenAI(base_url="http://service/v1", api_key=service.keys["first"], http_client=http)
    question: Any = QUESTION
    answer = await client.chat.completions.create(model="m", messages=question)
    given: Any = await client.post("/feedback", cast_to=object, body={"id": answer.id, "rating": "down", "correction": "No."})
    assert given == {"id": answer.id, "object": "feedback", "conversation": True}


async def test_only_the_key_that_asked_may_say_how_it_was(service: Service) -> None:
    id = await service.ask()
    forged = id[:-1] + ("0" if id[-1] != "0" else "1")
    for refused in (
        await service.say(id, "second", rating="up"),
        await service.say(forged, rating="up"),
        await service.say("chatcmpl-" + "0" * 48, rating="up"),
        await service.delete(id, "second"),
    ):
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "answer_not_found")
    assert (await service.say(id, "asks", rating="up")).status_code == 403
    assert service.stored() == []
    assert (await service.say(id, rating="up")).status_code == 200


async def test_feedback_on_one_answer_does_not_fill_the_folder(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "MOST_GIVEN", 2)
    id, other = await service.ask(), await service.ask()
    assert [(await service.say(id, rating=rating)).status_code for rating in ("up", "down", "up")] == [200, 200, 409]
    refused = (await service.say(id, rating="up")).json()["error"]
    assert (refused["code"], refused["param"]) == ("feedback_exists", "id") and "given on this answer 2 times" in refused["message"]
    assert (await service.say(other, "first", rating="up")).status_code == 200
    assert (await service.delete(id)).status_code == 200
    assert [row.id for row in service.stored()] == [other] and (await service.say(id, rating="up")).status_code == 200


async def test_without_consent_nothing_of_what_was_said_is_on_the_disk(forgetful: Service) -> None:
    id = await forgetful.ask()
    given = await forgetful.say(id, rating="down")
    assert (given.status_code, given.json()["conversation"]) == (200, False)
    (row,) = forgetful.stored()
    assert (row.rating, row.model, row.asked, row.answered) == ("down", "m", None, None)
    assert "part 17" not in forgetful.everything() and "yes" not in forgetful.everything()
    wants = await forgetful.post(CHAT, {"model": "m", "messages": QUESTION, "store": True})
    assert (wants.status_code, wants.json()["error"]["param"]) == (400, "store")


async def test_a_request_that_is_not_to_be_stored_is_not(service: Service) -> None:
    id = await service.ask(store=False)
    given = await service.say(id, rating="down")
    assert (given.status_code, given.json()["conversation"]) == (200, False)
    assert "part 17" not in service.everything()
    assert (await service.say(await service.ask(store=True), rating="down")).json()["conversation"] is True


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "id", "id: is required"),
        ({"id": "x"}, None, "at least one of rating, correction and verdicts"),
        ({"id": "x", "rating": "sideways"}, "rating", "'up' or 'down'"),
        ({"id": "x", "rating": "up", "mood": 1}, "mood", "mood: unknown key"),
        ({"id": "x", "correction": " "}, "correction", "correction: is empty"),
        ({"id": "x", "correction": "a" * 40_000}, "correction", "at most 32768"),
        ({"id": "x", "correction": "\ud800"}, "correction", "holds half a character"),
        ({"id": "x", "verdicts": {"a b": True}}, "verdicts", "a name has at most 64 letters"),
        ({"id": "x", "verdicts": {"right": 1}}, "verdicts", "verdicts.right: must be true or false"),
        ({"id": "x", "verdicts": {str(i): True for i in range(17)}}, "verdicts", "at most 16"),
        ({"id": "x", "rating": [[[[[[]]]]]]}, None, "nested more than 4 levels deep"),
        ({"id": "x", "verdicts": {f"!{i}": 1 for i in range(100)}}, None, "more than 64 values"),
        ({"id": "x", **{f"k{i}": 1 for i in range(100)}}, None, "more than 64 values"),
    ],
)
async def test_feedback_that_is_none_is_refused_by_its_field(service: Service, body: dict[str, Any], param: str | None, says: str) -> None:
    given = await service._client.post(
        FEEDBACK,
        content=json.dumps(body).encode(),
        headers={"authorization": f"Bearer {service.keys['first']}", "content-type": "application/json"},
    )
    error = given.json()["error"]
    assert (given.status_code, error["param"]) == (400, param), error
    assert re.search(says, error["message"]), error


async def test_feedback_is_as_large_as_a_correction_may_be_and_is_read_beside_the_loop(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_in = list[threading.Thread]()

    def read(body: bytes) -> GivenFeedback:
        read_in.append(threading.current_thread())
        return read_feedback(body)

    monkeypatch.setattr(give_feedback, "read_feedback", read)
    headers = {"authorization": f"Bearer {service.keys['first']}", "content-type": "application/json"}
    said = {
        "id": await service.ask(),
        "rating": "down",
        "correction": "\U0001f600" * 32_768,
        "verdicts": {"v" * 60 + str(i): True for i in range(16)},
    }
    longest = json.dumps(said).encode()  # every character as twelve
    given = await service._client.post(FEEDBACK, content=longest, headers=headers)
    assert given.status_code == 200, given.text
    assert threading.main_thread() not in read_in and len(read_in) == 1
    refused = await service._client.post(FEEDBACK, content=longest + b" " * 200_000, headers=headers)
    assert (refused.status_code, refused.json()["error"]["message"]) == (413, "the request is larger than 512 KB")


async def test_other_methods_and_paths_and_choices_are_refused(service: Service) -> None:
    key = {"authorization": f"Bearer {service.keys['first']}"}
    assert (await service._client.get(FEEDBACK, headers=key)).status_code == 405
    assert (await service._client.post(f"{FEEDBACK}/chatcmpl-1", headers=key)).status_code == 405
    assert (await service._client.delete(f"{FEEDBACK}/a/b", headers=key)).status_code == 404
    assert (await service._client.post(FEEDBACK, content=b"{}", headers=key)).status_code == 415
    assert (await service._client.post(FEEDBACK, json={})).status_code == 401
    given = await service.say(await service.ask(), choice=1, rating="up")
    assert (given.status_code, given.json()["error"]["param"]) == (400, "choice")


async def test_a_caller_can_have_an_answer_and_all_that_was_said_of_it_deleted(service: Service) -> None:
    id, other = await service.ask(), await service.ask()
    await service.say(id, rating="down")
    await service.say(id, correction="It is not.")
    await service.say(other, rating="up")
    assert (await service.delete(id)).json() == {"id": id, "object": "feedback.deleted", "deleted": True}
    assert [row.id for row in service.stored()] == [other]
    assert id not in service.everything()
    assert (await service.delete(id)).json()["deleted"] is False
    assert (await service.say(id, rating="up")).json()["conversation"] is False, "it has been let go of"


async def test_a_service_that_starts_anew_knows_its_answers(service: Service) -> None:
    id = await service.ask()
    service.desk.close()
    service.start()
    assert (await service.say(id, rating="up")).json()["conversation"] is True


async def test_what_there_is_no_room_for_is_counted_or_asked_to_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a disk hangs, answers go out as ever."""
    monkeypatch.setattr("burnish.serving.feedback.desk.MOST_JOBS", 1)
    hung, goes_on = threading.Event(), threading.Event()
    wait = FeedbackStore.wait

    def hang(store: FeedbackStore, row: AnswerRow) -> None:
        hung.set()
        assert goes_on.wait(120)
        wait(store, row)

    monkeypatch.setattr(FeedbackStore, "wait", hang)
    service = Service(tmp_path)
    first = await service.ask()
    assert hung.wait(120)
    second, third = await service.ask(), await service.ask()
    given = await service.say(first, rating="up")
    assert (given.status_code, given.json()["error"]["code"], "retry-after" in given.headers) == (503, "overloaded", True)
    assert 'burnish_answers_unkept_total{reason="full"} 1.0' in service.books.metrics.page().decode()
    goes_on.set()
    service.desk.close()
    assert first in service.everything() and second in service.everything() and third not in service.everything()


async def test_what_waits_to_be_written_is_bounded_in_bytes_requests_included(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.serving.feedback.desk.MOST_BYTES", 2_000)
    kept, let_go = await service.ask(), await service.ask(user="x" * 2_000)
    assert (await service.say(kept, rating="up")).json()["conversation"] is True
    assert (await service.say(let_go, rating="up")).json()["conversation"] is False
    assert 'burnish_answers_unkept_total{reason="full"} 1.0' in service.books.metrics.page().decode()


async def test_an_answer_that_cannot_be_written_costs_nobody_else_anything(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(store: FeedbackStore, row: AnswerRow) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(FeedbackStore, "wait", full)
        patched.setattr(FeedbackStore, "add", full)
        id = await service.ask()
        given = await service.say(id, rating="up")
        assert (given.status_code, given.json()["error"]["code"]) == (503, "feedback_unavailable")
    assert 'burnish_answers_unkept_total{reason="failed"} 1.0' in service.books.metrics.page().decode()
    assert (await service.say(await service.ask(), rating="up")).json()["conversation"] is True


# ---------------------------------------------------------------------------------------------------------------- ids and the disk


@given(st.text(max_size=20), st.text(max_size=20), st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_an_id_is_known_to_who_made_it_for_whom_it_was_made(key: str, other: str, secret: bytes, another: bytes) -> None:
    ids = AnswerIds(secret, lambda: 1_000_000.7)
    id = ids.new("chatcmpl", key)
    assert ids.made_at(id, key) == 1_000_000
    assert (ids.made_at(id, other) is None) == (key != other)
    assert (AnswerIds(another).made_at(id, key) is None) == (secret != another)
    assert ids.made_at(id + "0", key) is None and ids.made_at("", key) is None
    again = [f"{prefix}-{id.partition('-')[2]}" for prefix in ("cmpl", "zz", "chatcmp", "chatcmplx")]
    assert [ids.made_at(one, key) for one in again] == [None] * 4, "feedback is counted by the id: an answer has one"


def test_nothing_is_kept_for_longer_than_said_and_little_goes_sooner(tmp_path: Path) -> None:
    clock = Clock()
    rows, began = Segments(tmp_path, kept_s=16 * HOUR_S, most_bytes=2**20, clock=clock), clock.now
    for hour in range(40):
        clock.now = began + hour * HOUR_S
        rows.append({"id": f"{hour}"})
        kept = [int(row["id"]) for row in rows.rows()]
        assert kept == list(range(kept[0], hour + 1)) and hour - 15 <= kept[0] <= max(0, hour - 14), "a sixteenth of the time sooner"
    clock.now += 16 * HOUR_S
    assert list(rows.rows()) == [] and rows.find("39", 0) is None
    rows.prune()
    assert list(tmp_path.glob("*.jsonl")) == []


def test_the_folder_stays_as_small_as_said_and_the_oldest_goes_first(tmp_path: Path) -> None:
    rows = Segments(tmp_path, kept_s=DAY_S, most_bytes=16_000, clock=Clock())
    for i in range(500):
        rows.append({"id": f"{i:03}", "text": "x" * 76})
        assert sum(file.stat().st_size for file in tmp_path.glob("*.jsonl")) <= 16_000
    kept = [row["id"] for row in rows.rows()]
    assert kept == [f"{i:03}" for i in range(500 - len(kept), 500)], "the latest, in order"
    assert len(kept) * 100 >= 16_000 * (1 - 3 / PARTS), "each row has 100 bytes"
    assert rows.find("499", 0) == {"id": "499", "text": "x" * 76}
    assert rows.remove({"498", "000"}) == 1 and rows.find("498", 0) is None


def test_a_store_is_its_owners_and_no_other_folder_is_taken_for_one(tmp_path: Path) -> None:
    store = make_store(FeedbackConfig(folder=str(tmp_path / "a")))
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in (store.folder, store.folder / "waiting", store.folder / "given"))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("")
    for folder in (tmp_path / "thesis", tmp_path / "none"):
        with pytest.raises(ValueError, match="is no feedback store"):
            open_store(folder)
    with pytest.raises(ValueError, match="is no feedback store"):
        make_store(FeedbackConfig(folder=str(tmp_path / "thesis")))
    (tmp_path / "a" / "store.json").write_text('{"format": "burnish-feedback", "version": 2}')
    with pytest.raises(ValueError, match="has version 2; this burnish reads version 1"):
        open_store(tmp_path / "a")


# ---------------------------------------------------------------------------------------------------------------- data


def row(id: str, asked: str = "Where is order 1?", answered: str = "no idea", **said: Any) -> FeedbackRow:
    """Feedback on an answer to a question."""
    prompt = Question(messages=[{"role": "user", "content": asked}])
    answer = Choice(message={"role": "assistant", "content": answered}, finish_reason="stop")
    return FeedbackRow(
        time="2026-01-01T00:00:00.000+00:00", id=id, key="first", model="m", served_by="m:v1", asked=prompt, answered=answer, **said
    )


def test_a_correction_is_imitated_preferred_and_a_task() -> None:
    given = [row("a", correction="Order 1 is shipped.", rating="down")]
    (sft,), (pair,), (task,) = (export(given, form).rows for form in ("sft", "preference", "rft"))
    notes = {"key": "first", "model": "m", "served_by": "m:v1", "time": "2026-01-01T00:00:00.000+00:00"}
    question, better = {"role": "user", "content": "Where is order 1?"}, {"role": "assistant", "content": "Order 1 is shipped."}
    assert sft == {"messages": [question, better], "id": "a/0", "metadata": notes}
    worse = {"role": "assistant", "content": "no idea"}
    assert pair == {"prompt": [question], "chosen": [better], "rejected": [worse], "id": "a/0", "metadata": notes}
    why = {"rating": "down", "failed": [], **notes}
    assert task == {"id": "a/0", "messages": [question], "feedback": why, "reference_answer": "Order 1 is shipped."}


def test_two_answers_to_one_prompt_of_which_one_was_liked_are_a_pair() -> None:
    given = [
        row("a", answered="bad", rating="down"),
        row("b", answered="good", rating="up"),
        row("c", answered="worse", rating="down"),
        row("d", asked="Where is order 2?", answered="good", rating="up"),
        row("e", asked="Where is order 3?", rating="down"),
        row("e", asked="Where is order 3?", rating="up"),
        row("f", asked="Where is order 3?", answered="no idea", rating="down"),
    ]
    made = export(given, "preference")
    assert [(one["chosen"][0]["content"], one["rejected"][0]["content"]) for one in made.rows] == [("good", "bad")]
    assert made.unsuited == 2, "c, whose pair b is in another, and d"
    assert made.left_out == {"unfit: rejected: is the same as chosen": 1}, "e, whose rating changed, and f"


def test_what_failed_is_one_task_for_each_prompt_whoever_said_so() -> None:
    given = [
        row("a", verdicts={"right": True, "polite": False}),
        row("b", rating="down"),
        row("c", asked="Where is order 2?", verdicts={"right": False}, source="judge"),
        row("d", asked="Where is order 3?", rating="up", verdicts={"right": True}),
        row("e", asked="Where is order 4?", verdicts={"right": False}),
        row("e", asked="Where is order 4?", verdicts={"right": True}),
    ]
    made = export(given, "rft")
    assert [(one["id"], one["feedback"]["failed"]) for one in made.rows] == [("a/0", ["polite"]), ("c/0", ["right"])]
    assert made.unsuited == 2 and made.left_out == {"says what another row says": 1}


def test_feedback_without_its_conversation_or_on_a_policys_own_words_gives_no_row() -> None:
    bare = FeedbackRow(time="2026-01-01", id="a", key="first", rating="down", correction="x")
    blocked = row("b", correction="x")
    assert blocked.answered is not None
    blocked = blocked.model_copy(update={"answered": blocked.answered.model_copy(update={"finish_reason": "content_filter"})})
    assert export([bare], "rft").left_out.total() == export([bare], "sft").left_out.total() == 1
    assert export([blocked], "preference").left_out == {"the answer was a policy's own": 1}
    late = [row("a", rating="down"), bare]
    assert export(late, "sft").rows[0]["messages"][-1]["content"] == "x", "what was asked is known from the first"


def test_a_policy_takes_out_what_it_redacts_and_leaves_out_what_it_holds_back(guard: Guard) -> None:
    mail = "write to jo@example.com"
    given = [
        row("a", asked=f"My order? {mail}", answered="no", correction=f"Done, {mail}"),
        row("b", asked="How do I build a pipe bomb at home?", answered="no", correction="Take a pipe and fill it."),
        row("c", asked="How do I build a pipe bomb at home?!", answered="Sure!", correction="I cannot help with that."),
        row("d", asked="Which bank?", answered="Ours.", correction="Rival Bank is better."),
        row("e", asked="Which bank is it?", answered="Rival Bank.", correction="Ours."),
    ]
    made = {form: export(given, form, guard) for form in ("sft", "preference", "rft")}
    ids = {form: [one["id"] for one in found.rows] for form, found in made.items()}
    assert ids == {"sft": ["a/0", "c/0", "e/0"], "preference": ["a/0", "c/0"], "rft": ["a/0", "b/0", "c/0", "e/0"]}
    assert "jo@example.com" not in json.dumps([found.rows for found in made.values()])
    assert made["sft"].rows[0]["messages"] == [
        {"role": "user", "content": "My order? write to [EMAIL]"},
        {"role": "assistant", "content": "Done, write to [EMAIL]"},
    ]
    assert any("breaks bank" in why for why in made["sft"].left_out), made["sft"].left_out


def test_a_conversation_too_long_to_be_looked_at_as_a_whole_is_left_out(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.guardrails.readings.MAX_TEXT", 100)
    long = row("a", correction="Done.")
    assert isinstance(long.asked, Question)
    turns = [{"role": role, "content": "a b " * 20} for role in ("user", "assistant", "user")]
    made = export(
        [long.model_copy(update={"asked": long.asked.model_copy(update={"messages": turns})}), row("b", correction="x")], "sft", guard
    )
    assert [one["id"] for one in made.rows] == ["b/0"] and "too long to be looked at" in str(made.left_out)


@pytest.fixture(scope="module")
def policy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    texts = [f"order {i} of {i % 7} gaskets: shipped, thank you" for i in range(200)]
    new_model(texts, folder, ModelSize(hidden=32, layers=1, heads=1, intermediate=48, vocab_size=320, max_position=512))
    return folder


RECIPE = """
name = "from-production"
model = "{model}"
environment = "burnish/SingleTurn-v0"
environment_weight = 0.0
success = "openai-grader"
tasks = {{ train = "{folder}/rft.jsonl", held_out = "{folder}/held_out.jsonl" }}
engine = {{ max_context = 300 }}
[sft]
steps = 2
batch = 2
data = "{folder}/sft.jsonl"
[dpo]
steps = 1
batch = 2
data = "{folder}/preference.jsonl"
[rft]
steps = 1
groups_per_step = 2
[[rewards]]
use = "burnish/openai-grader-v1"
[rewards.args.grader]
type = "string_check"
name = "as corrected"
operation = "eq"
input = "{{{{sample.output_text}}}}"
reference = "{{{{item.reference_answer}}}}"
"""


def test_one_command_makes_what_the_phases_read_as_it_is(tmp_path: Path, policy_model: Path) -> None:
    store = make_store(FeedbackConfig(folder=str(tmp_path / "store"), conversations=True))
    for i in range(4):
        store.add(row(f"answer-{i}", asked=f"Where is order {i}?", correction=f"Order {i} is shipped.", rating="down"))
    store.add(row("mail", asked="I am jo@example.com", correction="Thank you.", rating="down"))
    (tmp_path / "bank.toml").write_text(TOML)
    for form in ("sft", "preference", "rft"):
        out = str(tmp_path / f"{form}.jsonl")
        done = run("feedback", "export", str(store.folder), "--as", form, "--out", out, "--policy", str(tmp_path / "bank.toml"))
        assert done.exit_code == 0 and done.stdout.startswith(f"{out}: 5 rows\n"), done.output
        assert "jo@example.com" not in Path(out).read_text()
        checked = run("data", "check", out, "--policy", str(tmp_path / "bank.toml"))
        assert checked.exit_code == 0, checked.output
    making = Making(policy_model, 300, {})
    table = SFTConfig(steps=2, batch=2, data=str(tmp_path / "sft.jsonl"))
    (facts,) = survey(table.supervised_rows, making)
    (pairs,) = survey_pairs(DPOConfig(steps=1, data=str(tmp_path / "preference.jsonl")), making)
    tasks = read_task_rows(str(tmp_path / "rft.jsonl"))
    assert (facts.rows, facts.rejected, pairs.pairs, pairs.rejected, len(tasks)) == (5, 0, 5, 0, 5)
    assert tasks[0].data["reference_answer"] == "Order 0 is shipped."
    (tmp_path / "recipe.toml").write_text(RECIPE.format(model=policy_model, folder=tmp_path))
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"messages": QUESTION, "reference_answer": "yes"}) + "\n")
    dry = run("run", str(tmp_path / "recipe.toml"), "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert all(phase in dry.stdout for phase in ("sft", "dpo", "rft")) and not (tmp_path / "runs").exists()


def test_the_commands_show_choose_and_delete(tmp_path: Path) -> None:
    store = make_store(FeedbackConfig(folder=str(tmp_path / "store"), conversations=True))
    store.add(row("a", rating="up"))
    store.add(row("b", correction="x").model_copy(update={"key": "second", "served_by": "m:v2", "time": "2026-02-01T00:00:00+00:00"}))
    shown = run("feedback", "show", str(store.folder)).stdout.splitlines()
    assert [line.split() for line in shown[1:]] == [["m:v1", "1", "1", "0", "0", "0", "1"], ["m:v2", "1", "0", "0", "1", "0", "1"]]
    rows_of = json.loads(run("feedback", "show", str(store.folder), "--json").stdout)
    assert [(one["version"], one["up"], one["down"], one["corrected"]) for one in rows_of] == [("m:v1", 1, 0, 0), ("m:v2", 0, 0, 1)]
    made = run("feedback", "export", str(store.folder), "--as", "sft", "--out", str(tmp_path / "told.jsonl"), "--json").stdout
    assert json.loads(made) == {"file": str(tmp_path / "told.jsonl"), "rows": 1, "unsuited": 1, "left_out": {}}
    for i, (chosen, rows) in enumerate(
        {"--key=first": 0, "--key=second": 1, "--model=m:v2": 1, "--model=m": 1, "--since=2026-02-02": 0}.items()
    ):
        out = str(tmp_path / f"{i}.jsonl")
        done = run("feedback", "export", str(store.folder), "--as", "sft", "--out", out, chosen)
        assert done.stdout.startswith(f"{out}: {rows} rows"), done.output
    assert run("feedback", "export", str(store.folder), "--as", "sft", "--out", str(tmp_path / "0.jsonl")).exit_code == 2, (
        "never over another"
    )
    gone = run("feedback", "delete", str(store.folder), "a", "never")
    assert (gone.exit_code, gone.stdout) == (1, "a: 1 rows deleted\nnever: 0 rows deleted\n")
    assert [one.id for one in store.feedback()] == ["b"]
    assert json.loads(run("feedback", "delete", str(store.folder), "b", "--json").stdout) == {"deleted": {"b": 1}}
