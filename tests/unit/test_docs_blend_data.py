"""docs/blend-data.md: its files, pasted, and its commands, run on them in the order of the page."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.recipe.load import config_from_data
from burnish.trainer.data.curated.catalog import find_catalog
from burnish.trainer.models.importing import ModelSize, new_model

pytestmark = pytest.mark.unit

PAGE = Path(__file__).resolve().parents[2] / "docs" / "blend-data.md"


def named_files() -> dict[str, str]:
    """The blocks that a line `name`… announces."""
    found = re.findall(r"^`([\w./]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return dict(found)


def commands() -> list[str]:
    return [text for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL) if not kind]


def paste(text: str) -> str:
    """What the lines of a block print, one command after the other in this process; `A || echo B` is as in a shell."""
    said = ""
    for line in text.splitlines():
        command, _, otherwise = line.partition(" || echo ")
        name, *arguments = shlex.split(command)
        if name == "sed":
            subprocess.run([name, *arguments], check=True, timeout=30)
            continue
        assert name == "burnish"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0 or otherwise, f"{line}: {result.output}"
        said += result.output + (shlex.split(otherwise)[0] if result.exit_code else "")
    return said


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's files, and a small model in the place of the one that it imports; it is the current one."""
    monkeypatch.chdir(tmp_path)
    for name, text in named_files().items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    size = ModelSize(hidden=32, layers=1, heads=1, intermediate=48, vocab_size=300, max_position=2048)
    new_model(["Can we ship 5 seals? There are 20."], tmp_path / "models" / "smollm2", size)
    return tmp_path


def test_the_page_leads_from_raw_files_to_a_plan(folder: Path) -> None:
    import_, look, clean, plan, run, catalog, replay = commands()
    assert import_.startswith("burnish models import") and run.startswith("burnish run") and replay.startswith("burnish data replay")
    said = paste(look)
    assert "3 rows: conversation" in said and "1 rows: answer" in said and "talks.jsonl:4: messages[0]: role 'clerk' is unknown" in said
    assert "3 rows say something new, 1 are exact duplicates" in said and "talks.jsonl:3 = talks.jsonl:2" in said
    assert "held_out.jsonl:1: 100% of its runs of 6 words are in own.jsonl:1" in said
    assert "some of it is asked in the evaluation" in said
    assert paste(clean).startswith("0 of 1 rows of the evaluation stand")
    said = paste(plan)
    assert re.search(r"own +70\.00% +70\.00% +2 +0 ", said) and "7.50%" in said
    assert "blended by samples: 70.00% own" in " ".join(said.split())
    assert '"role": "user"' in paste(catalog)
    (folder / "support" / "answers.jsonl").write_text((folder / "held_out.jsonl").read_text())
    (printed,) = re.findall(r", sha256 ([0-9a-f]{64})", paste("burnish data catalog support"))
    with pytest.raises(ValueError, match=rf'answers has no sha256; write sha256 = "{printed}" below \[sets\.answers\]'):
        find_catalog(str(folder / "support"))
    file = folder / "support" / "catalog.toml"
    file.write_text(re.sub(r'^# (sha256 = )"DIGEST".*$', rf'\1"{printed}"', file.read_text(), flags=re.MULTILINE))
    assert find_catalog(str(folder / "support")).sets["answers"].sha256 == printed


def test_its_recipes_are_recipes(folder: Path) -> None:
    essential = {"name": "page", "model": "nano", "environment": "burnish/Arithmetic-v0"}
    for name in ("pairs.jsonl", "general-pairs.jsonl"):
        (folder / name).write_text('{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}\n')
    for text in re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        table = tomllib.loads(text)
        if "sets" not in table:
            if "dpo" in table:
                table["dpo"] |= {"steps": 1, "data": "pairs.jsonl"}
            for rows in (table.get("sft", {}), table.get("rft", {}).get("replay", {})):
                assert "more.csv" not in rows.get("own", ""), "its row is in own.jsonl"
                if "own" in rows:
                    rows["own"] = [str(folder / "talks.jsonl")]
            config_from_data({**essential, **table})
