"""What the pages say to paste works, in the order they say it, and their recipes are recipes."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from burnish.recipe.load import config_from_data

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 120.0
RUN_S = 840.0


@pytest.fixture
def ports() -> dict[str, str]:
    """A free port for each that the pages name."""
    with socket.socket() as a, socket.socket() as b, socket.socket() as c:
        for probe in (a, b, c):
            probe.bind(("127.0.0.1", 0))
        return {named: str(probe.getsockname()[1]) for named, probe in (("50053", a), ("50061", b), ("50062", c))}


def with_ports(text: str, ports: dict[str, str]) -> str:
    return re.sub("|".join(ports), lambda found: ports[found[0]], text)


def blocks(page: str, ports: dict[str, str], language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
    return [with_ports(text, ports) for kind, text in found if kind == language]


def environment() -> dict[str, str]:
    """As with the virtual environment active."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def paste(text: str, folder: Path, wait_s: float = WAIT_S) -> str:
    done = subprocess.run(
        ["bash", "-e"], input=text, cwd=folder, env=environment(), capture_output=True, text=True, timeout=wait_s, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def other_terminal(text: str, folder: Path) -> Iterator[None]:
    """Paste what keeps running, and wait until it is ready."""
    command = ["bash", "-ec", text]
    with subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            said = b""
            while b'"ready"' not in said:
                assert select.select([process.stdout], [], [], WAIT_S)[0], said
                chunk = os.read(process.stdout.fileno(), 4096)
                assert chunk, said
                said += chunk
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=WAIT_S)


def test_bring_an_environment(ports: dict[str, str], tmp_path: Path) -> None:
    write_and_check, _smallest, serve, play = blocks("bring-an-environment.md", ports)
    assert paste(write_and_check, tmp_path).startswith("my-team/Sums-v0: passed")
    with other_terminal(serve, tmp_path):
        said = paste(play, tmp_path)
    assert said.startswith("burnish/Remote-v0: passed")
    assert "What is 19 + 13? {'answer': '32'}" in said


def test_the_smallest_run_of_an_environment_of_ones_own(ports: dict[str, str], tmp_path: Path) -> None:
    write_and_check, smallest, *_ = blocks("bring-an-environment.md", ports)
    recipe, *_ = blocks("bring-an-environment.md", ports, "toml")
    paste(write_and_check, tmp_path)
    (tmp_path / "recipe.toml").write_text(recipe)
    said = paste(smallest, tmp_path, RUN_S)
    assert "report:       runs/smallest/report.html" in said, said
    assert (tmp_path / "runs" / "smallest" / "report.html").is_file()
    assert len((tmp_path / "runs" / "smallest" / "metrics.jsonl").read_text().splitlines()) == 2


def test_in_another_language(ports: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not on this machine")
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("node_modules"))
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    package = tmp_path / "examples" / "node" / "package.json"
    package.write_text(with_ports(package.read_text(), ports))
    environment_js, play, verifier_js, verify, tools_js, use = blocks("other-languages.md", ports)
    with other_terminal(environment_js, tmp_path):
        said = paste(play, tmp_path)
    assert said.startswith("burnish/Remote-v0: passed")
    assert said.endswith("found 1.0\n")
    with other_terminal(verifier_js, tmp_path):
        assert paste(verify, tmp_path).startswith("Score(value=1.0, parts={'brief': 1.0}")
    with other_terminal(tools_js, tmp_path):
        said = paste(use, tmp_path)
    assert said.startswith("tools at ") and ": passed\n" in said
    assert said.endswith('1 left\n{"bolts": 1}\n')


def test_recipes(ports: dict[str, str]) -> None:
    essential = {"name": "page", "model": "nano", "environment": "burnish/Arithmetic-v0"}
    for page, count in (("bring-an-environment.md", 2), ("other-languages.md", 3)):
        tables = [tomllib.loads(text) for text in blocks(page, ports, "toml")]
        assert len(tables) == count
        for table in tables:
            config_from_data({**essential, **table})
