"""What a client of an environment service may set: nothing unless allowed, and never a function, an id, a file or an address."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.envs.contract import ENVS
from burnish.envs.named import load_function
from burnish.envs.registry import ID_PATTERN
from burnish.envs.remote.client_kwargs import names_something
from burnish.envs.remote.service import EnvironmentService, ServedEnvironment
from burnish.envs.text.adapter import VERSIONED, GymnasiumText
from burnish.rpc.address import Endpoint
from burnish.rpc.errors import Status
from burnish.v1 import environment_pb2

pytestmark = pytest.mark.unit

HOSTILE = (
    "cProfile:run",
    "os:system",
    "words.py:describe",
    "/tmp/words.py:describe",
    "with space.py:f",
    "module with space:f",
    "words.py",
    "burnish/Gymnasium-v0",
    "FrozenLake-v1",
    "some_module:FrozenLake-v1",
    "127.0.0.1:50051",
    "h.example:1,h.example:2?ca=/a b",
    "[::1]:1",
    "ray:verdicts",
    "service:bench",
    "https://h.example/x",
    "file:///etc/passwd",
    "/etc/passwd",
    "~/.ssh/id_rsa",
    "../secret.xml",
    "a/../../b",
    "..",
)
PLAIN = ("yes", "", "a word", "Answer: yes or no.", "north-west", "x.y", "3/4", "…", "a\nb: c", "4x4", "is_slippery", "v1", "wait...")


def reset(served: ServedEnvironment, kwargs: dict[str, Any]) -> environment_pb2.ResetResponse:
    async def ask() -> environment_pb2.ResetResponse:
        service = EnvironmentService([served], inline=True)
        request = environment_pb2.ResetRequest(episode_id=uuid.uuid4().hex, kwargs_json=json.dumps(kwargs))
        try:
            return (await service._handle(environment_pb2.EpisodeRequest(reset=request))).reset
        finally:
            service.close()

    return asyncio.run(ask())


def refused(served: ServedEnvironment, kwargs: dict[str, Any]) -> str:
    with pytest.raises(Status) as caught:
        reset(served, kwargs)
    assert caught.value.code == "INVALID_ARGUMENT"
    return caught.value.message


def test_a_client_sets_nothing_unless_the_server_allows_it_by_name() -> None:
    served = ServedEnvironment("burnish/Arithmetic-v0", {"max_operand": 3})
    assert "'max_operand' is not for clients to set: clients may set none" in refused(served, {"max_operand": 99})
    open_one = ServedEnvironment("burnish/Arithmetic-v0", {"max_operand": 3}, allowed=("max_operand",))
    assert reset(open_one, {"max_operand": 99}).messages
    assert "clients may set max_operand" in refused(open_one, {"size": 1})
    with pytest.raises(ValueError, match="has no argument 'max_operan' to allow; did you mean 'max_operand'"):
        ServedEnvironment("burnish/Arithmetic-v0", allowed=("max_operan",))


def test_code_named_by_a_client_never_runs(tmp_path: Path) -> None:
    marker, module = tmp_path / "ran", tmp_path / "evil.py"
    module.write_text(f"open({str(marker)!r}, 'w').close()\ndef f(*args): return ''\n")
    for allowed in ((), ("read_action", "describe", "env_id", "env_kwargs")):
        served = ServedEnvironment("burnish/Gymnasium-v0", allowed=allowed)
        for name in ("read_action", "describe"):
            refused(served, {name: f"{module}:f"})
            refused(served, {name: "cProfile:run"})
        refused(served, {"env_id": "CartPole-v1"})
        refused(served, {"env_id": f"{module.stem}:CartPole-v1"})
    assert not marker.exists()


def test_a_client_cannot_have_the_server_call_out() -> None:
    served = ServedEnvironment("burnish/QualityInspection-v0", allowed=("tools",))
    assert "reads as a function or an address" in refused(served, {"tools": "127.0.0.1:9"})


@pytest.mark.parametrize("text", HOSTILE)
def test_what_names_something_is_refused_however_deep(text: str) -> None:
    assert names_something(text) is not None
    served = ServedEnvironment("burnish/Gymnasium-v0", allowed=("env_kwargs",))
    for kwargs in ({"a": text}, {"a": [[text]]}, {"a": {"b": {text: 1}}}):
        assert "which no client may name" in refused(served, {"env_kwargs": kwargs})


@pytest.mark.parametrize("text", PLAIN)
def test_plain_words_pass(text: str) -> None:
    assert names_something(text) is None


PIECES = st.lists(st.sampled_from(["os", "a b", ".", ":", "/", "-v1", "py", ".py", "ray:", "1", "[::1]", " ", "\n", "?tls=1", "x"]))


@given(PIECES.map("".join))
def test_no_resolver_takes_a_string_that_a_client_may_send(text: str) -> None:
    if names_something(text) is not None:
        return
    with pytest.raises(ValueError):
        Endpoint.parse(text)
    with pytest.raises(ValueError, match="must read module:function"):
        load_function(text, "x")
    assert not ID_PATTERN.match(text) and not VERSIONED.search(text)
    with pytest.raises(ValueError, match="names no version"):
        GymnasiumText(text)


def test_the_installed_environments_and_gymnasiums_own_are_known_by_ids_that_no_client_can_send() -> None:
    gymnasiums = [id for id in gymnasium.registry if VERSIONED.search(id)]
    assert all(names_something(id) for id in [*(row.id for row in ENVS.list()), *gymnasiums])
