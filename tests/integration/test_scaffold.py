"""What `burnish new` writes: its own tests pass, it installs, and burnish finds it by its id and is content with it."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from burnish.cli.scaffold import Component, Kind, new_component

pytestmark = pytest.mark.integration

KINDS: tuple[Kind, ...] = get_args(Kind)
WAIT_S = 120.0


def run(*command: str, cwd: Path, site: Path | None = None) -> str:
    environment = {**os.environ, **({"PYTHONPATH": str(site)} if site else {})}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def serve_briefly(command: list[str], cwd: Path, site: Path) -> dict[str, object]:
    """The ready line of a service, which is then asked to end."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    with subprocess.Popen(
        [sys.executable, "-m", "burnish.cli.main", *command], cwd=cwd, env=environment, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], WAIT_S)[0]
            return dict(json.loads(process.stdout.readline()))
        finally:
            process.terminate()
            process.wait(WAIT_S)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_package_is_tested_installed_and_found(kind: Kind, tmp_path: Path) -> None:
    component, site = Component(kind, "my-team", "first-try"), tmp_path / "site"
    new_component(kind, "my-team/first-try", tmp_path)
    package = tmp_path / "my-team-first-try"
    assert "passed" in run("pytest", "-q", "-p", "no:cacheprovider", cwd=package)  # not installed, straight from its folder
    run("pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(site), str(package), cwd=tmp_path)
    target = component.id or component.module
    _, *checked = shlex.split(re.findall(r"^burnish check .*", (package / "README.md").read_text(), re.MULTILINE)[0], comments=True)
    assert f"{target}: passed" in run("burnish.cli.main", *checked, cwd=package, site=site)
    match kind:
        case "reward":
            assert component.id in run("burnish.cli.main", "rewards", "list", cwd=tmp_path, site=site)
            tried = run("burnish.cli.main", "rewards", "try", component.id, "answers.jsonl", cwd=package, site=site)
            assert "3 scored: mean 0.5, min 0, max 1" in tried
        case "environment":
            assert component.id in run("burnish.cli.main", "env", "list", cwd=tmp_path, site=site)
            assert "address" in serve_briefly(["serve-env", component.id], tmp_path, site)
        case "verifier":
            assert "address" in serve_briefly(["serve-verifier", component.id], tmp_path, site)
        case "tools":
            assert "address" in serve_briefly(["serve-tools", component.module], tmp_path, site)
