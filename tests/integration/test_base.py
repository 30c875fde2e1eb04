"""burnish with its base packages alone: what works, and what every other command says to install.

The base is made here out of links to what is installed, so that these tests need no download; tests/integration/test_base_install.py
installs the wheel for real.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import distribution
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import typer
from typer.core import TyperGroup

from burnish.cli.main import app

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
INSTALL = "in burnish's checkout, pip install --constraint constraints/cpu.txt '.[{}]'"
WITH_TORCH = INSTALL.format("train").replace(" '", " --extra-index-url https://download.pytorch.org/whl/cpu '")
TRAIN = "burnish {} needs ray, torch and transformers, which are not installed here: " + WITH_TORCH
ENGINE = "burnish {} needs ray, torch, transformers, starlette and vllm, which are not installed here: in burnish's checkout, make install"
BEYOND = {
    "run recipe.toml": ENGINE.format("run"),
    "run recipe.toml --dry-run": TRAIN.format("run --dry-run"),
    "demo": ENGINE.format("demo"),
    "evaluate runs/x recipe.toml": ENGINE.format("evaluate"),
    "inspect": TRAIN.format("inspect"),
    "branch runs/x train-1/0 --recipe recipe.toml": ENGINE.format("branch"),
    "find-rate recipe.toml": TRAIN.format("find-rate"),
    "probe recipe.toml": ENGINE.format("probe"),
    "replay runs/x --all": TRAIN.format("replay"),
    "regrade runs/x --reward a/b-v1": TRAIN.format("regrade"),
    "debug recipe.toml": TRAIN.format("debug"),
    "report runs/x": TRAIN.format("report"),
    "runs list": TRAIN.format("runs list"),
    "runs show runs/x": TRAIN.format("runs show"),
    "runs diff runs/x runs/y": TRAIN.format("runs diff"),
    "runs frontier runs/x": TRAIN.format("runs frontier"),
    "runs calibration runs/x": TRAIN.format("runs calibration"),
    "runs tail runs/x": TRAIN.format("runs tail"),
    "runs watch runs/x": TRAIN.format("runs watch"),
    "runs scale runs/x --engines 2": TRAIN.format("runs scale"),
    "suites": TRAIN.format("suites"),
    "tune recipe.toml --space rft.lr=1e-6..1e-4": ENGINE.format("tune"),
    "serve runs/x": ENGINE.format("serve"),
    "models export runs/x out": TRAIN.format("models export"),
    "models import org/model": TRAIN.format("models import"),
    "models compare a b": TRAIN.format("models compare"),
    "models merge a b c": TRAIN.format("models merge"),
    "models check a": TRAIN.format("models check"),
    "models new small --text a.txt": TRAIN.format("models new"),
    "env baseline burnish/CartPole-v0": TRAIN.format("env baseline"),
    "data blend recipe.toml": TRAIN.format("data blend"),
    "data contamination a.jsonl --suite burnish/choices-v1": TRAIN.format("data contamination --suite"),
    "data contamination a.jsonl --recipe recipe.toml": TRAIN.format("data contamination --recipe"),
    "data replay small out": ENGINE.format("data replay"),
    "deploy-verifier m:f": TRAIN.format("deploy-verifier"),
    "deploy-tools m": TRAIN.format("deploy-tools"),
    "deploy-env burnish/CartPole-v0": TRAIN.format("deploy-env"),
    "undeploy x": TRAIN.format("undeploy"),
    "package runs/x out": TRAIN.format("package"),
    "promote out d.toml --model m --version v": TRAIN.format("promote"),
    "feedback show store": TRAIN.format("feedback show"),
    "feedback export store --as sft --out a.jsonl": TRAIN.format("feedback export"),
    "feedback delete store id": TRAIN.format("feedback delete"),
}
WITHIN = {
    "--help": "serve-verifier",
    "models list": "no models in models/",
    "models show --help": "MODEL",
    "models lineage --help": "MODEL",
    "models delete --help": "NAME",
    "data check --help": "PLACE",
    "data stats --help": "PLACE",
    "data dedup --help": "PLACE",
    "data contamination --help": "PLACE",
    "data trace --help": "RUN",
    "data catalog": "burnish/general-v1",
    "env list": "burnish/QualityInspection-v0",
    "env check burnish/Arithmetic-v0": "passed",
    "rewards list": "burnish/openai-grader-v1",
    "rewards show burnish/inspection-cost-v1": "level",
    "rewards check burnish/inspection-cost-v1": "passed",
    "check burnish/Arithmetic-v0": "passed",
    "new verifier my-team/first": "wrote my-team-first",
    "recipe rft": "groups_per_step",
    "rollouts --help": "RUN",
    "rewards try --help": "FILE",
    "serve-verifier --help": "TARGET",
    "serve-tools --help": "TARGET",
    "serve-env --help": "TARGET",
    "guard check --help": "POLICY",
    "guard evaluate --help": "PROMPTS",
    "guard serve --help": "POLICY",
    "guard train --help": "ROWS",
    "keys new --help": "FILE",
    "keys list --help": "FILE",
    "keys revoke --help": "FILE",
    "runs export --help": "RUN",
}
"""Every command that the base is enough for, and a word of its output. The servers run in tests/integration/test_base_install.py."""

ONLY_SOME = {
    "check ray:judge": "ray:judge needs ray, which is not installed here: " + WITH_TORCH,
    "rewards check burnish/reward-lambda-v1 --arg handler=lambda:f": (
        "lambda:f is an AWS Lambda, which needs boto3 and botocore, which are not installed here: " + INSTALL.format("aws")
    ),
    "rewards check burnish/openai-grader-v1 --arg file=grader.json": (
        "a text_similarity grader needs rapidfuzz, which is not installed here: " + INSTALL.format("graders")
    ),
    "rewards check burnish/openai-grader-v1 --arg file=judge.json --arg base_url=http://127.0.0.1:1": (
        "a grader that asks a model needs openai, which is not installed here: " + INSTALL.format("graders")
    ),
}
GRADER = {"type": "text_similarity", "name": "alike", "input": "a", "reference": "b", "evaluation_metric": "fuzzy_match"}
JUDGE = {"type": "score_model", "name": "judge", "model": "m", "input": [{"role": "user", "content": "?"}]}

RUN_ALL = """
import json, sys
from typer.testing import CliRunner
from burnish.cli.main import app
results = [(line, CliRunner().invoke(app, line.split())) for line in sys.argv[1:]]
print(json.dumps({line: [result.exit_code, result.stdout, result.stderr] for line, result in results}))
"""

Python = Callable[..., "subprocess.CompletedProcess[str]"]


def load_script(path: Path) -> ModuleType:
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PYTHONPATH with burnish and what its base brings, for an interpreter without site-packages."""
    site, tree = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("tree")
    link_distributions("burnish", site)
    load_script(ROOT / "tests" / "lint.py").lay_out(tree)
    return f"{tree}{os.pathsep}{site}"


