"""docs/guardrails.md: its files, pasted, and its commands, run on them in the order of the page."""

from __future__ import annotations

import json
import random
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from burnish.cli.guard import broken_promises
from burnish.cli.main import app
from burnish.envs.registry import load_plugin
from burnish.guardrails.detectors.pii import KINDS
from burnish.guardrails.guard import Guard
from burnish.guardrails.policy import Policy, load_policy, read_policy
from burnish.rewards.build import make_reward
from burnish.rewards.config import RewardConfig
from burnish.trainer.evaluation.guarded import read_prompts

pytestmark = pytest.mark.unit

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "guardrails.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files; it is the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, text in re.findall(r"^`([\w./]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text)
    return tmp_path


def said_by(line: str, exit_code: int) -> str:
    """What a line of a block prints."""
    name, *arguments = shlex.split(line, comments=True)
    assert name == "burnish"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == exit_code, f"{line}: {result.output}"
    return result.output


def test_the_commands_say_what_the_page_says(folder: Path) -> None:
    _, check, *_ = [text for kind, text in BLOCKS if not kind]
    own, mail, call = map(said_by, check.splitlines(), (0, 1, 1))
    assert "it decides on its own examples as they say" in own
    id = load_policy("bank.toml").id
    (shown,) = [text for kind, text in BLOCKS if kind == "text" and text.startswith("redact by")]
    assert mail.strip() == shown.replace("bank-v1@DIGEST", id).strip()
    assert call == f"escalate by {id}: money moves by a person's hand\n"


def test_data_and_prompts_are_judged_as_the_page_says(folder: Path) -> None:
    check, evaluate = [text.strip() for kind, text in BLOCKS if not kind][2:4]
    assert "2 unfit, all in rejects.jsonl" in said_by(check, 1)
    assert [json.loads(line)["line"] for line in Path("rejects.jsonl").read_text().splitlines()] == [2, 4]
    talks = Path("talks.jsonl").read_text().splitlines()
    assert list(map(json.loads, Path("kept.jsonl").read_text().splitlines())) == [json.loads(talks[0]), json.loads(talks[2])]
    heads, over_all = said_by(evaluate, 0).splitlines()[1:3]
    assert heads.split()[:2] == ["of", "recall"] and over_all.startswith("all")
    assert re.findall(r"([\d.]+%) \[", over_all) == ["100.0%", "0.0%", "100.0%", "0.0%", "100.0%"]


def test_the_prompts_that_a_model_is_asked_are_those_of_the_page_without_answers(folder: Path) -> None:
    asked, answered = read_prompts("asked.jsonl"), read_prompts("prompts.jsonl")
    assert not any(one.answered for one in asked) and [one.prompt for one in asked] == [one.prompt for one in answered]


def test_the_reward_of_the_page_can_be_had(folder: Path) -> None:
    (entry,) = [text for kind, text in BLOCKS if kind == "toml" and "burnish/guardrail-v1" in text]
    (config,) = tomllib.loads(entry)["rewards"]
    assert make_reward(RewardConfig.model_validate(config)).name == "guardrail"


def test_the_detector_of_the_page_works_in_its_policy(folder: Path) -> None:
    load_plugin("shouting.py")
    (entry,) = [text for kind, text in BLOCKS if kind == "toml" and "my-team/shouting-v1" in text]
    policy = read_policy(tomllib.loads((folder / "bank.toml").read_text() + entry))
    assert [one.rule for one in Guard(policy).check("WHY DOES NOBODY ANSWER ME", "input").findings] == ["loud"]


def test_the_classifier_of_the_page_is_trained_and_named(folder: Path) -> None:
    (train,) = [text.strip() for kind, text in BLOCKS if not kind and "guard train" in text]
    (said,) = [text for kind, text in BLOCKS if kind == "jsonl" and "ledger" in text]
    attack, harmless = map(json.loads, said.splitlines())
    chance = random.Random(0)
    rows = [
        dict(row, text=" ".join(chance.sample(words := row["text"].split(), len(words)))) for _ in range(300) for row in (attack, harmless)
    ]
    Path("labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    printed = said_by(train, 0)
    (entry,) = [text for kind, text in BLOCKS if kind == "toml" and "burnish/classifier-v1" in text]
    shown, *_ = re.findall(r'^args = .*"([0-9a-f]{64})"', printed, re.MULTILINE)
    assert printed.endswith(entry.replace("weapons", "CATEGORY").replace("DIGEST", shown))
    Path("with.toml").write_text((folder / "bank.toml").read_text() + entry.replace("DIGEST", shown))
    guard = Guard(load_policy("with.toml"))
    assert [one.rule for one in guard.check(attack["text"], "input").findings] == ["trained"]
    assert guard.check(harmless["text"], "input").action == "allow"


def test_the_page_lists_every_table_and_kind() -> None:
    tables = set(re.findall(r"^\| `\[+(\w+)(?:\.NAME)?\]+`", PAGE, re.MULTILINE))
    assert tables == set(Policy.model_fields) - {"name", "version", "messages"}
    (kinds,) = re.findall(r"^Kinds of information: (.*?)\.\n", PAGE, re.MULTILINE)
    assert re.findall(r"`(\w+)`", kinds) == list(KINDS)


def test_the_example_policy_holds_to_its_own_examples() -> None:
    policy = load_policy(Path(__file__).resolve().parents[2] / "examples" / "guardrails" / "assistant.toml")
    assert len(policy.categories) == 11 and "a policy of eleven categories" in PAGE
    assert list(broken_promises(Guard(policy))) == []
