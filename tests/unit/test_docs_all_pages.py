"""Every page: its links lead somewhere, its commands exist, its Python and TOML are well-formed, and its lists are those of the code.

What the pages say to paste is run by the other tests called test_docs_*. What no test runs stands in `NOT_RUN`, with the reason.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from burnish.cli.main import app
from burnish.envs.types import Episode, Reward, Task
from burnish.recipe.load import config_from_data
from burnish.rollout.store.episodes import EpisodeStore
from burnish.rollout.store.moments import Moment
from burnish.rpc.extras import TORCH_INDEX, WITH_TORCH, require
from burnish.serving.app import ROUTES
from burnish.serving.requests import CHAT_FIELDS, COMPLETION_FIELDS
from burnish.trainer.models.config_file import SUPPORTED_ARCHITECTURES

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ESSENTIAL = {"name": "page", "model": "nano", "environment": "burnish/Arithmetic-v0"}

RUN_BY = {
    "algorithms.md": ["test_docs_algorithms.py"],
    "README.md": ["test_first_example.py", "test_first_example_service.py", "test_docs_all_pages.py"],
    "blend-data.md": ["test_docs_blend_data.py"],
    "content-moderation.md": ["test_docs_content_moderation.py", "test_moderation.py"],
    "drug-discovery.md": ["test_docs_drug_discovery.py", "test_drug_discovery_service.py"],
    "evaluate.md": ["test_docs_evaluate.py"],
    "bring-an-environment.md": ["test_docs_pages.py"],
    "check-and-scaffold.md": ["test_docs_check_and_scaffold.py"],
    "feedback.md": ["test_serving_feedback.py", "test_docs_serving.py"],
    "episodes.md": ["test_docs_episodes.py"],
    "formats.md": ["test_formats_example.py"],
    "grounded-answers.md": ["test_docs_grounded_answers.py"],
    "guardrails.md": ["test_docs_guardrails.py"],
    "gymnasium-environments.md": ["test_docs_gymnasium.py", "test_baseline.py"],
    "guards.md": ["test_trainer_guards.py"],
    "gpus.md": ["test_core_platforms.py"],
    "learners.md": ["test_core_platforms.py"],
    "manufacturing-quality.md": ["test_manufacturing_quality.py"],
    "models.md": ["test_docs_models_and_phases.py"],
    "other-languages.md": ["test_docs_pages.py"],
    "phases.md": ["test_docs_models_and_phases.py"],
    "probe.md": ["test_probe.py"],
    "replay.md": ["test_docs_replay.py"],
    "resume.md": ["test_core_limits.py"],
    "run-tools.md": ["test_docs_run_tools.py"],
    "scale-services.md": ["test_docs_scale_services.py", "test_docs_all_pages.py"],
    "serving.md": ["test_docs_serving.py", "test_serving.py", "test_serving_deployment.py", "test_serving_canary.py"],
    "test-with-remote-services.md": ["test_docs_testing.py"],
    "tune.md": ["test_tune.py", "test_core_tune.py"],
    "weights.md": ["test_core_platforms.py"],
    "watch-a-run.md": ["test_docs_all_pages.py", "test_inspector_drawings.py", "test_tracking.py"],
    "write-a-reward.md": ["test_docs_write_a_reward.py"],
}
"""By page, the tests that run its blocks. Their names are looked for, so that a test that goes takes its page along."""

NOT_RUN = {
    "schedules.md": "one table, read here as a recipe; tests/integration/test_schedules.py runs what it says",
    "cluster.md": "needs a cluster; test_deploy_files.py and test_deploy_ray.py read its files, test_two_nodes.py has two nodes",
    "chat-templates.md": "one table, read here as a recipe",
    "install.md": "downloads packages; tests/integration/test_base_install.py installs it, test_core_services.py another interpreter",
    "run-a-verifier.md": "its servers and recipes are those of test_rpc_security.py, test_deploy.py and test_core_services.py",
    "security.md": "needs certificates of a host; test_rpc_security.py and test_serve_ingress.py make their own",
}


def blocks(page: Path, language: str | None = None) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if language is None or kind == language]


def named(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


def test_burnish_is_installed_by_its_path_and_asked_of_no_registry() -> None:
    rooms = ("core", "rpc", "rewards", "guardrails", "rollout", "envs", "trainer", "serving", "inspector", "examples")
    shown = [*PAGES, *(file for room in rooms for end in ("*.py", "*.jinja", "*.md") for file in (ROOT / room).rglob(end))]
    by_name = re.compile(r"""pip install [^\n`#]*(?<![\w./-])burnish\b""")
    assert {file.name: found[0] for file in shown if (found := by_name.search(file.read_text()))} == {}


def test_what_brings_torch_is_installed_from_where_its_pinned_build_is() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    bring = {"train"}
    for _ in extras:  # each may name another
        bring |= {name for name, needs in extras.items() if bring & set(re.findall(r"\w+", " ".join(n for n in needs if "burnish[" in n)))}
    assert any(need.startswith("torch==") for need in extras["train"])
    assert bring == {*WITH_TORCH, "cpu", "gpu"}, "make install brings the last two"
    lines = [line for page in PAGES for line in re.findall(r"pip install --constraint constraints/cpu\.txt [^\n`#]*", page.read_text())]
    told = {line: TORCH_INDEX in line for line in lines if bring & set(re.findall(r"\w+", line.partition("'.[")[2]))}
    assert told and all(told.values()), told
    assert TORCH_INDEX in (ROOT / "constraints" / "install.py").read_text()
    with pytest.raises(ValueError, match=rf"cpu\.txt --extra-index-url {TORCH_INDEX} '\.\[train\]'$"):
        require("this", ["no_such_module"], "train")


JUDGED_LAST = re.compile(r"(episode|given|request|item)\.(get)?messages(\[-1\]|\[len\(|\.at\(-1\)|\[.*\.length - 1\])", re.IGNORECASE)
"""The last message of an episode, which is the tool's where a limit cut it short."""


def test_nothing_that_is_shown_judges_the_last_message() -> None:
    assert JUDGED_LAST.search("episode.messages[-1].text") and JUDGED_LAST.search("request.messages.at(-1)")
    shown = [*PAGES, *(file for room in ("examples", "core/cli", "recipes") for file in (ROOT / room).rglob("*") if file.is_file())]
    texts = {file: file.read_text() for file in shown if file.suffix in (".md", ".py", ".js", ".mjs", ".ts", ".toml")}
    guilty = {str(file.relative_to(ROOT)): found[0] for file, text in texts.items() if (found := JUDGED_LAST.search(text))}
    guilty.pop("core/cli/data_replay.py", None)  # asks who spoke last, and judges nothing
    assert guilty == {}, "judge `answer`"


def test_the_readme_leads_to_every_page() -> None:
    linked = set(re.findall(r"\(docs/([\w-]+\.md)\)", PAGES[0].read_text()))
    assert linked == {page.name for page in PAGES[1:]}, "link the page in the README's tables"


def test_every_page_with_something_to_paste_is_run_or_says_why_not() -> None:
    with_blocks = {page.name for page in PAGES if blocks(page)}
    assert with_blocks <= RUN_BY.keys() | NOT_RUN.keys(), f"say in {__file__} which tests run the page's blocks, or why none does"
    assert not RUN_BY.keys() & NOT_RUN.keys()
    tests = {file.name for folder in ("unit", "integration") for file in (ROOT / "tests" / folder).glob("test_*.py")}
    assert {name for names in RUN_BY.values() for name in names} <= tests


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_and_toml_are_well_formed(page: Path) -> None:
    for text in blocks(page, "python"):
        ast.parse(text)
    for text in blocks(page, "toml"):
        tomllib.loads(text)


def command_lines(page: Path) -> Iterator[list[str]]:
    """Every `burnish …` of the page's blocks, as arguments."""
    for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        if kind in ("", "bash", "sh"):
            for line in text.replace("\\\n", " ").splitlines():
                found = re.match(r"(?:[A-Z_a-z]+=\S+ )*(?:\.venv/bin/)?burnish (.*)", line)
                if found:
                    yield shlex.split(found[1].replace("; \\", " "), comments=True)


@pytest.fixture(scope="module")
def root() -> Any:
    return typer.main.get_command(app)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_and_their_options_exist(page: Path, root: Any) -> None:
    for arguments in command_lines(page):
        group: Any = root
        context = group.make_context("burnish", list(arguments))
        while isinstance(group, TyperGroup):
            name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
            assert command is not None, arguments
            context = command.make_context(name, list(rest), parent=context)  # raises on an option or argument that it has not
            group = command


def between(page: str, mark: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text().partition(f"<!-- {mark} -->")[2].partition("<!-- end -->")[0]
    return re.findall(r"`([^`]+)`", text)


def test_the_page_on_serving_lists_what_the_endpoint_takes() -> None:
    assert between("serving.md", "fields") == sorted(CHAT_FIELDS)
    assert between("serving.md", "completion-fields") == sorted(COMPLETION_FIELDS)
    for path, method in ROUTES.items():
        assert f"| `{method} {path}` |" in (ROOT / "docs" / "serving.md").read_text()


def test_the_page_on_what_is_not_supported_says_what_the_code_says() -> None:
    assert between("not-supported.md", "architectures") == list(SUPPORTED_ARCHITECTURES)
    source = (ROOT / "trainer" / "learner" / "policy_model.py").read_text()  # read, not imported: it imports torch
    changes = re.search(r"^LOGIT_CHANGES = \((.*)\)$", source, re.MULTILINE)
    assert changes is not None
    assert between("not-supported.md", "logits") == [name.strip('"') for name in changes[1].split(", ")]


def test_the_recipes_of_pages_that_no_other_test_reads_are_recipes() -> None:
    (services,) = blocks(ROOT / "docs" / "scale-services.md", "toml")
    config = config_from_data({**ESSENTIAL, **tomllib.loads(services)})
    assert config.services["answer"].address == "ray:answer"
    inspection = next(text for text in blocks(ROOT / "README.md", "toml") if 'name = "inspection"' in text)
    assert config_from_data(tomllib.loads(inspection)).scorers[1].verifier == "service:verdict"
    (template,) = blocks(ROOT / "docs" / "chat-templates.md", "toml")
    assert config_from_data({**ESSENTIAL, **tomllib.loads(template)}).rollout.template_args == {"enable_thinking": False}


def test_two_lines_of_pandas_read_a_run(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "inspection-20260101-120000"
    run.mkdir(parents=True)
    rows = [
        {"phase": "sft", "step": 1, "time": 1.0, "loss": 2.0},
        {"phase": "rft", "step": 1, "time": 2.0, "reward_mean": 0.25, "success": 0.5, "learner/entropy": 1.5},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with EpisodeStore(run / "episodes", run.name) as store:
        tried = [Episode(Task("train-1", 1), sample, (), (), Reward(float(sample))) for sample in range(2)]
        store.put(Moment("rft", 1, "train", "sampled"), tried)
    metrics, stored, *_ = blocks(ROOT / "docs" / "watch-a-run.md", "python")
    said = [
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=55, check=True).stdout
        for code in (metrics, stored)
    ]
    assert said[0].split() == ["reward_mean", "success", "learner/entropy", "step", "1", "0.25", "0.5", "1.5"]
    assert said[1].split() == ["reward", "sampled_tokens", "step", "1", "0.5", "0.0"]
