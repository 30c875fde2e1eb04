"""Throughput of the two vLLM backends on one random Llama of about 4 million parameters: `python benchmarks/engine_backends.py`.

Each run has a process of its own, since a process can hold only one in-process engine's settings. Prints tokens/s for each number of
concurrent requests, start-up seconds and resident memory (of the engine with every process it started), and the ratio of the backends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from burnish.rollout.engine import Engine, EngineConfig, make_engine
from burnish.rollout.engine.base import GenerateRequest
from burnish.trainer.models.importing import ModelSize, new_model

MEGABYTE = 1 << 20
TEXTS = [f"part {i} of lot {i * 7919 % 1000}: bore {i % 97}.{i % 10} over limit {i % 89}.{i % 7}, verdict {i % 3}" for i in range(3000)]


def requests(count: int, prompt_tokens: int, max_tokens: int) -> list[GenerateRequest]:
    """Distinct prompts that share nothing, each sampled to its full length."""
    prompts = [[(7 * i + 13 * t) % 200 + 10 for t in range(prompt_tokens)] for i in range(count)]
    return [GenerateRequest(f"{i}", prompt, max_tokens, 1.0, (), seed=i) for i, prompt in enumerate(prompts)]


async def tokens_per_second(engine: Engine, batch: list[GenerateRequest]) -> float:
    started = time.perf_counter()
    generations = await asyncio.gather(*(engine.generate(request) for request in batch))
    return sum(len(generation.token_ids) for generation in generations) / (time.perf_counter() - started)


def measure(model: Path, options: dict[str, Any], concurrency: list[int], repeats: int) -> dict[str, Any]:
    """Start one engine and run every concurrency `repeats` times; the best of each counts, for the machine may be shared."""
    started = time.perf_counter()
    engine = make_engine(EngineConfig.model_validate(options), model, options["backend"])
    start_s = time.perf_counter() - started
    best = {n: max(asyncio.run(tokens_per_second(engine, requests(n, 40, 32))) for _ in range(repeats)) for n in concurrency}
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    memory = sum(process.memory_info().rss for process in processes) // MEGABYTE
    asyncio.run(engine.close())
    return {"start_s": round(start_s, 1), "rss_mb": memory, "tokens_per_s": {n: round(rate) for n, rate in best.items()}}


def measure_in_process_of_its_own(model: Path, options: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--model", str(model), "--measure", json.dumps(options), "--repeats", str(arguments.repeats)]
    command += ["--concurrency", *map(str, arguments.concurrency)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=1800)
    return dict(json.loads(finished.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder; without it, a random one is made")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--options", type=json.loads, default={}, help="more engine options as JSON, for example '{\"threads\": 2}'")
    parser.add_argument("--backends", nargs="+", default=["vllm-inprocess", "vllm-async"])
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.model, arguments.measure, arguments.concurrency, arguments.repeats)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        model = arguments.model or Path(scratch) / "model"
        if arguments.model is None:
            new_model(TEXTS, model, ModelSize(hidden=256, layers=4, heads=8, intermediate=768, vocab_size=1024))
        results = {}
        for backend in arguments.backends:
            options = {"backend": backend, "max_context": 512, "max_num_seqs": 128, **arguments.options}
            results[backend] = measure_in_process_of_its_own(model, options, arguments)
            print(f"{backend:15} {json.dumps(results[backend])}", flush=True)
    if len(results) == 2:
        first, second = (results[backend]["tokens_per_s"] for backend in arguments.backends)
        print(
            "ratio "
            + ", ".join(f"{n} requests: {second[n] / first[n]:.2f}" for n in first)
            + f"  ({' / '.join(reversed(arguments.backends))})"
        )


if __name__ == "__main__":
    main()