def link_distributions(root: str, site: Path) -> None:
    """Fill `site` with links to a distribution and everything it needs."""
    for name in (root, *load_script(ROOT / "constraints" / "freeze.py").closure(root, frozenset())):
        installed = distribution(name)
        for top in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
            if not top.startswith("__editable__") and not (site / top).exists():
                (site / top).symlink_to(str(installed.locate_file(top)))


@pytest.fixture(scope="module")
def python(base: str, tmp_path_factory: pytest.TempPathFactory) -> Python:
    folder = tmp_path_factory.mktemp("work")
    (folder / "grader.json").write_text(json.dumps(GRADER))
    (folder / "judge.json").write_text(json.dumps(JUDGE))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": base, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-S", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=150, check=False)
        assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def said(python: Python) -> Mapping[str, tuple[int, str, str]]:
    """Exit code, stdout and stderr of every command line above."""
    found = json.loads(python("-c", RUN_ALL, *WITHIN, *BEYOND, *ONLY_SOME).stdout.splitlines()[-1])
    return {line: (code, out, err) for line, (code, out, err) in found.items()}


def commands(group: TyperGroup, above: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, f"{above}{name} ")
        else:
            yield f"{above}{name}"


def test_every_command_is_on_one_side() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for command in commands(group):
        assert any(line.startswith(command) for line in (*BEYOND, *WITHIN)), f"say in {__file__} whether the base is enough for {command}"


@pytest.mark.parametrize("line", WITHIN)
def test_the_base_is_enough(said: Mapping[str, tuple[int, str, str]], line: str) -> None:
    code, out, err = said[line]
    assert code == 0, err
    assert WITHIN[line] in out


@pytest.mark.parametrize("line", BEYOND)
def test_what_needs_more_says_what_to_install(said: Mapping[str, tuple[int, str, str]], line: str) -> None:
    assert said[line] == (2, "", f"error: {BEYOND[line]}\n")


@pytest.mark.parametrize("line", ONLY_SOME)
def test_what_only_some_use_says_what_to_install(said: Mapping[str, tuple[int, str, str]], line: str) -> None:
    code, _, err = said[line]
    assert (code, err.count("\n")) == (2, 1)
    assert ONLY_SOME[line] in err


def test_the_package_runs_as_the_command(python: Python) -> None:
    assert python("-m", "burnish", "--version").stdout.startswith("burnish ")
    assert python("-m", "burnish", "--help").stdout.lstrip().startswith("Usage: python -m burnish [OPTIONS]")


def test_every_module_for_authors_imports(python: Python) -> None:
    rooms = {"v1": "proto/gen/burnish/v1", "rpc": "rpc", "envs": "envs", "guardrails": "guardrails", "rewards": "rewards"}
    files = [(room, file.relative_to(ROOT / folder)) for room, folder in rooms.items() for file in (ROOT / folder).rglob("*.py")]
    modules = [".".join(["burnish", room, *file.with_suffix("").parts]).removesuffix(".__init__") for room, file in files]
    assert "burnish.rewards.graders.judge" in modules
    python("-c", "\n".join(f"import {name}" for name in modules))
