"""The base wheel, installed alone as an author of verifiers and environments would, and judged by the whole burnish of these tests."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pytest

from burnish.cli.check import reports
from burnish.cli.scaffold import Kind
from burnish.cluster import check_services, services_of
from burnish.recipe.components import check_components
from burnish.recipe.load import config_from_data, load_config
from burnish.recipe.resolve import resolve

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
INSTALL_S = 280
LARGEST_BYTES = 150e6
HEAVY = ("openai", "ray", "rapidfuzz", "torch", "transformers", "vllm")
WAIT_S = 120.0
SERVICES = '''
from importlib.util import find_spec

from burnish import ToolContext, tool, verifier
from burnish.envs import register_env
from burnish.envs.builtin.arithmetic import Arithmetic


@verifier("test/light-v1")
def light(episode):
    assert find_spec("torch") is None
    return 1.0 if "7" in (episode.answer or "") else 0.0


@tool
def double(number: int, *, context: ToolContext) -> str:
    """Double it."""
    return str(2 * number)


@register_env("test/Light-v0")
def make():
    assert find_spec("torch") is None
    return Arithmetic()
'''


@pytest.fixture(scope="module")
def base_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the wheel and what it brings by itself, in the versions of constraints/."""
    folder = tmp_path_factory.mktemp("base") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=WAIT_S)
    python = folder / "bin" / "python"
    pip_install(python, str(wheel))
    return python


@pytest.fixture(scope="module")
def pytest_alone(base_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pytest, which is no part of the base."""
    folder = tmp_path_factory.mktemp("pytest")
    pip_install(base_python, "--target", str(folder), "pytest")
    return folder


def pip_install(python: Path, *what: str) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    command = [*pip, "--constraint", str(ROOT / "constraints" / "cpu.txt"), *what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def services(tmp_path: Path) -> Path:
    file = tmp_path / "light_services.py"
    file.write_text(SERVICES)
    return file


RECIPE = """
name = "elsewhere"
model = "m"
environment = "burnish/Remote-v0"
environment_args = { address = "service:world" }
rewards = [{ verifier = "service:judge" }]

[services.judge]
verifier = "%(file)s:light"
python = "%(python)s"

[services.world]
environment = "%(file)s:test/Light-v0"
python = "%(python)s"
"""


def site_packages(python: Path) -> Path:
    (folder,) = python.parent.parent.glob("lib/python*/site-packages")
    return folder


@contextmanager
def served(python: Path, arguments: Sequence[str], cwd: Path) -> Iterator[str]:
    """The address of `burnish serve-… ARGUMENTS`, run by the command of that installation."""
    with subprocess.Popen([python.with_name("burnish"), *arguments], cwd=cwd, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], WAIT_S)[0], f"{arguments} said nothing for {WAIT_S} s"
            yield str(json.loads(process.stdout.readline())["address"])
        finally:
            process.terminate()
            process.wait(WAIT_S)


def test_it_is_small_and_holds_nothing_heavy(base_python: Path) -> None:
    site = site_packages(base_python)
    installed = sum(file.lstat().st_size for file in site.rglob("*"))  # what a file system rounds up to is its own
    assert 20e6 < installed < LARGEST_BYTES
    assert [name for name in HEAVY if (site / name).exists()] == []


def test_its_verifier_is_a_verifier(base_python: Path, services: Path) -> None:
    with served(base_python, ["serve-verifier", f"{services}:light"], services.parent) as address:
        assert all(report.passed for report in reports(address, (), (), None, ()))


def test_its_environment_is_an_environment(base_python: Path, services: Path) -> None:
    with served(base_python, ["serve-env", f"{services}:test/Light-v0"], services.parent) as address:
        assert all(report.passed for report in reports(address, (), (), None, ()))


def test_its_tools_are_tools(base_python: Path, services: Path) -> None:
    with served(base_python, ["serve-tools", str(services)], services.parent) as address:
        assert all(report.passed for report in reports(address, (), (), None, ()))


@pytest.mark.parametrize("kind", get_args(Kind))
def test_what_new_writes_passes_its_tests_there(base_python: Path, pytest_alone: Path, tmp_path: Path, kind: Kind) -> None:
    def run(*arguments: str, cwd: Path) -> None:
        command, environment = [str(base_python), "-m", *arguments], {**os.environ, "PYTHONPATH": str(pytest_alone)}
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    run("burnish", "new", kind, "my-team/first", cwd=tmp_path)
    run("pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path / "my-team-first")


def test_a_recipe_starts_its_services_there(base_python: Path, services: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE % {"file": services, "python": base_python})
    config = resolve(load_config(recipe))
    check_components(config)  # as a dry run does
    with services_of(config.services, tmp_path / "logs") as addresses:
        check_services(config, addresses)
        for address in addresses.values():
            assert all(report.passed for report in reports(address, (), (), None, ()))


def test_a_service_that_needs_more_than_is_there_is_refused(base_python: Path, services: Path, tmp_path: Path) -> None:
    services.write_text("import torch\n" + SERVICES)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE % {"file": services, "python": base_python})
    with pytest.raises(ValueError, match=r"services\.judge\.python: .* cannot serve this verifier: .*No module named 'torch'"):
        check_components(resolve(load_config(recipe)))


def test_docs_install(base_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    found = {kind: next(text for its_kind, text in blocks if its_kind == kind) for kind in ("python", "toml")}
    monkeypatch.chdir(tmp_path)
    Path("answers.py").write_text(found["python"])
    Path(".venv-judge").symlink_to(base_python.parent.parent)
    essential = {"name": "page", "model": "nano", "environment": "burnish/Arithmetic-v0"}
    config = resolve(config_from_data({**essential, **tomllib.loads(found["toml"])}))
    check_components(config)
    with services_of(config.services, tmp_path / "logs") as addresses:
        check_services(config, addresses)
