"""Fixtures that several integration tests share."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.started import Started

ROOT = Path(__file__).resolve().parents[2]
NODE_S = 120.0
TEXTS = [f"part {i} bore {i % 7}.{i % 10} limit {i % 5}.0 verdict {('pass', 'rework', 'scrap')[i % 3]}" for i in range(200)]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """burnish as a wheel, built with nothing to warn of."""
    folder = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    source = shutil.copytree(  # building leaves folders behind
        ROOT,
        folder / "source",
        ignore=lambda path, names: left_out(path, names) | ({"runs", "models"} if path == str(ROOT) else set()),
    )
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    built = subprocess.run([*command, str(source)], capture_output=True, text=True, timeout=250, check=False)
    said = built.stdout + built.stderr
    assert built.returncode == 0, said
    assert "Warning" not in said, said
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer Llama (hidden 64, head size 32, tied embeddings, 256 positions) with a tokenizer of about 300 entries."""
    from burnish.trainer.models.importing import ModelSize, new_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    new_model(TEXTS, folder, ModelSize(hidden=64, layers=2, heads=2, intermediate=128, vocab_size=300, max_position=256))
    return folder


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    every: list[Started] = []

    def go(*arguments: str) -> Started:
        every.append(Started(arguments, tmp_path / f"log-{len(every)}"))
        return every[-1]

    yield go
    for one in every:
        if one.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait(60)


@pytest.fixture(scope="session")
def node_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of examples/node with its packages installed, the puppet of the tests, and the schemas where it looks for them."""
    if shutil.which("node") is None:
        pytest.skip("node is not on this machine")
    root = tmp_path_factory.mktemp("node")
    folder = root / "examples" / "node"
    shutil.copytree(ROOT / "examples" / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    shutil.copytree(ROOT / "proto", root / "proto")
    shutil.copy(Path(__file__).with_name("node_puppet.js"), folder)
    done = subprocess.run(["npm", "ci"], cwd=folder, capture_output=True, text=True, timeout=4 * NODE_S, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def start_node(node_example: Path) -> Iterator[Callable[[str], tuple[str, subprocess.Popen[str]]]]:
    """Starts a program of the Node example; returns its address and its process, which ends with the tests at the latest."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str) -> tuple[str, subprocess.Popen[str]]:
        process = subprocess.Popen(["node", program], cwd=node_example, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], NODE_S)[0], f"{program} said nothing for {NODE_S} s"
        return json.loads(process.stdout.readline())["address"], process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=NODE_S)


@pytest.fixture(scope="session")
def node_puppet(start_node: Callable[[str], tuple[str, subprocess.Popen[str]]]) -> str:
    """The address of the verifier and the environment of node_puppet.js."""
    return start_node("node_puppet.js")[0]
