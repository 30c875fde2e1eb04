"""Keys: the file, the commands that write it, limits, and what a service says to those whom it lets in and those whom it does not."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.serving.admission import MINUTE_S, KeyHolder, Refused, RequestAdmission, Window
from burnish.serving.app import chat_service
from burnish.serving.audit import Audit, Books
from burnish.serving.config import ServingConfig, serving_options
from burnish.serving.counting import CountedChatApp
from burnish.serving.front import Front
from burnish.serving.key_files import new_key, read_expiry, revoke
from burnish.serving.keys import Filed, Key, Listed, holder, listed_keys, read_keys, sha256_of
from burnish.serving.rules import Rules, front_of
from burnish.serving.spending import Spending

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
CHAT = "/v1/chat/completions"
SECRET = "my grandmother's recipe"


# ---------------------------------------------------------------------------------------------------------------- the file


def test_a_new_key_is_256_random_bits_and_the_file_has_its_digest_only(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    first, second = new_key(file, "first"), new_key(file, "second", models=('a "quoted" name',), parallel=2, expires=NOW)
    assert first.startswith("bk-") and len(first) == 3 + 43 and first != second, "43 characters of base64 are 256 bits and a little"
    text = file.read_text()
    assert first not in text and second not in text
    keys = read_keys(file)
    assert keys["first"].sha256 == hashlib.sha256(first.encode()).hexdigest()
    assert (keys["second"].models, keys["second"].parallel, keys["second"].expires) == (('a "quoted" name',), 2, NOW)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == [".keys.toml.lock", "keys.toml"]


def test_what_a_person_wrote_stays_and_a_revoked_key_keeps_its_table(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    new_key(file, "one")
    file.write_text("# ask Jo before you raise a limit\n" + file.read_text() + "parallel = 3  # enough\n")
    new_key(file, "two")
    revoke(file, "one")
    text = file.read_text()
    assert "# ask Jo before you raise a limit\n" in text and "parallel = 3  # enough\n" in text
    keys = read_keys(file)
    assert (keys["one"].ended(datetime.now(UTC)), keys["one"].parallel, keys["two"].ended(datetime.now(UTC))) == ("revoked", 3, "")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda file: new_key(file, "one"), "has a key 'one' already; give the new one another name"),
        (lambda file: new_key(file, "A B"), "the name 'A B' must be lower-case"),
        (lambda file: new_key(file, "two", routes=("chats",)), "routes.0"),
        (lambda file: new_key(file, "two", models=("\x7f",)), "cannot be added to safely|not TOML|Illegal"),
        (lambda file: revoke(file, "onee"), "has no key 'onee'; did you mean 'one'"),
        (lambda file: [revoke(file, name) for name in ("one", "one")], "was revoked before"),  # type: ignore[func-returns-value]
    ],
)
def test_what_cannot_be_written_leaves_a_file_that_can_be_read(tmp_path: Path, change: Callable[[Path], Any], says: str) -> None:
    file = tmp_path / "keys.toml"
    new_key(file, "one")
    with pytest.raises(ValueError, match=says):
        change(file)
    assert list(read_keys(file)) == ["one"]


def test_a_table_that_is_written_otherwise_is_left_to_a_person(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'keys.one = {{ sha256 = "{"a" * 64}" }}\n')
    before = file.read_text()
    with pytest.raises(ValueError, match=r"cannot be changed safely; write `revoked = .*` into \[keys.one\] yourself"):
        revoke(file, "one")
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f'[keys.a]\nsha256 = "{"a" * 64}"\nparalel = 2', "keys.a.paralel"),
        ('[keys.a]\nsha256 = "short"', "keys.a.sha256"),
        (f'[keys.a]\nsha256 = "{"a" * 64}"\nparallel = 0', "keys.a.parallel"),
        (f'[keys.a]\nsha256 = "{"a" * 64}"\nexpires = 2027-01-01T00:00:00', "keys.a.expires.*timezone"),
        (f'[keys.a]\nsha256 = "{"a" * 64}"\n[keys.b]\nsha256 = "{"a" * 64}"', "another name has the same key"),
        ("[keys", "not TOML"),
        ("a = " + "[" * 5000, "not TOML"),
    ],
)
def test_a_file_that_is_none_is_said_so_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "keys.toml").write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        read_keys(tmp_path / "keys.toml")
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"keys file {tmp_path / 'keys.toml'}")


def test_when_a_key_expires_is_read_as_people_write_it() -> None:
    assert read_expiry("90d", NOW) == NOW + timedelta(days=90)
    assert read_expiry("12h", NOW) == NOW + timedelta(hours=12)
    assert read_expiry("2027-01-01", NOW) == datetime(2027, 1, 1, tzinfo=UTC)
    assert read_expiry("2027-01-01T12:00:00+02:00", NOW) == datetime(2027, 1, 1, 10, tzinfo=UTC)
    for text, says in (
        ("soon", "no time to expire at"),
        ("2025-01-01", "lets nobody in"),
        ("0d", "lets nobody in"),
        ("999999w", "no time"),
    ):
        with pytest.raises(ValueError, match=says):
            read_expiry(text, NOW)


def test_the_commands(tmp_path: Path) -> None:
    file, run = str(tmp_path / "keys.toml"), CliRunner().invoke
    made = run(app, ["keys", "new", file, "team", "--model", "m", "--route", "chat", "--parallel", "2", "--expires", "30d"])
    assert made.exit_code == 0 and read_keys(Path(file))["team"].sha256 == sha256_of(made.stdout.strip().encode())
    Spending(Path(file)).add(read_keys(Path(file))["team"].sha256, 42)
    (row,) = json.loads(run(app, ["keys", "list", file, "--json"]).stdout)
    assert (row["name"], row["state"], row["models"], row["parallel"], row["spent_tokens"]) == ("team", "valid", ["m"], 2, 42)
    assert "sha256" not in row
    assert run(app, ["keys", "revoke", file, "team"]).stdout == "team lets nobody in any more\n"
    assert "revoked" in run(app, ["keys", "list", file]).stdout


# ---------------------------------------------------------------------------------------------------------------- limits


@given(st.integers(1, 5), st.lists(st.tuples(st.floats(0, 40), st.integers(1, 3)), max_size=40))
def test_no_60_seconds_hold_more_than_the_limit_and_nobody_waits_longer_than_told(limit: int, steps: list[tuple[float, int]]) -> None:
    window, now, let_in = Window(), 0.0, list[tuple[float, int]]()
    for passed, amount in steps:
        now += passed
        wait = window.wait_s(now, limit)
        before = sum(n for at, n in let_in if now - MINUTE_S < at)
        assert (wait == 0) == (before < limit), "let in exactly while there is something left"
        if wait > 0:
            assert wait < 1e-3 or window.wait_s(now + wait / 2, limit) > 0, "not before it was told"
            now += wait + 1e-6
            assert window.wait_s(now, limit) == 0, "then at once"
        window.add(now, amount)
        let_in.append((now, amount))
    for i, (at, _) in enumerate(let_in):
        assert sum(n for before, n in let_in[:i] if at - MINUTE_S < before) < limit


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def admission(tmp_path: Path, clock: Clock, **said: Any) -> tuple[RequestAdmission, KeyHolder]:
    file = tmp_path / "keys.toml"
    new_key(file, "team", **said)
    made = RequestAdmission(Filed(file), spent=Spending(file), clock=clock)
    return made, KeyHolder("team", read_keys(file)["team"])


def refusal(made: RequestAdmission, caller: KeyHolder) -> Refused:
    with pytest.raises(Refused) as caught, made.visit(caller, "chat"):
        raise AssertionError("it was let in")
    return caught.value


def test_requests_and_tokens_a_minute(tmp_path: Path) -> None:
    clock = Clock()
    made, caller = admission(tmp_path, clock, requests_per_minute=2, tokens_per_minute=100)
    with made.visit(caller, "chat") as visit:
        visit.tokens = 99
    clock.now += 10
    with made.visit(caller, "chat") as visit:
        visit.tokens = 1
    refused = refusal(made, caller)
    assert (refused.status, refused.reason, refused.again_s, refused.code) == (429, "requests", 50.0, "rate_limit_exceeded")
    clock.now += 50  # the first request is out of the window, and its 99 tokens
    with made.visit(caller, "chat") as visit:
        visit.tokens = 120  # nobody knows before: what is under way may go over
    clock.now += 20
    assert (refusal(made, caller).reason, refusal(made, caller).again_s) == ("tokens", 40.0)
    with made.visit(caller, "models"):
        """What no model works for is not limited."""


def test_answers_at_a_time_are_given_back_whatever_becomes_of_them(tmp_path: Path) -> None:
    made, caller = admission(tmp_path, Clock(), parallel=3)
    with ExitStack() as stack:
        stack.enter_context(made.visit(caller, "chat")).take(2)
        with pytest.raises(Refused) as caught, made.visit(caller, "chat") as visit:
            visit.take(2)
        assert (caught.value.status, caught.value.reason) == (429, "parallel")
        with pytest.raises(Refused, match="may have 3 answers written at a time, not 4") as never, made.visit(caller, "chat") as visit:
            visit.take(4)
        assert never.value.status == 400, "it would be refused for ever"
        with pytest.raises(RuntimeError), made.visit(caller, "chat"):
            raise RuntimeError("the model died")
        with made.visit(caller, "chat"):
            assert refusal(made, caller).reason == "parallel"
    with made.visit(caller, "chat") as visit:
        visit.take(3)


def test_a_budget_outlasts_the_service_and_a_new_key_has_its_own(tmp_path: Path) -> None:
    made, caller = admission(tmp_path, Clock(), budget_tokens=10)
    for tokens in (4, 6):
        with made.visit(caller, "chat") as visit:
            visit.tokens = tokens
    again = RequestAdmission(Filed(tmp_path / "keys.toml"), spent=Spending(tmp_path / "keys.toml"))
    for one in (made, again):
        with pytest.raises(Refused) as caught:
            asyncio.run(one.check_budget(caller, "chat"))
        refused = caught.value
        assert (refused.status, refused.code, refused.again_s) == (429, "insufficient_quota", None)
    new_key(tmp_path / "keys.toml", "other", budget_tokens=10)
    asyncio.run(again.check_budget(KeyHolder("other", read_keys(tmp_path / "keys.toml")["other"]), "chat"))  # it has spent nothing
    asyncio.run(made.check_budget(caller, "models"))


async def test_a_database_that_another_service_writes_to_holds_up_nobody_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = Service(tmp_path, budget_tokens=100)
    free = new_key(service.file, "free")
    spending, key = service.admission._spent, read_keys(service.file)["team"]
    assert spending is not None
    spending._database.execute("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(service.file.with_name("keys.toml.spent"), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert (await service.ask(free)).status_code == 200 and (await service.ask()).status_code == 200
    assert await spending.spent(key) == 9, "it counts before it is written"
    assert "spent tokens cannot be written now, and are kept: database is locked" in caplog.text
    other.execute("COMMIT")
    spending.note(key, 1)
    assert await spending.spent(key) == 10 == await asyncio.to_thread(Spending(service.file).of, key)
    spending.close()
    other.close()


async def test_a_budget_that_nobody_can_read_lets_nobody_in_for_now(tmp_path: Path) -> None:
    service = Service(tmp_path, budget_tokens=100)
    assert service.admission._spent is not None
    service.admission._spent._database.execute("DROP TABLE spent")
    assert error(await service.ask()) == (503, "server_error", "keys_unreadable")


async def test_the_database_is_never_asked_on_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service, asked = Service(tmp_path, budget_tokens=100), list[str]()

    def told(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            asked.append(threading.current_thread().name)
            return plain(*given)

        return call

    for name in ("of", "add"):
        monkeypatch.setattr(Spending, name, told(getattr(Spending, name)))
    assert (await service.ask()).status_code == 200 and (await service.ask()).status_code == 200
    assert len(asked) >= 3 and all(name.startswith("burnish-spending") for name in asked)


def test_what_is_under_way_is_bounded_whoever_asks() -> None:
    made = RequestAdmission(most=2)
    with made.visit(KeyHolder(), "chat"), made.visit(KeyHolder(), "guardrail"):
        refused = refusal(made, KeyHolder())
        assert (refused.status, refused.reason, refused.again_s) == (503, "full", 1.0)
        with made.visit(KeyHolder(), "metrics"):
            """Whoever watches is let in."""
    with made.visit(KeyHolder(), "chat"):
        """There is room again."""


def test_only_one_header_with_a_key_in_it_lets_in() -> None:
    keys = {"a": Key(sha256=sha256_of(b"secret")), "b": Key(sha256=sha256_of(b"other"))}
    assert holder(keys, [b"Bearer secret"]) == "a"
    assert holder(keys, [b"bearer  other "]) == "b"
    for values in ([], [b""], [b"secret"], [b"Basic secret"], [b"Bearer"], [b"Bearer secre"], [b"Bearer secret", b"Bearer secret"]):
        assert holder(keys, values) is None
    long = b"x" * 600
    for odd in (long, b""):
        assert holder({"a": Key(sha256=sha256_of(odd))}, [b"Bearer " + odd]) is None


# ---------------------------------------------------------------------------------------------------------------- the service


class Model:
    """Answers with `words` of one token each, a prompt of 7; in streams as vLLM does, when told to go on after each."""

    def __init__(self, *words: str) -> None:
        self.words, self.asked, self.go_on = words or ("Yes", "."), list[dict[str, Any]](), asyncio.Event()
        self.go_on.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/health":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body"})
            return
        request = json.loads((await receive())["body"])
        self.asked.append(request)
        await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
        if not request.get("stream"):
            choices = [{"index": i, "message": {"content": " ".join(self.words)}} for i in range(request.get("n") or 1)]
            body = json.dumps({"id": "own", "choices": choices, "usage": self._usage(len(self.words) * len(choices))}).encode()
            await send({"type": "http.response.body", "body": body})
            return
        asked = request.get("stream_options") or {}
        for count, word in enumerate(self.words, 1):
            row = {"id": "own", "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
            await self._event(send, row | ({"usage": self._usage(count)} if asked.get("continuous_usage_stats") else {}))
        if asked.get("include_usage"):
            await self._event(send, {"id": "own", "choices": [], "usage": self._usage(len(self.words))})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    def _usage(self, written: int) -> dict[str, int]:
        return {"prompt_tokens": 7, "completion_tokens": written, "total_tokens": 7 + written}

    async def _event(self, send: Send, row: dict[str, Any]) -> None:
        await send({"type": "http.response.body", "body": b"data: " + json.dumps(row).encode() + b"\n\n", "more_body": True})
        await asyncio.sleep(0)


class Service:
    """A service with the keys of a file, an audit log, and two models of one name each."""

    def __init__(self, folder: Path, *words: str, **said: Any) -> None:
        self.file, self.log = folder / "keys.toml", folder / "audit.jsonl"
        self.key = new_key(self.file, "team", **said)
        self.model, self.clock = Model(*words), Clock()
        keys = Filed(self.file)
        self.admission = RequestAdmission(keys, 4, Spending(self.file), self.clock)
        self.books = Books(Audit(self.log))
        self.app = chat_service(self.model, lambda: ("m", "other"), Front(self.admission, self.books), body_s=0.2)

    def client(self, key: str | None = None) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self.key if key is None else key}", "content-type": "application/json"}
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://service", headers=headers)

    async def ask(self, key: str | None = None, **fields: Any) -> httpx.Response:
        request = {"model": "m", "messages": [{"role": "user", "content": SECRET}], **fields}
        async with self.client(key) as client:
            return await client.post(CHAT, json=request)

    def lines(self) -> list[dict[str, Any]]:
        text = self.log.read_text()
        assert SECRET not in text and self.key not in text
        return [json.loads(line) for line in text.splitlines()]

    def count(self, name: str, **labels: str) -> float:
        found = self.books.metrics._registry.get_sample_value(f"burnish_{name}", labels)
        return found or 0.0


def error(answer: httpx.Response) -> tuple[int, str, Any]:
    found = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"} and SECRET not in answer.text
    return answer.status_code, found["type"], found["code"]


async def test_an_answer_is_counted_and_logged_under_its_keys_name(tmp_path: Path) -> None:
    service = Service(tmp_path)
    answer = await service.ask()
    assert (answer.status_code, answer.headers["x-own"]) == (200, "1")
    (line,) = service.lines()
    assert (line["request"], line["key"], line["route"], line["model"], line["status"]) == (answer.json()["id"], "team", "chat", "m", 200)
    assert (line["prompt_tokens"], line["completion_tokens"], line["decisions"]) == (7, 2, [])
    assert 0 <= line["first_s"] <= line["seconds"]
    assert service.count("requests_total", key="team", route="chat", model="m", status="200") == 1
    assert service.count("tokens_total", key="team", model="m", kind="prompt") == 7
    assert service.count("tokens_total", key="team", model="m", kind="completion") == 2
    assert service.count("requests_under_way", key="team") == 0
    assert service.admission._spent is not None
    assert await service.admission._spent.spent(read_keys(service.file)["team"]) == 9
    assert Spending(service.file).of(read_keys(service.file)["team"]) == 9, "and it is written"


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        (None, [None, None]),
        ({"include_usage": True}, [None, None, 2]),
        ({"include_usage": True, "continuous_usage_stats": True}, [1, 2, 2]),
        ({"include_usage": False, "continuous_usage_stats": True}, [None, None]),
    ],
)
async def test_a_stream_is_counted_and_its_client_sees_what_it_asked_for(tmp_path: Path, asked: Any, rows: list[int | None]) -> None:
    service = Service(tmp_path)
    answer = await service.ask(stream=True, **({"stream_options": asked} if asked else {}))
    *events, end = [line[6:] for line in answer.text.split("\n\n") if line]
    found = [json.loads(line) for line in events]
    assert end == "[DONE]" and [row["usage"]["completion_tokens"] if "usage" in row else None for row in found] == rows
    (line,) = service.lines()
    assert {row["id"] for row in found} == {line["request"]}
    assert (line["prompt_tokens"], line["completion_tokens"]) == (7, 2)


async def test_a_stream_that_is_broken_off_has_been_counted(tmp_path: Path) -> None:
    service = Service(tmp_path, *"abcdef", tokens_per_minute=10)
    gone, body = asyncio.Event(), json.dumps({"model": "m", "stream": True, "messages": []}).encode()
    sent = list[bytes]()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        if sum(b"data: " in one for one in sent) == 3:
            gone.set()
            await asyncio.sleep(60)

    scope: Scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [(b"authorization", f"Bearer {service.key}".encode())]}
    scope["headers"].append((b"content-type", b"application/json"))
    asking = asyncio.ensure_future(service.app(scope, receive, send))
    await gone.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    (line,) = service.lines()
    assert (line["prompt_tokens"], line["completion_tokens"]) == (7, 3)
    assert error(await service.ask())[0] == 429, "7 + 3 tokens are its 10 a minute"


@pytest.mark.parametrize("tools", [{}, {"tools": [{"type": "function", "function": {"name": "look"}}]}])
async def test_a_client_that_is_gone_before_its_whole_answer_is_no_fault_of_the_service(tmp_path: Path, tools: dict[str, Any]) -> None:
    async def model(scope: Scope, receive: Receive, send: Send) -> None:  # as vLLM answers whoever has hung up
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b"null"})

    service = Service(tmp_path)
    service.app = chat_service(model, lambda: ("m",), Front(service.admission, service.books))
    answer = await service.ask(**tools)
    assert answer.status_code == 499
    (line,) = service.lines()
    assert (line["status"], line["refused"], line["completion_tokens"]) == (499, "gone", 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_broken_off_before_it_goes_out_costs_what_was_written_of_it(tmp_path: Path, stream: bool) -> None:
    async def engine(scope: Scope, receive: Receive, send: Send) -> None:  # as vLLM's: it says what was taken at the end, or never
        (id,) = [value.decode() for name, value in scope["headers"] if name == b"x-request-id"]
        taken.of[id] = (7, 3)
        told.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        taken.of[id] = (7, 5)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b"null" if not stream else b""})

    class Taken:
        def __init__(self) -> None:
            self.of: dict[str, tuple[int, int]] = {}

        def begin(self, id: str) -> None:
            self.of[id] = (0, 0)

        def read(self, id: str) -> tuple[int, int]:
            return self.of[id]

        def forget(self, id: str) -> None:
            del self.of[id]

    taken, told = Taken(), asyncio.Event()
    service = Service(tmp_path, tokens_per_minute=12)
    service.app = chat_service(CountedChatApp(engine, taken), lambda: ("m",), Front(service.admission, service.books))
    waiting = [{"type": "http.request", "body": json.dumps({"model": "m", "messages": [], "stream": stream}).encode()}]

    async def receive() -> dict[str, Any]:
        if waiting:
            return waiting.pop()
        await told.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        assert message["type"].startswith("http."), "what the engine tells the meter goes no further"

    headers = [(b"authorization", f"Bearer {service.key}".encode()), (b"content-type", b"application/json"), (b"X-Request-Id", b"mine")]
    await service.app({"type": "http", "method": "POST", "path": CHAT, "headers": headers}, receive, send)
    (line,) = service.lines()
    assert (line["prompt_tokens"], line["completion_tokens"]) == (7, 5) and taken.of == {}
    assert error(await service.ask())[0] == 429, "7 + 5 tokens are its 12 a minute"


async def test_what_a_request_takes_is_told_while_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is cancelled from afar, by a gateway, has no last word."""
    monkeypatch.setattr("burnish.serving.counting.TOLD_S", 0.001)
    counts, told, seen = [(7, 1), (7, 1), (7, 2)], asyncio.Event(), list[tuple[int, int]]()

    class Taken:
        def begin(self, id: str) -> None: ...

        def read(self, id: str) -> tuple[int, int]:
            return counts.pop(0) if len(counts) > 1 else counts[0]

        def forget(self, id: str) -> None: ...

    async def engine(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        seen.append((message["prompt_tokens"], message["completion_tokens"]))
        if len(seen) == 2:
            told.set()

    app = CountedChatApp(engine, Taken())
    asking = asyncio.ensure_future(app({"type": "http", "path": CHAT, "headers": []}, lambda: asyncio.Event().wait(), send))  # type: ignore[arg-type, return-value]
    await told.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert seen == [(7, 1), (7, 2)]


async def test_who_is_not_known_is_told_401_and_leaves_a_count_and_no_line(tmp_path: Path) -> None:
    service = Service(tmp_path)
    for key in ("", "bk-wrong", service.key[:-1], "x" * 5000):
        answer = await service.ask(key)
        assert error(answer) == (401, "invalid_request_error", "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        async with service.client(key) as client:
            assert (await client.get("/nowhere")).status_code == 401, "nothing is told of what there is"
    assert service.lines() == [] and service.model.asked == []
    assert service.count("refused_total", key="", reason="no_key") == 8


async def test_a_key_that_has_ended_lets_nobody_in_from_the_next_request_on(tmp_path: Path) -> None:
    service = Service(tmp_path)
    assert (await service.ask()).status_code == 200
    revoke(service.file, "team")
    assert error(await service.ask()) == (401, "invalid_request_error", "invalid_api_key")
    late = new_key(service.file, "late", expires=datetime.now(UTC) - timedelta(seconds=1))
    assert "has expired" in (await service.ask(late)).json()["error"]["message"]
    fresh = new_key(service.file, "fresh")
    assert (await service.ask(fresh)).status_code == 200, "a new key needs no restart"
    service.file.write_text("[keys")
    assert error(await service.ask(fresh)) == (503, "server_error", "keys_unreadable"), "nobody knows who is revoked"
    os.remove(service.file)
    assert error(await service.ask(fresh))[0] == 503
    assert service.count("refused_total", key="", reason="keys_unreadable") == 2


async def test_a_key_asks_for_its_models_and_calls_its_routes_only(tmp_path: Path) -> None:
    service = Service(tmp_path, models=("other", "gone"))
    assert error(await service.ask()) == (403, "invalid_request_error", "insufficient_permissions")
    assert error(await service.ask(model="nothing"))[0] == 403, "whether there is such a model is not told"
    assert error(await service.ask(model="gone")) == (404, "invalid_request_error", "model_not_found")
    assert error(await service.ask(model=None))[0] == 400
    assert (await service.ask(model="other")).status_code == 200
    async with service.client() as client:
        assert [row["id"] for row in (await client.get("/v1/models")).json()["data"]] == ["other"]
        assert error(await client.get("/metrics"))[0] == 403
    watch = new_key(service.file, "watch", routes=("metrics",))
    assert error(await service.ask(watch))[0] == 403
    async with service.client(watch) as client:
        page = (await client.get("/metrics")).text
    assert 'burnish_refused_total{key="team",reason="model"} 4.0' in page and 'key="watch"' in page
    assert "nothing" not in page, "labels are no client's words"


async def test_limits_are_429_with_the_time_to_come_again(tmp_path: Path) -> None:
    service = Service(tmp_path, requests_per_minute=2)
    assert [(await service.ask()).status_code for _ in range(2)] == [200, 200]
    service.clock.now += 20.5
    answer = await service.ask()
    assert error(answer) == (429, "requests", "rate_limit_exceeded")
    assert (answer.headers["retry-after"], len(service.model.asked)) == ("40", 2)
    service.clock.now += 40
    assert (await service.ask()).status_code == 200
    assert [line.get("refused") for line in service.lines()] == [None, None, "requests", None]


async def test_a_spent_budget_is_429_and_clients_do_not_try_again(tmp_path: Path) -> None:
    service = Service(tmp_path, budget_tokens=9)
    assert (await service.ask()).status_code == 200
    answer = await service.ask()
    assert error(answer) == (429, "insufficient_quota", "insufficient_quota")
    assert "retry-after" not in answer.headers and answer.headers["x-should-retry"] == "false"


async def test_several_answers_are_as_many_requests_at_a_time(tmp_path: Path) -> None:
    service = Service(tmp_path, parallel=3)
    assert error(await service.ask(n=4)) == (400, "invalid_request_error", 400)
    service.model.go_on.clear()
    first = asyncio.ensure_future(service.ask(n=2))
    while not service.model.asked:
        await asyncio.sleep(0)
    assert error(await service.ask(n=2)) == (429, "requests", "rate_limit_exceeded")
    service.model.go_on.set()
    assert (await first).status_code == 200
    assert service.lines()[-1]["completion_tokens"] == 4
    assert (await service.ask(n=3)).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"), [("n", 0), ("n", 129), ("n", True), ("n", "2"), ("n", 10**30), ("stream", "yes"), ("stream", 1)]
)
async def test_how_many_answers_and_how_is_said_plainly(tmp_path: Path, field: str, value: Any) -> None:
    service = Service(tmp_path)
    answer = await service.ask(**{field: value})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field and service.model.asked == []


async def test_a_flood_is_told_to_come_again_and_the_rest_is_answered(tmp_path: Path) -> None:
    service = Service(tmp_path)  # four at a time
    service.model.go_on.clear()
    asking = [asyncio.ensure_future(service.ask()) for _ in range(40)]
    while sum(one.done() for one in asking) < 36:
        await asyncio.sleep(0.001)
    refused = [one.result() for one in asking if one.done()]
    assert {error(one) for one in refused} == {(503, "server_error", "overloaded")}
    assert {one.headers["retry-after"] for one in refused} == {"1"}
    service.model.go_on.set()
    assert sorted(answer.status_code for answer in await asyncio.gather(*asking)) == [200] * 4 + [503] * 36
    assert service.count("refused_total", key="team", reason="full") == 36
    assert len(service.lines()) == 40


async def test_bodies_that_are_none_are_counted_and_told_so(tmp_path: Path) -> None:
    service = Service(tmp_path)

    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    bodies: list[tuple[Any, int, str]] = [
        (b"{", 400, "invalid"),
        (b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "invalid"),
        (b"[" + b"9" * 10_000 + b"]", 400, "invalid"),
        (b" " * (4 * 2**20 + 1), 413, "too_large"),
        (slowly(), 408, "too_slow"),
        (json.dumps({"model": "m", "messages": [], SECRET * 1000: 1}).encode(), 400, "invalid"),
    ]
    async with service.client() as client:
        for body, status, _ in bodies:
            answer = await client.post(CHAT, content=body)
            assert answer.status_code == status and len(answer.content) < 2000
    assert [line["refused"] for line in service.lines()] == [reason for *_, reason in bodies]
    assert service.model.asked == [] and service.count("requests_under_way", key="team") == 0


async def test_prompts_are_logged_when_that_is_asked_for(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    service = chat_service(Model(), lambda: ("m",), Front(books=Books(Audit(log, prompts=True))))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service), base_url="http://service") as client:
        for text in ("Hello", "\ud800"):
            body = json.dumps({"messages": [{"role": "user", "content": text}]})
            assert (await client.post(CHAT, content=body, headers={"content-type": "application/json"})).status_code == 200, (
                "with one model, nobody need name it"
            )
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert rows[0]["messages"] == [{"role": "user", "content": "Hello"}] and rows[0]["key"] == ""


