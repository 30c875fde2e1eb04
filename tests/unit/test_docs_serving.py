"""docs/serving.md and docs/feedback.md, which go on in the same files: their commands, one after the other, on what the pages say."""

from __future__ import annotations

import re
import shlex
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.recipe.load import config_from_data, load_config
from burnish.serving.admission import KeyHolder
from burnish.serving.canary.judge import CanaryJudge, JudgedAnswer
from burnish.serving.deployment import Deployment
from burnish.serving.keys import read_keys

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SERVING, FEEDBACK = ((DOCS / name).read_text() for name in ("serving.md", "feedback.md"))
KEYS = re.compile(r"burnish (keys [^\n`]*)")


def deployed() -> Deployment:
    """`inspector.toml`."""
    (text,) = re.findall(r"`inspector.toml`:\n\n```toml\n(.*?)^```$", SERVING, re.MULTILINE | re.DOTALL)
    return Deployment.model_validate(tomllib.loads(text))


def test_the_keys_of_the_pages_let_in_where_the_pages_use_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in (*KEYS.findall(SERVING), *KEYS.findall(FEEDBACK)):
        done = CliRunner().invoke(app, shlex.split(line))
        assert done.exit_code == 0, f"{line}: {done.output}"
    keys, now = read_keys(tmp_path / "keys.toml"), datetime.now(UTC)
    standing = {name: KeyHolder(name, key) for name, key in keys.items() if not key.ended(now)}
    (model,) = {name.partition(":")[0] for name in deployed().served()}
    askers = {name for name, holder in standing.items() if holder.may_ask(model) and "chat" in keys[name].routes}
    assert askers == {"inspection-team", "bench-team"} and "feedback" in keys["bench-team"].routes
    assert standing["search-team"].may_ask("inspection-rft"), "what `burnish serve` of the page calls its model"


def test_what_is_shipped_joins_the_versions_of_the_page() -> None:
    (promote,) = re.findall(r"^burnish (promote .*)", SERVING, re.MULTILINE)
    said = shlex.split(promote)
    model, version = (said[said.index(option) + 1] for option in ("--model", "--version"))
    served = deployed().served()
    assert f"{model}:{version}" not in served and f"{model}:v1" in served


def test_the_recipes_that_are_said_to_measure_what_the_gates_ask_for_do() -> None:
    _, _, page = SERVING.partition("## Ship what was measured")
    shown = tomllib.loads(re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[0])
    configs = [config_from_data({"name": "page", "model": "nano", "environment": "burnish/Arithmetic-v0", **shown})]
    silent, measuring = (
        re.findall(r"([\w-]+\.toml)", line) for line in (lines(page, "unless told otherwise"), lines(page, "burnish's own"))
    )
    configs += [load_config(ROOT / "recipes" / name) for name in measuring]
    assert len(configs) == 3 and all(config.retention is not None and config.evaluation.before for config in configs)
    assert len(silent) == 2
    for name in silent:
        config = load_config(ROOT / "recipes" / name)
        assert config.retention is None and not config.evaluation.before


async def test_the_judge_of_the_page_judges(tmp_path: Path) -> None:
    _, _, page = SERVING.partition("## A canary that is judged")
    table = tomllib.loads(re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[0])
    judge = Deployment.model_validate(table).served()["inspector:v2"].judge
    assert judge is not None
    (code,) = re.findall(r"`right\.py`[^\n]*:\n\n```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "right.py").write_text(code)
    scorer = CanaryJudge(judge.model_copy(update={"plugins": (str(tmp_path / "right.py"),)}))
    asked = [{"role": "user", "content": "Inspect part 7: flange."}]
    answers = ("verdict: pass; reason: within", "Yes.")
    said = [await scorer.score(JudgedAnswer("chatcmpl-1", asked, {"role": "assistant", "content": text})) for text in answers]
    assert said == [(1.0, ""), (0.0, "")]


def lines(page: str, words: str) -> str:
    """The line of a page that has these words."""
    (found,) = [line for line in page.splitlines() if words in line]
    return found
