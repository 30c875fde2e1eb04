"""Stored rollouts by the million, in the store's own schema: `python -m benchmarks.stored_rollouts FOLDER --rollouts 1000000`.

Made up, but shaped like the real ones: 64 tasks a step with eight attempts each, two turns with a call of a tool, about 1 KB of
conversation whose words are as unevenly frequent as those of a language, 160 tokens of which 48 were sampled (or what another `Shape`
says). Whole columns are made at once, which takes a tenth of the time that episodes would take one by one.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from burnish.rollout.store.episodes import SCHEMA, SCHEMA_VERSION, WRITTEN
from burnish.rollout.store.moments import Moment

TASKS, GROUP = 64, 8
EACH = TASKS * GROUP
VOCABULARY = 30_000
SYLLABLES = ("ba", "ko", "ri", "mu", "te", "la", "son", "per", "vi", "ge", "dor", "an", "fil", "tra", "mo", "es", "ku", "ni", "pol", "ra")
COMMON, MEDIUM, RARE = "verdict", "tolerance", "serial"
"""A word of every conversation, one of about a hundredth of them, and the beginning of one that each task has for itself."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a rollout has. tokens: in all. first, sampled: the first sampled one, and how many are. words: of its conversation."""

    tokens: int = 160
    first: int = 60
    sampled: int = 48
    words: int = 130


SHORT, LONG = Shape(), Shape(tokens=2048, first=256, sampled=1536, words=1536)


