"""A rehearsal in processes of its own: the dry run's, and those of the services that it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.paper_model import write_paper_model

from burnish.recipe.load import config_from_data
from burnish.recipe.rehearsal import rehearse_apart
from burnish.recipe.resolve import ResolvedRun, resolve
from burnish.session import try_parts

pytestmark = pytest.mark.integration

JUDGE = """
from burnish import verifier

@verifier("rehearsal-test/right-v1")
def right(episode):
    return episode.answer.strip() == "yes"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_paper_model(tmp_path / "models" / "tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(**more: Any) -> ResolvedRun:
    limits = {"rollout": {"max_tokens_per_turn": 40}, "engine": {"max_context": 256}}
    given = {"name": "r", "model": "tiny", "environment": "burnish/Arithmetic-v0", "multi_turn_rollouts": False}
    return resolve(config_from_data({**given, **limits, **more}))


def test_a_folder_called_burnish_is_not_taken_for_this_one_by_the_process_of_a_rehearsal(folder: Path) -> None:
    other = folder / "burnish" / "rollout"
    other.mkdir(parents=True)
    (other / "types.py").write_text("raise RuntimeError('somebody else')")
    assert rehearse_apart(recipe(), {}).turns == 1


def test_a_plugin_imports_what_lies_where_one_starts(folder: Path) -> None:
    (folder / "neighbour.py").touch()
    (folder / "plugin.py").write_text("import neighbour")
    assert rehearse_apart(recipe(plugins=["plugin.py"]), {}).turns == 1


def test_the_dry_run_starts_services_and_loads_their_functions(folder: Path) -> None:
    Path("judge.py").write_text(JUDGE)
    said = list[str]()
    service = {"success": "v", "rewards": [{"verifier": "service:v"}]}
    try_parts(recipe(**service, services={"v": {"verifier": "judge.py:right"}}), said.append)
    assert len(said) == 1 and said[0].startswith("rehearsed task ") and "v " in said[0], said
    with pytest.raises(ValueError, match=r"did not start(?s:.*)there is no 'rihgt'; did you mean 'right'"):
        try_parts(recipe(**service, services={"v": {"verifier": "judge.py:rihgt"}}))
