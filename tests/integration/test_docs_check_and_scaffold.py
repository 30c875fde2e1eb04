"""The page "check what you wrote": what it says to paste works, shows what is shown, and names every check there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from burnish.envs.checks import environment as environments
from burnish.envs.checks import tool_service as tool_service_check
from burnish.envs.checks import tools as tools_check
from burnish.rewards.checks import reward as rewards
from burnish.rewards.checks import verifier as verifier_check

pytestmark = pytest.mark.integration

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "check-and-scaffold.md").read_text()
WAIT_S = 120.0


def blocks(language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if kind == language]


def section(title: str) -> str:
    return PAGE.partition(f"\n### {title}\n")[2].partition("\n#")[0]


def paste(text: str, folder: Path, site: Path) -> str:
    """Run it as with the virtual environment active, and with what is installed into `site`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    place = {**os.environ, "PATH": path, "PYTHONPATH": str(site)}
    done = subprocess.run(["bash", "-e"], input=text, cwd=folder, env=place, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_it_says_to_paste_works(tmp_path: Path) -> None:
    write_and_check, shown, install = blocks()
    site = tmp_path / "site"
    assert shown in paste(write_and_check, tmp_path, site)
    editable = "pip install --editable ."
    assert editable in install  # the tests' own environment stays as it is: it goes into a folder
    elsewhere = f"'{sys.executable}' -m pip install --quiet --no-deps --no-build-isolation --target '{site}' ."
    said = paste(install.replace(editable, elsewhere), tmp_path / "my-team-answer-length", site)
    assert "distribution my-team-answer-length" in said
    assert "my-team/answer-length-v1: passed" in said
    assert said.endswith("3 scored: mean 0.5, min 0, max 1\n")


def test_its_python_runs() -> None:
    assert blocks("python")
    for text in blocks("python"):
        exec(compile(text, "check-and-scaffold.md", "exec", dont_inherit=True), {"__name__": "page"})


@pytest.mark.parametrize(
    ("title", "checks"),
    [
        ("Environments", list(environments.CHECKS)),
        ("Rewards", [*rewards.CHECKS, *rewards.SCORE_CHECKS]),
        ("Verifiers", [*verifier_check.SERVICE_CHECKS, *verifier_check.VERDICT_CHECKS]),
        ("Tools", [*tools_check.CHECKS, *tools_check.ANSWER_CHECKS]),
    ],
)
def test_it_names_every_check_in_order(title: str, checks: list[str]) -> None:
    assert re.findall(r"^\| `([^`]+)` \|", section(title), re.MULTILINE) == checks


def test_it_names_the_checks_of_tool_services() -> None:
    named = re.findall(r"`([^`]+)`", section("Tools").partition("For a tool service")[2])
    assert named == list(tool_service_check.CHECKS)