def test_plain_keys_let_in_everywhere_and_have_no_limits(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-1\nsk-2\n")
    listed = listed_keys("", str(tmp_path / "keys"))
    assert isinstance(listed, Listed) and "sk-1" not in repr(listed)
    made = RequestAdmission(listed)
    caller = made.who([(b"authorization", b"Bearer sk-2")])
    with made.visit(caller, "metrics"):
        assert caller.name == "key-2"


def test_keys_are_given_in_one_way(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="in one way"):
        serving_options(ServingConfig(), keys_file="a", api_key_file="b")
    serving_options(ServingConfig(), host="0.0.0.0", keys_file="a", tls_cert="c", tls_key="k")
    for changes, says in (({"audit_prompts": True}, "without audit_file"), ({"plugins": ("p.py",)}, "without policy")):
        with pytest.raises(ValueError, match=says):
            serving_options(ServingConfig(), **changes)


@pytest.mark.parametrize(
    ("host", "lets"),
    [("localhost:8000", True), ("LOCALHOST", True), ("127.0.0.1:8000", True), ("127.8.9.1", True), ("[::1]:8000", True), ("[::1]", True),
     ("rebound.example:8000", False), ("localhost.rebound.example", False), ("127.0.0.1.rebound.example", False), ("", False),
     ("192.168.1.9", False)],
)  # fmt: skip
def test_without_keys_a_page_that_was_led_here_by_another_name_gets_nothing(host: str, lets: bool) -> None:
    made = RequestAdmission(hosts=())
    if lets:
        assert made.who([(b"Host", host.encode())]).name == ""
    else:
        with pytest.raises(Refused, match="without keys this service is for its own machine") as refused:
            made.who([(b"Host", host.encode())])
        assert (refused.value.status, refused.value.reason) == (403, "host")
    assert made.who([]).name == "", "a browser always says"
    assert RequestAdmission(hosts=("models.example",)).who([(b"host", b"models.example:80")]).name == ""


def test_on_loopback_without_keys_the_host_is_held_to() -> None:
    for options, keys, lets in ((ServingConfig(), None, False), (ServingConfig(), Listed({}), True)):
        admission = front_of(Rules(keys), options, 4).admission
        refused = None
        try:
            admission.who([(b"host", b"rebound.example")])
        except Refused as error:
            refused = error.reason
        assert refused == ("no_key" if lets else "host")
