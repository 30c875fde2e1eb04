"""Stores that hold anything: each page of the inspector names what cannot be read, and none fails."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from burnish.inspector.pages.app import pages
from burnish.rollout.store.episodes import SCHEMA

pytestmark = [pytest.mark.unit, pytest.mark.timeout(300)]

FILE = "rft.000001.train.sampled.parquet"
PAGES = ("", "/episodes", "/episodes?text=hi", "/episodes?order=worst", "/episode?EPISODE", "/episode?EPISODE&json=1")
EPISODE = "phase=rft&step=1&split=train&mode=sampled&episode=t/0"


def row(**changes: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "0"}]
    turn = {"tokens": 1, "stop": "stop", "generate_s": 0.1, "env_s": 0.1}
    return {
        "schema": 2, "run": "r", "phase": "rft", "step": 1, "split": "train", "mode": "sampled", "episode": "t/0", "task": "t",
        "environment": "", "prompt": 0, "task_data": "{}", "env_data": "{}", "seed": 1, "sample": 0, "engine": "e", "reward": 1.0,
        "parts": [("env", 1.0)], "labels": [], "metrics": [], "messages": json.dumps(said), "turns": [turn], "env_rewards": [1.0],
        "seconds": 0.1, "oldest_version": 0, "newest_version": 0, "sampled_tokens": 1, "context_tokens": 2, "lengths": [2],
        "token_ids": [1, 2], "mask": [False, True], "version": [-1, 0], "sampler_logprobs": [0.0, -0.1], **changes,
    }  # fmt: skip


def with_row(**changes: Any) -> Callable[[Path], None]:
    return lambda run: pq.write_table(pa.Table.from_pylist([row(**changes)], SCHEMA), run / "episodes" / FILE)


def step_as_text(run: Path) -> None:
    table = pa.Table.from_pylist([row()], SCHEMA)
    pq.write_table(table.set_column(SCHEMA.get_field_index("step"), "step", pa.array(["x"])), run / "episodes" / FILE)


def junk_tokenizer(run: Path) -> None:
    with_row()(run)
    (run / "checkpoints" / "rft-1" / "model").mkdir(parents=True)
    (run / "checkpoints" / "rft-1" / "model" / "tokenizer.json").write_text("junk")


def tokenizer_that_panics(run: Path) -> None:
    with_row()(run)
    (run / "checkpoints" / "rft-1" / "model").mkdir(parents=True)
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    normalizer = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    whole = {"version": "1.0", "added_tokens": [], "normalizer": normalizer, "model": model}
    (run / "checkpoints" / "rft-1" / "model" / "tokenizer.json").write_text(json.dumps(whole))


def junk_index(run: Path) -> None:
    with_row()(run)
    (run / "episodes" / ".index" / "000001").mkdir(parents=True)
    (run / "episodes" / ".index" / "000001" / "segment.json").write_text("[" * 100_000)
    os.mkfifo(run / "episodes" / ".index" / "000001" / "rows.parquet")


@contextmanager
def shown(make: Callable[[Path], Any], home: Path) -> Iterator[TestClient]:
    """The pages over the run `r`, into which `make` has put its store."""
    run = home / "runs" / "r"
    (run / "episodes").mkdir(parents=True)
    for name, content in (("config.json", '{"name": "r"}'), ("seeds.json", "{}")):
        (run / name).write_text(content)
    make(run)
    with TestClient(pages(home / "runs"), base_url="http://127.0.0.1:8266", raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(
    "make",
    [
        lambda run: (run / "episodes" / FILE).write_bytes(b"PAR1junk"),
        lambda run: (run / "episodes" / FILE).write_bytes(b""),
        lambda run: pq.write_table(pa.table({"a": [1]}), run / "episodes" / FILE),
        step_as_text,
        junk_tokenizer,
        tokenizer_that_panics,
        with_row(messages="[" * 5000 + "]" * 5000), with_row(messages="5"), with_row(messages="[5]"), with_row(messages='{"a"'),
        with_row(reward=None),
        with_row(messages=None), with_row(messages='[{"role": ["x"]}]'), with_row(messages='[{"role": "user"}]'),
        with_row(turn_parts="5"), with_row(turn_parts='{"env": ["x"]}'), with_row(turn_parts='{"env": 5}'),
        with_row(mask=[False]), with_row(lengths=[-1, 3]), with_row(lengths=[None]), with_row(lengths=None), with_row(mask=[False, None]),
        with_row(token_ids=[1, None]), with_row(advantages=[1.0]), with_row(turns=None), with_row(turns=[None]), with_row(seconds=None),
        with_row(sampled_tokens=None), with_row(parts=[("env", None)]), with_row(version=[0]),
    ],
)  # fmt: skip
def test_a_store_that_cannot_be_read_is_named_by_every_page(make: Callable[[Path], Any], tmp_path: Path) -> None:
    with shown(make, tmp_path) as client:
        answers = {page: client.get(f"/rollouts/r{page.replace('EPISODE', EPISODE)}") for page in PAGES}
    assert {page: answer.status_code for page, answer in answers.items() if answer.status_code not in (200, 400, 410)} == {}
    assert any(answer.status_code == 400 for answer in answers.values()), "something says what is wrong"
    assert not any("Traceback" in answer.text for answer in answers.values())


@pytest.mark.parametrize("make", [with_row(), with_row(token_ids=[-1, 2**31 - 1]), junk_index])
def test_what_is_odd_but_whole_is_shown(make: Callable[[Path], Any], tmp_path: Path) -> None:
    with shown(make, tmp_path) as client:
        for page in PAGES:
            assert client.get(f"/rollouts/r{page.replace('EPISODE', EPISODE)}").status_code == 200, page
