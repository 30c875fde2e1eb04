"""The pages "models" and "phases": their commands run on a small model, their recipe is read and planned, their tables are the code's."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_models_registry import burnish, trained

from burnish.recipe.load import config_from_data
from burnish.recipe.plan import make_plan
from burnish.recipe.resolve import resolve
from burnish.trainer.models.checkpoints import save_checkpoint
from burnish.trainer.phases.dpo import DPOConfig
from burnish.trainer.phases.registry import KINDS
from burnish.trainer.phases.transitions import transition_table

pytestmark = pytest.mark.unit

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def test_docs_the_table_of_transitions_is_the_codes() -> None:
    text = (DOCS / "models.md").read_text()
    assert text.partition("<!-- transitions -->\n")[2].partition("\n<!-- end -->")[0] == transition_table()


def test_docs_the_page_on_phases_lists_every_kind() -> None:
    table = (DOCS / "phases.md").read_text().partition("| kind |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(KINDS)


def test_docs_the_commands_of_the_page_on_models_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, in their order, but for the model of the hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("The bore of part 7 measures 0.3 mm.\n\nThe limit is 0.05 mm.\n" * 9)
    base, made = tmp_path / "models" / "nano", False
    for line in blocks("models.md", "")[0].splitlines():
        arguments = line.partition("#")[0].split()[1:]
        if "HuggingFaceTB/SmolLM2-135M-Instruct" in arguments:
            continue
        said = burnish(*arguments)
        if not made:
            made = True
            for name in ("inspection-20260101-120000", "one", "two"):
                save_checkpoint(
                    tmp_path / "runs" / name,
                    "sft",
                    3,
                    write_model=partial(trained, base, shift=0.01 * len(name)),
                    write_trainer_state=lambda folder: folder.mkdir(),
                )
        assert said.strip()
    assert (tmp_path / "out" / "merged.gguf").read_bytes()[:4] == b"GGUF"
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["nano"]


def test_docs_the_recipe_of_the_page_on_phases_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("what is two plus two? it is four.\n\nno, it is not.\n" * 9)
    burnish("models", "new", "nano", "--text", "notes.txt")
    talk = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
    files: dict[str, list[dict[str, Any]]] = {
        "handbook.jsonl": [{"text": "two plus two"}, talk],
        "talks.jsonl": [talk],
        "talks-held-out.jsonl": [talk],
        "pairs.jsonl": [{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}],
    }
    for name, rows in files.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe, between, pairs = blocks("phases.md", "toml")
    assert DPOConfig(**tomllib.loads(pairs)["dpo"]).min_gap == 0.5
    what = {"name": "page", "model": "nano", "environment": "burnish/Arithmetic-v0", "platform": "cpu"}
    plan = make_plan(resolve(config_from_data({**what, **tomllib.loads(recipe), **tomllib.loads(between)})))
    assert [phase.name for phase in plan.phases] == ["midtrain", "manners", "dpo", "rft", "polish", "held out", "evaluation"]
    assert plan.phases[5].work == "6 times 50 held-out tasks, sampled"
    assert "until 2,000,000 tokens at most" in plan.phases[0].work and "until 90 minutes at most" in plan.phases[3].work
    assert plan.phases[3].seconds is not None and plan.phases[3].seconds <= 90 * 60
    assert any(line.startswith("phase midtrain on a model of stage none: few documents") for line in plan.warnings)
    shutil.rmtree(tmp_path / "models")
