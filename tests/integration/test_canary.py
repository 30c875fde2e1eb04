"""Canaries over the real gateway: Ray Serve, a judge in a process of its own, and versions that answer by a script."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import cloudpickle
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.serving import fleet
from burnish.serving.canary.rollbacks import rollbacks_file
from burnish.trainer.data.task_files import read_task_rows

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Serve's processes do not find the tests

TEXT = """
[service]
port = 0
audit_file = "{folder}/audit.jsonl"

[service.feedback]
folder = "{folder}/feedback"
conversations = true

[models.worse.versions.v1]
model = "{folder}/9"

[models.worse.versions.v2]
model = "{folder}/3"
judge = {judge}

[models.same.versions.v1]
model = "{folder}/9"

[models.same.versions.v2]
model = "{folder}/9"
judge = {judge}
"""
PLUGIN = """
import os
from burnish import reward

@reward("canary-test/right-v1")
def right(episode):
    if episode.messages[0].text == "die":
        os._exit(1)
    return 1.0 if episode.answer == "right" else 0.0
"""
WAIT_S = 300.0
REQUESTS = 200


class ScriptedReplica:
    """Answers "right" so many times of ten as its model's folder is called, and else "wrong"."""

    def __init__(self, model: str, name: str, config: Any, adapters: Any) -> None:
        self._right, self._asked = int(Path(model).name), 0

    async def answer(self, path: str, body: bytes) -> AsyncIterator[list[dict[str, Any]]]:
        text = "right" if self._asked % 10 < self._right else "wrong"
        self._asked += 1
        message = {"role": "assistant", "content": text}
        answer = {"id": "own", "object": "chat.completion", "created": 1, "model": "m", "usage": {}}
        choice = {"text": f" {text}"} if path.endswith("/v1/completions") else {"message": message}
        said = json.dumps({**answer, "choices": [{"index": 0, **choice, "finish_reason": "stop"}]}).encode()
        yield [{"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}]
        yield [{"type": "http.response.body", "body": said, "more_body": False}]

    async def check_health(self) -> None:
        pass


class Service:
    def __init__(self, folder: Path) -> None:
        self.folder, self.file, self.said = folder, folder / "deployment.toml", list[str]()
        (folder / "right.py").write_text(PLUGIN)
        judge = f'{{ use = "canary-test/right-v1", plugins = ["{folder}/right.py"], outages = 2 }}'
        self.file.write_text(TEXT.format(folder=folder, judge=judge))
        self.handle = fleet.start_deployment(self.file, self.said.append)
        self.client = httpx.Client(base_url=self.handle.url, timeout=120, trust_env=False)

    def ask(self, model: str, text: str) -> None:
        answer = self.client.post("/v1/chat/completions", json={"model": model, "messages": [{"role": "user", "content": text}]})
        assert answer.status_code == 200, answer.text

    def versions(self, model: str) -> list[str]:
        """Which version answered, request by request."""
        rows = [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]
        return [row["version"] for row in rows if row["model"] == model and row["status"] == 200]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fleet, "EngineReplica", ScriptedReplica)
        patched.setattr(fleet, "servable_model", lambda table, policy: Path(table.model))
        made = Service(tmp_path_factory.mktemp("canary"))
        with made.handle, made.client:
            yield made


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.05)


def test_a_planted_regression_is_rolled_back_within_200_requests_and_none_where_there_is_none(service: Service) -> None:
    with ThreadPoolExecutor(4) as pool:
        for model in ("worse", "same"):
            list(pool.map(lambda i, model=model: service.ask(model, f"question {i}"), range(REQUESTS)))
    until(lambda: any(line.startswith("worse:v2 is rolled back: ") for line in service.said), "the rollback")
    until(lambda: len(service.versions("worse")) == len(service.versions("same")) == REQUESTS, "the last line, written after its answer")
    answered = service.versions("worse")
    assert answered[-20:] == ["worse:v1"] * 20, Counter(answered)
    assert 5 <= answered.count("worse:v2") < 100
    assert not any("same:v2 is" in line for line in service.said)
    assert set(service.versions("same")[-50:]) == {"same:v1", "same:v2"}
    (row,) = [json.loads(line) for line in rollbacks_file(service.file).read_text().splitlines()]
    assert (row["version"], row["compared_with"], row["error"]) == ("worse:v2", "worse:v1", 0.05)
    service.ask("worse:v2", "who asks for it by name has it")
    until(lambda: service.versions("worse:v2") == ["worse:v2"], "its line")


def test_what_failed_becomes_tasks(service: Service, tmp_path: Path) -> None:
    out = tmp_path / "tasks.jsonl"
    command = ["feedback", "export", str(service.folder / "feedback"), "--as", "rft", "--out", str(out), "--model", "worse:v2"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    tasks = read_task_rows(str(out))
    (row,) = [json.loads(line) for line in rollbacks_file(service.file).read_text().splitlines()]
    assert len(tasks) >= row["answers_of_each"] - row["passed"] > 0
    assert all(task.messages[0].text.startswith("question ") and task.data["feedback"]["failed"] == ["judge"] for task in tasks)


def test_a_judge_that_dies_is_an_outage_and_no_verdict(service: Service) -> None:
    def outages() -> bool:
        service.ask("same", "die")
        return 'burnish_judged_total{verdict="outage",version="same:v' in service.client.get("/metrics").text

    until(outages, "an outage")
    assert not any("same:v2 is rolled back" in line for line in service.said)
    asked = list(range(20))
    for i in asked:
        service.ask("same", f"question {i}")


def test_an_answer_that_was_disliked_is_data_too(service: Service, tmp_path: Path) -> None:
    body = {"model": "same", "messages": [{"role": "user", "content": "Is it?"}]}
    id = service.client.post("/v1/chat/completions", json=body).json()["id"]
    given = service.client.post("/v1/feedback", json={"id": id, "correction": "It is."})
    assert (given.status_code, given.json()["conversation"]) == (200, True)
    out = tmp_path / "corrections.jsonl"
    done = CliRunner().invoke(app, ["feedback", "export", str(service.folder / "feedback"), "--as", "sft", "--out", str(out)])
    assert done.exit_code == 0, done.output
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert row["messages"] == [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "It is."}]


def test_a_completion_that_was_corrected_is_a_text(service: Service, tmp_path: Path) -> None:
    id = service.client.post("/v1/completions", json={"model": "same", "prompt": "Is it?"}).json()["id"]
    given = service.client.post("/v1/feedback", json={"id": id, "rating": "down", "correction": " It is."})
    assert (given.status_code, given.json()["conversation"]) == (200, True)
    out = tmp_path / "texts.jsonl"
    done = CliRunner().invoke(app, ["feedback", "export", str(service.folder / "feedback"), "--as", "document", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == ["Is it? It is."]
