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
from burnish.serving.admission import KeyHolder
from burnish.serving.deployment import Deployment
from burnish.serving.keys import read_keys

pytestmark = pytest.mark.unit

DOCS = Path(__file__).resolve().parents[2] / "docs"
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