def write_run(run: Path, rollouts: int, seed: int = 0, shape: Shape = SHORT) -> None:
    """A run folder with so many rollouts, whole steps of 512, and a metric row for each step."""
    store = run / "episodes"
    store.mkdir(parents=True)
    steps = -(-rollouts // EACH)
    for name, content in (("config.json", {"name": "made-up"}), ("seeds.json", {"run": seed}), ("versions.json", {"packages": {}})):
        (run / name).write_text(json.dumps(content))
    rng = np.random.default_rng(seed)
    syllables = np.array(SYLLABLES)
    words = np.array(["".join(syllables[rng.integers(len(syllables), size=2 + i % 4)]) + str(i % 7 or "") for i in range(VOCABULARY)])
    with (run / "metrics.jsonl").open("w") as metrics:
        for step in range(1, steps + 1):
            table = step_table(step, run.name, words, rng, shape)
            pq.write_table(table, store / Moment("rft", step, "train", "sampled").file, **WRITTEN)
            reward = float(np.mean(table.column("reward").drop_null()))
            row = {f"learner/measure_{i}": float(rng.random()) for i in range(30)}
            metrics.write(json.dumps({"phase": "rft", "step": step, "time": 1e9 + step, "reward_mean": reward, **row}) + "\n")


def step_table(step: int, run: str, words: np.ndarray, rng: np.random.Generator, shape: Shape) -> pa.Table:
    """The rollouts of one step."""
    tasks = np.repeat(np.arange(TASKS), GROUP) + (step - 1) * TASKS
    failed = rng.random(EACH) < 0.01
    reward = np.clip(rng.normal(0.3 + step / 5000, 0.3, EACH), 0, 1).round(3)
    columns: dict[str, Any] = {
        "schema": np.full(EACH, SCHEMA_VERSION, np.int16),
        "run": [run] * EACH,
        "phase": ["rft"] * EACH,
        "step": np.full(EACH, step, np.int32),
        "split": ["train"] * EACH,
        "mode": ["sampled"] * EACH,
        "episode": [f"train-{task}/{i % GROUP}" for i, task in enumerate(tasks)],
        "task": [f"train-{task}" for task in tasks],
        "environment": [""] * EACH,
        "prompt": np.full(EACH, 2, np.int32),
        "task_data": [f'{{"answer":{task}}}' for task in tasks],
        "env_data": ["{}"] * EACH,
        "seed": tasks.astype(np.int64),
        "sample": np.tile(np.arange(GROUP, dtype=np.int32), TASKS),
        "engine": [f"rollout-{i % 2}" for i in range(EACH)],
        "actor": [f"{i % 2:032x}" for i in range(EACH)],
        "node": [f"{1:056x}"] * EACH,
        "reward": pa.array(reward, mask=failed),
        "parts": _map(["env", "brevity"], rng.random(2 * EACH)),
        "turn_parts": pa.nulls(EACH, pa.string()),
        "credit": pa.nulls(EACH, pa.list_(pa.float64())),
        "failure": pa.array(np.where(failed, "tool_timeout", ""), mask=~failed),
        "culprit": pa.array(np.where(failed, "gauge", ""), mask=~failed),
        "detail": pa.array(np.where(failed, "no answer within 5 s", ""), mask=~failed),
        "truncation": pa.array(np.full(EACH, "tokens"), mask=rng.random(EACH) > 0.03),
        "labels": _map(["expected", "predicted"], list(np.array(["pass", "scrap"])[rng.integers(2, size=2 * EACH)])),
        "metrics": _map(["turns", "tool_calls"], rng.random(2 * EACH)),
        "messages": [_messages(int(task), words, rng, shape.words) for task in tasks],
        "tools": [None] * EACH,
        "turns": [[{"tokens": 24, "stop": "stop", "generate_s": float(rng.random()), "env_s": 0.01}] * 2 for _ in range(EACH)],
        "env_rewards": _lists(rng.random(2 * EACH), 2),
        "seconds": rng.random(EACH) * 3,
        "oldest_version": np.full(EACH, step - 1, np.int32),
        "newest_version": np.full(EACH, step, np.int32),
        "sampled_tokens": np.full(EACH, shape.sampled, np.int32),
        "context_tokens": np.full(EACH, shape.tokens, np.int32),
        "lengths": _lists(np.full(EACH, shape.tokens, np.int32), 1),
        **_tokens(step, rng, shape),
    }
    return pa.table([pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names], schema=SCHEMA)


def _messages(task: int, words: np.ndarray, rng: np.random.Generator, count: int) -> str:
    drawn = words[(rng.zipf(1.25, count) - 1) % VOCABULARY]
    medium = f" The {MEDIUM} is tight." if rng.random() < 0.01 else ""
    said = [" ".join(part) for part in np.split(drawn, [count * 3 // 13, count * 8 // 13])]
    call = {"id": "call_0", "type": "function", "function": {"name": "measure", "arguments": {"part": task, "feature": str(drawn[0])}}}
    chat = [
        {"role": "system", "content": "You inspect parts. Measure what you must, then say your verdict."},
        {"role": "user", "content": f"Part {RARE}{task}: {said[0]}."},
        {"role": "assistant", "content": f"{said[1]}.{medium}", "tool_calls": [call]},
        {"role": "tool", "content": f"{rng.random():.3f} mm", "tool_call_id": "call_0"},
        {"role": "assistant", "content": f"{said[2]}; {COMMON}: pass"},
    ]
    return json.dumps(chat, ensure_ascii=False, separators=(",", ":"))


def _tokens(step: int, rng: np.random.Generator, shape: Shape) -> dict[str, pa.Array]:
    place = np.arange(shape.tokens)
    mask = np.tile((place >= shape.first) & (place < shape.first + shape.sampled), EACH)
    floats = {
        "sampler_logprobs": -rng.exponential(0.4, mask.size),
        "logprobs": -rng.exponential(0.4, mask.size),
        "advantages": np.repeat(rng.normal(0, 1, EACH), shape.tokens),
        "entropy": rng.exponential(0.3, mask.size),
        "ratio": rng.normal(1, 0.02, mask.size),
    }
    arrays: dict[str, np.ndarray] = {name: np.where(mask, values, 0).astype(np.float32) for name, values in floats.items()}
    arrays |= {"token_ids": (rng.zipf(1.2, mask.size) % 32_000).astype(np.int32), "mask": mask}
    arrays["version"] = np.where(mask, step - 1, -1).astype(np.int32)
    return {name: _lists(values, shape.tokens) for name, values in arrays.items()}


def _lists(values: np.ndarray, each: int) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, each, dtype=np.int32)), pa.array(values))


def _map(names: list[str], values: Any) -> pa.Array:
    keys = pa.array(names * (len(values) // len(names)))
    return pa.MapArray.from_arrays(pa.array(np.arange(0, len(values) + 1, len(names), dtype=np.int32)), keys, pa.array(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rollouts", type=int, default=1_000_000)
    args = parser.parse_args()
    write_run(args.folder, args.rollouts)


if __name__ == "__main__":
    main()
