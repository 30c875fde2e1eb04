"""A package under `burnish deploy`: Ray Serve, the gateway and its policy are real, and the model answers by a script."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import cloudpickle
from tests.unit.test_serving_package import BENIGN, BOMB, made_run

from burnish.serving import fleet
from burnish.serving.package import POLICY, write_package
from burnish.serving.promotion import promote
from burnish.trainer.models.manifest import RELEASE

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Serve's processes do not find the tests

WAIT_S = 300.0


class ScriptedReplica:
    """Answers with the folder that it was given, which it would have read."""

    def __init__(self, model: str, name: str, config: Any, adapters: Any) -> None:
        self._model = Path(model)

    async def answer(self, path: str, body: bytes) -> AsyncIterator[list[dict[str, Any]]]:
        assert (self._model / "model.safetensors").is_file()
        choice = {"index": 0, "message": {"role": "assistant", "content": self._model.name}, "finish_reason": "stop"}
        said = {"id": "own", "object": "chat.completion", "created": 1, "model": "m", "usage": {}, "choices": [choice]}
        yield [{"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}]
        yield [{"type": "http.response.body", "body": json.dumps(said).encode(), "more_body": False}]

    async def check_health(self) -> None:
        pass


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.05)


def test_a_package_is_deployed_with_its_own_policy_and_one_that_did_not_pass_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "EngineReplica", ScriptedReplica)
    run, file, said = made_run(tmp_path), tmp_path / "deployment.toml", list[str]()
    ship, unproved = tmp_path / "ship", tmp_path / "unproved"
    assert write_package(run, ship, str(tmp_path / "bank.toml"), tmp_path / "measured").verdict.passed
    assert not write_package(run, unproved, str(tmp_path / "bank.toml")).verdict.passed
    file.write_text(f'[service]\nport = 0\npolicy = "{ship / RELEASE / POLICY}"\n')
    promote(ship, file, "clerk", "v1", 1)
    with fleet.start_deployment(file, said.append) as running, httpx.Client(base_url=running.url, timeout=120, trust_env=False) as client:

        def ask(text: str) -> dict[str, Any]:
            answer = client.post("/v1/chat/completions", json={"model": "clerk", "messages": [{"role": "user", "content": text}]})
            assert answer.status_code == 200, answer.text
            choice: dict[str, Any] = answer.json()["choices"][0]
            return choice

        assert ask(BENIGN)["message"]["content"] == "ship"
        held = ask(BOMB)
        assert (held["message"]["content"], held["finish_reason"]) == ("I cannot help with that.", "content_filter")
        file.write_text(f'{file.read_text()}\n[models.clerk.versions.v2]\nmodel = "{unproved}"\nweight = 1000\n')
        until(lambda: any("its verdict is not passed: guardrail" in line for line in said), "the refusal")
        assert ask(BENIGN)["message"]["content"] == "ship"
