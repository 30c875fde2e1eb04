"""An engine that is served answers once before anybody may ask it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from burnish.rollout.engine.vllm_openai import Adapter
from burnish.serving.config import ServingConfig
from burnish.serving.engine import start_engine
from burnish.serving.wire import answer, read_body

pytestmark = pytest.mark.unit


class Engine:
    """What `start_openai_app` gives. status: of its answers, None: there is none."""

    def __init__(self, status: int | None) -> None:
        self.status, self.asked, self.closed = status, list[tuple[str, dict[str, Any]]](), False
        self.asgi, self.taken = self.answer, SimpleNamespace(begin=lambda id: None, read=lambda id: (0, 0), forget=lambda id: None)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append((scope["path"], json.loads(await read_body(receive))))
        if self.status is None:
            await asyncio.Event().wait()
        await answer(send, self.status or 0, b"{}")

    async def check_health(self) -> None: ...

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], Engine]:
    def made(status: int | None) -> Engine:
        engine = Engine(status)

        async def start(*_: Any, **__: Any) -> Engine:
            return engine

        monkeypatch.setattr("burnish.rollout.engine.vllm_openai.start_openai_app", start)
        return engine

    renderer = SimpleNamespace(stop_token_ids=(7,), takes_calls=True, template_args={})
    monkeypatch.setattr("burnish.rollout.tokenizer.load_tokenizer", lambda model: SimpleNamespace(chat_template=""))
    monkeypatch.setattr("burnish.rollout.renderers.TemplateRenderer", lambda *_: renderer)
    return made


async def test_an_engine_answers_under_each_name_before_it_takes_callers(served: Callable[[int | None], Engine], tmp_path: Path) -> None:
    engine = served(200)
    await start_engine(tmp_path, "m:v1", ServingConfig(), {"loud": Adapter(tmp_path, 4)})
    assert [(path, request["model"], request["max_tokens"]) for path, request in engine.asked] == [
        ("/v1/completions", "m:v1", 2),
        ("/v1/completions", "m:v1:loud", 2),
    ]
    assert not engine.closed


@pytest.mark.parametrize(("status", "said"), [(500, "first answer as m has the status 500"), (None, "its first request within 0 s")])
async def test_an_engine_that_does_not_answer_is_ended_and_takes_nobody(
    served: Callable[[int | None], Engine], tmp_path: Path, status: int | None, said: str
) -> None:
    engine = served(status)
    with pytest.raises(RuntimeError, match=said):
        await start_engine(tmp_path, "m", ServingConfig(ready_timeout_s=0.2))
    assert engine.closed
